"""Joins planner, compiler and driver for one context: what is loaded there, plan() and prepare()."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from drvtopk import forks
from drvtopk.cache import Cache, default_folder
from drvtopk.checks import instance
from drvtopk.compiler import compile_variant, never_compile
from drvtopk.driver import DEFAULT_STREAMS, Driver, load
from drvtopk.errors import CompilerUnavailable, DriverUnavailable, InvalidArgument, PlanError
from drvtopk.events import log_event
from drvtopk.export.prebuilt import Prebuilt, current
from drvtopk.launch import Launcher, Prepared
from drvtopk.nvrtc import nvrtc_version
from drvtopk.occupancy import Clusters, Occupancy, calculated_clusters, calculated_occupancy
from drvtopk.plan import after_refusal, plan
from drvtopk.planned import NOT_COOPERATIVE, Plan
from drvtopk.problem import Problem
from drvtopk.progress import preparing
from drvtopk.spec import DEFAULT_TUNING, DeviceInfo, KernelInfo, Tuning, Variant
from drvtopk.staging import Staging

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
                log_event(logging.INFO, "load", "loaded %s for %s: %s", variant, self.device.arch, info)
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
        instance("tuning", tuning, Tuning)
        if assume is not None:
            instance("assume", assume, DeviceInfo)
        device, occupancy, clusters = self._limits_of(assume, share)
        made = plan(problem, device, occupancy, route=route, chunk=chunk, group=group, clusters=clusters, tuning=tuning)
        if made.cooperative and not self.driver.launches_cooperatively():
            if route == "persistent":
                raise PlanError(route, NOT_COOPERATIVE)
            return after_refusal(made, problem, device, occupancy).without_launch()
        return made

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
        log_event(level, event, "%s rows of %s, k %s: %s", problem.rows, problem.width, problem.k, made.why)
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

    def _launcher(self, made: Plan) -> Launcher:
        return Launcher(
            self.driver, (self.context, self.context_id), made, self._raise_limit(made.variant, made.smem_bytes)
        )


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
