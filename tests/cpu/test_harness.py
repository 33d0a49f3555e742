"""The kernels' own code, run on the CPU: exact on every path under every schedule; a grid that does not fit hangs."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvtopk.plan import Problem
from drvtopk.source import kernel_sources
from drvtopk.spec import CLUSTERS, DEFAULT_TUNING, DTYPES, MAX_K, NANS, ROUTES, Options, align
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import find_errors, narrowed
from tests.harness.runner import Array, Ints, build, simulate
from tests.harness.scenario import TUNING, WIDTH, ancestor, any_scenario, plan_for, telling_scenario
from tests.needs import needs_cpp

pytestmark = needs_cpp

K = 64
LENGTHS = (WIDTH, WIDTH - 1, 601, 600, 301, 300, K + 1, K, K - 1, 1, 0, -1, -(2**31), 2**31 - 1)


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_input_on_every_path(name: str, route: str) -> None:
    lengths = np.array(LENGTHS, np.int32)
    x = make(name, len(lengths), WIDTH)
    problem = Problem(rows=len(lengths), width=WIDTH, k=K)
    made = plan_for(problem, 7, route=route, chunk=500 if route == "persistent" else None)
    words = np.full(made.workspace_bytes // 4, 0xFFFFFFFF, np.uint32)
    run = simulate(made, x, lengths, workspace=words, seed=len(name))
    assert run.status == "done", run.report
    assert find_errors(x, K, lengths, run.out) == []


@pytest.mark.exhaustive("schedules")
@pytest.mark.parametrize("seed", range(120))
def test_schedules_layouts_plans_and_dirty_workspaces(seed: int) -> None:
    assert any_scenario(seed).complaint() == ""


@pytest.mark.exhaustive("sanitized")
@pytest.mark.parametrize("seed", range(16))
def test_under_address_and_undefined_behaviour_sanitizers(seed: int) -> None:
    assert any_scenario(seed, k=K).complaint(sanitize=True) == ""


@pytest.mark.exhaustive("harness")
def test_rows_about_as_long_as_registers_hold_at_the_largest_k() -> None:
    """Read an element at a time by 512 threads, which hold 28 each there."""
    held = 28 * 512
    lengths = np.array([held - 1, held, held + 1, held + 64, MAX_K + 1, MAX_K, 12_000, 0], np.int32)
    x = make("normal", len(lengths), held + 64)
    problem = Problem(rows=len(lengths), width=x.shape[1], k=MAX_K, stride=x.shape[1] + 1, offset=1)
    made = plan_for(problem, 4, route="filtered", tuning=DEFAULT_TUNING)
    assert (made.vec_size, made.block) == (1, 512)
    run = simulate(made, x, lengths, workspace=np.empty(0, np.uint32), seed=1, offset=1)
    assert run.status == "done", run.report
    assert find_errors(x, MAX_K, lengths, run.out) == []


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(nan="highest", row_starts=True),
        Options(tie_break="smallest", dtype="bfloat16"),
        Options(tie_break="largest", order="value"),
    ],
    ids=lambda options: options.suffix or "plain",
)
@pytest.mark.parametrize("slots", [4, 64])
def test_every_kind_of_input_in_registers_of_which_every_thread_holds_some(options: Options, slots: int) -> None:
    """Blocks of 512 threads where rows outnumber SMs, else of 1024; one group of elements a thread, or several."""
    width = 5000 if slots > len(INPUTS) else 2600
    x = narrowed(np.concatenate([make(name, 1, width) for name in INPUTS]), options.dtype)
    starts = (np.arange(len(x)) % 7).astype(np.int32) if options.row_starts else None
    for k in (100, 1000):
        problem = Problem(rows=len(x), width=width, k=k, options=options)
        made = plan_for(problem, slots, route="filtered", tuning=DEFAULT_TUNING)
        assert made.block == (1024 if slots > len(x) else 512)
        run = simulate(made, x, row_starts=starts, seed=k)
        assert run.status == "done", run.report
        assert find_errors(x, k, None, run.out, options=options, row_starts=starts) == []


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("tie_break", ["smallest", "largest"])
@pytest.mark.parametrize(("order", "k"), [("none", K), ("index", 2100), ("value", 4096)])
def test_indices_of_two_digits_and_sorts_of_all_places(order: str, k: int, tie_break: str, route: str) -> None:
    width = 5000  # more than the bins of one digit
    x = np.stack([np.zeros(width), make("normal", 1, width)[0], np.arange(width) % 7 - 3]).astype(np.float32)
    x[0, ::3] *= -1
    lengths = np.array([width, width, width, k - 1], np.int32)  # the last: nothing to select, however long it is
    exact(x[[0, 1, 2, 2]], k, Options(order=order, tie_break=tie_break), route, chunk=1000, lengths=lengths)


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize(("route", "tie_break"), [*zip(ROUTES, ("smallest", "largest", "smallest"), strict=True)])
def test_indices_of_three_digits(route: str, tie_break: str) -> None:
    width = (1 << 22) + 5000
    exact(np.zeros((1, width), np.float32), K, Options(tie_break=tie_break), route, chunk=1 << 20)


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("group", CLUSTERS)
def test_a_cluster_shares_rows_of_all_numbers_of_samples(group: int) -> None:
    for width in (10_000, 1 << 17, 1 << 19):
        x = make("normal", 2, width)
        problem = Problem(rows=2, width=width, k=K, sm_budget=group)  # one cluster for both
        tuning = replace(DEFAULT_TUNING, cluster_threshold=9000)
        made = plan_for(problem, group, route="clustered", group=group, tuning=tuning)
        run = simulate(made, x)
        assert run.status == "done", run.report
        assert find_errors(x, K, None, run.out) == []


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nan", NANS)
@pytest.mark.parametrize("route", ROUTES)
def test_few_nan_and_zeros_of_both_signs(route: str, nan: str, dtype: str) -> None:
    x = make("normal", 4, WIDTH)
    x[:, 5::90] = np.nan
    x[:, 7::90] = -np.nan
    x[2:] = -np.abs(x[2:])  # so that the zeros are among the members
    x[2:, 1::40], x[2:, 2::40] = 0.0, -0.0
    exact(narrowed(x, dtype), K, Options(order="value", nan=nan, dtype=dtype), route, chunk=500)


def exact(x: Array, k: int, options: Options, route: str, chunk: int, lengths: Ints | None = None) -> None:
    rows, width = x.shape
    problem = Problem(rows=rows, width=width, k=k, options=options)
    tuning = replace(TUNING, max_candidates=2 * k) if route == "clustered" else TUNING  # which takes no less than k
    made = plan_for(problem, 7, route=route, chunk=chunk if route == "persistent" else None, tuning=tuning)
    run = simulate(made, x, lengths)
    assert run.status == "done", run.report
    assert find_errors(x, k, lengths, run.out, options=options) == []


rows_drawn = st.lists(
    st.tuples(
        st.one_of(st.integers(-2, 20), st.integers(295, 305), st.integers(595, 605), st.integers(0, 903)),
        st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=5),
        st.integers(0, 12),
        st.integers(0, 2**32 - 1),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.exhaustive("harness")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows=rows_drawn, slots=st.integers(3, 6), vec=st.sampled_from([1, 2, 4]), seed=st.integers(0, 2**32 - 1))
def test_any_bits_any_lengths(rows: list[tuple[int, list[int], int, int]], slots: int, vec: int, seed: int) -> None:
    """Rows of few values that differ in their lowest bits, so that ties and refinements come up everywhere."""
    k, width = 16, 900
    x = np.empty((len(rows), width), np.float32)
    for into, (_, values, bits, row_seed) in zip(x, rows, strict=True):
        random = np.random.default_rng(row_seed)
        noise = random.integers(0, 1 << bits, width, dtype=np.uint32)
        into[:] = (random.choice(np.array(values, np.uint32), width) ^ noise).view(np.float32)
    lengths = np.array([length for length, *_ in rows], np.int32)
    problem = Problem(rows=len(rows), width=width, k=k, stride=align(width, 4) + vec % 4, offset=vec % 4)
    made = plan_for(problem, slots, chunk=width // (slots - 1))
    words = np.random.default_rng(seed).integers(0, 3, made.workspace_bytes // 4, dtype=np.uint32)
    run = simulate(made, x, lengths, workspace=words, seed=seed, offset=vec % 4)
    assert run.status == "done", run.report
    assert find_errors(x, k, lengths, run.out) == []


@pytest.mark.parametrize("slots", [1, 2, 8, 33])
def test_one_block_more_than_fit_is_the_ancestors_deadlock(slots: int) -> None:
    complaint = ancestor(slots).complaint()
    assert complaint.startswith(f"deadlock: 0 of {slots + 1} blocks finished, 1 never started")
    assert f"polling echo({slots}) of group 0" in complaint, "the leader waits for the block that is not resident"
    assert complaint.count("polling arrivals of group 0") == slots - 1, "the others wait at the first barrier"


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("slots", [1, 2, 8, 33])
def test_the_same_row_as_planned_for_those_slots_finishes(slots: int) -> None:
    grid_too_large = ancestor(slots)
    problem = Problem(rows=1, width=grid_too_large.plan.width, k=grid_too_large.plan.k)
    for chunk in (grid_too_large.plan.chunk, -(-problem.width // slots)):
        made = plan_for(problem, slots, chunk=chunk)
        assert made.grid <= slots
        assert replace(grid_too_large, plan=made).complaint() == ""


def test_a_bounded_wait_reports_and_ends() -> None:
    bug = ancestor(4)
    variant = replace(bug.plan.variant, tuning=replace(bug.plan.tuning, wait_limit=2000))
    limited = replace(bug.plan, variant=variant)
    complaint = replace(bug, plan=limited).complaint()
    assert complaint.startswith("deadlock: block ") and "gave up" in complaint


def test_the_same_seed_is_the_same_run() -> None:
    scenario = telling_scenario(0)
    one, two, other = (
        simulate(scenario.plan, scenario.logits, scenario.lengths, slots=scenario.slots, seed=seed)
        for seed in (5, 5, 6)
    )
    assert np.array_equal(one.out, two.out) and np.array_equal(one.workspace, two.workspace)
    assert not np.array_equal(one.out, other.out), "members are placed in the order in which blocks come"


STARTS = """
import os, subprocess, sys, time
subprocess.Popen([sys.argv[1], str(os.getpid())])
print("started", flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_simulated_launch_ends_with_the_process_that_started_it() -> None:
    program = build(telling_scenario(0).plan.variant)
    assert subprocess.run([program, str(os.getpid() + 1)], stdin=subprocess.DEVNULL, timeout=10).returncode == 1
    # The launch waits for its input, and holds the other end of the output as long as it runs.
    command = [sys.executable, "-c", STARTS, str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None and parent.stdout.readline() == b"started\n"
        assert select.select([parent.stdout], [], [], 0.2)[0] == []
        parent.kill()
        assert select.select([parent.stdout], [], [], 10)[0] == [parent.stdout], "it is still running"
        assert parent.stdout.read() == b""


PLANTED = [
    (
        "loads.cuh",
        "begin <= v && v < end ? __ldg(from + v) : fill",
        "__ldg(from + v)",
        "which is",
    ),
    ("loads.cuh", "if (at < stretch.last) look(", "if (at < stretch.last + 9) look(", "which is"),
    ("row_pass.cuh", "if (at < stretch.last) look(", "if (at < stretch.last + 9) look(", "which is"),
    ("held.cuh", "keys[index - begin] = key", "keys[index - begin + 4000] = key", "past the end"),
    ("finish.cuh", "    indices[place] = static_cast<Index>(-1);", "    indices[place + 30000] = -1;", "not its own"),
    ("finish.cuh", "    indices[place] = static_cast<Index>(-1);", "    indices[place + 1] = -1;", "between two rows"),
    (
        "finish.cuh",
        "    indices[place] = static_cast<Index>(-1);",
        "    indices[0] = static_cast<Index>(-1);",
        "written before",
    ),
    (
        "finish.cuh",
        "values[place] = static_cast<Logit>(row.bits(index));",
        "values[0] = row.bits(index);",
        "written before",
    ),
    ("finish.cuh", "__ldg(pages + index / page_size)", "__ldg(pages + index / page_size + 9000)", "integers"),
]


@pytest.mark.exhaustive("planted")
@pytest.mark.parametrize(("file", "text", "by", "says"), PLANTED)
def test_the_harness_notices_an_access_out_of_place(file: str, text: str, by: str, says: str) -> None:
    sources = dict(kernel_sources())
    assert sources[file].count(text.encode()) == 1
    sources[file] = sources[file].replace(text.encode(), by.encode())
    found = []
    for seed in range(60):
        found.append(any_scenario(seed, k=K, slots=4).complaint(sources=sources))
        if found[-1].startswith("fault: ") and says in found[-1]:
            return
    pytest.fail(f"nobody said {says!r}: {found}")
