"""Joins planner, compiler and driver for one context: plan(), prepare(), and a prepared call that only launches."""

from __future__ import annotations

import ctypes
import itertools
import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from drvtopk import forks
from drvtopk.cache import Cache, default_folder
from drvtopk.compiler import compile_variant, never_compile, nvrtc_version
from drvtopk.driver import CLUSTER_REFUSALS, DEFAULT_STREAMS, Driver, Launch, load
from drvtopk.errors import CompilerUnavailable, DriverUnavailable, InvalidArgument, PlanError
from drvtopk.events import tell
from drvtopk.export.prebuilt import Prebuilt, current
from drvtopk.occupancy import Clusters, Occupancy, calculated_clusters, calculated_occupancy
from drvtopk.plan import after_refusal, plan
from drvtopk.planned import Plan
from drvtopk.problem import Problem
from drvtopk.progress import preparing
from drvtopk.spec import (
    DEFAULT_TUNING,
    EXTRAS,
    INDEX_DTYPES,
    PARAMS,
    VARYING,
    WORKSPACE_ALIGNMENT,
    DeviceInfo,
    KernelInfo,
    Tuning,
    Variant,
    packed,
)
from drvtopk.staging import Staging

# `Params` of cuda_src/params.cuh, which asserts these sizes.
_PARAMS = packed(PARAMS)
_VARYING = packed(PARAMS[:VARYING])  # its front, which each launch fills in
_EXTRAS = packed(EXTRAS)  # behind it, in variants whose options need more arrays
PARAMS_BYTES = _PARAMS.size
EXTRAS_BYTES = _EXTRAS.size
PORTABLE_CLUSTER = 8  # blocks of a cluster that every GPU with clusters has room for
_REMEMBERED = 256  # problems whose preparation an engine keeps
_CONTEXTS = 64  # contexts whose engines are kept: nobody tells us when one is destroyed


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The part of a device that the streams of one green context may use."""

    context: int
    """The green context's handle."""
    sms: int
    stream: int = field(compare=False)
    """One of its streams, of which the driver is asked."""


class _Launcher:
    """One plan, bound to its loaded kernel, with the parameter block that each launch fills in."""

    def __init__(self, driver: Driver, plan: Plan, function: Any) -> None:
        self.plan = plan
        self._driver = driver
        self._function = function
        self._lock = forks.lock()  # the driver copies the block during the call, so it must not change under it
        self.rows, self.k, self._stride = plan.rows, plan.k, plan.stride
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

    def _fill(
        self, logits: int, lengths: int, out: int, workspace: int, out_stride: int, extras: tuple[int, ...] | None
    ) -> None:
        _VARYING.pack_into(self._block, 0, logits, lengths, out, workspace, self._stride, out_stride)
        if extras is not None:
            _EXTRAS.pack_into(self._block, PARAMS_BYTES, *extras)

    def __call__(self, stream: int, *arguments: Any) -> bool:
        """One driver call with what `_fill` takes. False: blocks that wait together and can never be resident."""
        with self._lock:
            self._fill(*arguments)
            return self._launch(stream)

    def bound(self, *arguments: Any) -> Launch:
        """A launch with a block of its own, which nobody changes any more."""
        with self._lock:
            self._fill(*arguments)
            block = ctypes.create_string_buffer(self._block.raw, len(self._block))
        return self._launch_with(block)


class Bound:
    """One launch with every address in place. Safe to use from several threads; see `Prepared.bind`."""

    __slots__ = ("_arguments", "_keep", "_launch", "_prepared")

    def __init__(self, prepared: Prepared, launch: Launch, arguments: tuple[Any, ...], keep: object) -> None:
        self._prepared, self._launch, self._arguments, self._keep = prepared, launch, arguments, keep

    def __call__(self, stream: Any = 0) -> None:
        """One driver call on `stream`, a handle (0: the legacy default stream). Raises DriverError if it fails."""
        if not self._launch(stream):
            launch = self._launch = self._prepared._fall_back(*self._arguments[:4]).bound(*self._arguments)
            launch(stream)


