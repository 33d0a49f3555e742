"""Problems drawn from a seed: shapes, options, layouts, distributions, lengths. The fuzzer and the tests share them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.planned import Plan
from drvtopk.problem import Problem
from drvtopk.spec import (
    CLUSTERS,
    DEFAULT_TUNING,
    DTYPES,
    MAX_COUNTED,
    NANS,
    ORDERS,
    PLAIN,
    ROUTES,
    TIE_BREAKS,
    Options,
    Tuning,
    align,
)
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import find_errors, narrowed, row_windows, select

Array = npt.NDArray[Any]

SMALL = Tuning(
    short_max=300,
    radix_threshold=600,
    sms_to_share=1,
    cluster_threshold=400,
    min_chunk=64,
    max_candidates=160,
    samples=128,
    cached_bytes=20_000,
)
"""Rows of 1500 elements take every path."""
KS = (1, 2, 7, 16, 64, 100, 300, 500, 511, 512, 513, 1000, 1024, 2028, 2048, 2051, 3000, 4096)
CHOICES: dict[str, tuple[Any, ...]] = {
    "dtype": tuple(DTYPES),
    "index_dtype": ("int32", "int64"),
    "values": (False, True),
    "row_starts": (False, True),
    "order": ORDERS,
    "tie_break": TIE_BREAKS,
    "nan": NANS,
    "page_table": (False, True),
}
"""Every option and what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What is compiled: cases share kinds, since each costs a second of a compiler."""

    route: str
    k: int
    options: Options
    tuning: Tuning
    vec: int
    group: int | None = None
    """Blocks of a cluster; None: the planner's choice, and always for the other routes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One launch."""

    kind: Kind
    logits: Array
    lengths: Array | None
    row_starts: Array | None
    page_table: Array | None
    page_size: int
    offset: int
    """Of the first row, in elements past an aligned address."""
    stride: int
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
        route = f"{kind.route} by {kind.group}" if kind.group else kind.route
        return (
            f"{rows} x {width}, k {kind.k}, {route}, vec {kind.vec}, {kind.options.suffix or 'plain'}, "
            f"chunk {self.chunk}, hint {self.max_seq_len}, budget {self.sm_budget}, waits {self.waits}, "
            f"small tuning {kind.tuning != DEFAULT_TUNING}, page size {self.page_size}, "
            f"{', '.join(sorted(set(self.inputs)))}"
        )

    @property
    def problem(self) -> Problem:
        """What the planner is asked."""
        rows, width = self.logits.shape
        return Problem(
            rows=rows,
            width=width,
            k=self.kind.k,
            stride=self.stride,
            offset=self.offset % 8,
            max_seq_len=self.max_seq_len,
            waits=self.waits,
            sm_budget=self.sm_budget,
            options=self.kind.options,
        )

    @property
    def beside(self) -> dict[str, Any]:
        """What the options ask for beside the logits, as the reference, the GPU and the harness call it."""
        return {"row_starts": self.row_starts, "page_table": self.page_table, "page_size": self.page_size}

    def wrong(self, indices: Array, values: Array | None) -> list[str]:
        """What is wrong with a result, a sentence a row; an empty list means exactly right."""
        k, options, table = self.kind.k, self.kind.options, self.page_table
        if table is None or table.min(initial=0) >= 0:
            return find_errors(self.logits, k, self.lengths, indices, options=options, values=values, **self.beside)
        # An index whose page is not there cannot be told from the output; but such a case leaves no choice.
        wanted = select(self.logits, k, self.lengths, options=options, **self.beside)
        if indices.dtype != wanted.indices.dtype or indices.shape != wanted.indices.shape:
            return [f"the result is {indices.dtype} {indices.shape}"]
        differ = np.flatnonzero(np.any(indices != wanted.indices, axis=1))
        found = [f"row {row}: not what a page table with holes makes of it" for row in differ[:8]]
        if options.values and (values is None or values.tobytes() != wanted.values.tobytes()):
            found.append("the values are not those of the indices")
        return found

    def paths(self, plan: Plan) -> Counter[str]:
        """How many rows this plan sends down each path, as the kernels decide it from a row's clamped length."""
        rows, width = self.logits.shape
        tuning = plan.tuning
        found: Counter[str] = Counter()
        for _, n in row_windows(rows, width, self.lengths, self.row_starts):
            if n <= plan.k:
                found["rows trivial"] += 1
            elif plan.cooperative and n > tuning.radix_threshold:
                found["rows by a group"] += 1
            elif plan.route == "clustered" and n > tuning.cluster_threshold:
                found["rows by a cluster"] += 1
            elif n <= tuning.short_max and n <= 2 * plan.candidates:
                found["rows short"] += 1
            elif plan.route == "filtered" and plan.candidates >= tuning.samples // 2 and n >= 2 * tuning.samples:
                found["rows by a sampled pivot"] += 1
            else:
                found["rows streamed"] += 1
        return found


