"""Contexts, memory, streams, events and graphs by the driver. No launch uses them but to find its context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from drvtopk.bindings import Bindings
from drvtopk.errors import DriverError

_NO_POOLS = 801  # NOT_SUPPORTED: the device has none


class Memory(Bindings):
    """What `Driver` has for numpy arrays, the command line, tests and benchmarks."""

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
    def temporary(self, size: int, stream: int) -> Iterator[int]:
        """Device memory for what is enqueued on `stream` meanwhile, from the device's pool.

        Without a pool it is freed by a call that waits for the whole device, other streams included.
        """
        pooled = True
        try:
            address = self.mem_alloc_async(size, stream)
        except DriverError as error:
            if error.code != _NO_POOLS:
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
