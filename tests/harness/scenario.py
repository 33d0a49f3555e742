"""One simulated problem drawn from a seed: the planner's plan, rows of every path, a dirty workspace, a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from drvtopk.plan import Plan, Problem, plan
from drvtopk.spec import CLUSTERS, KNOWN_DEVICES, PLAIN, Options, Tuning, align
from drvtopk.testing.cases import SMALL, draw_options, every_pair
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import find_errors, narrowed, select
from tests.harness.runner import Array, Floats, Ints, Run, Words, simulate

# Rows of at most 1500 elements take every path.
TUNING = SMALL
WIDTH = 1500
# Room for a queue beside the list of what reaches a pivot, and caches that hold what is read.
ROOMY = replace(TUNING, max_candidates=1400, samples=512, cached_bytes=1 << 20)
KS = (16, 64, 100, 300)
WORKSPACES = ("zeros", "ones", "random", "words of the meeting", "leftovers")


def plan_for(
    problem: Problem,
    slots: int,
    *,
    route: str = "auto",
    chunk: int | None = None,
    group: int | None = None,
    tuning: Tuning = TUNING,
) -> Plan:
    """The planner's choice for a device on which `slots` blocks are resident at once."""
    device = replace(KNOWN_DEVICES["h200"], name=f"{slots} slots", sms=slots)
    return plan(
        problem,
        device,
        lambda variant, smem: 1,
        route=route,
        chunk=chunk,
        group=group,
        clusters=lambda variant, smem: slots // variant.cluster,
        tuning=tuning,
    )


def dirt(kind: str, words: int, random: np.random.Generator) -> Words:
    """A workspace as somebody may leave it."""
    if kind in ("zeros", "leftovers"):
        return np.zeros(words, np.uint32)
    if kind == "ones":
        return np.full(words, 0xFFFFFFFF, np.uint32)
    return random.integers(0, 2**32 if kind == "random" else 3, words, dtype=np.uint32)


