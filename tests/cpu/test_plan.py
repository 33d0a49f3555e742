"""The planner, held against the launch rules written out again, over shapes, devices and occupancies."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvtopk import measured
from drvtopk.choice import CHOICES, Choice
from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.measured import measured_times, modelled_times
from drvtopk.plan import Occupancy, Plan, Problem, after_refusal, calculated_clusters, calculated_occupancy, plan
from drvtopk.reasons import Kind, Reason
from drvtopk.spec import (
    CLUSTERS,
    DEFAULT_TUNING,
    KNOWN_DEVICES,
    MAX_WIDTH,
    NARROW_THREADS,
    ROUTES,
    DeviceInfo,
    KernelInfo,
    Options,
    Tuning,
    Variant,
    min_blocks,
)
from tools.tune import modelled

READ = measured.table  # before the fixture that hides what was measured
KERNEL = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
RADIX_THRESHOLD = 32768
REFUSED = "the driver refused the cooperative launch (720, COOPERATIVE_LAUNCH_TOO_LARGE)"
FILTERED, PERSISTENT = Choice("filtered"), Choice("persistent")
OF_4, OF_8, OF_16 = (Choice("clustered", n) for n in (4, 8, 16))

devices = st.one_of(
    st.sampled_from(sorted(KNOWN_DEVICES.values(), key=lambda d: d.name)),
    st.builds(
        lambda sms, smem, threads: DeviceInfo(
            name="drawn",
            arch="sm_90a",
            sms=sms,
            smem_optin=smem,
            smem_per_sm=smem + 1024,
            max_threads_per_sm=threads,
            max_blocks_per_sm=16,
        ),
        st.integers(1, 300),
        st.integers(48, 227).map(lambda kib: kib * 1024),
        st.sampled_from([1024, 1536, 2048]),
    ),
)
widths = st.one_of(st.integers(0, 5_000_000), st.sampled_from([0, 1, 32768, 32769, 2**31 - 1]))
problems = st.builds(
    lambda rows, width, pad, k, offset, hint: Problem(
        rows=rows, width=width, k=k, stride=width + pad, offset=offset, max_seq_len=hint
    ),
    st.one_of(st.integers(0, 600), st.integers(0, 2**20)),
    widths,
    st.integers(0, 9),
    st.integers(1, 4096),
    st.integers(0, 9),
    st.one_of(st.none(), st.integers(0, 3_000_000)),
)


def fixed_bytes(k: int) -> int:
    """A block's shared memory before what it holds: 2048 bins, 512 bytes of scratch, the staged output in 16s."""
    return 2048 * 4 + 512 + (4 * k + 15) // 16 * 16


