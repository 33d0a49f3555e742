"""What to launch: Problem x device limits x occupancy -> Plan. Pure: nothing here touches CUDA or a clock.

The one mistake this file exists to prevent: blocks that wait for each other, launched in a greater number than
the device holds at once. So the occupancy is asked of the very instantiation, with the very shared memory, that
the plan launches, and a cooperative grid larger than the resident cap is never planned.
"""

from __future__ import annotations

from dataclasses import fields

from drvtopk.checks import as_int, integer, one_of, shown
from drvtopk.choice import Choice
from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.measured import FILTERED, PERSISTENT, measured_times, modelled_times
from drvtopk.occupancy import Clusters, Occupancy, calculated_clusters, calculated_occupancy
from drvtopk.planned import WOULD_WAIT, Launch, Plan, Rejected
from drvtopk.problem import Problem
from drvtopk.reasons import Kind, Reason
from drvtopk.routes import clustered, filtered, persistent
from drvtopk.spec import ASKED_ROUTES, CLUSTERS, DEFAULT_TUNING, MAX_WIDTH, DeviceInfo, Tuning, Variant

__all__ = [  # planning, and what goes in and comes out
    "Clusters",
    "Occupancy",
    "Plan",
    "Problem",
    "Rejected",
    "after_refusal",
    "calculated_clusters",
    "calculated_occupancy",
    "plan",
]


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
    Raises InvalidArgument for a route, chunk or group that does not exist.
    """
    route = one_of("route", route, ASKED_ROUTES)
    if chunk is not None:
        chunk = integer("chunk", chunk, 1, MAX_WIDTH)
    sizes = _asked_sizes(route, group)
    if route == "clustered" and problem.waits == "never":
        raise PlanError(route, WOULD_WAIT)
    limits = _within_budget(device, problem)
    if clusters is None:

        def clusters(variant: Variant, smem_bytes: int) -> int:
            return calculated_clusters(limits, variant.cluster, occupancy(variant, smem_bytes))

    def laid_out(choice: Choice) -> Launch | Rejected:
        if choice.route == "clustered":
            return clustered(problem, limits, occupancy, clusters, tuning, choice.cluster)
        if choice.route == "persistent":
            return persistent(problem, limits, occupancy, tuning, chunk)
        return filtered(problem, limits, occupancy, tuning)

    if route == "clustered":
        choices = [(Choice(route, size), Kind.ASKED) for size in sizes]
    elif route != "auto" or chunk is not None:
        choices = [(FILTERED if route == "filtered" else PERSISTENT, Kind.ASKED)]
    else:
        choices = _choices(problem, limits, tuning)
    missed: Rejected | None = None
    fallback = Kind.DOES_NOT_FIT
    for choice, kind in choices:
        if choice == FILTERED and missed is not None:
            break  # then it is the fallback, and says of what
        tried = laid_out(choice)
        if isinstance(tried, Launch) and tried.cooperative and problem.waits == "never":
            tried, fallback = Rejected.of(tried), Kind.WAITS_FORBIDDEN
        if isinstance(tried, Launch):
            return _plan_of(tried, problem, Reason(kind=kind))
        if choice == PERSISTENT or kind is Kind.ASKED:  # a cluster that is only ranked gives way to the next
            missed = tried
    assert missed is not None  # a type fact: the last choice is filtered, or was missed
    if route != "auto":
        wrong = WOULD_WAIT if fallback is Kind.WAITS_FORBIDDEN else missed.constraint(limits.smem_optin)
        raise PlanError(route, wrong)
    return _plan_of(filtered(problem, limits, occupancy, tuning), problem, Reason(kind=fallback), missed)


def after_refusal(refused: Plan, problem: Problem, device: DeviceInfo, occupancy: Occupancy) -> Plan:
    """The fallback for a plan, cooperative or clustered, that the driver would not launch: one block per row.

    None of its blocks waits. `device` is the one that refused. Raises PlanError where not even one block fits an SM.
    """
    launch = filtered(problem, _within_budget(device, problem), occupancy, refused.tuning)
    return _plan_of(launch, problem, Reason(kind=Kind.REFUSED, grid=refused.grid), Rejected.of(refused))


def _asked_sizes(route: str, group: int | None) -> tuple[int, ...]:
    """The cluster sizes to try: the asked one, or the largest first."""
    if group is None:
        return CLUSTERS[::-1]
    blocks = as_int(group)
    if blocks is None or route != "clustered" or blocks not in CLUSTERS:
        raise InvalidArgument("group", shown(group), f"one of {', '.join(map(str, CLUSTERS))}, with route='clustered'")
    return (blocks,)


def _within_budget(device: DeviceInfo, problem: Problem) -> DeviceInfo:
    """The device, or the part of it that the problem may use."""
    if problem.sm_budget is None:
        return device
    return device.with_limits(sms=min(device.sms, problem.sm_budget))


def _choices(problem: Problem, limits: DeviceInfo, tuning: Tuning) -> list[tuple[Choice, Kind]]:
    """What to try and why, the best first. The last is one that always fits, or persistent."""
    if problem.longest <= tuning.radix_threshold:
        otherwise = FILTERED, Kind.SHORT_ROWS
    elif problem.rows * tuning.sms_to_share > limits.sms:  # measured on an H200 (tools/README.md)
        otherwise = FILTERED, Kind.MANY_ROWS
    else:
        otherwise = PERSISTENT, Kind.FEW_ROWS
    shared = limits.max_cluster > 1 and problem.longest > tuning.cluster_threshold and problem.waits == "allowed"
    if not shared or not problem.rows:
        return [otherwise]
    times, kind = measured_times(limits, problem.rows, problem.longest), Kind.MEASURED
    if FILTERED not in times:
        times = modelled_times(limits, problem.rows, problem.longest, tuning.sms_to_share)
        kind = Kind.MODELLED
    return [*((choice, kind) for choice in sorted(times, key=lambda choice: times[choice])), otherwise]


def _plan_of(launch: Launch, problem: Problem, reason: Reason, rejected: Rejected | None = None) -> Plan:
    """The launch of a problem, with its reason."""
    figures = {field.name: getattr(launch, field.name) for field in fields(launch)}
    return Plan(**figures, problem=problem, reason=reason, rejected=rejected)