def _launch_nothing(stream: Any) -> bool:
    """A launch of no rows."""
    return True


class Prepared:
    """A problem made ready in one context: everything is compiled, loaded and planned; a launch is one driver call.

    Safe to use from several threads. `launch` takes raw device addresses and allocates, copies, synchronises and
    reads back nothing, so it may be captured into a graph, which then is right for any later lengths.
    """

    def __init__(self, problem: Problem, first: _Launcher, fallback: _Launcher | None) -> None:
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
        page_table_stride: int | None = None,
        page_size: int = 1,
        rows_per_table: int = 1,
    ) -> None:
        """Launches on `stream` (a handle; 0 is the legacy default stream) with device addresses.

        `logits` (rows, width) of the prepared dtype, with the prepared stride; `lengths` int32 (rows,), or 0: every
        row has `width` elements; `out` (rows, k) of the prepared index dtype, its rows `out_stride` elements apart (k
        unless given); `workspace` of `workspace_bytes` bytes, aligned to 128, not shared with a launch that may run at
        the same time. Each that was prepared for, and no other: `values` (rows, k) of the logits' dtype; `row_starts`
        int32 (rows,); `page_table` int32, its rows `page_table_stride` elements apart, of which row r reads
        row r // `rows_per_table`. Strides are in elements.
        Raises InvalidArgument before anything is launched, DriverError if the driver refuses.
        """
        active = self._active
        step = active.k if out_stride is None else out_stride
        if step < active.k and active.rows > 1:
            _refuse_step(active.k, step)
        if active.rows == 0:
            return
        if (
            logits % active.logits_alignment
            or lengths % 4
            or out % active.out_alignment
            or not out
            or (active.needs_logits and not logits)
            or (active.needs_workspace and (not workspace or workspace % WORKSPACE_ALIGNMENT))
        ):
            _check_addresses(active, logits, lengths, out, workspace)
        extras = None
        if active.extras or values or row_starts or page_table:
            arrays = values, row_starts, page_table
            extras = self._extras(arrays, values_stride, page_table_stride, page_size, rows_per_table)
        if not active(stream, logits, lengths, out, workspace, step, extras):
            fallback = self._fall_back(logits, lengths, out, workspace)
            fallback(stream, logits, lengths, out, workspace, step, extras)

    def bind(
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
        page_table_stride: int | None = None,
        page_size: int = 1,
        rows_per_table: int = 1,
        keep: object = None,
    ) -> Bound:
        """`launch` without launching: the arguments are checked and packed now, and each call of what comes back, with
        a stream's handle, is the driver call and nothing else. For buffers that stay where they are; `keep` is held
        as long as it is."""
        active = self._active
        step = active.k if out_stride is None else out_stride
        if step < active.k and active.rows > 1:
            _refuse_step(active.k, step)
        if active.rows == 0:
            return Bound(self, _launch_nothing, (), keep)
        _check_addresses(active, logits, lengths, out, workspace)
        extras = None
        if active.extras or values or row_starts or page_table:
            arrays = values, row_starts, page_table
            extras = self._extras(arrays, values_stride, page_table_stride, page_size, rows_per_table)
        arguments = logits, lengths, out, workspace, step, extras
        return Bound(self, active.bound(*arguments), arguments, keep)

    def _fall_back(self, logits: int, lengths: int, out: int, workspace: int) -> _Launcher:
        """From now on the launch in which no block waits. Its loads may be wider, so the addresses are checked anew."""
        fallback = self._fallback
        if fallback is None:
            p = self._active.plan
            raise PlanError(p.route, f"the driver refused a grid of {p.grid} blocks")
        self._active = fallback
        if next(self._refusals) == 0:  # others may be refused at the same time
            tell(logging.WARNING, "fallback", "%s", fallback.plan.why)
        _check_addresses(fallback, logits, lengths, out, workspace)
        return fallback

    def _extras(
        self,
        arrays: tuple[int, int, int],
        values_stride: int | None,
        page_table_stride: int | None,
        page_size: int,
        rows_per_table: int,
    ) -> tuple[int, ...]:
        options, rows, k = self.problem.options, self.problem.rows, self.problem.k
        step, table_step = k if values_stride is None else values_stride, page_table_stride or 0
        asked = (options.values, options.row_starts, options.page_table)
        for name, address, wanted in zip(("values", "row_starts", "page_table"), arrays, asked, strict=True):
            if address and not wanted:
                raise InvalidArgument(name, hex(address), "0: the problem was prepared without it")
            if wanted:
                _check_address(name, address, options.item_bytes if name == "values" else 4)
        if options.values and step < k and rows > 1:
            raise InvalidArgument("values_stride", step, f"at least k = {k} elements")
        if options.page_table:
            if not 1 <= page_size < 2**31:
                raise InvalidArgument("page_size", page_size, f"1..{2**31 - 1}")
            if not 1 <= rows_per_table <= rows:
                raise InvalidArgument("rows_per_table", rows_per_table, f"1..{rows}")
            if table_step < 0:
                raise InvalidArgument("page_table_stride", table_step, "at least 0")
        return (*arrays, step, table_step, page_size, rows_per_table)