def rows_of_every_path(rows: int, k: int, random: np.random.Generator, *, width: int = WIDTH) -> tuple[Floats, Ints]:
    """float32 (rows, width) of mixed kinds, and lengths among which every path and every limit comes up."""
    names = [str(name) for name in random.choice(list(INPUTS), rows)]
    logits = np.concatenate([make(name, 1, width, seed=int(random.integers(2**31)), k=k) for name in names])
    limits = (-(2**31), -1, 0, 1, k - 1, k, k + 1, 300, 301, 600, 601, width - 1, width, width + 1, 2**31 - 1)
    kinds = random.integers(0, 6, rows)
    inside = [random.integers(low, high, rows) for low, high in ((k, 301), (301, 601), (601, width + 1))]
    lengths = np.choose(kinds, [random.choice(limits, rows), *inside[:2], *[inside[2]] * 3])
    return logits, lengths.astype(np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What one simulated launch is given."""

    plan: Plan
    logits: Array
    lengths: Ints
    row_starts: Ints | None = None
    page_table: Ints | None = None
    page_size: int = 1
    workspace: str
    """One of WORKSPACES."""
    offset: int
    slots: int
    seed: int
    out_gap: int = 0
    """Elements between two rows of the output, and `values_gap` of the values."""
    values_gap: int = 0
    most_read: float | None = None
    """Bytes of logits that may be read, over the bytes that there are."""

    def complaint(
        self, *, sources: Mapping[str, bytes] | None = None, sanitize: bool = False, timeout: float = 60
    ) -> str:
        """What went wrong, or nothing."""
        words = dirt(self.workspace, self.plan.workspace_bytes // 4, np.random.default_rng(self.seed))
        for launch in range(2 if self.workspace == "leftovers" else 1):
            run = simulate(
                self.plan,
                self.logits,
                self.lengths,
                row_starts=self.row_starts,
                page_table=self.page_table,
                page_size=self.page_size,
                workspace=words,
                slots=self.slots,
                seed=self.seed + launch,
                offset=self.offset,
                out_stride=self.plan.k + self.out_gap,
                values_stride=self.plan.k + self.values_gap,
                sources=sources,
                sanitize=sanitize,
                timeout=timeout,
            )
            if run.status != "done":
                return f"{run.status}: {run.report}"
            wrong = self._faults(run)
            if wrong:
                return "wrong: " + "; ".join(wrong)
            if self.most_read is not None and run.bytes_read > self.most_read * self.logits.nbytes:
                return f"reads {run.bytes_read} bytes of {self.logits.nbytes}"
            words = run.workspace
        return ""

    def _faults(self, run: Run) -> list[str]:
        options, starts, table, size = self.plan.options, self.row_starts, self.page_table, self.page_size
        given = (self.logits, self.plan.k, self.lengths)
        if table is None or table.min() >= 0:
            return find_errors(
                *given,
                run.out,
                options=options,
                row_starts=starts,
                values=run.values,
                page_table=table,
                page_size=size,
            )
        # The output does not tell which index had no page; but tables have holes only where no choice is left open.
        wanted = select(*given, options=options, row_starts=starts, page_table=table, page_size=size)
        differ = np.flatnonzero(np.any(run.out != wanted.indices, axis=1))
        found = [f"row {row}: not what a page table with holes makes of it" for row in differ]
        if options.values and run.values.tobytes() != wanted.values.tobytes():
            found.append("the values are not those of the members")
        return found


# A variant takes seconds to build, so that many scenarios share each. Every two options meet in one of them.
_OPTIONS = (*every_pair(), *(draw_options(np.random.default_rng(seed)) for seed in range(12)))


def any_options(random: np.random.Generator) -> Options:
    """Plain ones, one of them, or many at once."""
    return PLAIN if random.random() < 0.35 else _OPTIONS[int(random.integers(len(_OPTIONS)))]


def layout_of(width: int, vec: int) -> tuple[int, int]:
    """(offset, stride) in elements for which `vec` is the widest load."""
    offset, extra = {8: (0, 0), 4: (0, 4), 2: (2, 2), 1: (1, 3)}[vec]
    return offset, align(width, 8) + extra


def given_beside(
    options: Options, rows: int, random: np.random.Generator, *, width: int = WIDTH
) -> tuple[Ints | None, Ints | None, int]:
    """Row starts, a page table and its page size, as far as the options ask for them."""
    starts = table = None
    page_size = 1
    if options.row_starts:
        starts = random.choice([-(2**31), -1, 0, 1, 2, 3, 5, 8, 700, width - 1, width, 2**31 - 1], rows).astype(
            np.int32
        )
    if options.page_table:
        page_size = int(random.choice([1, 7, 64, 4096]))
        pages = -(-width // page_size)
        tables = int(random.choice([n for n in range(1, rows + 1) if rows % n == 0]))
        table = np.stack([random.permutation(2 * pages)[:pages] for _ in range(tables)]).astype(np.int32)
        if options.index_dtype == "int64" and random.random() < 0.5:
            table = np.int32(2**31 - 1) - table
        if options.tie_break != "any" and options.order != "none" and random.random() < 0.5:
            table[random.random(table.shape) < 0.2] = random.choice([-1, -(2**31)])
    return starts, table, page_size


def any_scenario(seed: int, *, slots: int | None = None, k: int | None = None) -> Scenario:
    """Any route, options, vector size, group and layout."""
    random = np.random.default_rng(seed)
    route = str(random.choice(["auto", "filtered", "clustered"], p=[0.5, 0.2, 0.3]))
    fitting = [size for size in CLUSTERS if slots is None or size <= slots]
    group = int(random.choice(fitting)) if route == "clustered" and fitting else None
    if group is None:
        route = "filtered" if route == "filtered" else "auto"
        slots = int(random.integers(2, 9)) if slots is None else slots
    elif slots is None:
        slots = group * int(random.integers(1, 3)) + int(random.integers(group))
    assert slots is not None  # a type fact
    k = int(random.choice(KS)) if k is None else k
    rows = int(random.integers(1, 9))
    width, tuning, chunk = WIDTH, TUNING, None
    if group is not None:
        # Little room for what reaches a pivot, so that it does not fit or lies in several blocks, or much; and rows
        # of which a block reads more than its first loads.
        tuning = replace(TUNING, max_candidates=int(random.choice([n for n in (40, 70, 160, 400, 1400) if n >= k])))
        width = int(random.choice([WIDTH, WIDTH, WIDTH, 9000, 20_000]))
    elif random.random() < 0.3:
        tuning = ROOMY
    offset, stride = layout_of(width, int(random.choice([1, 2, 4, 8])))
    options = any_options(random)
    problem = Problem(rows=rows, width=width, k=k, stride=stride, offset=offset, options=options)
    if random.random() < 0.2:
        problem = replace(problem, max_seq_len=int(random.integers(0, width)))  # a hint that may be wrong
    if random.random() < 0.3:
        problem = replace(problem, sm_budget=int(random.integers(1 if group is None else group, slots + 1)))
    if group is None and random.random() < 0.1:
        problem = replace(problem, waits="never")
    if random.random() < 0.2:
        problem = replace(problem, pdl=True)
    if group is None and random.random() < 0.6:
        chunk = int(random.integers(width // slots, width + 1))
    logits, lengths = rows_of_every_path(rows, k, random, width=width)
    if random.random() < 0.3:  # every value a few times: also where the last few places are decided, ties are
        logits = np.take_along_axis(logits, random.integers(0, width // 4, logits.shape), axis=1)
    if random.random() < 0.3:  # fewer than places: what the options say of them decides
        few = random.random(logits.shape) < 0.01
        logits[few] = random.choice(np.array([0.0, -0.0, np.nan, -np.nan], np.float32), int(few.sum()))
    starts, table, page_size = given_beside(options, rows, random, width=width)
    out_gap, values_gap = (int(gap) for gap in random.choice([0, 1, 100], 2))
    return Scenario(
        plan=plan_for(problem, slots, route=route, chunk=chunk, group=group, tuning=tuning),
        logits=narrowed(logits, options.dtype),
        lengths=lengths,
        row_starts=starts,
        page_table=table,
        page_size=page_size,
        workspace=str(random.choice(WORKSPACES)),
        offset=offset,
        slots=slots,
        seed=seed,
        out_gap=out_gap,
        values_gap=values_gap,
    )


def telling_scenario(seed: int) -> Scenario:
    """Four instantiations, where mutations are looked for, in turn: many rows of all kinds for two groups of three
    blocks; a shared row each for two groups of six, which mostly meet; rows of all kinds by a block each; sorted."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    meeting = kind == 1
    alone = seed % 8 == 2  # each block has an SM to itself
    rows, chunk, slots = (2, 252, 13) if meeting else (10, 500, 12 if alone else 7)
    k = 200 if kind == 3 else 64  # enough that the sort crosses warps
    tuning, width = TUNING, WIDTH
    if seed % 16 == 6:  # rows in registers of which every thread holds some
        tuning, width = replace(TUNING, short_max=2900, max_candidates=1400), 2900
    elif seed % 32 == 4:  # too long for registers, and held in shared memory
        tuning = replace(TUNING, short_max=4400, radix_threshold=4400, max_candidates=2200)
        rows, width, chunk = 4, 4400, 4400
    elif seed % 32 == 2:
        k, tuning = 32, ROOMY
    elif seed % 32 == 18:  # hardly more room than places: too much is kept, or too little
        tuning = replace(TUNING, max_candidates=k + 6)
    logits, lengths = rows_of_every_path(rows, k, random, width=width)
    if kind == 3 and seed % 8 == 3:
        with np.errstate(invalid="ignore"):
            logits = np.round(logits)  # ties, where these rows are told apart by index and sorted
    options = Options(order="value", tie_break="smallest") if kind == 3 else PLAIN
    if seed % 16 == 6:
        options = (PLAIN, Options(nan="highest"), Options(tie_break="smallest"))[seed // 16 % 3]
        logits[0, ::20], lengths[:2] = np.nan, width  # more of the highest than places
        logits[1] = 1.5  # and of equal ones than there is room for
    row_starts = None
    if seed % 32 == 4:
        lengths = np.array([width, 4097, width - 1, 300], np.int32)
    elif kind == 2 and seed // 32 % 2 == 0:  # rows that are not gathered
        options = Options(nan="highest")
    if seed % 16 == 10:  # windows that begin within a load
        options = Options(nan="highest", row_starts=True)
        row_starts = random.integers(0, 8, rows).astype(np.int32)
    if seed % 16 == 14:  # values that nothing is quick with: held in shared memory, and not queued
        options = Options(dtype="float16")
    budget = 3 if kind == 2 and not alone else None
    problem = Problem(rows=rows, width=width, k=k, options=options, sm_budget=budget)
    return Scenario(
        plan=plan_for(
            problem,
            slots,
            route="filtered" if kind == 2 else "persistent",
            chunk=None if kind == 2 else chunk,
            tuning=tuning,
        ),
        logits=narrowed(logits, options.dtype),
        lengths=np.full(rows, width, np.int32) if meeting else lengths,
        row_starts=row_starts,
        workspace="words of the meeting" if meeting else str(random.choice(WORKSPACES)),
        offset=0,
        slots=slots,
        seed=seed,
    )


def telling_registers(seed: int) -> Scenario:
    """Rows that registers hold and that bins of equal width do not tell apart at once: of few values, of infinities and
    NaN, of more than a bin may hold; in turn plain, windows that begin within a load, and ties told apart."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    width, k, rows = 2900 + 4 * (seed // 4 % 3), 64, 9
    options = (PLAIN, Options(row_starts=True), PLAIN, Options(tie_break="smallest"))[kind]
    fewer, roomy = k // 2, seed // 8 % 2 == 0
    logits = np.full((rows, width), -np.inf, np.float32)
    logits[0] = random.choice(np.array([-1e-45, 0.0, -0.0, -0.0, 0.0], np.float32), width)  # equal in most of a bin
    logits[0, random.choice(width, fewer, replace=False)] = random.choice(np.array([1e-45, 1e-38, 1]), fewer)
    logits[1, random.choice(width, fewer, replace=False)] = random.standard_normal(fewer)  # filled with -inf
    logits[2] = np.nan  # filled with -inf and NaN
    logits[2, random.choice(width, fewer, replace=False)] = random.choice(np.array([1, 2, -np.inf]), fewer)
    logits[3] = random.choice(np.array([np.nan, np.inf, 3.4e38, 1, 0, -3.4e38], np.float32), width)  # infinite ties
    logits[4] = random.choice(np.array([3.4e38, 1, 0, -3.4e38], np.float32), width)  # ties at the largest number
    logits[4, random.choice(width, fewer, replace=False)] = np.inf
    logits[5, random.choice(width, fewer, replace=False)] = np.inf  # no finite number
    logits[5, random.choice(width, fewer, replace=False)] = np.nan
    logits[6] = 1 + random.standard_normal(width) * 1e-4  # one bin between outliers holds too many
    logits[6, random.choice(width, 8, replace=False)] = 1e6 * random.choice(np.array([-1, 1]), 8)
    logits[7] = random.integers(0, 1 << 22, width).astype(np.uint32).view(np.float32)  # too near to each other
    if roomy:
        logits[7, random.choice(width, 12, replace=False)] = 1.0
    if seed // 4 % 2:  # what is tried of a sample is too large, or too small
        logits[7] = np.where(random.random(width) < 0.02, 1 + 1e-6 * random.standard_normal(width), logits[6] * 1e-3)
    logits[8] = 1e6  # one value, which rounding puts below all bins
    lengths = np.full(rows, width, np.int32)
    lengths[::3] -= random.integers(0, 5, len(lengths[::3]))
    starts = random.integers(1, 8, rows).astype(np.int32) if kind == 1 else None
    problem = Problem(rows=rows, width=width, k=k, options=options, sm_budget=3)
    # With little room, what is not told apart in registers is gathered.
    tuning = replace(TUNING, short_max=3000, max_candidates=1500 if roomy else 200)
    return Scenario(
        plan=plan_for(problem, 7, route="filtered", chunk=None, tuning=tuning),
        logits=logits,
        lengths=lengths if starts is None else np.minimum(lengths, width - starts).astype(np.int32),
        row_starts=starts,
        workspace=str(random.choice(WORKSPACES)),
        offset=0,
        slots=7,
        seed=seed,
    )


def telling_cluster(seed: int) -> Scenario:
    """Four instantiations with clusters whose rows are not gathered, in turn: rows of all kinds; too little room, so
    that what reaches a pivot is fetched or does not fit, or no pivot is tried; rows of which a block reads more than
    its first loads; sorted, with ties told apart. Each cluster has several rows."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    group, rows, k, width, room = ((4, 10, 64, WIDTH, 400), (8, 6, 32, WIDTH, 70), (2, 4, 16, 9000, 160))[kind % 3]
    if kind == 1 and seed % 8 > 3:
        room = 40
    if kind == 3:
        k = 200  # enough that the sort crosses warps
    logits, lengths = rows_of_every_path(rows, k, random, width=width)
    if seed % 8 > 3:
        with np.errstate(invalid="ignore", over="ignore"):
            logits = np.round(logits * np.float32(8)) / np.float32(8)  # ties
    offset, stride = layout_of(width, 1 if kind == 2 else 4)
    problem = Problem(
        rows=rows,
        width=width,
        k=k,
        stride=stride,
        offset=offset,
        options=Options(order="value", tie_break="smallest") if kind == 3 else Options(nan="highest"),
        sm_budget=2 * group if kind < 2 else group,
    )
    slots = 2 * group + 1
    return Scenario(
        plan=plan_for(problem, slots, route="clustered", group=group, tuning=replace(TUNING, max_candidates=room)),
        logits=logits,
        lengths=np.full(rows, width, np.int32) if kind == 1 else lengths,
        workspace="zeros",
        offset=offset,
        slots=slots,
        seed=seed,
    )


def telling_gather(seed: int) -> Scenario:
    """Rows that are gathered, by four instantiations in turn: by clusters of four and of eight, with little room too,
    so that lists do not fit; by clusters of two and by blocks alone, in several batches. With ties, masses of them, and
    rows of nothing but NaN."""
    random = np.random.default_rng(seed)
    kind = seed % 4
    group, rows, k, width, room = ((4, 9, 64, WIDTH, 402), (8, 6, 32, WIDTH, 160), (2, 4, 16, 20_000, 160))[kind % 3]
    slots = 2 * group + 1
    if kind == 1 and seed % 8 > 3:
        room = 40
        if seed % 16 > 8:  # a row for each cluster
            rows = 2
    if kind == 3:  # a first batch that is full, and one that is not
        rows, k, width, slots, tuning = 6, 64, 16_300, 7, ROOMY
        if seed % 8 == 7:  # short rows that registers do not tell apart, and no room to hold them
            tuning = replace(TUNING, max_candidates=k + 40)
    else:
        tuning = replace(TUNING, max_candidates=room)
    logits, lengths = rows_of_every_path(rows, k, random, width=width)
    lengths[: rows // 2] = width - np.arange(rows // 2)
    if seed % 8 > 3:
        with np.errstate(invalid="ignore", over="ignore"):
            logits = np.round(logits * np.float32(8)) / np.float32(8)  # ties
    logits[0, ::3] = random.choice(np.array([-np.inf, np.nan, 1.5, 0.0], np.float32))
    if seed % 8 == 3:
        logits[1] = np.nan
    if kind == 3 and seed % 8 == 7:
        lengths[rows // 2 :], logits[rows // 2 :] = 260, random.choice([-np.inf, np.nan], (rows - rows // 2, width))
    options, row_starts = PLAIN, None
    if seed % 16 in (8, 11):  # windows that begin within a load
        options, row_starts = Options(row_starts=True), random.integers(0, 8, rows).astype(np.int32)
    offset, stride = layout_of(width, 1 if kind == 2 else 4)
    problem = Problem(
        rows=rows,
        width=width,
        k=k,
        stride=stride,
        offset=offset,
        options=options,
        sm_budget=3 if kind == 3 else 2 * group if kind < 2 else group,
    )
    route, shared = ("filtered", None) if kind == 3 else ("clustered", group)
    return Scenario(
        plan=plan_for(problem, slots, route=route, group=shared, tuning=tuning),
        logits=logits,
        lengths=lengths,
        row_starts=row_starts,
        workspace="zeros",
        offset=offset,
        slots=slots,
        seed=seed,
    )


def ancestor(slots: int) -> Scenario:
    """The bug this project began with: one row shared by one block more than fit at once, launched all the same."""
    chunk = max(100, -(-(TUNING.radix_threshold + 1) // (slots + 1)))
    width = chunk * (slots + 1)
    made = plan_for(Problem(rows=1, width=width, k=64), slots + 2, route="persistent", chunk=chunk)
    return Scenario(
        plan=made,
        logits=make("normal", 1, width),
        lengths=np.array([width], np.int32),
        workspace="zeros",
        offset=0,
        slots=slots,
        seed=slots,
    )
