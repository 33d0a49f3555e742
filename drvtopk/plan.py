"""What to launch: Problem x device limits x occupancy -> Plan. Pure: nothing here touches CUDA or a clock.

The one mistake this file exists to prevent: blocks that wait for each other, launched in a greater number than
the device holds at once. So the occupancy is asked of the very instantiation, with the very shared memory, that
the plan launches, and a cooperative grid larger than the resident cap is never planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.spec import (
    DEFAULT_TUNING,
    MAX_ROWS,
    MAX_WIDTH,
    PLAIN,
    ROUTES,
    THREADS,
    WAITS,
    DeviceInfo,
    KernelInfo,
    Options,
    Tuning,
    Variant,
    align,
    check_k,
)

Occupancy = Callable[[Variant, int], int]
"""(instantiation, dynamic shared memory in bytes) -> blocks of 1024 threads resident on one SM; 0: it does not fit."""

CANDIDATE_BYTES = 8  # a key and an index
MAX_STRIDE = 2**62 // 4  # elements; rows x stride is computed in 64 bits


def _check_int(name: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidArgument(name, repr(value), f"an integer in {low}..{high}")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One call's shape. The lengths themselves live on the device and are no part of it."""

    rows: int
    width: int
    """Columns that exist in each row; nothing past them is read."""
    k: int
    stride: int | None = None
    """Elements from one row's start to the next; the width unless given."""
    offset: int = 0
    """The base address in elements modulo 8 (0: aligned to the widest load)."""
    max_seq_len: int | None = None
    """A hint: no length is expected to exceed it; the width unless given. A wrong hint costs time only."""
    waits: str = "allowed"
    """"never": only launches in which no block waits for another, so that one free block slot is enough to finish."""
    sm_budget: int | None = None
    """At most as many blocks as fit on so many SMs at once; the whole device unless given."""
    options: Options = PLAIN

    def __post_init__(self) -> None:
        _check_int("rows", self.rows, 0, MAX_ROWS)
        _check_int("width", self.width, 0, MAX_WIDTH)
        check_k(self.k)
        if self.stride is None:
            object.__setattr__(self, "stride", self.width)
        _check_int("stride", self.stride, 0, MAX_STRIDE // max(self.rows, 1))
        _check_int("offset", self.offset, 0, 2**62)
        if self.max_seq_len is None:
            object.__setattr__(self, "max_seq_len", self.width)
        _check_int("max_seq_len", self.max_seq_len, 0, MAX_WIDTH)
        if self.waits not in WAITS:
            raise InvalidArgument("waits", repr(self.waits), " or ".join(map(repr, WAITS)))
        if self.sm_budget is not None:
            _check_int("sm_budget", self.sm_budget, 1, MAX_ROWS)

    @property
    def row_stride(self) -> int:
        """`stride`, known to be set."""
        assert self.stride is not None  # a type fact: __post_init__ set it
        return self.stride

    @property
    def longest(self) -> int:
        """The longest row that the hint lets us expect."""
        assert self.max_seq_len is not None  # a type fact: __post_init__ set it
        return min(self.max_seq_len, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The cooperative launch that did not fit, kept in the fallback's plan so that its reason can be recomputed."""

    route: str
    vec_size: int
    group: int
    chunk: int
    smem_bytes: int
    occupancy: int
    resident_cap: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One launch, as plain data. `grid == groups * group`; a cooperative grid never exceeds `resident_cap`."""

    route: str
    k: int
    vec_size: int
    rows: int
    width: int
    stride: int
    max_seq_len: int
    grid: int
    block: int
    group: int
    """Blocks that share one row."""
    groups: int
    """Rows in flight; row r belongs to group r % groups."""
    chunk: int
    """Elements of a row that one block of the group holds (the whole row where no block waits)."""
    candidates: int
    """Keys of one threshold bin that a block can keep in shared memory; more are read again."""
    smem_bytes: int
    """Dynamic shared memory of one block."""
    device: str
    sms: int
    smem_optin: int
    occupancy: int
    """Resident blocks per SM of this very instantiation with this very shared memory."""
    resident_cap: int
    """sms x occupancy."""
    needs_cooperation: bool
    headroom: int
    """Resident blocks that a cooperative plan wants to leave to others."""
    headroom_kept: bool
    """Whether they are left; False where none were asked for."""
    cooperative: bool
    """Blocks wait for each other; goes out by cuLaunchCooperativeKernel only."""
    workspace_bytes: int
    why: str
    tuning: Tuning
    options: Options = PLAIN
    residency: int = 2
    """Blocks of this instantiation that an SM shall hold at once; registers are limited to that."""
    rejected: Rejected | None = None

    @property
    def variant(self) -> Variant:
        """The instantiation to compile and launch."""
        return Variant(
            route=self.route,
            k=self.k,
            vec_size=self.vec_size,
            tuning=self.tuning,
            options=self.options,
            residency=self.residency,
        )


def vec_size(problem: Problem, chunk: int) -> int:
    """The widest load, in elements, that the base address, the row stride and every chunk start allow.

    Where windows begin anywhere, so do chunks: the kernel then begins at the load that the first element lies in.
    """
    step = 0 if problem.options.row_starts else chunk
    return next(
        v for v in reversed(problem.options.vec_sizes) if not (problem.offset % v or problem.row_stride % v or step % v)
    )


def calculated_occupancy(kernel: KernelInfo, device: DeviceInfo, smem_bytes: int) -> int:
    """Resident blocks per SM from a cubin's registers and a device's limits, as the CUDA Occupancy Calculator does it.

    Registers are given out per warp in units of 256, and warps live in four partitions that do not share registers;
    shared memory is given out in units of 128 bytes plus the driver's own share for each block.
    """
    smem = kernel.static_smem_bytes + smem_bytes
    if smem > device.smem_optin:
        return 0
    regs_per_warp = align(max(kernel.registers, 1) * 32, 256)
    warps = 4 * (device.regs_per_sm // 4 // regs_per_warp)
    return min(
        device.max_blocks_per_sm,
        device.max_threads_per_sm // THREADS,
        warps // (THREADS // 32),
        device.smem_per_sm // (align(smem, 128) + device.smem_reserved),
    )


def _smem_budget(device: DeviceInfo) -> int:
    """Shared memory a block may take without costing the SM a block that its threads would have had room for."""
    blocks = max(1, device.max_threads_per_sm // THREADS)
    return min(device.smem_optin, (device.smem_per_sm // blocks - device.smem_reserved) // 128 * 128)


def _candidates(variant: Variant, device: DeviceInfo) -> int:
    room = _smem_budget(device) - variant.fixed_smem_bytes
    return max(0, min(variant.tuning.max_candidates, room // CANDIDATE_BYTES))


def _chunk(problem: Problem, variant: Variant, device: DeviceInfo) -> int:
    """Elements one block holds: few rows spread over all SMs, many rows take as few blocks each as memory allows."""
    step = variant.vec_size  # the widest: every chunk then begins where such a load may
    largest = max(step, (_smem_budget(device) - variant.fixed_smem_bytes) // 4 // step * step)
    blocks_per_sm = max(1, device.max_threads_per_sm // THREADS)
    free = device.sms * blocks_per_sm - (device.sms if blocks_per_sm > 1 else 1)
    blocks_per_row = max(1, free // max(problem.rows, 1))
    even = align(-(-problem.width // blocks_per_row), step)
    return max(min(even, largest), min(align(variant.tuning.min_chunk, step), largest))


def _filtered(problem: Problem, device: DeviceInfo, occupancy: Occupancy, tuning: Tuning, why: str) -> Plan:
    vec = vec_size(problem, 0)
    variant = Variant(
        route="filtered",
        k=problem.k,
        vec_size=vec,
        tuning=tuning,
        options=problem.options,
        residency=1 if problem.rows <= device.sms else 2,
    )
    candidates = _candidates(variant, device)
    smem = variant.fixed_smem_bytes + candidates * CANDIDATE_BYTES
    resident = occupancy(variant, smem)
    if resident < 1:
        raise PlanError("filtered", f"a block of {variant} needs {smem} bytes of shared memory and none fits an SM")
    groups = problem.rows if problem.sm_budget is None else min(problem.rows, device.sms * resident)
    return Plan(
        route="filtered",
        k=problem.k,
        vec_size=vec,
        rows=problem.rows,
        width=problem.width,
        stride=problem.row_stride,
        max_seq_len=problem.longest,
        grid=groups,
        block=THREADS,
        group=1,
        groups=groups,
        chunk=max(problem.width, 1),
        candidates=candidates,
        smem_bytes=smem,
        device=device.name,
        sms=device.sms,
        smem_optin=device.smem_optin,
        occupancy=resident,
        resident_cap=device.sms * resident,
        needs_cooperation=False,
        headroom=0,
        headroom_kept=False,
        cooperative=False,
        workspace_bytes=0,
        why=why,
        tuning=tuning,
        options=problem.options,
        residency=variant.residency,
    )


def _persistent(
    problem: Problem, device: DeviceInfo, occupancy: Occupancy, tuning: Tuning, given_chunk: int | None
) -> Plan | Rejected:
    needs_cooperation = problem.longest > tuning.radix_threshold
    widest = Variant(
        route="persistent", k=problem.k, vec_size=problem.options.vec_sizes[-1], tuning=tuning, options=problem.options
    )
    if given_chunk is not None:
        chunk = given_chunk
    elif needs_cooperation:
        chunk = _chunk(problem, widest, device)
    else:
        chunk = align(max(problem.width, 1), 4)  # no block waits, so none holds a part: the row is one block's
    group = max(1, -(-problem.width // chunk))
    vec = vec_size(problem, chunk if group > 1 else 0)
    variant = replace(widest, vec_size=vec)
    # The same bytes hold a chunk of keys in one row and a bin's candidates in the next.
    chunk_bytes = align(chunk * 4, 16) if needs_cooperation else 0
    candidates = max(chunk_bytes // CANDIDATE_BYTES, _candidates(variant, device))
    smem = variant.fixed_smem_bytes + max(chunk_bytes, candidates * CANDIDATE_BYTES)
    resident = occupancy(variant, smem)
    cap = device.sms * resident
    headroom = 0 if not needs_cooperation else device.sms if resident > 1 else 1
    kept = needs_cooperation and cap - headroom >= group
    groups = max(1, min((cap - (headroom if kept else 0)) // group, problem.rows))
    if resident < 1 or (needs_cooperation and groups * group > cap):
        return Rejected(
            route="persistent",
            vec_size=vec,
            group=group,
            chunk=chunk,
            smem_bytes=smem,
            occupancy=resident,
            resident_cap=cap,
        )
    if not needs_cooperation:
        why = (
            f"persistent: no row above {tuning.radix_threshold} is expected (max_seq_len {problem.longest}), "
            f"so one block takes each row and none waits; {groups} of {problem.rows} rows in flight"
        )
    else:
        left = (
            f"{headroom} of {cap} resident blocks left to others" if kept else f"no headroom: {group} of {cap} needed"
        )
        why = (
            f"persistent: {group} blocks of {chunk} elements share a row, "
            f"{groups} of {problem.rows} rows in flight; {left}"
        )
    return Plan(
        route="persistent",
        k=problem.k,
        vec_size=vec,
        rows=problem.rows,
        width=problem.width,
        stride=problem.row_stride,
        max_seq_len=problem.longest,
        grid=groups * group if problem.rows else 0,
        block=THREADS,
        group=group,
        groups=groups,
        chunk=chunk,
        candidates=candidates,
        smem_bytes=smem,
        device=device.name,
        sms=device.sms,
        smem_optin=device.smem_optin,
        occupancy=resident,
        resident_cap=cap,
        needs_cooperation=needs_cooperation,
        headroom=headroom,
        headroom_kept=kept,
        cooperative=needs_cooperation,
        workspace_bytes=groups * variant.group_state_bytes(group) if needs_cooperation else 0,
        why=why,
        tuning=tuning,
        options=problem.options,
    )


def _why_alone(problem: Problem, device: DeviceInfo, tuning: Tuning) -> str:
    """Why a block for each row is the fastest there is, or nothing: measured on an H200 (tools/README.md)."""
    if problem.longest <= tuning.radix_threshold:
        return f"no row above {tuning.radix_threshold} is expected (max_seq_len {problem.longest})"
    if problem.rows * tuning.sms_to_share > device.sms:
        return f"{problem.rows} rows on {device.sms} SMs, sharing pays from {tuning.sms_to_share} SMs a row on"
    return ""


def _constraint(rejected: Rejected, smem_optin: int) -> str:
    if rejected.occupancy < 1:
        return (
            f"a block holding {rejected.chunk} elements needs {rejected.smem_bytes} bytes of shared memory "
            f"and none fits an SM ({smem_optin} bytes a block at most)"
        )
    return f"one row needs {rejected.group} blocks, {rejected.resident_cap} fit"


def _attempt(made: Plan) -> Rejected:
    return Rejected(
        route=made.route,
        vec_size=made.vec_size,
        group=made.group,
        chunk=made.chunk,
        smem_bytes=made.smem_bytes,
        occupancy=made.occupancy,
        resident_cap=made.resident_cap,
    )


def plan(
    problem: Problem,
    device: DeviceInfo,
    occupancy: Occupancy,
    *,
    route: str = "auto",
    chunk: int | None = None,
    tuning: Tuning = DEFAULT_TUNING,
) -> Plan:
    """The launch for `problem` on `device`.

    `route` is "auto", or a route's name, which then must fit: PlanError names the constraint that it does not meet.
    `chunk` (elements) replaces the planner's own choice. `occupancy` is the driver's answer on a real device and
    `calculated_occupancy` elsewhere; it is called once for each instantiation considered.
    """
    if route != "auto" and route not in ROUTES:
        raise InvalidArgument("route", repr(route), "'auto', " + ", ".join(map(repr, ROUTES)))
    if chunk is not None:
        _check_int("chunk", chunk, 1, MAX_WIDTH)
    if problem.sm_budget is not None:
        device = device.with_limits(sms=min(device.sms, problem.sm_budget))
    if route == "filtered":
        return _filtered(problem, device, occupancy, tuning, "filtered: asked for; one block per row, none waits")
    alone = _why_alone(problem, device, tuning) if route == "auto" and chunk is None else ""
    if alone:
        return _filtered(problem, device, occupancy, tuning, f"filtered: {alone}; one block per row, none waits")
    found = _persistent(problem, device, occupancy, tuning, chunk)
    if isinstance(found, Plan) and not (found.cooperative and problem.waits == "never"):
        return found
    if isinstance(found, Plan):
        found, constraint = _attempt(found), "blocks of a row would wait for each other, which the caller forbids"
    else:
        constraint = _constraint(found, device.smem_optin)
    if route == "persistent":
        raise PlanError("persistent", constraint)
    return replace(_filtered(problem, device, occupancy, tuning, f"fallback: {constraint}"), rejected=found)


def after_refusal(refused: Plan, problem: Problem, device: DeviceInfo, occupancy: Occupancy, reason: str) -> Plan:
    """The fallback for a cooperative plan that the driver would not launch; `reason` says what it answered."""
    if problem.sm_budget is not None:
        device = device.with_limits(sms=min(device.sms, problem.sm_budget))
    why = f"fallback: {reason} for {refused.grid} blocks, {refused.resident_cap} were to fit"
    return replace(_filtered(problem, device, occupancy, refused.tuning, why), rejected=_attempt(refused))