def _refuse_step(k: int, step: int) -> None:
    raise InvalidArgument("out_stride", step, f"at least k = {k} elements, so that rows do not overlap")


def _check_addresses(active: _Launcher, logits: int, lengths: int, out: int, workspace: int) -> None:
    _check_address("logits", logits, active.logits_alignment, there=active.needs_logits)
    _check_address("lengths", lengths, 4, there=False)
    _check_address("out", out, active.out_alignment)
    if active.needs_workspace:
        _check_address("workspace", workspace, WORKSPACE_ALIGNMENT)


def _check_address(name: str, address: int, alignment: int, *, there: bool = True) -> None:
    if address % alignment or (there and not address):
        or_null = "" if there else ", or 0"
        raise InvalidArgument(name, hex(address), f"a device address aligned to {alignment} bytes{or_null}")


class Engine:
    """Everything drvtopk knows about one context. Get it by `current_engine()`; safe under concurrent first use."""

    def __init__(
        self,
        driver: Driver,
        device: DeviceInfo,
        *,
        context: Any = None,
        context_id: int = 0,
        ordinal: int = 0,
        cache: Cache | None = None,
        prebuilt: Prebuilt | None = None,
    ) -> None:
        self.driver = driver
        self.device = device
        self.context = context
        """The host's; kept to read and to free in it what `topk` made for a caller."""
        self.context_id = context_id
        """The driver's number of it, by which another one at the same address is told apart."""
        self.ordinal = ordinal
        """Of the context's device."""
        self.staging = Staging(driver)
        self._cache = Cache(default_folder()) if cache is None else cache
        self._prebuilt = prebuilt  # or what the process names, at the time
        self._lock = forks.lock()  # never held while something is compiled
        self._making: dict[Variant, threading.Lock] = {}  # held while that one is
        self._loaded: dict[Variant, tuple[Any, KernelInfo]] = {}
        self._limits: dict[Variant, int] = {}
        self._memory = forks.lock()  # never held for long: who has prepared does not wait for who is preparing
        self._remembered: OrderedDict[object, Prepared] = OrderedDict()

    def _function(self, variant: Variant) -> tuple[Any, KernelInfo]:
        found = self._loaded.get(variant)
        if found is not None:
            return found
        with self._making.setdefault(variant, forks.lock()):
            found = self._loaded.get(variant)
            if found is None:
                cubin, info = self._cubin(variant)
                with self.driver.relaxed_capture():
                    function = self.driver.load_function(cubin, variant.entry)
                    if variant.cluster > PORTABLE_CLUSTER:
                        self.driver.allow_large_clusters(function, str(variant))
                tell(logging.INFO, "load", "loaded %s for %s: %s", variant, self.device.arch, info)
                found = self._loaded[variant] = function, info
            return found

    def _cubin(self, variant: Variant) -> tuple[bytes, KernelInfo]:
        """From the prebuilt folders, else from the compiler; of what the driver can read, or CompilerUnavailable."""
        never_compile()  # a value that it does not have is an error even where it would not matter
        prebuilt = self._prebuilt or current()
        found = prebuilt.find(variant, self.device.arch)
        theirs = self.driver.driver_version()
        if found is not None:
            made, cubin, info = found.nvrtc, found.cubin, found.info
            what, remedy = f"{found.path}, of NVRTC", f"export it with an NVRTC {theirs[0]}"
        else:
            try:
                compiled = compile_variant(variant, self.device.arch, cache=self._cache)
                made = nvrtc_version()
            except (CompilerUnavailable, InvalidArgument) as error:  # or this NVRTC does not know the device
                raise prebuilt.unavailable(variant, self.device.arch, error) from error
            cubin, info = compiled.cubin, compiled.info
            what = "NVRTC"
            remedy = f"install nvidia-cuda-nvrtc-cu{theirs[0]}, or name its library in DRVTOPK_NVRTC"
        if made[0] > theirs[0]:
            cuda = f"CUDA {theirs[0]}.{theirs[1]}"
            raise CompilerUnavailable(
                f"{what} {made[0]}.{made[1]} is newer than the driver, which runs {cuda}: {remedy}"
            )
        return cubin, info

    def _raise_limit(self, variant: Variant, smem_bytes: int) -> Any:
        """The function, allowed to take this much shared memory. The limit only ever rises: plans share a function."""
        function, _ = self._function(variant)
        with self._lock:
            if smem_bytes > self._limits.get(variant, 0):
                self.driver.raise_shared_memory_limit(function, smem_bytes, str(variant))
                self._limits[variant] = smem_bytes
        return function

    def occupancy(self, variant: Variant, smem_bytes: int) -> int:
        """The driver's answer for this very function and shared memory, asked after its limit was raised."""
        _, info = self._function(variant)
        if info.static_smem_bytes + smem_bytes > self.device.smem_optin:
            return 0
        return self.driver.occupancy(self._raise_limit(variant, smem_bytes), smem_bytes, str(variant), variant.threads)

    def clusters(self, variant: Variant, smem_bytes: int, stream: int = 0) -> int:
        """The driver's answer: clusters of this very function with this shared memory that are resident at once."""
        function = self._raise_limit(variant, smem_bytes)
        return self.driver.resident_clusters(
            function, variant.cluster, variant.threads, smem_bytes, str(variant), stream
        )

    def kernel_info(self, variant: Variant) -> KernelInfo:
        """Registers and sizes of a loaded instantiation."""
        return self._function(variant)[1]

    def share_of(self, stream: int) -> Share | None:
        """The part of the device that work of a stream may use, where that is less than the current context's."""
        if stream in DEFAULT_STREAMS:  # which are the current context's
            return None
        found = self.driver.green_context(stream)
        if found is None or found[1] >= self.device.sms:
            return None
        return Share(context=found[0], sms=found[1], stream=stream)

    def _limits_of(self, assume: DeviceInfo | None, share: Share | None) -> tuple[DeviceInfo, Occupancy, Clusters]:
        if assume is None and share is None:
            return self.device, self.occupancy, self.clusters
        # What is assumed may only take away: the real device, and the stream's share of it, still have to hold it.
        limits = assume or self.device
        device = limits.with_limits(sms=min(limits.sms, self.device.sms, share.sms if share else limits.sms))

        def occupancy(variant: Variant, smem_bytes: int) -> int:
            return min(
                self.occupancy(variant, smem_bytes),
                calculated_occupancy(self.kernel_info(variant), device, smem_bytes, variant.threads),
            )

        def clusters(variant: Variant, smem_bytes: int) -> int:
            calculated = calculated_clusters(device, variant.cluster, occupancy(variant, smem_bytes))
            return min(calculated, self.clusters(variant, smem_bytes, share.stream if share else 0))

        return device, occupancy, clusters

    def plan(
        self,
        problem: Problem,
        *,
        route: str = "auto",
        chunk: int | None = None,
        group: int | None = None,
        tuning: Tuning = DEFAULT_TUNING,
        assume: DeviceInfo | None = None,
        share: Share | None = None,
    ) -> Plan:
        """The plan for `problem` here, with the driver's occupancy; `assume` plans within another device's limits, and
        `share` within the SMs of a stream's green context."""
        device, occupancy, clusters = self._limits_of(assume, share)
        return plan(problem, device, occupancy, route=route, chunk=chunk, group=group, clusters=clusters, tuning=tuning)

    def prepare(
        self,
        problem: Problem,
        *,
        route: str = "auto",
        chunk: int | None = None,
        group: int | None = None,
        tuning: Tuning = DEFAULT_TUNING,
        assume: DeviceInfo | None = None,
        share: Share | None = None,
        plan: Plan | None = None,
    ) -> Prepared:
        """Compiles, loads and plans; what comes back only launches. `plan` replaces the planner's own (for tests)."""
        with preparing():
            made = plan or self.plan(
                problem, route=route, chunk=chunk, group=group, tuning=tuning, assume=assume, share=share
            )
            fallback = None
            if made.cooperative or made.variant.cluster > 1:  # its blocks wait for each other: the driver may refuse it
                device, occupancy, _ = self._limits_of(assume, share)
                fallback = self._launcher(after_refusal(made, problem, device, occupancy))
            first = self._launcher(made)
        unwanted = made.rejected is not None and problem.waits == "allowed"
        level, event = (logging.WARNING, "fallback") if unwanted else (logging.INFO, "plan")
        tell(level, event, "%s rows of %s, k %s: %s", problem.rows, problem.width, problem.k, made.why)
        return Prepared(problem, first, fallback)

    def remembered(self, problem: Problem, route: str, share: Share | None = None) -> Prepared | None:
        """What `prepare_once` made for this problem, if it is still kept."""
        key = problem, route, share
        with self._memory:
            found = self._remembered.get(key)
            if found is not None:
                self._remembered.move_to_end(key)
            return found

    def prepare_once(self, problem: Problem, route: str, share: Share | None = None) -> Prepared:
        """`prepare`, remembered for the latest problems, each share of the device by itself."""
        found = self.remembered(problem, route, share)
        if found is None:
            made = self.prepare(problem, route=route, share=share)
            with self._memory:
                found = self._remembered.setdefault((problem, route, share), made)
                if len(self._remembered) > _REMEMBERED:
                    self._remembered.popitem(last=False)
        return found

    def _launcher(self, made: Plan) -> _Launcher:
        return _Launcher(self.driver, made, self._raise_limit(made.variant, made.smem_bytes))


_lock = forks.lock()
_engines: dict[int, Engine] = {}  # the latest used last


def current_engine() -> Engine:
    """The engine of the context that is current on this thread. Raises DriverUnavailable if none is."""
    driver = load()
    context = driver.current_context()
    if context is None:
        raise DriverUnavailable(
            "no CUDA context is current on this thread: make the host's current, or use drvtopk.primary_context()"
        )
    key = driver.context_id(context)
    with _lock:
        found = _engines.pop(key, None)
        if found is None:
            device, ordinal = driver.context_device(context), driver.current_ordinal()
            found = Engine(driver, device, context=context, context_id=key, ordinal=ordinal)
            if len(_engines) >= _CONTEXTS:
                del _engines[next(iter(_engines))]
        _engines[key] = found  # at the end, as the latest
        return found


@forks.in_child
def _in_child() -> None:
    """Every engine stays with the parent."""
    _engines.clear()
