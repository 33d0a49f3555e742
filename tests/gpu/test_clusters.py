"""The route by clusters at every size: lengths around its limits and seams, ties, graphs, budgets, neighbours."""

from __future__ import annotations

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from drvtopk.errors import PlanError
from drvtopk.plan import Plan, Problem, plan
from drvtopk.spec import CLUSTERS, DEFAULT_TUNING, PLAIN, Options, Tuning, Variant
from drvtopk.testing.cases import SMALL
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import POISON, Gpu, compile_ahead, layout
from tests.gpu.test_progress import Blocker

K = 100
TIGHT = replace(SMALL, max_candidates=K)
"""No room for more than the members: most guesses fail, and the digits decide."""
ROOMY = replace(SMALL, max_candidates=4 * K)
DIGITS = replace(SMALL, max_candidates=4 * K, samples=1024)
"""Rows too short for a guess."""
TUNINGS = {"tight": TIGHT, "roomy": ROOMY, "digits": DIGITS}
KINDS = ("normal", "all_equal", "two_values", "low_10_bits", "nan_payloads", "few_specials", "ascending", "relu_tail")
ORDERED = Options(dtype="bfloat16", values=True, order="value", tie_break="smallest", row_starts=True)

sizes = pytest.mark.parametrize("group", CLUSTERS)


@pytest.fixture(scope="module", autouse=True)
def compiled(gpu: Gpu) -> None:
    """The kernels of the tests here, compiled side by side; and without clusters nothing is tested."""
    gpu.needs("clustered")
    wanted: dict[Variant, None] = {}

    def want(
        k: int, group: int, vec: int, rows: int, tuning: Tuning = DEFAULT_TUNING, options: Options = PLAIN
    ) -> None:
        offset, stride = layout(70_000, vec)
        problem = Problem(rows=rows, width=70_000, k=k, offset=offset, stride=stride, options=options)
        asked = {"route": "clustered", "group": group, "tuning": tuning}
        made = plan(problem, gpu.engine.device, lambda variant, smem: variant.residency, **asked)  # type: ignore[arg-type]
        wanted[made.variant] = None

    for group in CLUSTERS:
        for tuning in TUNINGS.values():
            for vec in (1, 4):
                want(K, group, vec, 200, tuning)
            want(K, group, 4, 1, tuning)
        for rows in (1, 200):
            want(K, group, 8, rows, ROOMY, ORDERED)
            want(1024, group, 4, rows)
    compile_ahead(wanted, gpu.engine.device.arch)


def limits(group: int, tuning: Tuning, k: int, width: int) -> list[int]:
    """Lengths around everything that decides: k, the threshold, enough for a guess, the seams of a cluster's parts."""
    around = [0, k, tuning.short_max, tuning.cluster_threshold, 2 * tuning.samples, width]
    around += [32 * group * m for m in (1, 13, 31)]
    return sorted({n + d for n in around for d in (-1, 0, 1) if 0 <= n + d <= width} | {-1, 2**31 - 1})


