"""A prepared problem, whose launch is one driver call: addresses and strides in, nothing left to plan or compile."""

from __future__ import annotations

import ctypes
import itertools
import logging
import struct
from typing import Any, NamedTuple

from drvtopk import forks
from drvtopk.checks import as_int, shown
from drvtopk.driver import CLUSTER_REFUSALS, NO_CONTEXT, Driver, Launch
from drvtopk.errors import DriverError, InvalidArgument, PlanError
from drvtopk.events import log_event
from drvtopk.plan import Plan, Problem
from drvtopk.spec import EXTRAS, INDEX_DTYPES, PARAMS, VARYING, WORKSPACE_ALIGNMENT, packed

# `Params` of cuda_src/params.cuh, which asserts these sizes.
_PARAMS = packed(PARAMS)
_VARYING = packed(PARAMS[:VARYING])  # its front, which each launch fills in
_EXTRAS = packed(EXTRAS)  # behind it, in variants whose options need more arrays
PARAMS_BYTES = _PARAMS.size
EXTRAS_BYTES = _EXTRAS.size


class Extras(NamedTuple):
    """What options that need more arrays add to a launch, in the order of the parameter block."""

    values: int
    row_starts: int
    page_table: int
    values_stride: int
    page_table_stride: int
    page_size: int
    rows_per_table: int


class LaunchArgs(NamedTuple):
    """What one launch is told, checked against its problem (`Prepared.args`): device addresses, 0 where there is none,
    and strides in elements."""

    logits: int
    lengths: int
    out: int
    workspace: int
    out_stride: int
    extras: Extras | None
    """Only where the options need them."""
    checked_for: Launcher


class Launcher:
    """One plan, bound to its loaded kernel, with the parameter block that each launch fills in."""

    def __init__(self, driver: Driver, context: tuple[Any, int], plan: Plan, function: Any) -> None:
        self.plan = plan
        self._driver, self._context = driver, context  # and its `context_id`
        self._function = function
        self._lock = forks.lock()  # the driver copies the block during the call, so it must not change under it
        self._stride = plan.stride
        self.rows, self.k = plan.rows, plan.k
        self.extras = plan.options.extras
        # What addresses are aligned to; and for a quick look whether there is anything to complain about.
        self.logits_alignment = plan.options.item_bytes * plan.vec_size
        self.out_alignment = INDEX_DTYPES[plan.options.index_dtype]
        self.needs_logits = plan.width > 0
        self.needs_workspace = plan.workspace_bytes > 0
        block = ctypes.create_string_buffer(PARAMS_BYTES + EXTRAS_BYTES * self.extras)
        tail = (plan.width, plan.group, plan.groups, plan.chunk, plan.candidates, int(plan.cooperative), 0)
        _PARAMS.pack_into(block, 0, 0, 0, 0, 0, 0, 0, plan.rows, *tail)
        self._block = block
        self._launch = self._launch_with(block)

    def _launch_with(self, block: ctypes.Array[ctypes.c_char]) -> Launch:
        """A launch that hands over this block and owns it: a call under way keeps it, whoever lets go of the launch."""
        p, driver = self.plan, self._driver
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(block))
        about = f"{p.variant} {p.device}: grid {p.grid}, {p.smem_bytes} bytes of shared memory"
        given = self._function, p.grid, p.smem_bytes, ctypes.addressof(pointers), about
        keep = pointers, block
        if p.cooperative:
            return driver.cooperative_launcher(*given, per_sm=p.occupancy, keep=keep)
        refusals = CLUSTER_REFUSALS if p.variant.cluster > 1 else ()
        launcher = driver.dependent_launcher if p.pdl else driver.launcher
        return launcher(*given, p.block, refusals=refusals, keep=keep)

    def _fill(self, args: LaunchArgs) -> None:
        logits, lengths, out, workspace, step, extras, _ = args
        try:
            _VARYING.pack_into(self._block, 0, logits, lengths, out, workspace, self._stride, step)
            if extras is not None:
                _EXTRAS.pack_into(self._block, PARAMS_BYTES, *extras)
        except struct.error:
            _refuse_numbers(args)
            raise

    def __call__(self, args: LaunchArgs, stream: int) -> int:
        """One driver call. Else than 0 is its error: blocks that wait together and can never be resident."""
        with self._lock:
            self._fill(args)
            try:
                return self._launch(stream)
            except DriverError as error:
                return self.in_its_context(self._launch, stream, error)

    def in_its_context(self, launch: Launch, stream: Any, error: DriverError) -> int:
        """Once more, if this thread has no context: in the one that was prepared for. Nothing was launched then."""
        if error.code != NO_CONTEXT or not self._driver.may_adopt(*self._context):
            raise error
        with self._driver.current(self._context[0]):
            return launch(stream)

    def bound(self, args: LaunchArgs) -> Launch:
        """A launch with a block of its own, which nobody changes any more."""
        with self._lock:
            self._fill(args)
            block = ctypes.create_string_buffer(self._block.raw, len(self._block))
        return self._launch_with(block)

    def check(self, logits: int, lengths: int, out: int, workspace: int) -> None:
        """Raises InvalidArgument for an address that the kernel could not take."""
        _check_address("logits", logits, self.logits_alignment, there=self.needs_logits)
        _check_address("lengths", lengths, 4, there=False)
        _check_address("out", out, self.out_alignment)
        if self.needs_workspace:
            _check_address("workspace", workspace, WORKSPACE_ALIGNMENT)


