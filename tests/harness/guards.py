"""Scenarios each of which one guard of the kernels is for: rows that go wrong, or are read again, without it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from drvtopk.plan import Plan, Problem
from drvtopk.spec import PLAIN, Options, Tuning
from drvtopk.testing.inputs import make, scale_mix
from drvtopk.testing.oracle import narrowed
from tests.harness.runner import Array
from tests.harness.scenario import ROOMY, TUNING, Scenario, plan_for

READ_ONCE = 1.2
"""Bytes read over bytes there are, of rows that are gathered: the last loads are made again."""


def _scenario(made: Plan, logits: Array, seed: int, **more: object) -> Scenario:
    lengths = np.full(len(logits), logits.shape[1], np.int32)
    given = {"lengths": lengths, "workspace": "zeros", "offset": 0, "slots": made.resident_cap, "seed": seed, **more}
    return Scenario(plan=made, logits=logits, **given)  # type: ignore[arg-type]


def _filtered(width: int, k: int, rows: int, tuning: Tuning, options: Options = PLAIN) -> Plan:
    problem = Problem(rows=rows, width=width, k=k, options=options, sm_budget=3)
    return plan_for(problem, 7, route="filtered", tuning=tuning)


def _in_first_batch(made: Plan) -> Array:
    """bool (width,): the elements of a row that a block's threads hold in registers first (deal.cuh)."""
    tile = 32 * made.vec_size * made.variant.cluster
    tiles = -(-made.width // tile)
    batches = -(-tiles // (4 * made.block // 32))
    assert batches > 1
    first: Array = np.arange(made.width) // tile % batches == 0
    return first


def first_batch_without_numbers(seed: int) -> Scenario:
    """What a block sees first is NaN or -inf alone: nothing to guess from. Later batches have more numbers than places,
    or fewer. Each row is read once."""
    random = np.random.default_rng(seed)
    k, width = 64, 16_300
    made = _filtered(width, k, 6, ROOMY)
    first = _in_first_batch(made)
    logits = make("normal", 6, width, seed=seed)
    later = np.flatnonzero(~first)
    for row, (lowest, numbers) in enumerate([(np.nan, 400), (np.nan, 30), (-np.inf, 400), (-np.inf, 30)]):
        kept = random.choice(later, numbers, replace=False)
        values = logits[row, kept]
        logits[row] = lowest
        logits[row, kept] = values
    logits[4], logits[5] = np.nan, -np.inf
    return _scenario(made, logits[random.permutation(6)], seed, most_read=READ_ONCE)


def negative_zeros_first(seed: int) -> Scenario:
    """The pivot is a negative zero that many of what the block sees first equal, but fewer reach it than there are
    places: what is listed above the next larger key, a zero, and as ties would be the same elements."""
    random = np.random.default_rng(seed)
    k, width = 64, 60_000
    made = _filtered(width, k, 3, ROOMY)
    first = np.flatnonzero(_in_first_batch(made))
    logits = -1 - random.random((3, width), np.float32)
    for row in logits:
        places = random.choice(first, 50, replace=False)
        row[places[:40]] = -0.0
        row[places[40:]] = random.uniform(1, 2, 10)
    return _scenario(made, logits, seed)


def zeros_among_tiny(seed: int) -> Scenario:
    """Rows in registers whose last bin holds zeros of both signs, each thread's together, and many values that are
    hardly larger."""
    random = np.random.default_rng(seed)
    made = _filtered(2900, 64, 9, replace(TUNING, short_max=3000, max_candidates=1500))
    logits = (random.random((9, 2900)) * 1e-30).astype(np.float32)
    for row in logits:
        row[random.choice(2900, 30, replace=False)] = random.uniform(1, 2, 30)
        both = 4 * random.choice(2900 // 4, 60, replace=False)
        row[both], row[both + 1] = 0.0, -0.0
    return _scenario(made, logits, seed)


def zeros_above_denormals(seed: int) -> Scenario:
    """Rows in registers: zeros of both signs, each thread's together, just above as many keys as there are bins, of
    which the lowest is the first warp's only one."""
    random = np.random.default_rng(seed)
    made = _filtered(2900, 64, 9, replace(TUNING, short_max=3000, max_candidates=1500))
    first_warp = np.arange(2900) % (made.block * made.vec_size) < 32 * made.vec_size
    logits = np.full((9, 2900), -np.inf, np.float32)
    for row in logits:
        fours = random.permutation(np.flatnonzero(~first_warp[::4]))[:60] * 4
        row[fours], row[fours + 1] = 0.0, -0.0
        row[fours[:30]], row[fours[:30] + 1] = random.uniform(1, 2, 30), -np.inf
        row[fours + 2] = -random.integers(1, 2047, 60).astype(np.uint32).view(np.float32)
        row[8] = -np.array(2047, np.uint32).view(np.float32)
    return _scenario(made, logits, seed)


def no_sample_in_the_first_warp(seed: int) -> Scenario:
    """Rows in registers: one bin holds too many, and none of them lies in the first warp, which samples its own."""
    random = np.random.default_rng(seed)
    made = _filtered(2900, 64, 9, replace(TUNING, short_max=3000, max_candidates=1500))
    logits = (1 + random.standard_normal((9, 2900)) * 1e-4).astype(np.float32)
    for row in logits:
        row[random.choice(2900, 8, replace=False)] = 1e6 * random.uniform(-1, 1, 8)
    logits[:, np.arange(2900) % (made.block * made.vec_size) < 32 * made.vec_size] = -1e9
    return _scenario(made, logits, seed)


def too_few_groups(seed: int) -> Scenario:
    """Fewer numbers than the pivot is to be reached by, too near to each other for bins of equal width in value."""
    random = np.random.default_rng(seed)
    k, width = 64, 16_300
    made = _filtered(width, k, 4, ROOMY)
    logits = np.full((4, width), -np.inf, np.float32)
    for row in logits:
        numbers = random.choice(width, 70, replace=False)
        row[numbers] = random.integers(1, 1 << 20, 70).astype(np.uint32).view(np.float32)
    return _scenario(made, logits, seed, most_read=READ_ONCE)


def bins_up_to_the_largest_key(seed: int) -> Scenario:
    """A negative pivot, a positive top, the k-th key at the end of the range: a bin may end past 2^32."""
    random = np.random.default_rng(seed)
    k, width = (4, 20_000) if seed % 2 else (16, 9000)
    if seed % 2:
        made = _filtered(width, k, 4, ROOMY)
    else:
        problem = Problem(rows=4, width=width, k=k, sm_budget=4)
        made = plan_for(problem, 9, route="clustered", group=4, tuning=replace(TUNING, max_candidates=400))
    logits = (random.standard_normal((4, width)) * 0.3 - random.uniform(1, 40, (4, 1))).astype(np.float32)
    for row in logits:
        forced = random.choice(width, k + 1, replace=False)
        row[forced[:k]] = random.choice(np.array([np.inf, 3.4028235e38, 1.7e38], np.float32))
        row[forced[k]] = 1.0
    return _scenario(made, logits, seed, slots=9)


def scale_mixes(seed: int) -> Scenario:
    """Rows that registers hold, and longer ones, of groups of any sign and scale."""
    random = np.random.default_rng(seed)
    k, width = 64, (2900, 16_300)[seed % 2]
    made = _filtered(width, k, 6, (replace(TUNING, short_max=3000, max_candidates=1500), ROOMY)[seed % 2])
    return _scenario(made, np.stack([scale_mix(random, width, k) for _ in range(6)]), seed)


def windows_that_cut_the_first_load(seed: int) -> Scenario:
    """All loads of a batch are full, and the first one begins before the window; there lies what would be selected."""
    random = np.random.default_rng(seed)
    group = (None, 2, 4)[seed % 3]
    k, width, rows = 64, 16_384 if group is None else 8192 * group, 3
    problem = Problem(
        rows=rows, width=width, k=k, options=Options(row_starts=True), sm_budget=3 if group is None else group
    )
    route = "filtered" if group is None else "clustered"
    made = plan_for(problem, 9, route=route, group=group, tuning=ROOMY)
    starts = random.integers(1, 4, rows).astype(np.int32)
    logits = make("normal", rows, width, seed=seed)
    for row, start in enumerate(starts):
        logits[row, :start] = np.inf
    return _scenario(made, logits, seed, row_starts=starts, slots=9)


def short_last_part(seed: int) -> Scenario:
    """The last block of a cluster has fewer elements than one load, and the window begins within one."""
    k, vec, group, width = 16, 4, 8, 1800
    problem = Problem(rows=4, width=width, k=k, options=Options(nan="highest", row_starts=True), sm_budget=group)
    made = plan_for(problem, group + 1, route="clustered", group=group, tuning=replace(TUNING, max_candidates=400))
    lengths = np.array([1569, 1570, 1569, 1793], np.int32)  # blocks have 224 or 256 elements each
    starts = np.array([1, 1, 2, 1], np.int32) + vec * (seed % 3)
    logits = make("normal", 4, width, seed=seed)
    for row, (start, n) in enumerate(zip(starts, lengths, strict=True)):
        logits[row, start + n - 10 : start + n] = 9
    return _scenario(made, logits, seed, lengths=lengths, row_starts=starts, slots=group + 1)


def empty_parts(seed: int) -> Scenario:
    """Rows so short that the last blocks of a cluster have nothing of them."""
    group = (8, 16)[seed % 2]
    problem = Problem(rows=4, width=600, k=16, options=Options(nan="highest"), sm_budget=group)
    made = plan_for(problem, group + 1, route="clustered", group=group, tuning=replace(TUNING, max_candidates=400))
    lengths = np.array([410, 449, 513, 600], np.int32)
    return _scenario(made, make("normal", 4, 600, seed=seed), seed, lengths=lengths, slots=group + 1)


def ties_in_a_list(seed: int) -> Scenario:
    """What reaches a sampled pivot is told apart by indices, which lie at the end of shared memory."""
    options = Options(tie_break=("smallest", "largest")[seed % 2])
    logits = make("normal", 4, 1500, seed=seed)
    logits[:] = np.round(logits * 2) / 2
    return _scenario(_filtered(1500, 64, 4, replace(TUNING, max_candidates=400), options), logits, seed)


def lists_of_all_lengths(seed: int) -> Scenario:
    """What lies past a list that is walked in turns: of keys, or of indices."""
    return (ties_in_a_list, scale_mixes)[seed % 2](seed // 2)


def little_room(seed: int) -> Scenario:
    """Less room than guessing takes."""
    made = _filtered(1500, 16, 4, replace(TUNING, max_candidates=20), Options(nan="highest"))
    return _scenario(made, make("normal", 4, 1500, seed=seed), seed)


def few_nans_fill_the_places(seed: int) -> Scenario:
    """Numbers do not fill the places, and few NaN, of which some do, have the lowest key that there is."""
    random = np.random.default_rng(seed)
    k, rows = 64, 4
    options = Options(dtype="float16", tie_break=("any", "smallest", "largest")[seed % 3])
    logits = np.full((rows, 100), np.nan, np.float32)
    for row in logits:
        row[random.choice(100, 55, replace=False)] = random.standard_normal(55)
    return _scenario(_filtered(100, k, rows, TUNING, options), narrowed(logits, options.dtype), seed)


def crowded_bin(seed: int) -> Scenario:
    """Held keys of which one bin of equal width in value holds more than are ranked."""
    random = np.random.default_rng(seed)
    tuning = replace(TUNING, short_max=4400, radix_threshold=4400, max_candidates=2200)
    problem = Problem(rows=2, width=4400, k=64)
    made = plan_for(problem, 7, route="persistent", chunk=4400, tuning=tuning)
    logits = (1 + random.standard_normal((2, 4400)) * 1e-4).astype(np.float32)
    logits[:, ::2000] = 1e6
    return _scenario(made, logits, seed, workspace="random", slots=7)


def pages_past_31_bits(seed: int) -> Scenario:
    """Page numbers whose first element has no 32-bit index, and pages that are not there."""
    random = np.random.default_rng(seed)
    options = Options(page_table=True, index_dtype="int64", tie_break="smallest", order="index")
    table = (2**31 - 1 - random.permutation(40)[:24].reshape(1, 24)).astype(np.int32)
    table[0, ::5] = random.choice(np.array([-1, -(2**31)]), 5)
    made = _filtered(1500, 64, 4, TUNING, options)
    return _scenario(made, make("normal", 4, 1500, seed=seed), seed, page_table=table, page_size=64)


def _sampled(made: Plan, samples: int) -> Array:
    """bool (width,): the elements that row_pass.cuh draws as samples of a whole row."""
    vec = made.vec_size
    neighbours = 8 // vec
    packs = samples // vec
    places, there = packs // neighbours, made.width // vec // neighbours
    place = np.arange(places, dtype=np.uint64)
    jitter = (place * np.uint64(2654435761) & np.uint64(2**32 - 1)) * np.uint64(there) >> np.uint64(32)
    at = (place * np.uint64(there) + jitter) // np.uint64(places)
    drawn = np.zeros(made.width, bool)
    for first in at.astype(np.int64) * neighbours * vec:
        drawn[first : first + neighbours * vec] = True
    return drawn


def misled_by_samples(seed: int) -> Scenario:
    """One element of each load that is not sampled lies above all samples: more loads reach the pivot than the queue
    has room for."""
    random = np.random.default_rng(seed)
    k, width = 16, 16_000
    tuning = replace(TUNING, max_candidates=1400, samples=512, cached_bytes=1 << 20)
    made = plan_for(
        Problem(rows=2, width=width, k=k, options=Options(nan="highest"), sm_budget=2),
        12,
        route="filtered",
        tuning=tuning,
    )
    drawn = _sampled(made, tuning.samples)
    logits = make("normal", 2, width, seed=seed)
    logits[:, ~drawn] -= 20
    for row in logits:
        high = np.arange(0, width, made.vec_size) + random.integers(0, made.vec_size, width // made.vec_size)
        high = high[~drawn[high]]
        row[high] = 20 + random.standard_normal(len(high))
    return _scenario(made, logits, seed, slots=12)
