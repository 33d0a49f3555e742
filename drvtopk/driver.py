"""CUDA driver calls as methods: values in, values or a named error out. The only importer of cuda.bindings.driver.

`Driver(api)` takes the module `cuda.bindings.driver`, or a stand-in with the same functions and return tuples, so
that a test can record every call and fail any of them. Works with bindings 12.9 and 13.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

from drvtopk import forks
from drvtopk.errors import DriverError, DriverUnavailable
from drvtopk.memory import Memory
from drvtopk.spec import THREADS, DeviceInfo, arch_of

COOPERATIVE_LAUNCH_TOO_LARGE = 720
INVALID_CLUSTER_SIZE = 912
NO_CONTEXT = 201  # what a thread without a current context is told
# Of a launch in clusters where the SMs that its stream may use can never hold one; nothing is launched. An H200 answers
# 912 (driver 580, clusters of 16 in green contexts of 8 to 64 SMs); 720 is what grids are refused by that never fit.
CLUSTER_REFUSALS = (INVALID_CLUSTER_SIZE, COOPERATIVE_LAUNCH_TOO_LARGE)
NOT_SUPPORTED = 801  # of a device, or a part of one, on which nothing is launched cooperatively
COOPERATIVE_REFUSALS = (COOPERATIVE_LAUNCH_TOO_LARGE, NOT_SUPPORTED)
_INVALID_VALUE = 1
DEFAULT_STREAMS = 0, 1, 2  # the null stream, the legacy one and that of the calling thread
_STREAMS = 64  # whose configurations a dependent launch keeps
_DEVICE_ORDINAL = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
_POINTER_ATTRIBUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_uint64)

Launch = Callable[[Any], int]
"""Launches on a stream, its handle given. Else than 0 is the driver's error: nothing was launched, as blocks that wait
together can never be resident."""
OLDEST = 12, 0
"""The oldest CUDA version of a driver that runs this package: R525."""
OLDEST_CAPABILITY = 8, 0

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


class Driver(Memory):
    """One method a driver call, named after what it does. Handles are the bindings' own objects."""

    def __init__(self, api: Any) -> None:
        super().__init__(api)
        self._primary: dict[int, tuple[Any, int]] = {}  # (context, its `context_id`) by device
        self._pointer_attribute: Callable[..., int] | None = None

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

    def launches_cooperatively(self) -> bool:
        """Whether the device of the current context does."""
        return self._attribute("COOPERATIVE_LAUNCH", self._call("cuCtxGetDevice")) != 0

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

    def primary_is_active(self, ordinal: int) -> bool:
        """Whether somebody uses the primary context of a device."""
        _, active = self._call("cuDevicePrimaryCtxGetState", self._call("cuDeviceGet", ordinal))
        return bool(active)

    def may_adopt(self, context: Any, number: int) -> bool:
        """Whether this thread has no context, and this one, of that `context_id`, is still there."""
        return context is not None and self.current_context() is None and self.is_there(context, number)

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
        """A plain launch; an error of `refusals` is what it returns."""
        call, legacy = self.api.cuLaunchKernel, self._legacy

        def launch(stream: Any, _keep: object = keep) -> int:
            (code,) = call(function, grid, 1, 1, threads, 1, 1, smem_bytes, stream or legacy, params, 0)
            if code != 0:
                if code in refusals:
                    return int(code)
                raise self._error("cuLaunchKernel", code, about)
            return 0

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
        """A launch that may begin before its predecessor on the stream has ended; an error of `refusals` is what it
        returns."""
        call, configs = self.api.cuLaunchKernelEx, dict[Any, Any]()  # the stream is in the configuration

        def launch(stream: Any, _keep: object = keep) -> int:
            config = configs.get(stream)
            if config is None:
                if len(configs) > _STREAMS:
                    configs.clear()
                config = configs[stream] = self._dependent(grid, threads, smem_bytes, stream)
            (code,) = call(config, function, params, 0)
            if code != 0:
                if code in refusals:
                    return int(code)
                raise self._error("cuLaunchKernelEx", code, about)
            return 0

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
        """A launch that starts when its whole grid is resident; one of `COOPERATIVE_REFUSALS` if it never can be.

        In a capture the driver refuses nothing, and the graph's replay would never end (seen on an H200, driver 580):
        so a stream of a green context is asked for its SMs first, of which each holds `per_sm` blocks.
        """
        call, legacy = self.api.cuLaunchCooperativeKernel, self._legacy
        green_of = getattr(self.api, "cuStreamGetGreenCtx", None)

        def launch(stream: Any, _keep: object = keep) -> int:
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
                        return COOPERATIVE_LAUNCH_TOO_LARGE
            (code,) = call(function, grid, 1, 1, THREADS, 1, 1, smem_bytes, stream or legacy, params)
            if code != 0:
                if code in COOPERATIVE_REFUSALS:
                    return int(code)
                raise self._error("cuLaunchCooperativeKernel", code, about)
            return 0

        return launch
