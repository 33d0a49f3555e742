"""What to launch: Problem x device limits x occupancy -> Plan. Pure: nothing here touches CUDA or a clock.

The one mistake this file exists to prevent: blocks that wait for each other, launched in a greater number than
the device holds at once. So the occupancy is asked of the very instantiation, with the very shared memory, that
the plan launches, and a cooperative grid larger than the resident cap is never planned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from drvtopk.checks import as_int, flag, instance, integer, one_of, shown, store
from drvtopk.choice import Choice
from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.measured import measured_times, modelled_times
from drvtopk.spec import (
    ASKED_ROUTES,
    CLUSTERS,
    DEFAULT_TUNING,
    MAX_ROWS,
    MAX_WIDTH,
    PLAIN,
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

Clusters = Callable[[Variant, int], int]
"""(instantiation, dynamic shared memory in bytes) -> its clusters resident on the device at once; 0: not even one."""

MAX_STRIDE = 2**62 // 4  # elements; rows x stride is computed in 64 bits
MAX_OFFSET = 2**62


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
    """A hint: no length is expected to exceed it; the width unless given. A wrong hint costs time only. It counts as
    the next power of two, or as the width, so that a hint that changes with every step rarely makes a new problem."""
    waits: str = "allowed"
    """"never": only launches in which no block waits for another, so that one free block slot is enough to finish."""
    sm_budget: int | None = None
    """At most as many blocks as fit on so many SMs at once; the whole device unless given."""
    options: Options = PLAIN
    pdl: bool = False
    """Programmatic dependent launch, on GPUs that have it (Hopper and later): the launch may begin while its
    predecessor on the stream ends, and waits for that before it touches memory. The cooperative route does without."""

    def __post_init__(self) -> None:
        rows, width = integer("rows", self.rows, 0, MAX_ROWS), integer("width", self.width, 0, MAX_WIDTH)
        k = check_k(self.k)
        stride = integer("stride", width if self.stride is None else self.stride, 0, MAX_STRIDE // max(rows, 1))
        offset = integer("offset", self.offset, 0, MAX_OFFSET)
        hint = width if self.max_seq_len is None else integer("max_seq_len", self.max_seq_len, 0, MAX_WIDTH)
        longest = min(1 << (hint - 1).bit_length(), width) if hint else 0
        waits, pdl = one_of("waits", self.waits, WAITS), flag("pdl", self.pdl)
        budget = None if self.sm_budget is None else integer("sm_budget", self.sm_budget, 1, MAX_ROWS)
        instance("options", self.options, Options)
        store(self, rows=rows, width=width, k=k, stride=stride, offset=offset, max_seq_len=longest)
        store(self, waits=waits, pdl=pdl, sm_budget=budget)

    @property
    def row_stride(self) -> int:
        """`stride`, known to be set."""
        assert self.stride is not None  # a type fact: __post_init__ set it
        return self.stride

    @property
    def longest(self) -> int:
        """The longest row that the hint lets us expect."""
        assert self.max_seq_len is not None  # a type fact: __post_init__ set it
        return self.max_seq_len


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """The launch that did not fit or was refused, kept in the fallback's plan so that its reason can be recomputed."""

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
    pdl: bool = False
    """Goes out with programmatic dependent launch (`Problem.pdl`)."""
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
            cluster=self.group if self.route == "clustered" else 1,
            pdl=self.pdl,
        )


def vec_size(problem: Problem, chunk: int) -> int:
    """The widest load, in elements, that the base address, the row stride and every chunk start allow.

    A single row has no stride. Where windows begin anywhere, so do chunks: the kernel then begins at the load that the
    first element lies in.
    """
    step = 0 if problem.options.row_starts else chunk
    stride = problem.row_stride if problem.rows > 1 else 0
    return next(v for v in reversed(problem.options.vec_sizes) if not (problem.offset % v or stride % v or step % v))


def calculated_occupancy(kernel: KernelInfo, device: DeviceInfo, smem_bytes: int, threads: int = THREADS) -> int:
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
        device.max_threads_per_sm // threads,
        warps // (threads // 32),
        device.smem_per_sm // (align(smem, 128) + device.smem_reserved),
    )


_SMS_OF_A_GPC = 18  # at most, on the parts that have clusters; a cluster lies in one