class Bound:
    """One launch with every address in place. Safe to use from several threads; see `Prepared.bind`."""

    __slots__ = ("_args", "_keep", "_launch", "_prepared")

    def __init__(self, prepared: Prepared, launch: Launch, args: LaunchArgs | None, keep: object) -> None:
        self._prepared, self._launch, self._args, self._keep = prepared, launch, args, keep

    def __call__(self, stream: Any = 0) -> None:
        """One driver call on `stream`, a handle (0: the legacy default stream). Raises DriverError if it fails."""
        refused = self._run(stream)
        if refused:
            assert self._args is not None  # a type fact: a launch of no rows is never refused
            self._launch = self._prepared._fall_back(self._args, refused).bound(self._args)
            self._run(stream)

    def _run(self, stream: Any) -> int:
        launch = self._launch
        try:
            return launch(stream)
        except DriverError as error:
            return self._prepared._active.in_its_context(launch, stream, error)


def _launch_nothing(stream: Any) -> int:
    """A launch of no rows."""
    return 0


class Prepared:
    """A problem made ready in one context: everything is compiled, loaded and planned; a launch is one driver call.

    Safe to use from several threads. `launch` takes raw device addresses and allocates, copies, synchronises and
    reads back nothing, so it may be captured into a graph, which then is right for any later lengths.
    """

    def __init__(self, problem: Problem, first: Launcher, fallback: Launcher | None) -> None:
        self.problem = problem
        # Only ever changes to the fallback. What belongs together is read from one look at it.
        self._active = first
        self._fallback = fallback
        self._refusals = itertools.count()

    @property
    def plan(self) -> Plan:
        """What is launched now. Its `why` tells of a fallback, also of one that the driver forced later."""
        return self._active.plan

    @property
    def workspace_bytes(self) -> int:
        """Device memory the caller lends to each launch, bytes; its contents are irrelevant before and after."""
        return self._active.plan.workspace_bytes

    def args(
        self,
        logits: int,
        lengths: int,
        out: int,
        workspace: int = 0,
        *,
        out_stride: int | None = None,
        values: int = 0,
        values_stride: int | None = None,
        row_starts: int = 0,
        page_table: int = 0,
        page_table_stride: int = 0,
        page_size: int = 1,
        rows_per_table: int = 1,
    ) -> LaunchArgs:
        """Checks what a launch is told: device addresses, and strides in elements.

        `logits` (rows, width) of the prepared dtype, with the prepared stride; `lengths` int32 (rows,), or 0: every
        row has `width` elements; `out` (rows, k) of the prepared index dtype, its rows `out_stride` elements apart (k
        unless given); `workspace` of `workspace_bytes` bytes, aligned to 128, not shared with a launch that may run at
        the same time. Each that was prepared for, and no other: `values` (rows, k) of the logits' dtype; `row_starts`
        int32 (rows,); `page_table` int32, its rows `page_table_stride` elements apart, of which row r reads
        row r // `rows_per_table`. Raises InvalidArgument.
        """
        active = self._active
        k = active.k
        step = k if out_stride is None else out_stride
        if step < k and active.rows > 1:
            raise InvalidArgument("out_stride", step, f"at least k = {k} elements, so that rows do not overlap")
        extras = None
        if active.rows:
            if (
                logits % active.logits_alignment
                or lengths % 4
                or out % active.out_alignment
                or not out
                or (active.needs_logits and not logits)
                or (active.needs_workspace and (not workspace or workspace % WORKSPACE_ALIGNMENT))
            ):
                active.check(logits, lengths, out, workspace)
            if active.extras or values or row_starts or page_table:
                values_step = k if values_stride is None else values_stride
                steps = values_step, page_table_stride, page_size, rows_per_table
                extras = self._checked_extras(Extras(values, row_starts, page_table, *steps))
        # By `tuple`, at half of what a call of the class costs.
        return tuple.__new__(LaunchArgs, (logits, lengths, out, workspace, step, extras, active))

    def launch(
        self,
        logits: int,
        lengths: int,
        out: int,
        workspace: int = 0,
        stream: int = 0,
        *,
        out_stride: int | None = None,
        values: int = 0,
        values_stride: int | None = None,
        row_starts: int = 0,
        page_table: int = 0,
        page_table_stride: int = 0,
        page_size: int = 1,
        rows_per_table: int = 1,
    ) -> None:
        """Launches on `stream` (a handle; 0 is the legacy default stream) with device addresses, as `args` has them.

        Raises InvalidArgument before anything is launched, DriverError if the driver refuses.
        """
        if self._active.extras or values or row_starts or page_table:
            args = self.args(
                *(logits, lengths, out, workspace),
                out_stride=out_stride,
                values=values,
                values_stride=values_stride,
                row_starts=row_starts,
                page_table=page_table,
                page_table_stride=page_table_stride,
                page_size=page_size,
                rows_per_table=rows_per_table,
            )
        else:  # twelve keywords on their way cost a tenth of a launch
            args = self.args(logits, lengths, out, workspace, out_stride=out_stride)
        checked = args.checked_for
        if checked.rows and (refused := checked(args, stream)):
            self._fall_back(args, refused)(args, stream)

    def launch_args(self, args: LaunchArgs, stream: int) -> None:
        """Launches what `args` checked."""
        active = self._active
        if args.checked_for is not active:
            self._check_again(args)
        if active.rows and (refused := active(args, stream)):
            self._fall_back(args, refused)(args, stream)

    def bind(self, args: LaunchArgs, keep: object = None) -> Bound:
        """`launch_args` without launching: everything is packed now, and each call of what comes back, with a stream's
        handle, is the driver call and nothing else. For buffers that stay where they are; `keep` is held as long as it
        is."""
        active = self._active
        if args.checked_for is not active:
            self._check_again(args)
        if not active.rows:
            return Bound(self, _launch_nothing, None, keep)
        return Bound(self, active.bound(args), args, keep)

    def _check_again(self, args: LaunchArgs) -> None:
        """The fallback may have come since, and it may load more at once."""
        if args.checked_for.plan.problem != self.problem:
            raise InvalidArgument("args", f"those of {args.checked_for.plan.variant}", "what this preparation checked")
        if self.problem.rows:
            self._active.check(*args[:4])

    def _fall_back(self, args: LaunchArgs, refused: int) -> Launcher:
        """From now on the launch in which no block waits: the driver refused the other with this error.

        Loads may be wider then, so the addresses are checked anew.
        """
        fallback = self._fallback
        if fallback is None:
            p = self._active.plan
            raise PlanError(p.route, f"the driver refused a grid of {p.grid} blocks")
        if not fallback.plan.reason.error:  # others may be refused at the same time
            fallback.plan = fallback.plan.refused_with(refused)
        self._active = fallback
        if next(self._refusals) == 0:
            log_event(logging.WARNING, "fallback", "%s", fallback.plan.why)
        fallback.check(*args[:4])
        return fallback

    def _checked_extras(self, found: Extras) -> Extras:
        options, rows, k = self.problem.options, self.problem.rows, self.problem.k
        asked = (options.values, options.row_starts, options.page_table)
        for name, address, wanted in zip(("values", "row_starts", "page_table"), found, asked, strict=False):
            if address and not wanted:
                raise InvalidArgument(name, hex(address), "0: the problem was prepared without it")
            if wanted:
                _check_address(name, address, options.item_bytes if name == "values" else 4)
        if options.values and found.values_stride < k and rows > 1:
            raise InvalidArgument("values_stride", found.values_stride, f"at least k = {k} elements")
        if options.page_table:
            if not 1 <= found.page_size < 2**31:
                raise InvalidArgument("page_size", found.page_size, f"1..{2**31 - 1}")
            if not 1 <= found.rows_per_table <= rows:
                raise InvalidArgument("rows_per_table", found.rows_per_table, f"1..{rows}")
            if found.page_table_stride < 0:
                raise InvalidArgument("page_table_stride", found.page_table_stride, "at least 0")
        return found


def _refuse_numbers(args: LaunchArgs) -> None:
    """Names what the parameter block has no room for."""
    given = args._asdict() | (args.extras._asdict() if args.extras else {})
    for name, value in given.items():
        if name not in ("extras", "checked_for"):
            low, high = (-(2**63), 2**63 - 1) if name.endswith("stride") else (0, 2**64 - 1)
            number = as_int(value)
            if number is None or not low <= number <= high:
                raise InvalidArgument(name, shown(value), f"an integer in {low}..{high}")


def _check_address(name: str, address: int, alignment: int, *, there: bool = True) -> None:
    if address % alignment or (there and not address):
        or_null = "" if there else ", or 0"
        raise InvalidArgument(name, hex(address), f"a device address aligned to {alignment} bytes{or_null}")
