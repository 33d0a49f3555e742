"""CUDA driver calls as methods: values in, values or a named error out. The only importer of cuda.bindings.driver.

`Driver(api)` takes the module `cuda.bindings.driver`, or a stand-in with the same functions and return tuples, so
that a test can record every call and fail any of them. Works with bindings 12.9 and 13.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Callable, Iterator
from typing import Any

from drvtopk import forks
from drvtopk.errors import DriverError, DriverUnavailable
from drvtopk.spec import THREADS, DeviceInfo, arch_of

COOPERATIVE_LAUNCH_TOO_LARGE = 720
INVALID_CLUSTER_SIZE = 912
# Of a launch in clusters where the SMs that its stream may use can never hold one; nothing is launched. An H200 answers
# 912 (driver 580, clusters of 16 in green contexts of 8 to 64 SMs); 720 is what grids are refused by that never fit.
CLUSTER_REFUSALS = (INVALID_CLUSTER_SIZE, COOPERATIVE_LAUNCH_TOO_LARGE)
_INVALID_VALUE, _NOT_SUPPORTED = 1, 801
DEFAULT_STREAMS = 0, 1, 2  # the null stream, the legacy one and that of the calling thread
_STREAMS = 64  # whose configurations a dependent launch keeps
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_POINTER_ATTRIBUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_uint64)

Launch = Callable[[Any], bool]
"""Launches on a stream, its handle given. False: nothing was launched, as what waits together can never be resident."""
_NO_DRIVER = "no CUDA driver: libcuda could not be loaded; install the NVIDIA driver"
OLDEST = 12, 0
"""The oldest CUDA version of a driver that runs this package: R525."""
OLDEST_CAPABILITY = 8, 0
# What the bindings say of a function that the driver lacks.
_NOT_FOUND = re.compile(r'(?:[Ff]unction |Failed to get _*)"?(\w+)"?(?: (?:is )?not found|$)')
_PER_THREAD = "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"  # has the bindings take handle 0 for the thread's own stream

_FORKED = (
    "this process was forked after CUDA was initialised, and CUDA does not work in such a child: start worker "
    "processes by spawn or forkserver, or fork before the first CUDA call"
)

_lock = forks.lock()
_loaded: Driver | None = None
_forked = False


@forks.in_child
def _in_child() -> None:
    """The driver is the parent's."""
    global _loaded, _forked
    _forked = _forked or _loaded is not None
    _loaded = None


def load() -> Driver:
    """The process's driver, initialised once.

    Raises DriverUnavailable without libcuda, without a device, or in a child that was forked after this had been
    called in its parent.
    """
    global _loaded
    with _lock:
        if _forked:
            raise DriverUnavailable(_FORKED)
        if _loaded is None:
            try:
                from cuda.bindings import driver as api
            except ImportError as error:
                raise DriverUnavailable(
                    f"cuda.bindings cannot be imported ({error}); pip install 'cuda-python>=12.9,<14'"
                ) from error
            driver = Driver(api)
            driver.init()
            _loaded = driver
        return _loaded


