"""What is timed: cells, each a problem with one input, and the named sets of them that the benchmark knows."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt

from drvtopk.choice import CHOICES, Choice
from drvtopk.plan import Problem
from drvtopk.spec import CLUSTERS, DTYPES, ROUTES, Options
from drvtopk.testing.inputs import INPUTS
from tools import baselines

Lengths = npt.NDArray[np.int32]

BASE_ROWS = 64  # that differ; beyond them the same ones again, at other addresses
REPLAYS, FEWER_REPLAYS = 51, 15

FULL_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
FULL_LENGTHS = tuple(1 << bits for bits in range(12, 21))
FULL_KS = (512, 1024, 2048)
QUICK_ROWS, QUICK_LENGTHS = (1, 32, 256), (4096, 65536, 262144)
BETWEEN_ROWS, BETWEEN_LENGTHS = (6, 20, 80), (5000, 30000, 90000)
BETWEEN_LAYOUTS = (  # rows, length, stride, base offset in elements
    (16, 4096, 4097, 0),
    (16, 4096, 4096, 1),
    (16, 4096, 4096, 2),
    (16, 131072, 131073, 0),
    (16, 131072, 131072, 1),
    (16, 131072, 131072, 2),
)
ADVERSARIAL_SHAPES = ((64, 131072), (1, 131072), (256, 8192))
PREFILL_ROWS, PREFILL_LENGTHS, PREFILL_KS = (512, 1024, 2048, 4096), (4096, 8192, 32768, 131072), (512, 2048)
BF16_ROWS, BF16_LENGTHS = (1, 4, 16, 64, 256), (4096, 16384, 65536, 262144, 1048576)
TUNE_LENGTHS = (16384, 32768, 65536, 131072, 262144, 1048576)
TUNE_CHOICES = (Choice("filtered"), *(Choice("clustered", size) for size in CLUSTERS), Choice("persistent"))
TUNE_BLOCKS = 528  # of a launch: four on each of 132 SMs; sharing rows beyond that has never paid
TUNE_PERSISTENT = (4, 262144)  # at most so many rows and at least this length, or a group's barriers never pay
ONE_K = (1024,)


def _uniform(random: np.random.Generator, rows: int, width: int) -> Lengths:
    return random.integers(1, width + 1, rows).astype(np.int32)


def _log_uniform(random: np.random.Generator, rows: int, width: int) -> Lengths:
    return np.maximum(np.exp(random.uniform(0, np.log(width), rows)), 1).astype(np.int32)


def _short(random: np.random.Generator, rows: int, width: int) -> Lengths:
    return random.integers(2000, 4001, rows).astype(np.int32)


RAGGED: dict[str, tuple[int, int, Callable[[np.random.Generator, int, int], Lengths]]] = {
    "uniform": (64, 131072, _uniform),
    "log_uniform": (16, 262144, _log_uniform),
    "2000_to_4000": (64, 131072, _short),
}
"""Sets of lengths by name: rows, width, how they are drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One problem with one input, and the routes it is timed by."""

    k: int
    rows: int
    len: int
    """The width of the rows, which is every row's length unless `lengths` names a ragged set."""
    stride: int
    offset: int = 0
    """Of the base address from the widest load's alignment, in elements."""
    dtype: str = "float32"
    input: str = "normal"
    lengths: str = "full"
    routes: tuple[str, ...] = ("auto",)
    replays: int = REPLAYS

    @property
    def item(self) -> int:
        """Bytes of an element."""
        return DTYPES[self.dtype]

    @property
    def row_lengths(self) -> Lengths | None:
        """The rows' lengths, the same ones each time; None: the width."""
        if self.lengths == "full":
            return None
        rows, width, draw = RAGGED[self.lengths]
        assert (rows, width) == (self.rows, self.len)
        return draw(np.random.default_rng([*self.lengths.encode()]), rows, width)

    @property
    def named_bytes(self) -> int:
        """Bytes that the lengths name: what has to be read at least once."""
        lengths = self.row_lengths
        return self.item * (self.rows * self.len if lengths is None else int(lengths.sum(dtype=np.int64)))

    def problem(self, *, pdl: bool = False) -> Problem:
        options = Options(dtype=self.dtype)
        more = {"pdl": True} if pdl else {}
        return Problem(
            rows=self.rows,
            width=self.len,
            k=self.k,
            stride=self.stride,
            offset=self.offset % 8,
            options=options,
            **more,  # type: ignore[arg-type]
        )

    def __str__(self) -> str:
        layout = "" if self.stride == self.len and not self.offset else f", stride {self.stride}, offset {self.offset}"
        kind = "" if self.dtype == "float32" else f", {self.dtype}"
        ragged = "" if self.lengths == "full" else f", lengths {self.lengths}"
        return f"{self.rows} x {self.len}{layout}, k {self.k}, {self.input}{kind}{ragged}"


