"""A stand-in for cuda.bindings.driver: the same names and return tuples, a transcript, and a failure on request.

It models what the planner must never get wrong: occupancy answers 0 until the shared-memory limit was raised, and for
clusters of more than 8 blocks until the function allows them; a cooperative grid above the resident cap is refused
with 720.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

Answer = tuple[Any, ...]
_POINTER_ATTRIBUTE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.c_int, ctypes.c_uint64)


class Enum:
    """Any enumerator: its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class LaunchAttribute:
    """A CUlaunchAttribute: its id, and a value of which one member counts."""

    def __init__(self) -> None:
        self.id = ""
        self.value = SimpleNamespace(clusterDim=SimpleNamespace(x=0, y=0, z=0))


class FakeDriver:
    """Give it to `drvtopk.driver.Driver`. `fail` maps a call's name to the code it shall return, once or always."""

    CUdevice_attribute = Enum()
    CUfunction_attribute = Enum()
    CUpointer_attribute = Enum()
    CUdevResourceType = Enum()
    CUstreamCaptureMode = Enum()
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=1)
    CUlaunchAttributeID = Enum()
    CUlaunchConfig = SimpleNamespace
    CUlaunchAttribute = LaunchAttribute
    CUstream = int
    CUresult = int

    def __init__(
        self,
        *,
        sms: int = 132,
        resource_sms: int | None = None,
        occupancy: Callable[[int], int] = lambda smem: max(0, min(2, 233472 // (smem + 1024))),
        capturing: bool = False,
        version: int = 13000,
    ) -> None:
        self.sms = sms
        self.resource_sms = resource_sms
        self.blocks = occupancy
        self.capturing = capturing
        self.version = version
        self.calls: list[tuple[str, Answer]] = []
        self.fail: dict[str, int] = {}
        self.replace: dict[str, Callable[..., Answer]] = {}
        self.limits: dict[int, int] = {}
        self.large_clusters: set[int] = set()
        self._next = 0x1000
        self.pinned: list[Any] = []
        self.green: dict[int, tuple[int, int]] = {}  # stream: its green context's handle, and SMs
        self.capture_mode = "CU_STREAM_CAPTURE_MODE_GLOBAL"
        self.ordinal_of: Callable[[int], tuple[int, int]] = lambda address: (0, 0)  # what libcuda says: code, device
        self._native = _POINTER_ATTRIBUTE(self._ordinal_of)
        self.attributes = {
            "COMPUTE_CAPABILITY_MAJOR": 9,
            "COMPUTE_CAPABILITY_MINOR": 0,
            "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN": 232448,
            "MAX_SHARED_MEMORY_PER_MULTIPROCESSOR": 233472,
            "MAX_THREADS_PER_MULTIPROCESSOR": 2048,
            "MAX_BLOCKS_PER_MULTIPROCESSOR": 32,
            "MAX_REGISTERS_PER_MULTIPROCESSOR": 65536,
            "RESERVED_SHARED_MEMORY_PER_BLOCK": 1024,
            "COOPERATIVE_LAUNCH": 1,
        }

    @property
    def names(self) -> list[str]:
        """The transcript's call names, in order."""
        return [name for name, _ in self.calls]

    def _handle(self) -> int:
        self._next += 0x1000
        return self._next

    def __getattr__(self, name: str) -> Callable[..., Answer]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*args: Any) -> Answer:
            self.calls.append((name, args))
            if name in self.fail:
                return (self.fail[name],)
            if name in self.replace:
                return self.replace[name](*args)
            answer = getattr(type(self), f"_{name}", None)
            if answer is None:
                return (0, self._handle()) if name in _MAKERS else (0,)
            result = answer(self, *args)
            return result if isinstance(result, tuple) else (0, result)

        return call

    def _cuGetErrorName(self, code: int) -> Answer:
        return 0, f"CUDA_ERROR_{code}".encode()

    def _cuGetErrorString(self, code: int) -> Answer:
        return 0, f"what {code} means".encode()

    def _cuDriverGetVersion(self) -> int:
        return self.version

    def _cuDeviceGetCount(self) -> int:
        return 1

    def _cuDeviceGetName(self, length: int, device: Any) -> bytes:
        return b"Fake H200\0\0  "[:length]

    def _cuDeviceGetAttribute(self, attribute: str, device: Any) -> int:
        name = attribute.removeprefix("CU_DEVICE_ATTRIBUTE_")
        return self.sms if name == "MULTIPROCESSOR_COUNT" else self.attributes[name]

    def _cuCtxGetCurrent(self) -> int:
        return 0x77

    def _cuDevicePrimaryCtxGetState(self, device: int) -> Answer:
        return 0, 0, 1  # flags, and active

    def _cuCtxGetDevice(self) -> int:
        return 0

    def _cuThreadExchangeStreamCaptureMode(self, mode: str) -> str:
        before, self.capture_mode = self.capture_mode, mode
        return before

    def _cuGetProcAddress(self, symbol: bytes, version: int, flags: int) -> Answer:
        assert (symbol, version, flags) == (b"cuPointerGetAttribute", 12000, 0)
        return 0, ctypes.cast(self._native, ctypes.c_void_p).value, 0

    def _ordinal_of(self, found: Any, attribute: int, address: int) -> int:
        """libcuda's cuPointerGetAttribute, which stands in the transcript under `ordinal of`."""
        assert attribute == 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
        self.calls.append(("ordinal of", (address,)))
        code, ordinal = self.ordinal_of(address)
        found[0] = ordinal
        return code

    def _cuPointerGetAttribute(self, attribute: str, address: int) -> int:
        return 0  # as some releases of the bindings answer, whatever the device

    def _cuMemHostAlloc(self, size: int, flags: int) -> int:
        self.pinned.append((ctypes.c_uint8 * size)())  # which is written to, unlike what a handle stands for
        return ctypes.addressof(self.pinned[-1])

    def _cuCtxGetId(self, context: Any) -> int:
        return int(context)

    def _cuCtxGetDevResource(self, context: Any, kind: str) -> Answer:
        if self.resource_sms is None:
            return (801,)  # not supported
        return 0, SimpleNamespace(sm=SimpleNamespace(smCount=self.resource_sms))

    def _cuStreamGetGreenCtx(self, stream: int) -> int:
        return self.green.get(stream, (0, 0))[0]

    def _cuGreenCtxGetDevResource(self, green: int, kind: str) -> Answer:
        (sms,) = {sms for handle, sms in self.green.values() if handle == green}
        return 0, SimpleNamespace(sm=SimpleNamespace(smCount=sms))

    def _cuFuncSetAttribute(self, function: int, attribute: str, value: int) -> Answer:
        if attribute == "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES":
            self.limits[function] = value
        if attribute == "CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED" and value:
            self.large_clusters.add(function)
        return (0,)

    def _cuOccupancyMaxActiveBlocksPerMultiprocessor(self, function: int, threads: int, smem: int) -> int:
        return self.blocks(smem) if smem <= self.limits.get(function, 48 * 1024) else 0

    def _sms_of(self, stream: int) -> int:
        return self.green[stream][1] if stream in self.green else self.resource_sms or self.sms

    def resident_clusters(self, blocks: int, smem: int, stream: int = 0) -> int:
        """Clusters of so many blocks that are resident at once: each lies in one of the parts of 16 SMs. In a green
        context in one of 8, and none is of more than 8 blocks, as in those of an H200."""
        if stream in self.green:
            return self._sms_of(stream) // 8 * (8 * self.blocks(smem) // blocks) if blocks <= 8 else 0
        full, rest = divmod(self._sms_of(stream), 16)
        an_sm = self.blocks(smem)
        return full * (16 * an_sm // blocks) + rest * an_sm // blocks

    def _cuOccupancyMaxActiveClusters(self, function: int, config: Any) -> int:
        (cluster,) = config.attrs[: config.numAttrs]
        assert cluster.id == "CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION"
        size = cluster.value.clusterDim
        assert (size.y, size.z, config.gridDimX % size.x) == (1, 1, 0)
        if config.sharedMemBytes > self.limits.get(function, 48 * 1024):
            return 0
        if size.x > 8 and function not in self.large_clusters:
            return 0
        return self.resident_clusters(size.x, config.sharedMemBytes, getattr(config, "hStream", 0))

    def _cuLaunchCooperativeKernel(self, function: int, grid: int, *rest: Any) -> Answer:
        smem, stream = rest[5], rest[6]
        return (720,) if grid > self._sms_of(stream) * self.blocks(smem) else (0,)

    def _cuStreamIsCapturing(self, stream: int) -> int:
        return int(self.capturing)


_MAKERS = {
    "cuDeviceGet",
    "cuDevicePrimaryCtxRetain",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuMemAlloc",
    "cuMemAllocAsync",
    "cuEventCreate",
    "cuStreamCreate",
}
