"""The planner, held against the launch rules written out again, over shapes, devices and occupancies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.plan import Plan, Problem, after_refusal, calculated_occupancy, plan
from drvtopk.spec import KNOWN_DEVICES, THREADS, DeviceInfo, KernelInfo, Tuning, Variant, min_blocks

KERNEL = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
RADIX_THRESHOLD = 32768

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
    """A block's shared memory before what it holds: 2048 bins, 256 bytes of scratch, the staged output in 16s."""
    return 2048 * 4 + 256 + (4 * k + 15) // 16 * 16


def workspace_bytes(groups: int, group: int) -> int:
    """A line, three histograms with 32 words behind each, two words a block; in lines of 128 bytes."""
    return groups * ((128 + 3 * (2048 + 32) * 4 + 8 * group + 127) // 128 * 128)


def sizes_by_hand(made: Plan, problem: Problem) -> None:
    """Shared memory and load width once more, for either route."""
    held = (4 * made.chunk + 15) // 16 * 16 if made.cooperative else 0
    assert made.smem_bytes == fixed_bytes(made.k) + max(held, 8 * made.candidates)
    shared = made.route == "persistent" and made.group > 1
    starts = (problem.offset, problem.row_stride, made.chunk if shared else 0)
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
        assert made.workspace_bytes == workspace_bytes(made.groups, made.group)
    else:
        assert made.workspace_bytes == 0
    sizes_by_hand(made, problem)


def alone_pays(made: Plan, problem: Problem, device: DeviceInfo) -> None:
    """One block a row, because waiting is not worth it or because the blocks of a row do not fit."""
    if made.rejected is not None:
        assert made.why.startswith("fallback: ")
        assert made.rejected.group > made.rejected.resident_cap or made.rejected.occupancy == 0
        assert problem.longest > made.tuning.radix_threshold and 16 * problem.rows <= device.sms
    else:
        assert made.why.startswith("filtered: ")
        assert problem.longest <= made.tuning.radix_threshold or 16 * problem.rows > device.sms


@settings(max_examples=600, deadline=None)
@given(problems, devices)
def test_every_plan_obeys_the_launch_rules(problem: Problem, device: DeviceInfo) -> None:
    asked: list[tuple[Variant, int, int]] = []

    def occupancy(variant: Variant, smem: int) -> int:
        asked.append((variant, smem, calculated_occupancy(KERNEL, device, smem)))
        return asked[-1][2]

    made = plan(problem, device, occupancy)
    variant, smem, answer = asked[-1]
    assert (variant, smem, answer) == (made.variant, made.smem_bytes, made.occupancy), "asked of what is launched"
    assert made.smem_bytes <= device.smem_optin
    assert made.occupancy >= 1 and made.block == THREADS
    assert problem.offset % made.vec_size == problem.row_stride % made.vec_size == 0
    if made.route == "persistent":
        assert made.group == 1 or made.chunk % made.vec_size == 0
        by_hand(made, problem, device, made.occupancy)
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

    made = plan(problem, device, answer, chunk=chunk)
    if made.route == "persistent":
        assert occupancy >= 1, "0 is never rounded up"
        if made.cooperative:
            assert made.grid <= device.sms * occupancy
        if chunk is not None:
            assert made.chunk == chunk
        by_hand(made, problem, device, occupancy)
    elif not made.why.startswith("filtered: "):
        with pytest.raises(PlanError):
            plan(problem, device, answer, chunk=chunk, route="persistent")
    else:
        assert chunk is None
        alone_pays(made, problem, device)


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
        return calculated_occupancy(KERNEL, device, smem)

    made = plan(Problem(rows=rows, width=width, k=k), device, occupancy, route="filtered")
    assert made.occupancy == 1 and made.smem_bytes <= kib * 1024


@pytest.mark.parametrize("device", [SMALLEST, *KNOWN_DEVICES.values()], ids=lambda d: d.name)
def test_there_is_a_plan_for_every_k(device: DeviceInfo) -> None:
    """With registers as the kernels are limited to; the fallback where a row needs more blocks than there are."""
    kernel = replace(KERNEL, registers=64 // min_blocks(device.arch))
    for k in range(1, 4097):
        for width in (100, 50_000, 2**31 - 1):
            problem = Problem(rows=3, width=width, k=k)
            made = plan(problem, device, lambda variant, smem: calculated_occupancy(kernel, device, smem))
            assert made.occupancy >= 1 and made.smem_bytes <= device.smem_optin
            assert made.grid <= made.resident_cap or not made.cooperative
        assert made.route == "filtered" and ("fallback: one row needs" in made.why or device.sms < 3 * 16)


@settings(max_examples=150, deadline=None)
@given(problems, st.sampled_from(list(KNOWN_DEVICES.values())))
def test_the_planners_own_chunk_costs_no_resident_block(problem: Problem, device: DeviceInfo) -> None:
    """It takes no more shared memory than leaves room for as many blocks as the SM has threads for."""
    kernel = replace(KERNEL, registers=64 // min_blocks(device.arch))

    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(kernel, device, smem)

    made = plan(problem, device, occupancy)
    assert made.occupancy == device.max_threads_per_sm // THREADS
    if made.cooperative and made.group > 1:
        assert made.chunk >= 4096, "not split finer than pays"


def test_no_block_that_fits_is_an_error_and_never_one_block() -> None:
    device, problem = KNOWN_DEVICES["h200"], Problem(rows=4, width=100_000, k=1024)
    for route in ("auto", "persistent", "filtered"):
        with pytest.raises(PlanError, match="none fits"):
            plan(problem, device, lambda variant, smem: 0, route=route)
    made = plan(problem, device, lambda variant, smem: 0 if variant.route == "persistent" else 2)
    assert made.route == "filtered" and made.rejected is not None
    assert made.rejected.occupancy == made.rejected.resident_cap == 0
    assert f"needs {made.rejected.smem_bytes} bytes" in made.why and f"{device.smem_optin} bytes" in made.why


@settings(max_examples=100, deadline=None)
@given(problems, devices)
def test_what_the_driver_refuses_becomes_a_fallback_that_waits_for_nobody(problem: Problem, device: DeviceInfo) -> None:
    def occupancy(variant: Variant, smem: int) -> int:
        return calculated_occupancy(KERNEL, device, smem)

    tuning = Tuning(short_max=77, radix_threshold=400, max_candidates=900)
    refused = plan(problem, device, occupancy, tuning=tuning)
    if refused.cooperative:
        made = after_refusal(refused, problem, device, occupancy, "the driver said 720")
        assert made == replace(
            plan(problem, device, occupancy, tuning=tuning, route="filtered"), why=made.why, rejected=made.rejected
        )
        assert made.route == "filtered" and not made.cooperative and made.grid == problem.rows
        assert (
            made.why == f"fallback: the driver said 720 for {refused.grid} blocks, {refused.resident_cap} were to fit"
        )
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
            lambda variant, smem: calculated_occupancy(KERNEL, device, smem),
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
        return calculated_occupancy(KERNEL, device, smem)

    asked = replace(problem, waits=waits, sm_budget=budget)
    for route in ("auto", "persistent", "filtered"):
        try:
            made = plan(asked, device, occupancy, route=route)
        except PlanError as error:
            assert route == "persistent" and error.constraint
            continue
        assert route in ("auto", made.route)
        if waits == "never":
            assert not made.cooperative and made.workspace_bytes == 0
        if budget is not None:
            assert made.sms <= budget and made.grid <= budget * made.occupancy


def test_forbidding_waits_says_so() -> None:
    device = KNOWN_DEVICES["h200"]
    problem = Problem(rows=2, width=100_000, k=512, waits="never")
    made = plan(problem, device, lambda variant, smem: 2)
    assert made.route == "filtered" and "which the caller forbids" in made.why and made.rejected is not None
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
    for argument, arguments in cases:
        with pytest.raises(InvalidArgument) as caught:
            plan(problem, device, lambda variant, smem: 1, **arguments)
        assert caught.value.argument == argument
    for threshold in ("short_max", "radix_threshold", "min_chunk", "max_candidates"):
        for bad in (0, -1, 2**31):
            with pytest.raises(InvalidArgument) as caught:
                Tuning(**{threshold: bad})
            assert caught.value.argument == threshold and str(bad) in str(caught.value)
    with pytest.raises(InvalidArgument, match="vec_size"):
        Variant(route="filtered", k=8, vec_size=3)
    with pytest.raises(InvalidArgument, match="sms"):
        device.with_limits(sms=0)