def split_route(route: str) -> tuple[str, int | None]:
    """The route and the group that the planner is asked for: "clustered:8" names both, "auto" and "clustered" leave the
    group to it. Raises InvalidArgument."""
    if route in ("auto", "clustered"):
        return route, None
    choice = Choice.parse(route)
    return choice.route, choice.cluster if choice.cluster > 1 else None


def known_routes() -> tuple[str, ...]:
    return ("auto", *ROUTES, *(str(choice) for choice in CHOICES if choice.cluster > 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What replaces a set's own: None keeps it."""

    rows: Sequence[int] | None = None
    lengths: Sequence[int] | None = None
    ks: Sequence[int] | None = None
    inputs: Sequence[str] | None = None
    routes: tuple[str, ...] | None = None


def _plain(rows: int, length: int, k: int) -> Cell:
    return Cell(k=k, rows=rows, len=length, stride=length)


def _grid(rows: Sequence[int], lengths: Sequence[int], ks: Sequence[int], asked: Asked) -> list[Cell]:
    shapes = product(asked.rows or rows, asked.lengths or lengths, asked.ks or ks)
    return [_plain(*shape) for shape in shapes]


def _full(asked: Asked) -> list[Cell]:
    return _grid(FULL_ROWS, FULL_LENGTHS, FULL_KS, asked)


def _quick(asked: Asked) -> list[Cell]:
    return _grid(QUICK_ROWS, QUICK_LENGTHS, ONE_K, asked)


def _between(asked: Asked) -> list[Cell]:
    ks = asked.ks or ONE_K
    cells = [_plain(*shape) for shape in product(BETWEEN_ROWS, BETWEEN_LENGTHS, ks)]
    for (rows, length, stride, offset), k in product(BETWEEN_LAYOUTS, ks):
        cells.append(Cell(k=k, rows=rows, len=length, stride=stride, offset=offset))
    return cells


def _adversarial(asked: Asked) -> list[Cell]:
    cells = [_plain(*shape, k) for shape, k in product(ADVERSARIAL_SHAPES, asked.ks or ONE_K)]
    return [dataclasses.replace(cell, input=name) for cell in cells for name in INPUTS]


def _adversarial_peers(asked: Asked) -> list[Cell]:
    """Where the peers were given adversarial inputs too."""
    return [
        dataclasses.replace(_plain(rows, length, k), input=name)
        for name, k, rows, length in baselines.adversarial()
        if k in (asked.ks or FULL_KS)
    ]


def _ragged(asked: Asked) -> list[Cell]:
    return [
        dataclasses.replace(_plain(rows, width, k), lengths=name)
        for (name, (rows, width, _)), k in product(RAGGED.items(), asked.ks or ONE_K)
    ]


def _prefill(asked: Asked) -> list[Cell]:
    return _grid(PREFILL_ROWS, PREFILL_LENGTHS, PREFILL_KS, asked)


def _bf16(asked: Asked) -> list[Cell]:
    cells = _grid(BF16_ROWS, BF16_LENGTHS, ONE_K, asked)
    cells = [dataclasses.replace(cell, dtype="bfloat16") for cell in cells]
    return [cell for cell in cells if baselines.times_of(dataclasses.asdict(cell))]


def _tune(asked: Asked) -> list[Cell]:
    cells = []
    for cell in _grid(FULL_ROWS, TUNE_LENGTHS, ONE_K, asked):
        routes = tuple(str(choice) for choice in TUNE_CHOICES if _sensible(choice, cell))
        cells.append(dataclasses.replace(cell, routes=routes, replays=FEWER_REPLAYS))
    return cells


def _sensible(choice: Choice, cell: Cell) -> bool:
    if choice.route == "persistent":
        return cell.rows <= TUNE_PERSISTENT[0] and cell.len >= TUNE_PERSISTENT[1]
    return choice.route == "filtered" or cell.rows * choice.cluster <= TUNE_BLOCKS


GRIDS: dict[str, Callable[[Asked], list[Cell]]] = {
    "full": _full,
    "quick": _quick,
    "between": _between,
    "adversarial": _adversarial,
    "adversarial_peers": _adversarial_peers,
    "ragged": _ragged,
    "prefill": _prefill,
    "bf16": _bf16,
    "tune": _tune,
}


def cells_of(grids: Iterable[str], asked: Asked) -> list[Cell]:
    """The cells of these sets, each once, in the order that costs the least: what shares data stands together."""
    found: dict[Cell, None] = {}
    for name in grids:
        for cell in GRIDS[name](asked):
            if cell.rows not in (asked.rows or [cell.rows]) or cell.len not in (asked.lengths or [cell.len]):
                continue
            inputs = [cell.input] if asked.inputs is None else asked.inputs
            for kind in inputs:
                chosen = dataclasses.replace(cell, input=kind, routes=asked.routes or cell.routes)
                found.setdefault(chosen)
    return sorted(found, key=lambda c: (c.dtype, c.len, c.input, c.lengths, c.stride, c.offset, c.rows, c.k))