def calculated_clusters(device: DeviceInfo, cluster: int, occupancy: int) -> int:
    """Resident clusters of `cluster` blocks, `occupancy` of them to an SM, as far as it can be known without a driver.

    Rather too few than too many: which SMs of a GPC are fused off differs from die to die.
    """
    if cluster > device.max_cluster:
        return 0
    full, rest = divmod(device.sms, _SMS_OF_A_GPC)
    return full * (_SMS_OF_A_GPC * occupancy // cluster) + rest * occupancy // cluster


def _smem_budget(device: DeviceInfo, threads: int = THREADS) -> int:
    """Shared memory a block may take without costing the SM a second block that its threads would have had room for."""
    blocks = max(1, min(2, device.max_threads_per_sm // threads))
    return min(device.smem_optin, (device.smem_per_sm // blocks - device.smem_reserved) // 128 * 128)


def _candidates(variant: Variant, device: DeviceInfo) -> int:
    room = _smem_budget(device, variant.threads) - variant.fixed_smem_bytes
    fit = min(variant.tuning.max_candidates, room // variant.candidate_bytes)
    if variant.cluster > 1 and (variant.residency == 1 or fit < 2 * variant.k):
        # With an SM to itself a block may take more; too little room makes guesses fail (row_pass.cuh).
        room = device.smem_optin - variant.fixed_smem_bytes
        fit = max(fit, min(variant.tuning.max_candidates, max(6144, 4 * variant.k), room // variant.candidate_bytes))
    elif variant.threads < THREADS and fit < variant.k:  # rather one block on an SM than too little room
        room = device.smem_optin - variant.fixed_smem_bytes
        fit = min(variant.tuning.max_candidates, room // variant.candidate_bytes)
    return max(0, fit)


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
        pdl=problem.pdl and device.has_pdl,
    )
    candidates = _candidates(variant, device)
    smem = variant.fixed_smem_bytes + candidates * variant.candidate_bytes
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
        block=variant.threads,
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
        pdl=variant.pdl,
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
    candidates = max(chunk_bytes // variant.candidate_bytes, _candidates(variant, device))
    smem = variant.fixed_smem_bytes + max(chunk_bytes, candidates * variant.candidate_bytes)
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
        workspace_bytes=groups * variant.group_state_bytes(group) if needs_cooperation and problem.rows else 0,
        why=why,
        tuning=tuning,
        options=problem.options,
    )


def _clustered(
    problem: Problem, device: DeviceInfo, occupancy: Occupancy, clusters: Clusters, tuning: Tuning, group: int
) -> Plan | Rejected:
    vec = vec_size(problem, 0)
    variant = Variant(
        route="clustered",
        k=problem.k,
        vec_size=vec,
        tuning=tuning,
        options=problem.options,
        residency=1 if problem.rows * group <= device.sms else 2,
        cluster=group,
        pdl=problem.pdl,
    )
    candidates = _candidates(variant, device)
    smem = variant.fixed_smem_bytes + candidates * variant.candidate_bytes
    if variant.residency == 1:  # an SM for each block: else two of a cluster might share one while others idle
        smem = min(max(smem, device.smem_per_sm // 2), device.smem_optin)
    fits = group <= device.max_cluster and candidates >= problem.k  # else there is nothing to compile
    resident = occupancy(variant, smem) if fits else 0
    together = clusters(variant, smem) if resident else 0
    if problem.sm_budget is not None:
        together = min(together, device.sms * resident // group)  # the budget's SMs
    if together < 1:
        return Rejected(
            route="clustered",
            vec_size=vec,
            group=group,
            chunk=max(-(-problem.width // group), 1),
            smem_bytes=smem,
            occupancy=resident,
            resident_cap=device.sms * resident,
        )
    # Without a budget a cluster for each row: the hardware starts them as room comes free.
    groups = min(problem.rows, MAX_ROWS // group if problem.sm_budget is None else together)
    return Plan(
        route="clustered",
        k=problem.k,
        vec_size=vec,
        rows=problem.rows,
        width=problem.width,
        stride=problem.row_stride,
        max_seq_len=problem.longest,
        grid=groups * group,
        block=variant.threads,
        group=group,
        groups=groups,
        chunk=max(-(-problem.width // group), 1),
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
        why=f"clustered: the {group} blocks of a cluster share each long row; {together} clusters fit at once",
        tuning=tuning,
        options=problem.options,
        residency=variant.residency,
        pdl=variant.pdl,
    )


def _why_alone(problem: Problem, device: DeviceInfo, tuning: Tuning) -> str:
    """Why a block for each row is the fastest there is, or nothing: measured on an H200 (tools/README.md)."""
    if problem.longest <= tuning.radix_threshold:
        return f"no row above {tuning.radix_threshold} is expected (max_seq_len {problem.longest})"
    if problem.rows * tuning.sms_to_share > device.sms:
        return f"{problem.rows} rows on {device.sms} SMs, sharing pays from {tuning.sms_to_share} SMs a row on"
    return ""


def _choices(problem: Problem, device: DeviceInfo, tuning: Tuning) -> list[tuple[Choice, str]]:
    """(choice, why), the best first. The last is one that always fits, or "persistent"."""
    alone = _why_alone(problem, device, tuning)
    otherwise = [(Choice("filtered"), alone)] if alone else [(Choice("persistent"), "")]
    shared = device.max_cluster > 1 and problem.longest > tuning.cluster_threshold and problem.waits == "allowed"
    if not shared or not problem.rows:
        return otherwise
    times = measured_times(device, problem.rows, problem.longest)
    source = "measured fastest near"
    if Choice("filtered") not in times:
        times = modelled_times(device, problem.rows, problem.longest, tuning.sms_to_share)
        source = "by a model the fastest for"
    why = f"{source} {problem.rows} x {problem.longest}"
    ranked = sorted(times, key=lambda choice: times[choice])
    return [(choice, why) for choice in ranked] + otherwise


def _constraint(rejected: Rejected, smem_optin: int) -> str:
    if rejected.route == "clustered":
        return f"no cluster of {rejected.group} blocks with {rejected.smem_bytes} bytes of shared memory each fits"
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
    group: int | None = None,
    clusters: Clusters | None = None,
    tuning: Tuning = DEFAULT_TUNING,
) -> Plan:
    """The launch for `problem` on `device`.

    `route` is "auto", or a route's name, which then must fit: PlanError names the constraint that it does not meet.
    `chunk` (elements, of the route persistent) and `group` (blocks of a cluster, of the route clustered) replace the
    planner's own choice. `occupancy` and `clusters` are the driver's answers on a real device and
    `calculated_occupancy` and `calculated_clusters` elsewhere; each is called once for each instantiation considered.
    """
    route = one_of("route", route, ASKED_ROUTES)
    if chunk is not None:
        chunk = integer("chunk", chunk, 1, MAX_WIDTH)
    if group is not None:
        blocks = as_int(group)
        if route != "clustered" or blocks not in CLUSTERS:
            allowed = f"one of {', '.join(map(str, CLUSTERS))}, with route='clustered'"
            raise InvalidArgument("group", shown(group), allowed)
        group = blocks
    if clusters is None:

        def clusters(variant: Variant, smem_bytes: int) -> int:
            return calculated_clusters(device, variant.cluster, occupancy(variant, smem_bytes))

    if problem.sm_budget is not None:
        device = device.with_limits(sms=min(device.sms, problem.sm_budget))
    if route == "filtered":
        return _filtered(problem, device, occupancy, tuning, "filtered: asked for; one block per row, none waits")
    if route == "clustered":
        if problem.waits == "never":
            raise PlanError("clustered", "blocks of a row would wait for each other, which the caller forbids")
        tried: Plan | Rejected | None = None
        for size in (group,) if group is not None else CLUSTERS[::-1]:
            tried = _clustered(problem, device, occupancy, clusters, tuning, size)
            if isinstance(tried, Plan):
                return tried
        assert isinstance(tried, Rejected)  # a type fact: there is a size to try
        raise PlanError("clustered", _constraint(tried, device.smem_optin))
    found: Plan | Rejected | None = None
    if route == "auto" and chunk is None:
        for choice, why in _choices(problem, device, tuning):
            if choice.route == "persistent":
                found = _persistent(problem, device, occupancy, tuning, None)
                if isinstance(found, Plan):
                    break
            elif choice.route == "filtered":
                if found is not None:
                    break  # it is the fallback, and says of what
                return _filtered(problem, device, occupancy, tuning, f"filtered: {why}; one block per row, none waits")
            else:
                made = _clustered(problem, device, occupancy, clusters, tuning, choice.cluster)
                if isinstance(made, Plan):
                    return replace(made, why=f"{made.why}; {why}")
    if found is None:
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


def after_refusal(
    refused: Plan, problem: Problem, device: DeviceInfo, occupancy: Occupancy, reason: str | None = None
) -> Plan:
    """The fallback for a plan, cooperative or clustered, that the driver would not launch: one block per row.

    None of its blocks waits. `reason` says what the driver answered; None: that it refused the launch.
    """
    if problem.sm_budget is not None:
        device = device.with_limits(sms=min(device.sms, problem.sm_budget))
    if refused.route == "clustered":
        why = reason or (
            f"the driver refused the launch in clusters of {refused.group} blocks (912, INVALID_CLUSTER_SIZE)"
        )
    else:
        why = reason or "the driver refused the cooperative launch (720, COOPERATIVE_LAUNCH_TOO_LARGE)"
        why += f" for {refused.grid} blocks, {refused.resident_cap} were to fit"
    fallback = _filtered(problem, device, occupancy, refused.tuning, f"fallback: {why}")
    return replace(fallback, rejected=_attempt(refused))
