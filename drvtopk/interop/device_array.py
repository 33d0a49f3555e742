"""The array that `topk` makes when it is given none: device memory that any framework takes over without a copy."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from drvtopk.checks import integer
from drvtopk.errors import DriverUnavailable, InvalidArgument
from drvtopk.interop import dlpack
from drvtopk.interop.arrays import TYPESTRS, DeviceView, from_address, same_stream

if TYPE_CHECKING:
    from drvtopk.engine import Engine


class DeviceArray:
    """A device array that `topk` made because none was given; it belongs to whoever holds it.

    Any framework takes it without a copy, by DLPack (`torch.from_dlpack`, `cupy.from_dlpack`, `jax.dlpack.from_dlpack`)
    or `__cuda_array_interface__` (`torch.as_tensor`, `cupy.asarray`, `numba.cuda.as_cuda_array`), and lets its own
    stream wait for the launch that fills it. The memory is freed when the last of them goes; freeing waits for the
    device, so work that still reads it is safe.
    """

    def __init__(
        self, engine: Engine, shape: tuple[int, int], stream: int, dtype: str = "int32", *, keep: object = None
    ) -> None:
        self.shape = shape
        self._keep = keep  # the stream's owner: exports name the stream for as long as this array lives
        self.dtype = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
        """bfloat16 is seen as its words, uint16."""
        self._dtype = dtype
        self._engine = engine
        self._stream = stream
        self._address = 0
        self._address = engine.driver.mem_alloc(shape[0] * shape[1] * self.dtype.itemsize)
        # How this package itself takes it: an export would keep it until its capsule is done with.
        self._view = from_address(self._address, shape, dtype, stream=stream, device=engine.ordinal)

    @property
    def _device_view(self) -> DeviceView:
        return self._view

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": TYPESTRS[self._dtype][0],
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": self._stream or 1,
        }

    def __dlpack_device__(self) -> tuple[int, int]:
        """(2, ordinal): CUDA memory."""
        return dlpack.CUDA, self._engine.ordinal

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; the consumer's `stream` (None or 1: legacy, 2: per thread, -1: no ordering) waits for the launch.

        Raises BufferError for a copy or another device, which DLPack lets a producer refuse.
        """
        if copy:
            raise BufferError("drvtopk exports without a copy only")
        if dl_device is not None and tuple(map(int, dl_device)) != self.__dlpack_device__():
            raise BufferError(f"got dl_device {dl_device}, allowed is {self.__dlpack_device__()}")
        if stream == 0:
            raise InvalidArgument("stream", 0, "1 (legacy), 2 (per thread), -1 (no ordering), None or a handle")
        consumer = 1 if stream is None else integer("stream", stream, -1, 2**64 - 1)
        if consumer != -1 and not same_stream(consumer, self._stream):
            driver = self._engine.driver
            # Handles 1 and 2 are streams of the consumer's context, unless that is another device's.
            near = driver.current_context() is not None and driver.current_ordinal() == self._engine.ordinal
            self._check_context()
            with contextlib.nullcontext() if near else self._in_its_context():
                driver.stream_wait(consumer, self._stream, of=self._engine.context)
        tensor = dlpack.Tensor(
            address=self._address if self.shape[0] and self.shape[1] else 0,
            shape=self.shape,
            strides=None,
            dtype=self._dtype,
            bits=8 * self.dtype.itemsize,
            device_type=dlpack.CUDA,
            device=self._engine.ordinal,
            read_only=False,
        )
        return dlpack.capsule_of(tensor, self, versioned=max_version is not None and max_version[0] >= 1)

    def _check_context(self) -> None:
        if not self._engine.driver.is_there(self._engine.context, self._engine.context_id):
            raise DriverUnavailable("the context of this result was destroyed, and its memory with it")

    @contextlib.contextmanager
    def _in_its_context(self) -> Iterator[None]:
        self._check_context()
        with self._engine.driver.current(self._engine.context):
            yield

    def numpy(self) -> npt.NDArray[Any]:
        """A copy on the host, after the launch that fills it."""
        host = np.empty(self.shape, dtype=self.dtype)
        with self._in_its_context(), self._engine.driver.relaxed_capture():
            self._engine.staging.to_host(host, self._address, self._stream)
        return host

    def __del__(self) -> None:
        if getattr(self, "_address", 0):
            with contextlib.suppress(Exception):  # at interpreter exit the context may be gone, and the memory with it
                self._engine.driver.mem_free_in(self._engine.context, self._engine.context_id, self._address)