def every_pair() -> list[Options]:
    """A few options sets among which every two values of any two options meet."""
    names = list(CHOICES)
    left = {(a, x, b, y) for a, b in combinations(names, 2) for x, y in product(CHOICES[a], CHOICES[b])}
    random = np.random.default_rng(0)
    found = []
    while left:
        drawn = [{name: CHOICES[name][int(random.integers(len(CHOICES[name])))] for name in names} for _ in range(60)]
        met = [{(a, one[a], b, one[b]) for a, b in combinations(names, 2)} & left for one in drawn]
        best = max(range(len(drawn)), key=lambda i: len(met[i]))
        if met[best]:
            found.append(Options(**drawn[best]))
            left -= met[best]
    return found


def layouts(rows: int, width: int, vec: int, widest: int) -> list[tuple[int, int]]:
    """(offset, stride) in elements for which exactly `vec` is the widest load: each way that a row may come to lie.

    The stride of a single row decides nothing.
    """
    if vec == widest:
        return [(offset, align(width, 8) + extra) for offset in range(0, 8, vec) for extra in (0, vec, 8)]
    odd, any_of = range(vec, 8, 2 * vec), range(0, 8, vec)
    by_offset = [(offset, align(width, 8) + extra) for offset in odd for extra in any_of]
    return by_offset + [(offset, align(width, 8) + extra) for offset in any_of for extra in odd if rows > 1]


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
    route = str(random.choice([*ROUTES, *ROUTES, "auto"]))
    k = int(random.choice([k for k in KS if k <= 300] if small else KS))
    tuning = SMALL if small or random.random() < 0.5 else DEFAULT_TUNING
    if route == "clustered" and tuning == SMALL:  # which takes no less than k; with that little a guess mostly fails
        room = min(k * int(random.choice([1, 2, 4])), MAX_COUNTED // 4)
        tuning = replace(SMALL, max_candidates=max(SMALL.max_candidates, room))
    return Kind(
        route=route,
        k=k,
        options=options,
        tuning=tuning,
        vec=int(random.choice(options.vec_sizes)),
        group=int(random.choice(CLUSTERS)) if route == "clustered" and random.random() < 0.7 else None,
    )


def _one_a_row(random: np.random.Generator, rows: int, width: int, k: int, tuning: Tuning) -> Array:
    """Lengths around every limit, or anywhere, in or out of range."""
    limits = np.array(
        [-(2**31), -1, 0, 1, k - 1, k, k + 1, width - 1, width, width + 1, 2**31 - 1]
        + [
            n + d
            for n in (tuning.short_max, tuning.radix_threshold, tuning.cluster_threshold, 2 * tuning.samples)
            for d in (0, 1)
        ]
    )
    anywhere = random.integers(-2, width + 3, rows)
    return np.where(random.random(rows) < 0.5, random.choice(limits, rows), anywhere).astype(np.int32)


def _shape(random: np.random.Generator, kind: Kind, small: bool) -> tuple[int, int]:
    k = kind.k
    if small:
        short = random.choice([0, k, k + 1, 299, 600, 601])
        return int(random.integers(1, 9)), int(short if random.random() < 0.3 else random.integers(700, 1502))
    elements = int(np.exp(random.uniform(np.log(100), np.log(1.5e6))))
    longest = 1 << 19 if kind.tuning == DEFAULT_TUNING else 12_000
    width = int(min(np.exp(random.uniform(np.log(1), np.log(longest))), elements))
    width = int(random.choice([width, width, width, k, k + 1, k - 1]))
    return max(1, min(elements // max(width, 1), 2500)), width


def _page_table(random: np.random.Generator, rows: int, width: int, options: Options) -> tuple[Array, int]:
    """Different pages in a row; for 64-bit indices also beyond 31 bits, and holes where nothing else is left open."""
    page_size = int(random.choice([1, 2, 7, 64, 4096]))
    pages = -(-width // page_size)
    sharing = int(random.choice([n for n in (1, 2, 3, rows) if rows % n == 0]))
    more = int(random.choice([0, 0, 3]))  # columns that no element needs
    drawn = [random.permutation(2 * pages + 1 + more)[: pages + more] for _ in range(rows // sharing)]
    table = np.stack(drawn).astype(np.int32)
    if options.index_dtype == "int64" and random.random() < 0.5:
        table = np.int32(2**31 - 1) - table
    if options.tie_break != "any" and options.order != "none" and random.random() < 0.5:
        table[random.random(table.shape) < 0.2] = random.choice([-1, -(2**31)])
    return table, page_size


def draw(seed: int, number: int, kinds: int, *, small: bool = False, inputs: Sequence[str] = tuple(INPUTS)) -> Case:
    """Case `number` of a seed, of one of the first `kinds` kinds, its rows of some of these `inputs`."""
    random = np.random.default_rng([seed, 2, number])
    kind = draw_kind(seed, int(random.integers(kinds)), small=small)
    options, k = kind.options, kind.k
    rows, width = _shape(random, kind, small)
    names = tuple(str(name) for name in random.choice(list(inputs), min(rows, 5)))
    logits = np.concatenate([make(name, 1, width, seed=int(random.integers(2**31)), k=k) for name in names])
    if rows > len(logits):  # more rows are these again, each from another place on
        logits = np.stack([np.roll(logits[row % len(logits)], row * 7) for row in range(rows)])
    starts = table = None
    page_size = 1
    if options.row_starts:
        near = random.integers(-2, 20, rows)
        anywhere = _one_a_row(random, rows, width, k, kind.tuning)
        starts = np.where(random.random(rows) < 0.5, near, anywhere).astype(np.int32)
    if options.page_table:
        table, page_size = _page_table(random, rows, width, options)
    chunk = None
    if kind.route == "persistent" and random.random() < 0.4:
        chunk = max(width // 60, 64) + int(random.integers(min(width, 40_000) + 1))
        chunk = chunk if random.random() < 0.2 else align(chunk, 8)  # an odd one is read by narrower loads
    ways = layouts(rows, width, kind.vec, options.vec_sizes[-1])
    offset, stride = ways[int(random.integers(len(ways)))]
    return Case(
        kind=kind,
        logits=narrowed(logits, options.dtype),
        lengths=None if random.random() < 0.25 else _one_a_row(random, rows, width, k, kind.tuning),
        row_starts=starts,
        page_table=table,
        page_size=page_size,
        offset=offset,
        stride=stride,
        out_stride=k + int(random.choice([0, 0, 1, 100])),
        values_stride=k + int(random.choice([0, 0, 1, 100])),
        max_seq_len=None if random.random() < 0.7 else int(random.integers(0, width + 1)),
        waits="never" if kind.route == "auto" and random.random() < 0.15 else "allowed",
        sm_budget=None if random.random() < 0.8 else int(random.integers(1, 140)),
        chunk=chunk,
        inputs=names,
    )
