"""Problems drawn from a seed: shapes, options, layouts, distributions, lengths. The fuzzer and the tests share them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.reference import narrowed
from drvtopk.spec import DEFAULT_TUNING, DTYPES, NANS, ORDERS, PLAIN, ROUTES, TIE_BREAKS, Options, Tuning
from tests.inputs import INPUTS, make

Array = npt.NDArray[Any]

SMALL = Tuning(short_max=300, radix_threshold=600, sms_to_share=1, min_chunk=64, max_candidates=160, samples=128)
"""Rows of 1500 elements take every path."""
KS = (1, 2, 7, 16, 64, 100, 300, 500, 511, 512, 513, 1000, 1024, 2028, 2048, 2051, 3000, 4096)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is compiled: cases share kinds, since each costs a second of a compiler."""

    route: str
    k: int
    options: Options
    tuning: Tuning
    vec: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch."""

    kind: Kind
    logits: Array
    lengths: Array | None
    row_starts: Array | None
    page_table: Array | None
    page_size: int
    out_stride: int
    values_stride: int
    max_seq_len: int | None
    waits: str
    sm_budget: int | None
    chunk: int | None
    inputs: tuple[str, ...]

    def __str__(self) -> str:
        rows, width = self.logits.shape
        kind = self.kind
        return (
            f"{rows} x {width}, k {kind.k}, {kind.route}, vec {kind.vec}, {kind.options.suffix or 'plain'}, "
            f"chunk {self.chunk}, hint {self.max_seq_len}, budget {self.sm_budget}, waits {self.waits}, "
            f"small tuning {kind.tuning == SMALL}, page size {self.page_size}, {', '.join(sorted(set(self.inputs)))}"
        )


def draw_options(random: np.random.Generator) -> Options:
    """Plain ones, a few of them, or many at once."""
    share = random.choice([0.0, 0.2, 0.6])
    options = PLAIN
    choices: tuple[tuple[str, tuple[str | bool, ...]], ...] = (
        ("dtype", tuple(DTYPES)),
        ("index_dtype", ("int64",)),
        ("values", (True,)),
        ("row_starts", (True,)),
        ("order", ORDERS[1:]),
        ("tie_break", TIE_BREAKS[1:]),
        ("nan", NANS),
        ("page_table", (True,)),
    )
    for name, allowed in choices:
        if random.random() < share:
            options = replace(options, **{name: allowed[int(random.integers(len(allowed)))]})  # type: ignore[arg-type]
    return options


def draw_kind(seed: int, number: int, *, small: bool = False) -> Kind:
    """The `number`-th kind of this seed; `small`: only such as short rows bring to every path."""
    random = np.random.default_rng([seed, 1, number])
    options = draw_options(random)
    return Kind(
        route=str(random.choice([*ROUTES, "auto"])),
        k=int(random.choice([k for k in KS if k <= 300] if small else KS)),
        options=options,
        tuning=SMALL if small or random.random() < 0.5 else DEFAULT_TUNING,
        vec=int(random.choice(options.vec_sizes)),
    )


def _one_a_row(random: np.random.Generator, rows: int, width: int, k: int, tuning: Tuning) -> Array:
    """Lengths around every limit, or anywhere, in or out of range."""
    limits = np.array(
        [-(2**31), -1, 0, 1, k - 1, k, k + 1, width - 1, width, width + 1, 2**31 - 1]
        + [n + d for n in (tuning.short_max, tuning.radix_threshold, 2 * tuning.samples) for d in (0, 1)]
    )
    anywhere = random.integers(-2, width + 3, rows)
    return np.where(random.random(rows) < 0.5, random.choice(limits, rows), anywhere).astype(np.int32)


def draw(seed: int, number: int, kinds: int, *, small: bool = False) -> Case:
    """Case `number` of a seed, of one of the first `kinds` kinds."""
    random = np.random.default_rng([seed, 2, number])
    kind = draw_kind(seed, int(random.integers(kinds)), small=small)
    options, k = kind.options, kind.k
    if small:
        rows, width = int(random.integers(1, 9)), int(random.choice([0, k, k + 1, 299, 600, 601, 1500, 1501]))
    else:
        elements = int(np.exp(random.uniform(np.log(100), np.log(1.5e6))))
        longest = 1 << 19 if kind.tuning == DEFAULT_TUNING else 12_000
        width = int(min(np.exp(random.uniform(np.log(1), np.log(longest))), elements))
        width = int(random.choice([width, width, width, k, k + 1, k - 1]))
        rows = max(1, min(elements // max(width, 1), 2500))
    names = tuple(str(name) for name in random.choice(list(INPUTS), min(rows, 5)))
    logits = np.concatenate([make(name, 1, width, seed=int(random.integers(2**31))) for name in names])
    if rows > len(logits):  # more rows are these again, each from another place on
        logits = np.stack([np.roll(logits[row % len(logits)], row * 7) for row in range(rows)])
    starts = table = None
    page_size = 1
    if options.row_starts:
        near = random.integers(-2, 20, rows)
        anywhere = _one_a_row(random, rows, width, k, kind.tuning)
        starts = np.where(random.random(rows) < 0.5, near, anywhere).astype(np.int32)
    if options.page_table:
        page_size = int(random.choice([1, 2, 7, 64, 4096]))
        pages = -(-width // page_size)
        sharing = int(random.choice([n for n in (1, 2, 3, rows) if rows % n == 0]))
        table = np.stack([random.permutation(2 * pages + 1)[:pages] for _ in range(rows // sharing)]).astype(np.int32)
    least = max(width // 60, 64)
    group_chunk = least + int(random.integers(width + 1)) if random.random() < 0.3 else None
    return Case(
        kind=kind,
        logits=narrowed(logits, options.dtype),
        lengths=None if random.random() < 0.25 else _one_a_row(random, rows, width, k, kind.tuning),
        row_starts=starts,
        page_table=table,
        page_size=page_size,
        out_stride=k + int(random.choice([0, 0, 1, 100])),
        values_stride=k + int(random.choice([0, 0, 1, 100])),
        max_seq_len=None if random.random() < 0.7 else int(random.integers(0, width + 1)),
        waits="never" if kind.route == "auto" and random.random() < 0.15 else "allowed",
        sm_budget=None if random.random() < 0.8 else int(random.integers(1, 140)),
        chunk=group_chunk if kind.route == "persistent" else None,
        inputs=names,
    )
