"""How each route is laid out: from a problem, the limits of a device and the occupancy there to a launch that fits."""

from __future__ import annotations

from dataclasses import replace

from drvtopk.errors import PlanError
from drvtopk.occupancy import Clusters, Occupancy, candidates_that_fit, smem_budget
from drvtopk.planned import Launch, Rejected
from drvtopk.problem import Problem
from drvtopk.spec import MAX_ROWS, THREADS, DeviceInfo, Tuning, Variant, align


def vec_size(problem: Problem, chunk: int) -> int:
    """The widest load, in elements, that the base address, the row stride and every chunk start allow.

    A single row has no stride. Where windows begin anywhere, so do chunks: the kernel then begins at the load that the
    first element lies in.
    """
    step = 0 if problem.options.row_starts else chunk
    stride = problem.row_stride if problem.rows > 1 else 0
    return next(v for v in reversed(problem.options.vec_sizes) if not (problem.offset % v or stride % v or step % v))


def filtered(problem: Problem, limits: DeviceInfo, occupancy: Occupancy, tuning: Tuning) -> Launch:
    """A block for each row. Raises PlanError where not even one fits an SM."""
    variant = Variant(
        route="filtered",
        k=problem.k,
        vec_size=vec_size(problem, 0),
        tuning=tuning,
        options=problem.options,
        residency=1 if problem.rows <= limits.sms else 2,
        pdl=problem.pdl and limits.has_pdl,
    )
    candidates = candidates_that_fit(variant, limits)
    smem = variant.fixed_smem_bytes + candidates * variant.candidate_bytes
    resident = occupancy(variant, smem)
    if resident < 1:
        raise PlanError("filtered", f"a block of {variant} needs {smem} bytes of shared memory and none fits an SM")
    groups = problem.rows if problem.sm_budget is None else min(problem.rows, limits.sms * resident)
    return Launch(
        variant=variant,
        limits=limits,
        grid=groups,
        group=1,
        groups=groups,
        chunk=max(problem.width, 1),
        candidates=candidates,
        smem_bytes=smem,
        occupancy=resident,
    )


def persistent(
    problem: Problem, limits: DeviceInfo, occupancy: Occupancy, tuning: Tuning, chunk: int | None = None
) -> Launch | Rejected:
    """Groups of resident blocks, each of which shares a row if rows above the radix threshold are expected.

    `chunk` (elements that a block holds) replaces the planner's own.
    """
    cooperative = problem.longest > tuning.radix_threshold
    widest = Variant(
        route="persistent", k=problem.k, vec_size=problem.options.vec_sizes[-1], tuning=tuning, options=problem.options
    )
    if chunk is None:
        # Where no block waits, none holds a part: the row is one block's.
        chunk = _chunk(problem, widest, limits) if cooperative else align(max(problem.width, 1), 4)
    group = max(1, -(-problem.width // chunk))
    variant = replace(widest, vec_size=vec_size(problem, chunk if group > 1 else 0))
    # The same bytes hold a chunk of keys in one row and a bin's candidates in the next.
    chunk_bytes = align(chunk * 4, 16) if cooperative else 0
    candidates = max(chunk_bytes // variant.candidate_bytes, candidates_that_fit(variant, limits))
    smem = variant.fixed_smem_bytes + max(chunk_bytes, candidates * variant.candidate_bytes)
    resident = occupancy(variant, smem)
    cap = limits.sms * resident
    headroom = 0 if not cooperative else limits.sms if resident > 1 else 1
    kept = cooperative and cap - headroom >= group
    groups = max(1, min((cap - (headroom if kept else 0)) // group, problem.rows))
    launch = Launch(
        variant=variant,
        limits=limits,
        grid=groups * group if problem.rows else 0,
        group=group,
        groups=groups,
        chunk=chunk,
        candidates=candidates,
        smem_bytes=smem,
        occupancy=resident,
        headroom=headroom,
        headroom_kept=kept,
        cooperative=cooperative,
        workspace_bytes=groups * variant.group_state_bytes(group) if cooperative and problem.rows else 0,
    )
    fits = resident >= 1 and not (cooperative and groups * group > cap)
    return launch if fits else Rejected.of(launch)


def _chunk(problem: Problem, variant: Variant, limits: DeviceInfo) -> int:
    """Elements one block holds: few rows spread over all SMs, many rows take as few blocks each as memory allows."""
    step = variant.vec_size  # the widest: every chunk then begins where such a load may
    largest = max(step, (smem_budget(limits) - variant.fixed_smem_bytes) // 4 // step * step)
    blocks_per_sm = max(1, limits.max_threads_per_sm // THREADS)
    free = limits.sms * blocks_per_sm - (limits.sms if blocks_per_sm > 1 else 1)
    blocks_per_row = max(1, free // max(problem.rows, 1))
    even = align(-(-problem.width // blocks_per_row), step)
    return max(min(even, largest), min(align(variant.tuning.min_chunk, step), largest))


def clustered(
    problem: Problem, limits: DeviceInfo, occupancy: Occupancy, clusters: Clusters, tuning: Tuning, group: int
) -> Launch | Rejected:
    """A hardware cluster of `group` blocks for each row."""
    variant = Variant(
        route="clustered",
        k=problem.k,
        vec_size=vec_size(problem, 0),
        tuning=tuning,
        options=problem.options,
        residency=1 if problem.rows * group <= limits.sms else 2,
        cluster=group,
        pdl=problem.pdl,
    )
    candidates = candidates_that_fit(variant, limits)
    smem = variant.fixed_smem_bytes + candidates * variant.candidate_bytes
    if variant.residency == 1:  # an SM for each block: else two of a cluster might share one while others idle
        smem = min(max(smem, limits.smem_per_sm // 2), limits.smem_optin)
    compiles = group <= limits.max_cluster and candidates >= problem.k
    resident = occupancy(variant, smem) if compiles else 0
    together = clusters(variant, smem) if resident else 0
    if problem.sm_budget is not None:
        together = min(together, limits.sms * resident // group)  # the budget's SMs
    # Without a budget a cluster for each row: the hardware starts them as room comes free.
    groups = min(problem.rows, MAX_ROWS // group if problem.sm_budget is None else together)
    launch = Launch(
        variant=variant,
        limits=limits,
        grid=groups * group,
        group=group,
        groups=groups,
        chunk=max(-(-problem.width // group), 1),
        candidates=candidates,
        smem_bytes=smem,
        occupancy=resident,
        clusters=together,
    )
    return launch if together >= 1 else Rejected.of(launch)
