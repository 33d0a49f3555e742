"""What is launched, as plain data: a launch, and the plan, which adds the problem, the reason and what was rejected."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from drvtopk.problem import Problem
from drvtopk.reasons import Kind, Reason
from drvtopk.spec import DeviceInfo, Options, Tuning, Variant

NOT_COOPERATIVE = "this device launches no grid cooperatively (its attribute COOPERATIVE_LAUNCH is 0)"
WOULD_WAIT = "blocks of a row would wait for each other, which the caller forbids"


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A grid of one instantiation within the limits of a device. `grid == groups * group`."""

    variant: Variant
    """The instantiation to compile and launch."""
    limits: DeviceInfo
    """Of the device, or of as many of its SMs as `Problem.sm_budget` or a green context leaves."""
    grid: int
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
    occupancy: int
    """Resident blocks per SM of this very instantiation with this very shared memory."""
    clusters: int = 0
    """Clusters resident at once, of the route `clustered`; 0 for the others."""
    headroom: int = 0
    """Resident blocks that a cooperative launch wants to leave to others."""
    headroom_kept: bool = False
    """Whether they are left; False where none were asked for."""
    cooperative: bool = False
    """Blocks wait for each other; goes out by cuLaunchCooperativeKernel only, and never exceeds `resident_cap`."""
    workspace_bytes: int = 0
    """Device memory that the caller lends to each launch."""

    @property
    def route(self) -> str:
        """persistent, filtered or clustered."""
        return self.variant.route

    @property
    def vec_size(self) -> int:
        """Elements of a load."""
        return self.variant.vec_size

    @property
    def options(self) -> Options:
        """What is compiled in beyond k."""
        return self.variant.options

    @property
    def tuning(self) -> Tuning:
        """The thresholds that are compiled in and planned by."""
        return self.variant.tuning

    @property
    def residency(self) -> int:
        """Blocks of this instantiation that an SM shall hold at once; registers are limited to that."""
        return self.variant.residency

    @property
    def pdl(self) -> bool:
        """Goes out with programmatic dependent launch (`Problem.pdl`)."""
        return self.variant.pdl

    @property
    def block(self) -> int:
        """Threads of a block."""
        return self.variant.threads

    @property
    def device(self) -> str:
        """The device's name."""
        return self.limits.name

    @property
    def sms(self) -> int:
        """SMs that the launch may use."""
        return self.limits.sms

    @property
    def smem_optin(self) -> int:
        """Shared memory that a block may opt in to, bytes."""
        return self.limits.smem_optin

    @property
    def resident_cap(self) -> int:
        """Blocks resident at once: sms x occupancy."""
        return self.sms * self.occupancy


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

    @classmethod
    def of(cls, launch: Launch) -> Rejected:
        """What is kept of a launch."""
        return cls(
            route=launch.route,
            vec_size=launch.vec_size,
            group=launch.group,
            chunk=launch.chunk,
            smem_bytes=launch.smem_bytes,
            occupancy=launch.occupancy,
            resident_cap=launch.resident_cap,
        )

    def constraint(self, smem_optin: int) -> str:
        """What it does not meet on a device whose blocks may have so many bytes of shared memory."""
        if self.route == "clustered":
            return f"no cluster of {self.group} blocks with {self.smem_bytes} bytes of shared memory each fits"
        if self.occupancy < 1:
            return (
                f"a block holding {self.chunk} elements needs {self.smem_bytes} bytes of shared memory "
                f"and none fits an SM ({smem_optin} bytes a block at most)"
            )
        return f"one row needs {self.group} blocks, {self.resident_cap} fit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Launch):
    """One launch, with what it was planned for and why."""

    problem: Problem
    """As it was planned; its `sm_budget` is what `limits` keeps within."""
    reason: Reason
    rejected: Rejected | None = None
    """The launch that this one stands for; None where this is no fallback."""

    @property
    def k(self) -> int:
        return self.problem.k

    @property
    def rows(self) -> int:
        return self.problem.rows

    @property
    def width(self) -> int:
        """Columns of a row, in elements."""
        return self.problem.width

    @property
    def stride(self) -> int:
        """Elements from one row's start to the next."""
        return self.problem.row_stride

    @property
    def max_seq_len(self) -> int:
        """The longest row that is expected (`Problem.max_seq_len`), in elements."""
        return self.problem.longest

    @property
    def needs_cooperation(self) -> bool:
        """Whether rows are expected that the blocks of a group share, and wait for each other."""
        return self.route == "persistent" and self.max_seq_len > self.tuning.radix_threshold

    @property
    def why(self) -> str:
        """The reason in one sentence, with its figures."""
        if self.rejected is not None:
            return f"fallback: {_fallback(self, self.rejected)}"
        return f"{self.route}: {_SENTENCES[self.route](self)}"

    def refused_with(self, error: int) -> Plan:
        """This fallback, once the driver has refused the other launch with this error."""
        return replace(self, reason=replace(self.reason, error=error))

    def without_launch(self) -> Plan:
        """This fallback of a launch that is not even tried: the device launches no grid cooperatively."""
        return replace(self, reason=replace(self.reason, grid=0, error=_NOT_SUPPORTED))

    def document(self) -> dict[str, Any]:
        """Every figure under its name, flat and in a fixed order, as JSON has them; the nested ones as dicts."""
        rejected = None if self.rejected is None else asdict(self.rejected)
        nested = {"tuning": asdict(self.tuning), "options": asdict(self.options), "rejected": rejected}
        return {name: nested[name] if name in nested else getattr(self, name) for name in FIGURES}