@sizes
@pytest.mark.parametrize("vec", [1, 4])
@pytest.mark.parametrize("name", TUNINGS)
def test_lengths_around_every_limit(gpu: Gpu, name: str, vec: int, group: int) -> None:
    tuning = TUNINGS[name]
    lengths = np.array(limits(group, tuning, K, 2500), np.int32)
    rows = max(len(lengths), gpu.engine.device.sms // group + 1)  # blocks that share an SM
    lengths = np.resize(lengths, rows)
    for number, kind in enumerate(KINDS):
        x = make(kind, 8, 2500, seed=number)[np.arange(rows) % 8]
        mode = ("eager", "graph", "streams")[number % 3]
        gpu.check(x, K, lengths, route="clustered", group=group, tuning=tuning, vec=vec, mode=mode)


@sizes
@pytest.mark.parametrize("name", TUNINGS)
def test_blocks_with_an_sm_each(gpu: Gpu, name: str, group: int) -> None:
    problem = Problem(rows=1, width=2500, k=K, stride=layout(2500, 4)[1])
    prepared = gpu.engine.prepare(problem, route="clustered", group=group, tuning=TUNINGS[name])
    assert prepared.plan.residency == 1 and prepared.plan.occupancy == 1, "no two blocks of a cluster on an SM"
    for kind in KINDS:
        for length in limits(group, TUNINGS[name], K, 2500)[::2]:
            gpu.check(make(kind, 1, 2500), K, np.array([length], np.int32), vec=4, prepared=prepared)


@sizes
@pytest.mark.parametrize("rows", [1, 200])
def test_long_rows_by_the_usual_thresholds(gpu: Gpu, rows: int, group: int) -> None:
    """A guess from samples, on lengths around the thresholds and around powers of two."""
    width = 140_000 if rows == 1 else 40_001
    lengths = [8192, 8193, 16_384, 16_385, 32_767, 32_768, 32_769, 40_001, 65_537, 131_072, 140_000, 1024, 1025, 5]
    kinds = ("normal", "narrow_1.03", "winners_over_zeros", "mostly_minus_infinity")
    for number, kind in enumerate(kinds):
        x = make(kind, 4, width, seed=number)
        if rows > 1:
            counts = np.resize(np.minimum(lengths, width), rows).astype(np.int32)
            gpu.check(x[np.arange(rows) % 4], 1024, counts, vec=4, route="clustered", group=group)
        else:
            for length in lengths[number % 2 :: 2]:
                gpu.check(x[:1], 1024, np.array([length], np.int32), vec=4, route="clustered", group=group)


@sizes
def test_members_at_the_seams_of_the_parts(gpu: Gpu, group: int) -> None:
    """The largest values stand where one block's part ends and the next begins, the last part short or empty."""
    for length in (40_000, 16_384 + 1, 8192 + 32 * group, 8192 + 32 * group + 1):
        each = -(-length // (32 * group)) * 32
        seams = [n + d for n in range(0, length + 1, each) for d in (-2, -1, 0, 1) if 0 <= n + d < length]
        x = make("normal", 1, 40_000)
        where = np.array([*seams, length - 1])
        x[0, where] = 10 + np.arange(len(where), dtype=np.float32)
        x[0, length:] = 1e9
        found = gpu.check(x, 1024, np.array([length], np.int32), vec=4, route="clustered", group=group)
        assert set(where.tolist()) <= set(found[0].tolist())


@sizes
@pytest.mark.parametrize("crowd", range(2))
def test_all_members_in_one_blocks_part(gpu: Gpu, crowd: int, group: int) -> None:
    """One block lists more than its slots with the leader hold, or than anybody has room for."""
    for share, block in ((1.0, 0), (1.0, group - 1), (0.5, group // 2)):
        x = make("normal", 1, 65_536)
        part = 65_536 // group
        inside = slice(block * part, block * part + int(part * share))
        x[0, inside] = 5 + np.abs(x[0, inside]) if crowd else np.float32(5)
        gpu.check(x, 1024, vec=4, route="clustered", group=group)


@sizes
@pytest.mark.parametrize("groups", [1, 3])
def test_a_cluster_takes_rows_in_turn(gpu: Gpu, groups: int, group: int) -> None:
    """Short, long, digits, guesses: what a row leaves in the others' shared memory meets every other kind."""
    lengths = np.array([2500, 2500, 401, 300, 2000, 0, 2500, 90, 600, 2499, 101, 402] * 9, np.int32)[:100]
    offset, stride = layout(2500, 4)
    problem = Problem(rows=100, width=2500, k=K, offset=offset, stride=stride)
    names = ("normal", "all_equal", "low_10_bits", "normal", "two_values")
    x = np.concatenate([make(name, 1, 2500, seed=5) for name in names])[np.arange(100) % 5]
    for tuning in (TIGHT, ROOMY):
        made = gpu.engine.plan(problem, route="clustered", group=group, tuning=tuning)
        few = dataclasses.replace(made, groups=groups, grid=groups * group)
        for _ in range(3):
            gpu.check(x, K, lengths, vec=4, prepared=gpu.engine.prepare(problem, plan=few))


@sizes
def test_options_together(gpu: Gpu, group: int) -> None:
    from drvtopk.testing.oracle import narrowed

    for rows in (1, 200):
        lengths = np.resize(np.array(limits(group, ROOMY, K, 2500)[::-1], np.int32), rows)
        starts = np.resize(np.array([0, 1, 7, 8, 13, 500, -1], np.int32), rows)
        for kind in ("two_values", "normal", "nan_payloads"):
            x = narrowed(make(kind, 4, 2500)[np.arange(rows) % 4], "bfloat16")
            beside = {"options": ORDERED, "row_starts": starts}
            gpu.check(x, K, lengths, vec=8, route="clustered", group=group, tuning=ROOMY, **beside)


@pytest.mark.parametrize("pdl", [False, True])
@sizes
def test_prepared_inside_a_capture_and_right_for_later_lengths(gpu: Gpu, group: int, pdl: bool) -> None:
    driver, rows, width = gpu.driver, 4, 20_000
    x = make("normal", rows, width)
    cycle = (0, 1024, 1025, 8192, 8193, 16_000, width, -1, 2**31 - 1)
    stream, other = driver.stream_create(), driver.stream_create()
    size = 4 * rows * 1024
    with gpu.memory(x.nbytes, 4 * rows, size) as (values, counts, out):
        driver.copy_to_device(values, x)
        driver.synchronize()
        driver.begin_capture(stream)
        fresh = type(gpu.engine)(driver, gpu.engine.device, cache=gpu.engine._cache)  # has loaded nothing
        problem = Problem(rows=rows, width=width, k=1024, pdl=pdl)
        prepared = fresh.prepare(problem, route="clustered", group=group)
        prepared.launch(values, counts, out, 0, stream)
        prepared.launch(values, counts, out, 0, stream)
        graph = driver.end_capture(stream)
        executable = driver.graph_instantiate(graph)
        for replay in range(30):
            lengths = np.array([cycle[(replay + row) % len(cycle)] for row in range(rows)], np.int32)
            driver.copy_to_device(counts, lengths)
            driver.memset(out, POISON, size)
            driver.synchronize()
            driver.graph_launch(executable, stream)
            driver.stream_synchronize(stream)
            found = np.empty((rows, 1024), np.int32)
            driver.copy_to_host(found, out)
            assert find_errors(x, 1024, lengths, found) == [], (replay, lengths)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
    for each in (stream, other):
        driver.stream_destroy(each)


@sizes
@pytest.mark.parametrize("budget", [1, 9, 40, 1000])
def test_a_budget_caps_the_clusters(gpu: Gpu, budget: int, group: int) -> None:
    lengths = np.random.default_rng(budget).integers(0, 20_001, 200).astype(np.int32)
    problem = Problem(rows=200, width=20_000, k=1024, sm_budget=budget)
    try:
        prepared = gpu.engine.prepare(problem, route="clustered", group=group)
    except PlanError as error:
        assert "no cluster of" in str(error) and 2 * budget < 2 * group
        return
    made: Plan = prepared.plan
    assert made.sms == min(budget, gpu.engine.device.sms)
    assert made.groups == made.grid // group and made.grid <= made.sms * made.occupancy
    gpu.check(make("uniform", 1, 20_000)[np.zeros(200, int)], 1024, lengths, prepared=prepared)


@pytest.mark.parametrize("group", [2, 4, 8])
@pytest.mark.parametrize("rows", [1, 40])
def test_clusters_start_beside_a_neighbour(gpu: Gpu, rows: int, group: int) -> None:
    """16 SMs are held; some eighth of the device then has 8 or more to spare."""
    driver = gpu.driver
    x = make("normal", rows, 40_000)
    prepared = gpu.engine.prepare(Problem(rows=rows, width=40_000, k=1024), route="clustered", group=group)
    size = 4 * rows * 1024
    with gpu.memory(x.nbytes, size) as (values, out):
        driver.copy_to_device(values, x)
        driver.memset(out, POISON, size)
        driver.synchronize()
        stream = driver.stream_create()
        with Blocker(gpu, 16) as blocker:
            prepared.launch(values, 0, out, 0, stream)
            driver.stream_synchronize(stream)
            assert blocker.started() == 16 and blocker.gave_up() == 0, "it finished while they were waiting"
        driver.stream_destroy(stream)
        found = np.empty((rows, 1024), np.int32)
        driver.copy_to_host(found, out)
    assert find_errors(x, 1024, None, found) == []


@sizes
def test_the_driver_has_room_for_every_size(gpu: Gpu, group: int) -> None:
    for rows in (1, 200):
        made = gpu.engine.plan(Problem(rows=rows, width=20_000, k=1024), route="clustered", group=group)
        resident = gpu.engine.clusters(made.variant, made.smem_bytes)
        assert made.clusters == resident and 1 <= resident <= made.resident_cap // group
        assert made.grid == rows * group and made.block == 512
