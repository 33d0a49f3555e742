"""What other libraries took at the same cells (results/peers.json says how and when), and speed-ups over them."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PEERS = Path(__file__).parent / "results" / "peers.json"

# Which input of drvtopk/testing/inputs.py an adversarial input of the peers is; the others have none.
SAME_INPUT = {
    "ascending": "ascending",
    "descending": "descending",
    "all_equal": "equal",
    "bfloat16": "bf16",
    "one_outlier": "outlier",
}


class Peer(NamedTuple):
    """One peer's time at a cell."""

    name: str
    us: float


class Yard(NamedTuple):
    """The best at a cell; `exact` is None where every peer there is wrong for some input."""

    best: Peer
    exact: Peer | None


@functools.cache
def data() -> Mapping[str, Any]:
    """The file as it is."""
    read: Mapping[str, Any] = json.loads(PEERS.read_text())
    return read


@functools.cache
def _cells() -> tuple[dict[tuple[Any, ...], dict[str, float]], dict[tuple[Any, ...], list[str]]]:
    """(times, peers that were wrong there) by input (None: the one of the grid), k, rows, length."""
    times: dict[tuple[Any, ...], dict[str, float]] = {}
    wrong: dict[tuple[Any, ...], list[str]] = {}
    names = data()["columns"][3:]
    for k, rows, length, *us in data()["cells"]:
        times[None, k, rows, length] = {n: t for n, t in zip(names, us, strict=True) if t is not None}
    names = data()["adversarial_columns"][5:]
    for kind, k, rows, length, faulty, *us in data()["adversarial"]:
        times[kind, k, rows, length] = {n: t for n, t in zip(names, us, strict=True) if t is not None}
        wrong[kind, k, rows, length] = faulty
    return times, wrong


def adversarial() -> list[tuple[str, int, int, int]]:
    """(input, k, rows, length) of what the peers were given beside normal values, where we have that input."""
    ours = {theirs: name for name, theirs in SAME_INPUT.items()}
    return [(ours[kind], k, rows, length) for kind, k, rows, length, *_ in data()["adversarial"] if kind in ours]


def _key(cell: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Where the peers may have this cell: none of them was given windows, lengths or strides of other kinds."""
    plain = cell["stride"] == cell["len"] and not cell["offset"] and cell["lengths"] == "full"
    kind = None if cell["input"] == "normal" else SAME_INPUT.get(cell["input"], "")
    return (kind, cell["k"], cell["rows"], cell["len"]) if plain else None


def times_of(cell: Mapping[str, Any], *, pdl: bool = False) -> dict[str, float]:
    """The peers' times at a cell (its fields by name), of those that do the same: its dtype, PDL only beside PDL."""
    found = _cells()[0].get(_key(cell) or (), {})
    if cell["dtype"] == "float32":
        return {n: t for n, t in found.items() if not n.endswith("_bf16") and (pdl or not n.endswith("_pdl"))}
    return {n: t for n, t in found.items() if cell["dtype"] == "bfloat16" and n.endswith("_bf16")}


def at(cell: Mapping[str, Any], *, pdl: bool = False) -> Yard | None:
    """The best peer and the best exact one at a cell; None where no peer was measured."""
    times = times_of(cell, pdl=pdl)
    if not times:
        return None
    inexact = {*data()["wrong_for_some_input"], *_cells()[1].get(_key(cell) or (), [])}
    exact = {name: us for name, us in times.items() if name not in inexact}
    return Yard(_best(times), _best(exact) if exact else None)


def _best(times: Mapping[str, float]) -> Peer:
    name = min(times, key=lambda n: times[n])
    return Peer(name, times[name])


def comparable(gpu: str) -> bool:
    """Whether the peers ran on such a GPU."""
    return bool(gpu == data()["gpu"])


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


class Summary(NamedTuple):
    """Over many cells: geometric means, and where we are behind."""

    cells: int
    over_best: float
    over_exact: float
    over_floor: float
    """Of all cells given, also those that no peer has."""
    slower: int
    """Cells whose best peer is faster."""
    compared: int
    """Cells that a peer has."""
    worst: list[tuple[float, Mapping[str, Any], Yard]]
    """The ten cells with the smallest speed-up over the best peer, the smallest first."""


def summary(rows: Iterable[Mapping[str, Any]]) -> Summary | None:
    """None without rows. Each row is a cell with `us`, `floor_us` and `pdl`."""
    rows = list(rows)
    if not rows:
        return None
    compared = [(row, yard) for row in rows if (yard := at(row, pdl=row["pdl"])) is not None]
    ranked = sorted(((y.best.us / r["us"], r, y) for r, y in compared), key=lambda entry: entry[0])
    exact = [y.exact.us / r["us"] for r, y in compared if y.exact is not None]
    return Summary(
        cells=len(rows),
        over_best=geometric_mean([s for s, _, _ in ranked]) if ranked else math.nan,
        over_exact=geometric_mean(exact) if exact else math.nan,
        over_floor=geometric_mean([r["us"] / r["floor_us"] for r in rows]),
        slower=sum(s < 1 for s, _, _ in ranked),
        compared=len(compared),
        worst=ranked[:10],
    )