FIGURES = (
    *("route", "k", "vec_size", "rows", "width", "stride", "max_seq_len", "grid", "block", "group", "groups", "chunk"),
    *("candidates", "smem_bytes", "device", "sms", "smem_optin", "occupancy", "resident_cap", "needs_cooperation"),
    *("headroom", "headroom_kept", "cooperative", "workspace_bytes", "why", "tuning", "options", "residency", "pdl"),
    "rejected",
)
"""What `Plan.document` holds, in order."""


_NOT_SUPPORTED = 801
_ERRORS = {720: "COOPERATIVE_LAUNCH_TOO_LARGE", _NOT_SUPPORTED: "NOT_SUPPORTED", 912: "INVALID_CLUSTER_SIZE"}


def _fallback(p: Plan, rejected: Rejected) -> str:
    if p.reason.kind is Kind.WAITS_FORBIDDEN:
        return WOULD_WAIT
    if p.reason.kind is Kind.DOES_NOT_FIT:
        return rejected.constraint(p.smem_optin)
    if p.reason.error == _NOT_SUPPORTED and not p.reason.grid:
        return NOT_COOPERATIVE
    error = p.reason.error or (912 if rejected.route == "clustered" else 720)
    answer = f"({error}, {_ERRORS[error]})"
    if rejected.route == "clustered":
        return f"the driver refused the launch in clusters of {rejected.group} blocks {answer}"
    blocks = f"for {p.reason.grid} blocks, {rejected.resident_cap} were to fit"
    return f"the driver refused the cooperative launch {answer} {blocks}"


def _expected(p: Plan) -> str:
    return f"no row above {p.tuning.radix_threshold} is expected (max_seq_len {p.max_seq_len})"


def _fastest(p: Plan) -> str:
    by = "measured fastest near" if p.reason.kind is Kind.MEASURED else "by a model the fastest for"
    return f"{by} {p.rows} x {p.max_seq_len}"


def _filtered(p: Plan) -> str:
    if p.reason.kind is Kind.ASKED:
        why = "asked for"
    elif p.reason.kind is Kind.SHORT_ROWS:
        why = _expected(p)
    elif p.reason.kind is Kind.MANY_ROWS:
        why = f"{p.rows} rows on {p.sms} SMs, sharing pays from {p.tuning.sms_to_share} SMs a row on"
    else:
        why = _fastest(p)
    return f"{why}; one block per row, none waits"


def _persistent(p: Plan) -> str:
    flight = f"{p.groups} of {p.rows} rows in flight"
    if not p.cooperative:
        return f"{_expected(p)}, so one block takes each row and none waits; {flight}"
    if p.headroom_kept:
        left = f"{p.headroom} of {p.resident_cap} resident blocks left to others"
    else:
        left = f"no headroom: {p.group} of {p.resident_cap} needed"
    return f"{p.group} blocks of {p.chunk} elements share a row, {flight}; {left}"


def _clustered(p: Plan) -> str:
    shared = f"the {p.group} blocks of a cluster share each long row; {p.clusters} clusters fit at once"
    return shared if p.reason.kind is Kind.ASKED else f"{shared}; {_fastest(p)}"


_SENTENCES = {"filtered": _filtered, "persistent": _persistent, "clustered": _clustered}