class Driver:
    """One method a driver call, named after what it does. Handles are the bindings' own objects."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self._primary: dict[int, tuple[Any, int]] = {}  # (context, its `context_id`) by device
        self._pointer_attribute: Callable[..., int] | None = None
        # What the bindings take for the legacy default stream. Some of them take any value of the variable for a yes.
        self._legacy = 1 if os.environ.get(_PER_THREAD) else 0

    def _call(self, name: str, *args: Any, about: str = "") -> Any:
        function = getattr(self.api, name, None)
        if function is None:
            raise DriverUnavailable(f"these cuda.bindings have no {name}; pip install 'cuda-python>=12.9,<14'")
        try:
            code, *values = function(*args)
        except RuntimeError as error:
            raise self._unavailable(name, error) from error
        if int(code) != 0:
            raise self._error(name, code, about)
        return values[0] if len(values) == 1 else tuple(values)

    def _unavailable(self, name: str, error: Exception) -> DriverUnavailable:
        """The bindings find libcuda at the first call, and each of its functions at the first call of that."""
        missing = _NOT_FOUND.search(str(error))
        if missing is None:
            return DriverUnavailable(f"{_NO_DRIVER} ({(str(error).splitlines() or [type(error).__name__])[0]})")
        version = ""
        if name != "cuDriverGetVersion":
            with contextlib.suppress(DriverError, DriverUnavailable):
                version = " (CUDA {}.{})".format(*self.driver_version())
        return DriverUnavailable(f"this NVIDIA driver{version} has no {missing[1]}: install a newer one")

    def _optional(self, name: str, *args: Any, about: str = "") -> Any | None:
        """What the call answers; None where the driver or the bindings are older than the function."""
        try:
            return self._call(name, *args, about=about)
        except DriverUnavailable:
            return None

    def _error(self, call: str, code: Any, about: str) -> DriverError:
        texts = []
        for getter in ("cuGetErrorName", "cuGetErrorString"):
            try:
                failed, text = getattr(self.api, getter)(code)
            except RuntimeError:  # the driver lacks even this
                failed, text = 1, None
            text = None if int(failed) else text
            texts.append(text.decode() if isinstance(text, bytes) else str(text or "unknown"))
        return DriverError(call, int(code), texts[0], texts[1], about)

    # The machine

    def init(self) -> None:
        """Loads libcuda; DriverUnavailable names what is missing, or that it is too old."""
        try:
            self._call("cuInit", 0)
            version = self.driver_version()
            if version < OLDEST:
                raise DriverUnavailable(
                    "this NVIDIA driver runs CUDA {}.{}; drvtopk needs {}.{} or newer".format(*version, *OLDEST)
                )
            count = self.device_count()
        except DriverError as error:
            raise DriverUnavailable(f"no usable CUDA device: {error}") from error
        if count < 1:
            raise DriverUnavailable("no CUDA device: the driver is there and lists none")

    def driver_version(self) -> tuple[int, int]:
        """The newest CUDA version this driver runs: (12, 9)."""
        version = int(self._call("cuDriverGetVersion"))
        return version // 1000, version % 1000 // 10

    def device_count(self) -> int:
        return int(self._call("cuDeviceGetCount"))

    def _attribute(self, name: str, device: Any) -> int:
        attribute = getattr(self.api.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self._call("cuDeviceGetAttribute", attribute, device))

    def device_info(self, device: Any, *, sms: int | None = None) -> DeviceInfo:
        """The device's limits; `sms` replaces its SM count by that of the part a context may use."""
        raw = self._call("cuDeviceGetName", 128, device)
        name = raw.decode() if isinstance(raw, bytes) else str(raw)
        major = self._attribute("COMPUTE_CAPABILITY_MAJOR", device)
        minor = self._attribute("COMPUTE_CAPABILITY_MINOR", device)
        return DeviceInfo(
            name=name.split("\0")[0].strip(),
            arch=arch_of(major, minor),
            sms=self._attribute("MULTIPROCESSOR_COUNT", device) if sms is None else sms,
            smem_optin=self._attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", device),
            smem_per_sm=self._attribute("MAX_SHARED_MEMORY_PER_MULTIPROCESSOR", device),
            max_threads_per_sm=self._attribute("MAX_THREADS_PER_MULTIPROCESSOR", device),
            max_blocks_per_sm=self._attribute("MAX_BLOCKS_PER_MULTIPROCESSOR", device),
            regs_per_sm=self._attribute("MAX_REGISTERS_PER_MULTIPROCESSOR", device),
            smem_reserved=self._attribute("RESERVED_SHARED_MEMORY_PER_BLOCK", device),
        )

    def devices(self) -> list[DeviceInfo]:
        return [self.device_info(self._call("cuDeviceGet", i)) for i in range(self.device_count())]

    # Contexts: the host's

    def current_context(self) -> Any | None:
        """The context that is current on this thread, or None."""
        context = self._call("cuCtxGetCurrent")
        return context if int(context) else None

    def context_id(self, context: Any) -> int:
        """A number that no other context of this process ever has, even after this one is destroyed."""
        return int(self._call("cuCtxGetId", context))

    def is_there(self, context: Any, number: int) -> bool:
        """Whether this handle still is the context that had this `context_id`."""
        return self._number(context) == number

    def _number(self, context: Any) -> int | None:
        """`context_id`, or None if the context is there no more."""
        try:
            return self.context_id(context)
        except DriverError:
            return None

    def current_ordinal(self) -> int:
        """The device of the current context, as `devices()` counts them."""
        return int(self._call("cuCtxGetDevice"))

    def pointer_ordinal(self, address: int) -> int | None:
        """The device that memory belongs to; None for an address that CUDA does not know.

        libcuda's own function is asked, not the bindings': some of their releases answer 0 whatever the device
        (https://github.com/NVIDIA/cuda-python/issues/2928).
        """
        if self._pointer_attribute is None:
            self._pointer_attribute = _POINTER_ATTRIBUTE(self.entry_point("cuPointerGetAttribute"))
        ordinal = ctypes.c_int()
        code = self._pointer_attribute(ctypes.byref(ordinal), _DEVICE_ORDINAL, address)
        if code == _INVALID_VALUE:
            return None
        if code != 0:
            raise self._error("cuPointerGetAttribute", self.api.CUresult(code), "")
        return ordinal.value

    def entry_point(self, name: str) -> int:
        """The address of a function of libcuda, as of CUDA 12.0."""
        address, _ = self._call("cuGetProcAddress", name.encode(), 12000, 0, about=name)
        return int(address)

    def context_device(self, context: Any) -> DeviceInfo:
        """The limits of what the current context may use: in a green context or an MPS share, not the whole die.

        DriverUnavailable for a device that is older than the kernels can be compiled for.
        """
        device = self._call("cuCtxGetDevice")
        capability = tuple(self._attribute(f"COMPUTE_CAPABILITY_{part}", device) for part in ("MAJOR", "MINOR"))
        if capability < OLDEST_CAPABILITY:
            raise DriverUnavailable(
                "{} has compute capability {}.{}; drvtopk needs {}.{} or newer".format(
                    self.device_info(device).name, *capability, *OLDEST_CAPABILITY
                )
            )
        sms: int | None = None
        # Contexts that cannot be asked (before CUDA 12.4) own their whole device.
        with contextlib.suppress(DriverError, DriverUnavailable, AttributeError):
            kind = self.api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
            sms = int(self._call("cuCtxGetDevResource", context, kind).sm.smCount)
        return self.device_info(device, sms=sms or None)

    def green_context(self, stream: int) -> tuple[int, int] | None:
        """(handle, SMs) of the green context that a stream belongs to, whatever context is current.

        None for a stream of none, and where the driver or the bindings are older than green contexts (CUDA 12.4).
        """
        with contextlib.suppress(DriverError, DriverUnavailable, AttributeError):
            green = self._call("cuStreamGetGreenCtx", stream)
            if int(green):
                kind = self.api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
                return int(green), int(self._call("cuGreenCtxGetDevResource", green, kind).sm.smCount)
        return None

    @contextlib.contextmanager
    def primary_context(self, ordinal: int = 0) -> Iterator[None]:
        """Makes the device's primary context current for a while, for callers that have none of their own.

        It stays retained until the process ends, as the CUDA runtime keeps it: releasing the last reference would
        destroy it with every kernel loaded in it. After cuDevicePrimaryCtxReset it is retained anew.
        """
        context, number = self._primary.get(ordinal, (None, 0))
        if context is None or not self.is_there(context, number):
            device = self._call("cuDeviceGet", ordinal)
            context = self._call("cuDevicePrimaryCtxRetain", device)
            self._primary[ordinal] = context, self.context_id(context)
        before = self._call("cuCtxGetCurrent")
        self._call("cuCtxSetCurrent", context)
        try:
            yield
        finally:
            self._call("cuCtxSetCurrent", before)

    @contextlib.contextmanager
    def current(self, context: Any) -> Iterator[None]:
        """Makes a context current on this thread for a while."""
        self._call("cuCtxPushCurrent", context)
        try:
            yield
        finally:
            self._call("cuCtxPopCurrent")

    @contextlib.contextmanager
    def relaxed_capture(self) -> Iterator[None]:
        """Loading, allocating, freeing and waiting for events would end a capture that another stream, maybe of another
        thread, has under way; in here they do not."""
        modes = self.api.CUstreamCaptureMode
        before = self._call("cuThreadExchangeStreamCaptureMode", modes.CU_STREAM_CAPTURE_MODE_RELAXED)
        try:
            yield
        finally:
            self._call("cuThreadExchangeStreamCaptureMode", before)

    # Kernels

    def load_function(self, cubin: bytes, entry: str) -> Any:
        """The one kernel of a cubin, really loaded (loading is lazy unless asked for). A module that fails is unloaded.

        Before CUDA 12.4 a question about the function has it loaded.
        """
        module = self._call("cuModuleLoadData", cubin, about=entry)
        try:
            function = self._call("cuModuleGetFunction", module, entry.encode(), about=entry)
            if self._optional("cuFuncLoad", function, about=entry) is None:
                registers = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NUM_REGS
                self._call("cuFuncGetAttribute", registers, function, about=entry)
        except BaseException:
            with contextlib.suppress(DriverError, DriverUnavailable):
                self._call("cuModuleUnload", module, about=entry)
            raise
        return function

    def raise_shared_memory_limit(self, function: Any, smem_bytes: int, about: str = "") -> None:
        attribute = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        self._call("cuFuncSetAttribute", function, attribute, smem_bytes, about=about)

    def occupancy(self, function: Any, smem_bytes: int, about: str = "", threads: int = THREADS) -> int:
        """Resident blocks per SM. Answers 0, without an error, if the shared-memory limit was not raised before."""
        answer = self._call("cuOccupancyMaxActiveBlocksPerMultiprocessor", function, threads, smem_bytes, about=about)
        return int(answer)

    def allow_large_clusters(self, function: Any, about: str = "") -> None:
        """Lets a kernel have clusters of more than 8 blocks, which not every GPU of its kind holds."""
        attribute = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED
        self._call("cuFuncSetAttribute", function, attribute, 1, about=about)

    def resident_clusters(
        self, function: Any, cluster: int, threads: int, smem_bytes: int, about: str = "", stream: int = 0
    ) -> int:
        """Clusters of `cluster` blocks that are resident at once; 0: not even one.

        On the SMs of `stream`, if that is one of a green context; else on those of the current context.
        """
        config = self.api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = cluster, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = smem_bytes
        size = self.api.CUlaunchAttribute()
        size.id = self.api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
        size.value.clusterDim.x, size.value.clusterDim.y, size.value.clusterDim.z = cluster, 1, 1
        config.attrs, config.numAttrs = [size], 1
        if stream:
            config.hStream = self.api.CUstream(stream)
        try:
            return int(self._call("cuOccupancyMaxActiveClusters", function, config, about=about))
        except DriverError as error:
            if error.code != INVALID_CLUSTER_SIZE:
                raise
            return 0

    # A launch in two steps: what makes it returns a call that takes the stream, and looks nothing up any more. `params`
    # is the address of a prepared void*[1]; `keep` owns the memory that the driver reads there. It is a default of the
    # call, and so one of its variables: a call under way keeps it, whoever lets go of the launch. Threads may share it.

    def launcher(
        self,
        function: Any,
        grid: int,
        smem_bytes: int,
        params: int,
        about: str,
        threads: int = THREADS,
        *,
        refusals: tuple[int, ...] = (),
        keep: object = None,
    ) -> Launch:
        """A plain launch; False for an error of `refusals`."""
        call, legacy = self.api.cuLaunchKernel, self._legacy

        def launch(stream: Any, _keep: object = keep) -> bool:
            (code,) = call(function, grid, 1, 1, threads, 1, 1, smem_bytes, stream or legacy, params, 0)
            if code != 0:
                if code in refusals:
                    return False
                raise self._error("cuLaunchKernel", code, about)
            return True

        return launch

    def dependent_launcher(
        self,
        function: Any,
        grid: int,
        smem_bytes: int,
        params: int,
        about: str,
        threads: int,
        *,
        refusals: tuple[int, ...] = (),
        keep: object = None,
    ) -> Launch:
        """A launch that may begin before its predecessor on the stream has ended; False for an error of `refusals`."""
        call, configs = self.api.cuLaunchKernelEx, dict[Any, Any]()  # the stream is in the configuration

        def launch(stream: Any, _keep: object = keep) -> bool:
            config = configs.get(stream)
            if config is None:
                if len(configs) > _STREAMS:
                    configs.clear()
                config = configs[stream] = self._dependent(grid, threads, smem_bytes, stream)
            (code,) = call(config, function, params, 0)
            if code != 0:
                if code in refusals:
                    return False
                raise self._error("cuLaunchKernelEx", code, about)
            return True

        return launch

    def _dependent(self, grid: int, threads: int, smem_bytes: int, stream: Any) -> Any:
        config = self.api.CUlaunchConfig()
        config.gridDimX, config.gridDimY, config.gridDimZ = grid, 1, 1
        config.blockDimX, config.blockDimY, config.blockDimZ = threads, 1, 1
        config.sharedMemBytes = smem_bytes
        config.hStream = self.api.CUstream(stream or self._legacy)
        overlap = self.api.CUlaunchAttribute()
        overlap.id = self.api.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        overlap.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [overlap], 1
        return config

    def cooperative_launcher(
        self, function: Any, grid: int, smem_bytes: int, params: int, about: str, *, per_sm: int, keep: object = None
    ) -> Launch:
        """A launch that starts only when its whole grid is resident; False if it never could be (error 720).

        In a capture the driver refuses nothing, and the graph's replay would never end (seen on an H200, driver 580):
        so a stream of a green context is asked for its SMs first, of which each holds `per_sm` blocks.
        """
        call, legacy = self.api.cuLaunchCooperativeKernel, self._legacy
        green_of = getattr(self.api, "cuStreamGetGreenCtx", None)

        def launch(stream: Any, _keep: object = keep) -> bool:
            nonlocal green_of
            ask = green_of  # once: another thread may find that there is none
            if ask is not None:
                try:
                    code, *found = ask(stream)
                except RuntimeError:  # the bindings have it, and the driver is older
                    code, found, green_of = 0, [0], None
                if code == 0 and int(found[0]):
                    part = self.green_context(stream)
                    if part is not None and part[1] * per_sm < grid:
                        return False
            (code,) = call(function, grid, 1, 1, THREADS, 1, 1, smem_bytes, stream or legacy, params)
            if code != 0:
                if code == COOPERATIVE_LAUNCH_TOO_LARGE:
                    return False
                raise self._error("cuLaunchCooperativeKernel", code, about)
            return True

        return launch

    # Memory, streams, events and graphs: for numpy arrays, the command line, tests and benchmarks. No launch uses them.

    def mem_alloc(self, size: int) -> int:
        return int(self._call("cuMemAlloc", max(size, 1)))

    def mem_free(self, address: int) -> None:
        self._call("cuMemFree", address)

    def mem_free_in(self, context: Any, number: int, address: int) -> None:
        """For finalisers, which run at any time on any thread: it may have another context, or none, or a capture.

        `number` is the context's `context_id`. Memory of a context that was destroyed went with it, and another one may
        lie at either address by now. Waits for the device, so that work of whatever stream that still reads it is safe.
        """
        if self.is_there(context, number):
            with self.current(context), self.relaxed_capture():
                self._call("cuMemFree", address)

    @contextlib.contextmanager
    def lent(self, size: int, stream: int) -> Iterator[int]:
        """Device memory for what is enqueued on `stream` meanwhile, from the device's pool.

        Without a pool it is freed by a call that waits for the whole device, other streams included.
        """
        pooled = True
        try:
            address = self.mem_alloc_async(size, stream)
        except DriverError as error:
            if error.code != _NOT_SUPPORTED:
                raise
            pooled, address = False, self.mem_alloc(size)
        try:
            yield address
        finally:
            if pooled:
                self.mem_free_async(address, stream)
            else:
                self.mem_free(address)

    def mem_alloc_pinned(self, size: int) -> int:
        """Host memory that copies reach without help of the host; the address."""
        return int(self._call("cuMemHostAlloc", size, 0))

    def mem_alloc_async(self, size: int, stream: int) -> int:
        return int(self._call("cuMemAllocAsync", max(size, 1), stream or self._legacy))

    def mem_free_async(self, address: int, stream: int) -> None:
        self._call("cuMemFreeAsync", address, stream or self._legacy)

    def mem_info(self) -> tuple[int, int]:
        """Free and total device memory, bytes."""
        free, total = self._call("cuMemGetInfo")
        return int(free), int(total)

    def copy_to_device(self, address: int, array: Any) -> None:
        """A C-contiguous host array to device memory; returns when it is there."""
        if array.nbytes:
            self._call("cuMemcpyHtoD", address, array.ctypes.data, array.nbytes)

    def copy_to_host(self, array: Any, address: int) -> None:
        """Device memory to a C-contiguous host array; waits for work of the legacy default stream."""
        if array.nbytes:
            self._call("cuMemcpyDtoH", array.ctypes.data, address, array.nbytes)

    def copy_async(self, to: int, source: int, size: int, stream: int) -> None:
        """Between device memory and pinned host memory, in the order of `stream`."""
        self._call("cuMemcpyAsync", to, source, size, stream or self._legacy)

    def memset(self, address: int, byte: int, size: int, stream: int = 0) -> None:
        if size:
            self._call("cuMemsetD8Async", address, byte, size, stream or self._legacy)

    def memset32(self, address: int, word: int, count: int, stream: int = 0) -> None:
        if count:
            self._call("cuMemsetD32Async", address, word, count, stream or self._legacy)

    def stream_create(self) -> int:
        return int(self._call("cuStreamCreate", int(self.api.CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def stream_destroy(self, stream: int) -> None:
        self._call("cuStreamDestroy", stream)

    def stream_synchronize(self, stream: int = 0) -> None:
        self._call("cuStreamSynchronize", stream or self._legacy)

    def stream_is_capturing(self, stream: int) -> bool:
        return int(self._call("cuStreamIsCapturing", stream or self._legacy)) != 0

    def synchronize(self) -> None:
        self._call("cuCtxSynchronize")

    def event_create(self) -> Any:
        return self._call("cuEventCreate", 0)

    def event_destroy(self, event: Any) -> None:
        self._call("cuEventDestroy", event)

    def event_record(self, event: Any, stream: int = 0) -> None:
        self._call("cuEventRecord", event, stream or self._legacy)

    def event_synchronize(self, event: Any) -> None:
        self._call("cuEventSynchronize", event)

    def event_elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two recorded events; waits for the second."""
        self.event_synchronize(end)
        return float(self._call("cuEventElapsedTime", start, end))

    def stream_wait(self, stream: int, producer: int, *, of: Any = None) -> None:
        """Later work of `stream`, of the current context, waits for what `producer` holds now.

        `of`: the producer's context; the current one unless given.
        """
        with contextlib.nullcontext() if of is None else self.current(of):
            event = self.event_create()
            try:
                self.event_record(event, producer)
            except BaseException:
                self.event_destroy(event)
                raise
        try:
            self._call("cuStreamWaitEvent", stream or self._legacy, event, 0)
        finally:
            self.event_destroy(event)

    def begin_capture(self, stream: int) -> None:
        mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", stream, mode)

    def end_capture(self, stream: int) -> Any:
        return self._call("cuStreamEndCapture", stream)

    def graph_instantiate(self, graph: Any) -> Any:
        return self._call("cuGraphInstantiate", graph, 0)

    def graph_launch(self, executable: Any, stream: int) -> None:
        self._call("cuGraphLaunch", executable, stream or self._legacy)

    def graph_destroy(self, graph: Any) -> None:
        self._call("cuGraphDestroy", graph)

    def graph_exec_destroy(self, executable: Any) -> None:
        self._call("cuGraphExecDestroy", executable)