def workspace_bytes(groups: int, group: int) -> int:
    """A line, three histograms with 32 words behind each, two words a block; in lines of 128 bytes."""
    return groups * ((128 + 3 * (2048 + 32) * 4 + 8 * group + 127) // 128 * 128)


def sizes_by_hand(made: Plan, problem: Problem) -> None:
    """Shared memory, threads and load width once more, for every route."""
    held = (4 * made.chunk + 15) // 16 * 16 if made.cooperative else 0
    each = 20 if made.route == "clustered" else 8  # bytes of a candidate
    needed = fixed_bytes(made.k) + max(held, each * made.candidates)
    if made.route == "clustered" and made.residency == 1:
        assert made.smem_bytes >= needed
    else:
        assert made.smem_bytes == needed
    narrow = made.route == "clustered" or (made.route == "filtered" and made.residency == 2)
    assert made.block == (512 if narrow else 1024)
    shared = made.route == "persistent" and made.group > 1
    starts = (problem.offset, problem.row_stride if problem.rows > 1 else 0, made.chunk if shared else 0)
    assert made.vec_size == next(v for v in (4, 2, 1) if all(start % v == 0 for start in starts))


def by_hand(made: Plan, problem: Problem, device: DeviceInfo, occupancy: int) -> None:
    """The launch rules once more, without the planner's code."""
    assert made.resident_cap == device.sms * occupancy
    waits = min(problem.max_seq_len or 0, problem.width) > RADIX_THRESHOLD
    assert made.needs_cooperation == made.cooperative == waits
    assert made.group == max(1, -(-problem.width // made.chunk))
    headroom = (device.sms if occupancy > 1 else 1) if waits else 0
    assert made.headroom == headroom
    kept = waits and made.resident_cap - headroom >= made.group
    assert made.headroom_kept == kept
    free = made.resident_cap - (headroom if kept else 0)
    assert made.groups == max(1, min(free // made.group, problem.rows))
    assert made.grid == (made.groups * made.group if problem.rows else 0)
    if waits:
        assert made.grid <= made.resident_cap
        assert made.group * made.chunk >= problem.width
        assert made.workspace_bytes == (workspace_bytes(made.groups, made.group) if problem.rows else 0)
    else:
        assert made.workspace_bytes == 0
    sizes_by_hand(made, problem)


def cluster_by_hand(made: Plan, problem: Problem, device: DeviceInfo, together: int) -> None:
    """The launch rules of clusters once more, without the planner's code."""
    assert made.group in CLUSTERS and made.group <= device.max_cluster
    assert made.grid == made.groups * made.group <= 2**31 - 1
    assert not made.cooperative and not made.needs_cooperation and made.workspace_bytes == 0
    assert problem.waits == "allowed" and together >= 1
    if problem.sm_budget is None:
        assert made.groups == min(problem.rows, (2**31 - 1) // made.group)
    else:
        sms = min(device.sms, problem.sm_budget)
        assert made.groups == min(problem.rows, together, sms * made.occupancy // made.group)
        assert made.grid <= sms * made.occupancy
    assert made.residency == (1 if problem.rows * made.group <= made.sms else 2)
    assert made.chunk * made.group >= problem.width
    assert made.candidates >= made.k, "room for the members, which every block of a cluster needs"
    if made.residency == 1:  # so much that no two blocks of a cluster share an SM
        assert 2 * (made.smem_bytes + device.smem_reserved) > device.smem_per_sm
    sizes_by_hand(made, problem)


def clusters_pay(problem: Problem, device: DeviceInfo) -> bool:
    """Whether clusters are considered at all."""
    return device.max_cluster > 1 and problem.longest > 8192 and problem.waits == "allowed" and problem.rows > 0


def alone_pays(made: Plan, problem: Problem, device: DeviceInfo, *, clusters_fit: bool = True) -> None:
    """One block a row, because waiting is not worth it or because the blocks of a row do not fit."""
    if made.rejected is None and made.reason.kind is Kind.MODELLED:
        times = modelled_times(device, problem.rows, problem.longest, 16)
        better = [choice for choice, us in times.items() if us < times[FILTERED] and choice != PERSISTENT]
        assert clusters_pay(problem, device)
        assert not better or not clusters_fit or device.name == "drawn", "what was ranked before did not fit"
        return
    if made.rejected is not None:
        assert made.reason == Reason(kind=Kind.DOES_NOT_FIT)
        assert made.rejected.group > made.rejected.resident_cap or made.rejected.occupancy == 0
        assert problem.longest > made.tuning.radix_threshold and 16 * problem.rows <= device.sms
    else:
        short = problem.longest <= made.tuning.radix_threshold
        assert made.reason == Reason(kind=Kind.SHORT_ROWS if short else Kind.MANY_ROWS)
        assert short or 16 * problem.rows > device.sms


@settings(max_examples=600, deadline=None)
@given(problems, devices)
def test_every_plan_obeys_the_launch_rules(problem: Problem, device: DeviceInfo) -> None:
    asked: list[tuple[Variant, int, int]] = []

    def occupancy(variant: Variant, smem: int) -> int:
        asked.append((variant, smem, calculated_occupancy(KERNEL, device, smem, variant.threads)))
        return asked[-1][2]

    def clusters(variant: Variant, smem: int) -> int:
        assert (variant, smem) == asked[-1][:2] and asked[-1][2] >= 1, "of what was asked for, where a block fits"
        return calculated_clusters(device, variant.cluster, asked[-1][2])

    made = plan(problem, device, occupancy, clusters=clusters)
    variant, smem, answer = asked[-1]
    assert (variant, smem, answer) == (made.variant, made.smem_bytes, made.occupancy), "asked of what is launched"
    assert made.smem_bytes <= device.smem_optin
    assert made.occupancy >= 1 and made.block == made.variant.threads
    assert problem.offset % made.vec_size == (problem.rows > 1 and problem.row_stride % made.vec_size) == 0
    if made.route == "persistent":
        assert made.group == 1 or made.chunk % made.vec_size == 0
        by_hand(made, problem, device, made.occupancy)
    elif made.route == "clustered":
        assert clusters_pay(problem, device)
        cluster_by_hand(made, problem, device, calculated_clusters(device, made.group, made.occupancy))
    else:
        sizes_by_hand(made, problem)
        assert made.grid == made.groups == problem.rows and made.group == 1
        assert not made.cooperative and made.workspace_bytes == 0 and not made.headroom_kept
        alone_pays(made, problem, device)
        assert made.residency == (1 if problem.rows <= device.sms else 2)


@settings(max_examples=200, deadline=None)
@given(problems, devices, st.integers(0, 4), st.one_of(st.none(), st.integers(1, 60_000)))
def test_any_occupancy_and_chunk_give_a_plan_that_fits_or_the_fallback(
    problem: Problem, device: DeviceInfo, occupancy: int, chunk: int | None
) -> None:
    def answer(variant: Variant, smem: int) -> int:
        return occupancy if variant.route == "persistent" else 1

    made = plan(problem, device, answer, chunk=chunk, clusters=lambda variant, smem: 0)
    if made.route == "persistent":
        assert occupancy >= 1, "0 is never rounded up"
        if made.cooperative:
            assert made.grid <= device.sms * occupancy
        if chunk is not None:
            assert made.chunk == chunk
        by_hand(made, problem, device, occupancy)
    elif made.rejected is not None:
        with pytest.raises(PlanError):
            plan(problem, device, answer, chunk=chunk, route="persistent")
    else:
        assert chunk is None
        alone_pays(made, problem, device, clusters_fit=False)


SMALLEST = DeviceInfo(
    name="20 SMs, 48 KB",
    arch="sm_86",
    sms=20,
    smem_optin=48 * 1024,
    smem_per_sm=64 * 1024,
    max_threads_per_sm=1024,
    max_blocks_per_sm=16,
)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4096), st.integers(0, 5000), widths, st.integers(20, 200), st.integers(48, 99))
def test_there_is_a_fallback_on_every_device_from_48_kb_on(k: int, rows: int, width: int, sms: int, kib: int) -> None:
    device = DeviceInfo(
        name="small",
        arch="sm_86",
        sms=sms,
        smem_optin=kib * 1024,
        smem_per_sm=kib * 1024 + 1024,
        max_threads_per_sm=1024,
        max_blocks_per_sm=16,
    )

    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(KERNEL, device, smem, variant.threads)

    made = plan(Problem(rows=rows, width=width, k=k), device, occupancy, route="filtered")
    assert made.occupancy >= 1 and made.smem_bytes <= kib * 1024


def limited(device: DeviceInfo) -> Occupancy:
    """Occupancy with registers as the kernels are limited to, not as compiled."""

    def occupancy(variant: Variant, smem: int) -> int:
        registers = 65536 // variant.threads // min(variant.residency, min_blocks(device.arch, variant.threads))
        return calculated_occupancy(replace(KERNEL, registers=registers), device, smem, variant.threads)

    return occupancy


@pytest.mark.exhaustive("plans")
@pytest.mark.parametrize("device", [SMALLEST, *KNOWN_DEVICES.values()], ids=lambda d: d.name)
def test_there_is_a_plan_for_every_k(device: DeviceInfo) -> None:
    """With registers as the kernels are limited to; the fallback where a row needs more blocks than there are."""
    for k in range(1, 4097):
        for width in (100, 50_000, 2**31 - 1):
            problem = Problem(rows=3, width=width, k=k)
            made = plan(problem, device, limited(device))
            assert made.occupancy >= 1 and made.smem_bytes <= device.smem_optin
            assert made.grid <= made.resident_cap or not made.cooperative
        if device.max_cluster > 1:
            assert made.route == "clustered" and made.group == 16, "more than groups of blocks could hold"
            with pytest.raises(PlanError, match="one row needs"):
                plan(problem, device, limited(device), route="persistent")
        else:
            assert made.route == "filtered"
            assert made.reason.kind is (Kind.MANY_ROWS if device.sms < 3 * 16 else Kind.DOES_NOT_FIT)


def test_decode_of_one_row_takes_one_kernel_whatever_its_width() -> None:
    def variant(rows: int, width: int, offset: int = 0) -> Variant:
        device = KNOWN_DEVICES["h200"]
        return plan(Problem(rows=rows, width=width, k=1024, offset=offset), device, limited(device)).variant

    made = {variant(1, width) for width in range(131_069, 131_078)}
    assert len(made) == 1 and made.pop().vec_size == 4
    assert variant(2, 131_071).vec_size == 1 and variant(1, 131_072, offset=2).vec_size == 2


def test_no_rows_need_no_workspace() -> None:
    for device in KNOWN_DEVICES.values():
        for route in ("auto", "persistent"):
            made = plan(Problem(rows=0, width=100_000, k=64), device, limited(device), route=route)
            assert (made.grid, made.workspace_bytes) == (0, 0)


@settings(max_examples=150, deadline=None)
@given(problems, st.sampled_from(list(KNOWN_DEVICES.values())))
def test_the_planners_own_chunk_costs_no_resident_block(problem: Problem, device: DeviceInfo) -> None:
    """It takes no more shared memory than leaves room for as many blocks as the SM shall hold, and has threads for."""
    made = plan(problem, device, limited(device))
    wanted = min(made.residency, device.max_threads_per_sm // made.block)
    if made.occupancy < wanted:  # but for blocks with a large k, which have an SM to themselves rather than no room
        assert made.block == NARROW_THREADS and made.candidates >= made.k
        least = made.k * (2 if made.route == "clustered" else 1)
        each = 20 if made.route == "clustered" else 8
        assert 2 * (fixed_bytes(made.k) + least * each + device.smem_reserved) > device.smem_per_sm
    if made.cooperative and made.group > 1:
        assert made.chunk >= 4096, "not split finer than pays"


def test_no_block_that_fits_is_an_error_and_never_one_block() -> None:
    device, problem = KNOWN_DEVICES["h200"], Problem(rows=4, width=100_000, k=1024)
    for route in ("auto", *ROUTES):
        with pytest.raises(PlanError, match="no cluster" if route == "clustered" else "none fits"):
            plan(problem, device, lambda variant, smem: 0, route=route)
    device = replace(device, arch="sm_80")  # without clusters
    made = plan(problem, device, lambda variant, smem: 0 if variant.route == "persistent" else 2)
    assert made.route == "filtered" and made.rejected is not None
    assert made.rejected.occupancy == made.rejected.resident_cap == 0
    assert f"needs {made.rejected.smem_bytes} bytes" in made.why and f"{device.smem_optin} bytes" in made.why


@settings(max_examples=100, deadline=None)
@given(problems, devices)
def test_what_the_driver_refuses_becomes_a_fallback_that_waits_for_nobody(problem: Problem, device: DeviceInfo) -> None:
    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(KERNEL, device, smem, variant.threads)

    tuning = Tuning(short_max=77, radix_threshold=400, max_candidates=900)
    refused = plan(problem, replace(device, arch="sm_80"), occupancy, tuning=tuning)
    if refused.cooperative:
        device = replace(device, arch="sm_80")
        made = after_refusal(refused, problem, device, occupancy)
        alone = plan(problem, device, occupancy, tuning=tuning, route="filtered")
        assert made == replace(alone, reason=made.reason, rejected=made.rejected)
        assert made.route == "filtered" and not made.cooperative and made.grid == problem.rows
        assert made.reason == Reason(kind=Kind.REFUSED, grid=refused.grid)
        assert made.why == f"fallback: {REFUSED} for {refused.grid} blocks, {refused.resident_cap} were to fit"
        rejected = made.rejected
        assert rejected is not None
        for name in ("route", "vec_size", "group", "chunk", "smem_bytes", "occupancy", "resident_cap"):
            assert getattr(rejected, name) == getattr(refused, name)


TABLE = [  # device, occupancy, widest row with headroom kept, widest row resident at all
    ("h200", 2, 1_118_304, 2_236_608),
    ("l20", 1, 770_952, 779_424),
    ("gb10", 1, 398_184, 406_656),
]


@pytest.mark.parametrize(("name", "occupancy", "kept", "resident"), TABLE)
@pytest.mark.parametrize("rows", [1, 4])
def test_the_familys_published_limits(name: str, occupancy: int, kept: int, resident: int, rows: int) -> None:
    device = KNOWN_DEVICES[name]

    def at(width: int) -> Plan:
        found = plan(
            Problem(rows=rows, width=width, k=1024),
            device,
            lambda variant, smem: calculated_occupancy(KERNEL, device, smem, variant.threads),
            chunk=8472,
        )
        assert found.route == "filtered" or found.occupancy == occupancy
        return found

    assert at(kept).headroom_kept
    assert not at(kept + 1).headroom_kept and at(kept + 1).cooperative
    assert at(resident).cooperative and at(resident).group == device.sms * occupancy
    beyond = at(resident + 1)
    assert beyond.route == "filtered"
    assert beyond.why == f"fallback: one row needs {device.sms * occupancy + 1} blocks, {device.sms * occupancy} fit"


@pytest.mark.parametrize(
    ("registers", "smem", "device", "blocks"),
    [
        (32, 0, "h200", 2),  # 2048 threads
        (32, 115_712, "h200", 2),  # 2 x (115712 + 1024) = 233472
        (32, 115_713, "h200", 1),
        (33, 0, "h200", 1),  # 40 registers a thread are given out: 1 x 32 warps in 51 that fit
        (64, 232_448, "h200", 1),
        (64, 232_449, "h200", 0),
        (65, 0, "h200", 0),  # 72 x 32 x 32 registers exceed 65536
        (32, 0, "l20", 1),  # 1536 threads
        (64, 101_376, "l20", 1),
        (32, 101_377, "l20", 0),
        (32, 82_944, "a100", 2),  # 2 x (82944 + 1024) = 167936
        (32, 82_945, "a100", 1),
    ],
)
def test_the_occupancy_calculator(registers: int, smem: int, device: str, blocks: int) -> None:
    kernel = KernelInfo(registers=registers, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
    assert calculated_occupancy(kernel, KNOWN_DEVICES[device], smem) == blocks


def test_a_block_takes_no_more_shared_memory_than_it_may_opt_in_to() -> None:
    """However much an SM has."""
    device = replace(KNOWN_DEVICES["h200"], smem_optin=100_000)
    assert calculated_occupancy(KERNEL, device, 100_000) == 2
    assert calculated_occupancy(KERNEL, device, 100_001) == 0
    assert calculated_occupancy(replace(KERNEL, static_smem_bytes=1), device, 100_000) == 0


def test_the_occupancy_calculator_at_limits_that_no_known_device_reaches() -> None:
    h200 = KNOWN_DEVICES["h200"]
    assert calculated_occupancy(KERNEL, replace(h200, max_blocks_per_sm=1), 0) == 1
    # 2 x (115712 + 1024) = 233472; one byte more takes a unit of 128 a block, so 255 spare bytes do not help
    assert calculated_occupancy(KERNEL, replace(h200, smem_per_sm=233_472 + 255), 115_713) == 1
    assert calculated_occupancy(KERNEL, replace(h200, smem_per_sm=233_472 + 256), 115_713) == 2
    static = replace(KERNEL, static_smem_bytes=4096)
    assert calculated_occupancy(static, h200, 115_712 - 4096) == 2
    assert calculated_occupancy(static, h200, 115_712 - 4095) == 1
    assert calculated_occupancy(static, h200, 232_448 - 4096) == 1
    assert calculated_occupancy(static, h200, 232_448 - 4095) == 0


@settings(max_examples=150, deadline=None)
@given(problems, devices, st.sampled_from(["allowed", "never"]), st.one_of(st.none(), st.integers(1, 200)))
def test_a_caller_may_forbid_waiting_and_cap_the_grid(
    problem: Problem, device: DeviceInfo, waits: str, budget: int | None
) -> None:
    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(KERNEL, device, smem, variant.threads)

    asked = replace(problem, waits=waits, sm_budget=budget)
    for route in ("auto", *ROUTES):
        try:
            made = plan(asked, device, occupancy, route=route)
        except PlanError as error:
            assert route in ("persistent", "clustered") and error.constraint
            continue
        assert route in ("auto", made.route)
        if waits == "never":
            assert not made.cooperative and made.workspace_bytes == 0
            assert made.route != "clustered" and (made.group == 1 or not made.needs_cooperation)
        if budget is not None:
            assert made.sms <= budget and made.grid <= budget * made.occupancy


def test_forbidding_waits_says_so() -> None:
    device = KNOWN_DEVICES["h200"]
    problem = Problem(rows=2, width=100_000, k=512, waits="never")
    made = plan(problem, device, lambda variant, smem: 2)
    assert made.route == "filtered" and made.reason.kind is Kind.WAITS_FORBIDDEN and made.rejected is not None
    with pytest.raises(PlanError, match="which the caller forbids"):
        plan(problem, device, lambda variant, smem: 2, route="persistent")
    short = replace(problem, max_seq_len=9000)
    made = plan(short, device, lambda variant, smem: 2, route="persistent")
    assert made.route == "persistent" and not made.cooperative, "it does not wait for such rows"


def test_vec_size_is_the_widest_that_base_stride_and_chunk_allow() -> None:
    device = KNOWN_DEVICES["h200"]

    def vec(offset: int, stride: int, chunk: int | None = None) -> int:
        problem = Problem(rows=4, width=100_000, k=512, stride=stride, offset=offset)
        return plan(problem, device, lambda variant, smem: 1, chunk=chunk).vec_size

    assert [vec(0, 100_000), vec(2, 100_000), vec(1, 100_000)] == [4, 2, 1]
    assert [vec(0, 100_002), vec(0, 100_001), vec(4, 100_004)] == [2, 1, 4]
    assert [vec(0, 100_000, 5002), vec(0, 100_000, 5001)] == [2, 1]


def test_a_plan_is_the_same_every_time() -> None:
    device = KNOWN_DEVICES["h100"]
    problem = Problem(rows=7, width=300_000, k=777)
    assert len({repr(plan(problem, device, lambda variant, smem: 2)) for _ in range(100)}) == 1


@pytest.mark.parametrize(
    ("argument", "bad"),
    [
        ("rows", -1),
        ("rows", 2**31),
        ("rows", 1.0),
        ("width", -1),
        ("width", 2**31),
        ("k", 0),
        ("k", 4097),
        ("k", True),
        ("stride", -1),
        ("stride", 2**62),
        ("offset", -1),
        ("max_seq_len", -1),
        ("max_seq_len", "long"),
        ("waits", "sometimes"),
        ("sm_budget", 0),
    ],
)
def test_a_bad_problem_names_the_argument(argument: str, bad: object) -> None:
    good: dict[str, object] = {"rows": 2, "width": 100, "k": 8}
    with pytest.raises(InvalidArgument) as caught:
        Problem(**{**good, argument: bad})  # type: ignore[arg-type]
    assert caught.value.argument == argument and repr(bad) in str(caught.value)


def test_bad_planner_inputs_are_named() -> None:
    device, problem = KNOWN_DEVICES["h200"], Problem(rows=2, width=100, k=8)
    cases: list[tuple[str, dict[str, Any]]] = [("route", {"route": "best"}), ("chunk", {"chunk": 0})]
    cases += [("group", {"route": "clustered", "group": bad}) for bad in (0, 1, 3, 32)]
    cases += [("group", {"route": route, "group": 2}) for route in ("auto", "persistent", "filtered")]
    for argument, arguments in cases:
        with pytest.raises(InvalidArgument) as caught:
            plan(problem, device, lambda variant, smem: 1, **arguments)
        assert caught.value.argument == argument
    for threshold in (
        "short_max",
        "radix_threshold",
        "sms_to_share",
        "cluster_threshold",
        "min_chunk",
        "max_candidates",
    ):
        for bad in (0, -1, 2**31):
            with pytest.raises(InvalidArgument) as caught:
                Tuning(**{threshold: bad})
            assert caught.value.argument == threshold and str(bad) in str(caught.value)
    with pytest.raises(InvalidArgument, match="vec_size"):
        Variant(route="filtered", k=8, vec_size=3)
    for route, cluster in (("filtered", 2), ("persistent", 8), ("clustered", 1), ("clustered", 3), ("clustered", 32)):
        with pytest.raises(InvalidArgument, match="cluster"):
            Variant(route=route, k=8, vec_size=4, cluster=cluster)
    with pytest.raises(InvalidArgument, match="residency"):
        Variant(route="filtered", k=8, vec_size=4, residency=3)
    with pytest.raises(InvalidArgument, match="sms"):
        device.with_limits(sms=0)


# -- clusters ----------------------------------------------------------------------------------------------------------

H200, A100 = KNOWN_DEVICES["h200"], KNOWN_DEVICES["a100"]
LONG_ROWS = Problem(rows=4, width=131_072, k=1024)


def cluster_plan(problem: Problem = LONG_ROWS, device: DeviceInfo = H200, **asked: Any) -> Plan:
    return plan(problem, device, limited(device), **{"route": "clustered", **asked})


@settings(max_examples=200, deadline=None)
@given(problems, devices, st.sampled_from([None, *CLUSTERS]), st.one_of(st.none(), st.integers(1, 300)))
def test_every_cluster_plan_obeys_the_launch_rules(
    problem: Problem, device: DeviceInfo, group: int | None, budget: int | None
) -> None:
    problem = replace(problem, sm_budget=budget)

    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(KERNEL, device, smem, variant.threads)

    try:
        made = plan(problem, device, occupancy, route="clustered", group=group)
    except PlanError as error:
        assert error.constraint.startswith("no cluster of ")
        return
    assert group in (None, made.group) and made.smem_bytes <= device.smem_optin
    seen = device.with_limits(sms=min(device.sms, budget or device.sms))
    cluster_by_hand(made, problem, device, calculated_clusters(seen, made.group, made.occupancy))


@pytest.mark.parametrize("group", CLUSTERS)
def test_a_cluster_for_each_row_and_no_more_than_a_grid_holds(group: int) -> None:
    for rows in (0, 1, 7, 2**20, (2**31 - 1) // group, (2**31 - 1) // group + 1, 2**31 - 1):
        made = cluster_plan(Problem(rows=rows, width=20_000, k=512), group=group)
        assert made.groups == min(rows, (2**31 - 1) // group) and made.grid == made.groups * group < 2**31
        assert (made.group, made.block, made.workspace_bytes, made.cooperative) == (group, 512, 0, False)
        assert made.variant.cluster == group and made.variant.threads == 512
        assert made.residency == (1 if rows * group <= 132 else 2)


def test_without_a_named_size_the_largest_cluster_that_fits_is_taken() -> None:
    for largest in (16, 8, 4, 2):

        def clusters(variant: Variant, smem: int, largest: int = largest) -> int:
            return int(variant.cluster <= largest)

        made = plan(LONG_ROWS, H200, limited(H200), route="clustered", clusters=clusters)
        assert made.group == largest and made.clusters == 1 and "1 clusters fit at once" in made.why
    with pytest.raises(PlanError, match="no cluster of 2 blocks"):
        plan(LONG_ROWS, H200, limited(H200), route="clustered", clusters=lambda variant, smem: 0)


def test_a_cluster_that_does_not_fit_gives_way_to_the_next_best() -> None:
    asked: list[int] = []

    def clusters(variant: Variant, smem: int) -> int:
        asked.append(variant.cluster)
        return int(variant.cluster in allowed)

    allowed = {2, 4, 8, 16}
    best = plan(LONG_ROWS, H200, limited(H200), clusters=clusters)
    assert best.route == "clustered" and asked == [best.group], "each is asked about once, and no more than are needed"
    seen = set()
    while allowed:
        made = plan(LONG_ROWS, H200, limited(H200), clusters=clusters)
        if made.route != "clustered":
            break
        assert made.group in allowed
        allowed.remove(made.group)
        seen.add(made.group)
    assert len(seen) >= 2
    allowed = set()
    made = plan(LONG_ROWS, H200, limited(H200), clusters=clusters)
    assert made.route in ("filtered", "persistent") and made.clusters == 0


@pytest.mark.parametrize("name", sorted(KNOWN_DEVICES))
def test_devices_without_clusters_are_never_given_any(name: str) -> None:
    device = KNOWN_DEVICES[name]
    has = device.arch in ("sm_90a", "sm_100a", "sm_103a")
    assert device.max_cluster == (16 if has else 1) and device.has_pdl == (
        name not in ("a100", "l20", "l40s", "rtx4090")
    )
    routes = {
        plan(Problem(rows=rows, width=width, k=512), device, limited(device)).route
        for rows in (1, 4, 16, 64, 300)
        for width in (9000, 40_000, 131_072, 1_000_000)
    }
    assert ("clustered" in routes) is has
    if not has:
        for group in (None, *CLUSTERS):
            with pytest.raises(PlanError, match=f"no cluster of {group or 2} blocks") as caught:
                cluster_plan(device=device, group=group)
            assert caught.value.route == "clustered"


def test_clusters_wait_so_waits_never_excludes_them() -> None:
    never = replace(LONG_ROWS, waits="never")
    with pytest.raises(PlanError, match="which the caller forbids") as caught:
        cluster_plan(never)
    assert caught.value.route == "clustered"
    for rows in (1, 4, 16, 64, 300):
        for width in (8193, 40_000, 1_000_000):
            made = plan(replace(never, rows=rows, width=width, stride=width, max_seq_len=width), H200, limited(H200))
            assert made.route == "filtered" and made.group == 1


@pytest.mark.parametrize("group", CLUSTERS)
@pytest.mark.parametrize("budget", [1, 2, 7, 16, 66, 132, 500])
def test_a_budget_caps_the_clusters(group: int, budget: int) -> None:
    problem = replace(LONG_ROWS, rows=1000, sm_budget=budget)
    sms = min(budget, 132)
    try:
        made = cluster_plan(problem, group=group)
    except PlanError as error:
        assert "no cluster of" in str(error) and sms * 2 < group * 2
        return
    assert made.sms == sms and made.grid <= sms * made.occupancy and made.grid % group == 0
    assert made.groups <= calculated_clusters(replace(H200, sms=sms), group, made.occupancy)
    roomy = plan(problem, H200, limited(H200), route="clustered", group=group, clusters=lambda variant, smem: 10**6)
    assert roomy.groups == sms * roomy.occupancy // group, "the driver knows of no budget"


@pytest.mark.parametrize(
    ("hint", "counts_as"),
    [(0, 0), (1, 1), (2, 2), (3, 4), (8192, 8192), (8193, 16384), (30_000, 32768), (32769, 65536), (65_537, 100_000)],
)
def test_a_hint_counts_as_the_next_power_of_two(hint: int, counts_as: int) -> None:
    """So that a hint which grows with every step is a new problem only now and then."""
    made = Problem(rows=4, width=100_000, k=512, max_seq_len=hint)
    assert made.max_seq_len == made.longest == counts_as
    same = Problem(rows=4, width=100_000, k=512, max_seq_len=counts_as)
    assert made == same and hash(made) == hash(same) and replace(made) == made
    assert Problem(rows=1, width=MAX_WIDTH, k=1, max_seq_len=2**30 + 1).longest == MAX_WIDTH
    for beyond in (None, 100_000, 100_001, MAX_WIDTH):
        assert Problem(rows=4, width=100_000, k=512, max_seq_len=beyond).max_seq_len == 100_000


def test_hints_lose_nothing_at_the_planners_thresholds() -> None:
    for threshold in (DEFAULT_TUNING.radix_threshold, DEFAULT_TUNING.cluster_threshold, DEFAULT_TUNING.short_max):
        assert Problem(rows=4, width=100_000, k=512, max_seq_len=threshold).longest == threshold


def test_rows_that_need_no_cluster_are_not_given_one() -> None:
    for rows in (1, 16, 200):
        short = Problem(rows=rows, width=131_072, k=1024, max_seq_len=8192)
        assert plan(short, H200, limited(H200)).route == "filtered"
        assert cluster_plan(short).route == "clustered", "unless it is asked for"
    assert plan(Problem(rows=0, width=131_072, k=1024), H200, limited(H200)).route != "clustered"
    longer = replace(LONG_ROWS, max_seq_len=32_768)
    for threshold, route in ((32_767, "clustered"), (32_768, "filtered")):
        made = plan(longer, H200, limited(H200), tuning=Tuning(cluster_threshold=threshold))
        assert made.route == route and (made.reason.kind is Kind.MODELLED) is (route == "clustered")


def test_a_block_of_a_cluster_has_room_for_the_members() -> None:
    with pytest.raises(PlanError, match="no cluster of"):
        cluster_plan(tuning=Tuning(max_candidates=1023))
    assert cluster_plan(tuning=Tuning(max_candidates=1024)).candidates == 1024
    for order in ("none", "index", "value"):
        for k in (1, 512, 2048, 4096):
            for rows in (1, 100):
                made = cluster_plan(replace(LONG_ROWS, rows=rows, k=k, options=Options(order=order)))
                assert made.candidates >= k and made.smem_bytes <= H200.smem_optin


def test_clusters_that_are_calculated_are_never_too_many() -> None:
    """18 SMs make a GPC at most, and a cluster lies in one; what is left over makes clusters only among itself."""
    assert [calculated_clusters(H200, n, 1) for n in CLUSTERS] == [66, 29, 14, 7]  # 7 x 18 + 6 SMs
    assert [calculated_clusters(H200, n, 2) for n in CLUSTERS] == [132, 66, 29, 14]
    assert [calculated_clusters(A100, n, 2) for n in CLUSTERS] == [0, 0, 0, 0]
    assert calculated_clusters(H200, 2, 0) == 0
    for sms in range(1, 300):
        for n in CLUSTERS:
            assert calculated_clusters(replace(H200, sms=sms), n, 2) * n <= sms * 2


# -- programmatic dependent launch -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(KNOWN_DEVICES))
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_dependent_launch_is_planned_where_it_can_be(name: str, route: str) -> None:
    device = KNOWN_DEVICES[name]
    if route == "clustered" and device.max_cluster == 1:
        return
    plain = plan(LONG_ROWS, device, limited(device), route=route)
    made = plan(replace(LONG_ROWS, pdl=True), device, limited(device), route=route)
    assert not plain.pdl and not plain.variant.pdl
    assert made.pdl == made.variant.pdl == (device.has_pdl and made.route != "persistent")
    same = replace(made, problem=LONG_ROWS, variant=replace(made.variant, pdl=False))
    assert same == plain, "and nothing else is planned otherwise"


# -- the choice by times -----------------------------------------------------------------------------------------------

TIMES = {
    FILTERED: {
        1: {10_000: 8.0, 100_000: 16.0, 1_000_000: 100.0},
        10: {10_000: 9.0, 100_000: 18.0, 1_000_000: 110.0},
        100: {10_000: 10.0, 100_000: 20.0, 1_000_000: 120.0},
    },
    OF_4: {1: {10_000: 9.0, 100_000: 10.0, 1_000_000: 30.0}, 10: {10_000: 12.0, 100_000: 12.0}},
    OF_16: {1: {100_000: 11.0, 1_000_000: 20.0}, 10: {100_000: 30.0, 1_000_000: 90.0}},
    PERSISTENT: {1: {1_000_000: 15.0}},
}


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "table", lambda: {("h200", 132): TIMES})


def test_the_measured_file_is_read_as_tune_writes_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measured, "shipped", lambda name: tmp_path / name)
    read = READ.__wrapped__
    assert read() == {}, "there need not be one"
    devices = [
        {"names": ["NVIDIA H200", "h200"], "sms": 132, "times": {"clustered:8": {"8": {"65536": 8, "131072": 9.5}}}},
        {"names": ["other"], "sms": 7, "times": {}},
    ]
    (tmp_path / "measured.json").write_text(json.dumps({"devices": devices}))
    times = {OF_8: {8: {65536: 8.0, 131072: 9.5}}}
    assert read() == {("NVIDIA H200", 132): times, ("h200", 132): times, ("other", 7): {}}


def test_the_file_that_is_there_names_routes_and_devices() -> None:
    for (_, sms), times in READ().items():
        assert sms > 0 and set(times) <= set(CHOICES) and FILTERED in times
        assert all(us > 0 for grid in times.values() for line in grid.values() for us in line.values())


@pytest.mark.usefixtures("table")
def test_measured_times_are_exact_where_they_were_measured() -> None:
    for route, grid in TIMES.items():
        for rows, line in grid.items():
            for length, us in line.items():
                found = measured_times(H200, rows, length)
                assert found[route] == pytest.approx(us, rel=1e-12), (route, rows, length)
                holes = {r for r, g in TIMES.items() if length not in g.get(rows, {})}
                assert not holes & set(found)


@pytest.mark.usefixtures("table")
def test_measured_times_lie_between_their_neighbours_and_stay_at_the_ends() -> None:
    def us(rows: int, length: int) -> float:
        return measured_times(H200, rows, length)[FILTERED]

    for rows, length in ((1, 20_000), (3, 10_000), (3, 50_000), (50, 500_000), (99, 999_999)):
        corners = [us(r, n) for r in (1, 10, 100) for n in (10_000, 100_000, 1_000_000)]
        assert min(corners) < us(rows, length) < max(corners)
    for rows in (1, 2, 10, 70, 100):
        line = [us(rows, n) for n in (10_000, 10_001, 30_000, 99_999, 100_000, 100_001, 600_000, 1_000_000)]
        assert line == sorted(line)
        assert us(rows, 1) == us(rows, 10_000) and us(rows, 2**31 - 1) == us(rows, 1_000_000)
    for length in (10_000, 70_000, 1_000_000):
        column = [us(rows, length) for rows in (1, 2, 9, 10, 11, 99, 100)]
        assert column == sorted(column) and us(2**31 - 1, length) == us(100, length)
    assert us(1, 31_623) == pytest.approx((8 * 16) ** 0.5, rel=1e-4), "halfway by the logarithm of the length"


@pytest.mark.usefixtures("table")
def test_a_route_with_a_hole_around_the_shape_is_left_out() -> None:
    def choices(rows: int, length: int) -> set[Choice]:
        return set(measured_times(H200, rows, length))

    assert choices(1, 1_000_000) == set(TIMES) and choices(1, 3_000_000) == set(TIMES)
    assert choices(2, 1_000_000) == {FILTERED, OF_16}
    assert choices(1, 50_000) == {FILTERED, OF_4}
    assert choices(10, 10_000) == {FILTERED, OF_4}
    assert choices(11, 10_000) == choices(100, 10_000) == {FILTERED}
    for device in (replace(H200, sms=131), replace(H200, name="another"), KNOWN_DEVICES["b200"]):
        assert measured_times(device, 1, 10_000) == {}


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("rows", "length", "route", "group"),
    [
        (1, 10_000, "filtered", 1),
        (1, 100_000, "clustered", 4),
        (10, 100_000, "clustered", 4),
        (10, 1_000_000, "clustered", 16),
        (100, 1_000_000, "filtered", 1),
    ],
)
def test_the_fastest_measured_route_is_planned(rows: int, length: int, route: str, group: int) -> None:
    made = plan(Problem(rows=rows, width=length, k=512), H200, limited(H200))
    assert (made.route, made.group) == (route, group)
    assert made.reason.kind is Kind.MEASURED and f"measured fastest near {rows} x {length}" in made.why
    made = plan(Problem(rows=1, width=1_000_000, k=512), H200, limited(H200))
    assert made.route == "persistent" and made.cooperative and made.reason.kind is Kind.MEASURED
    hinted = Problem(rows=rows, width=3_000_000, k=512, max_seq_len=length)
    as_long = plan(Problem(rows=rows, width=hinted.longest, k=512), H200, limited(H200))
    assert plan(hinted, H200, limited(H200)).route == as_long.route, "the hint is what counts"
    assert plan(replace(hinted, waits="never"), H200, limited(H200)).route == "filtered"


@pytest.mark.usefixtures("table")
def test_with_a_budget_the_device_is_another_one() -> None:
    made = plan(Problem(rows=1, width=1_000_000, k=512, sm_budget=40), H200, limited(H200))
    assert made.reason.kind is not Kind.MEASURED and made.sms == 40 and made.grid <= 40 * made.occupancy
    same = plan(Problem(rows=10, width=100_000, k=512, sm_budget=132), H200, limited(H200))
    assert same.reason.kind is Kind.MEASURED and same.groups == 10


@pytest.mark.parametrize("name", ["h100", "b200"])
def test_the_models_choice_is_sane(name: str) -> None:
    device = KNOWN_DEVICES[name]

    def made(rows: int, width: int) -> Plan:
        found = plan(Problem(rows=rows, width=width, k=1024), device, limited(device))
        if width > 8192:
            assert found.reason.kind is Kind.MODELLED
        return found

    for rows in (1, 4, 16, 64, 400):
        assert made(rows, 8192).route == "filtered"
    assert made(4, 131_072).route == "clustered" and made(4, 131_072).group >= 8, "few long rows are shared by many"
    assert made(1, 2_000_000).route == "persistent", "one very long row by the whole device"
    beyond = made(1, 8_388_608)  # more than that holds
    assert (beyond.route, beyond.group) == ("clustered", 16) and beyond.reason.kind is Kind.MODELLED
    assert made(400, 131_072).route == "filtered" or made(400, 131_072).group == 2, "many rows by next to none"
    sizes = [made(rows, 131_072).group for rows in (4, 16, 64, 400)]
    assert sizes == sorted(sizes, reverse=True), "the more rows, the fewer blocks each"
    for rows in (1, 16, 100):
        times = [modelled_times(device, rows, n, 16)[OF_8] for n in (10_000, 40_000, 200_000, 10**6)]
        assert times == sorted(times)


def test_the_model_chooses_as_was_measured() -> None:
    """Where both are known: what plans lose on a GPU that is like H200 and H100 and was not measured."""
    for name in ("h200", "h100"):
        losses = modelled(KNOWN_DEVICES[name], READ()[name, KNOWN_DEVICES[name].sms])
        assert len(losses) >= 50 and losses[0][0] < 1.05, losses[:5]


def test_the_model_has_fewer_choices_where_there_is_less() -> None:
    assert set(modelled_times(A100, 4, 100_000, 16)) == {FILTERED, PERSISTENT}
    assert set(modelled_times(A100, 40, 100_000, 16)) == {FILTERED}
    assert set(modelled_times(H200, 4, 100_000, 16)) == set(CHOICES)
    small = modelled_times(replace(H200, sms=4), 1, 100_000, 16)
    assert PERSISTENT not in small and min(small, key=lambda n: small[n]) in (FILTERED, Choice("clustered", 2))
