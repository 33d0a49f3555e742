"""topk() and prepare(): anybody's arrays and streams in, addresses out to the engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk import driver as drv
from drvtopk.arrays import DeviceView, is_device_array, overlap, rows_view, stream_handle, view
from drvtopk.engine import Engine, current_engine
from drvtopk.engine import Prepared as _Prepared
from drvtopk.errors import DriverUnavailable, InvalidArgument, NotPrepared, WorkspaceTooSmall
from drvtopk.plan import Plan, Problem
from drvtopk.reference import row_lengths
from drvtopk.spec import DEFAULT_TUNING, DeviceInfo, Tuning, check_k


def devices() -> list[DeviceInfo]:
    """The GPUs of this machine; empty without a driver or a device."""
    try:
        return drv.load().devices()
    except DriverUnavailable:
        return []


@contextlib.contextmanager
def primary_context(ordinal: int = 0) -> Iterator[None]:
    """Leaves the current context as it is, or, if there is none, makes the primary context of a device current.

    A convenience for programs without a CUDA host. Raises DriverUnavailable without a driver or a device.
    """
    driver = drv.load()
    if driver.current_context() is not None:
        yield
    else:
        with driver.primary_context(ordinal):
            yield


class DeviceArray:
    """An int32 device array that `topk` made because no `out` was given; it belongs to whoever holds it.

    Any framework takes it by `__cuda_array_interface__` (torch.as_tensor, cupy.asarray, numba). The memory is freed
    when the object goes; freeing waits for the device, so work that still reads it is safe.
    """

    def __init__(self, engine: Engine, shape: tuple[int, int], stream: int) -> None:
        self.shape = shape
        self.dtype = np.dtype(np.int32)
        self._engine = engine
        self._stream = stream
        self._address = 0
        self._address = engine.driver.mem_alloc(shape[0] * shape[1] * 4)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": "<i4",
            "data": (self._address, False),
            "strides": None,
            "version": 3,
            "stream": self._stream or 1,
        }

    def numpy(self) -> npt.NDArray[np.int32]:
        """A copy on the host, after the launch that fills it."""
        host = np.empty(self.shape, dtype=np.int32)
        self._engine.driver.stream_synchronize(self._stream)
        self._engine.driver.copy_to_host(host, self._address)
        return host

    def __del__(self) -> None:
        if getattr(self, "_address", 0):
            with contextlib.suppress(Exception):  # at interpreter exit the context may be gone, and the memory with it
                self._engine.driver.mem_free(self._address)


class Prepared:
    """One problem, prepared once in the current context; each call is then one launch, ready for graph capture."""

    def __init__(self, engine: Engine, inner: _Prepared) -> None:
        self.engine = engine
        self.problem = inner.problem
        self.launch = inner.launch
        self._inner = inner

    @property
    def plan(self) -> Plan:
        """What is launched; `why` says the reason, also of a fallback that the driver forced later."""
        return self._inner.plan

    @property
    def workspace_bytes(self) -> int:
        """Device memory each call is lent, bytes; never read before it is written."""
        return self._inner.workspace_bytes

    def __call__(
        self, logits: Any, lengths: Any = None, *, out: Any, workspace: Any = None, stream: Any = None
    ) -> None:
        """Launches with device arrays (see `topk` for shapes and dtypes); `workspace` of `workspace_bytes` bytes."""
        values = _logits_view(logits)
        problem = self.problem
        if values.shape != (problem.rows, problem.width):
            raise InvalidArgument("logits", f"shape {values.shape}", f"({problem.rows}, {problem.width}), as prepared")
        if problem.rows > 1 and values.strides[0] != problem.row_stride:
            raise InvalidArgument(
                "logits", f"a row stride of {values.strides[0]}", f"{problem.row_stride}, as prepared"
            )
        _launch(self._inner, values, lengths, out, workspace, stream_handle(stream))


def prepare(
    *,
    rows: int,
    width: int,
    k: int,
    stride: int | None = None,
    offset: int = 0,
    max_seq_len: int | None = None,
    route: str = "auto",
    waits: str = "allowed",
    sm_budget: int | None = None,
    chunk: int | None = None,
    tuning: Tuning = DEFAULT_TUNING,
    assume: DeviceInfo | None = None,
) -> Prepared:
    """Compiles, loads and plans `rows` x `width` float32 for the current context.

    `stride` (elements) is the width unless given; `offset` is the base address in elements modulo 4; `max_seq_len` is
    a hint that costs only time when it is wrong. `route` is "auto", "persistent" or "filtered"; a named route that
    cannot run raises PlanError. `waits="never"` plans only launches in which no block waits for another, which finish
    with one free block slot; `sm_budget` caps the grid at what so many SMs hold. `chunk`, `tuning` and `assume` replace
    the planner's inputs, for tests and study.
    """
    problem = Problem(
        rows=rows,
        width=width,
        k=k,
        stride=stride,
        offset=offset % 4,
        max_seq_len=max_seq_len,
        waits=waits,
        sm_budget=sm_budget,
    )
    engine = current_engine()
    return Prepared(engine, engine.prepare(problem, route=route, chunk=chunk, tuning=tuning, assume=assume))


def topk(
    logits: Any,
    k: int,
    lengths: Any = None,
    *,
    out: Any = None,
    workspace: Any = None,
    stream: Any = None,
    max_seq_len: int | None = None,
    route: str = "auto",
    waits: str = "allowed",
    sm_budget: int | None = None,
) -> Any:
    """Indices of the k largest of each row, exactly; in no particular order, -1 past min(length, k).

    Args:
        logits: float32 (rows, width): a numpy array (copied in and out), or a device array with
            `__cuda_array_interface__`, elements of a row adjacent, any row stride and alignment.
        k: 1..4096.
        lengths: int32, one a row in any shape, where the logits are; clamped to [0, width]. None: the width.
        out: int32 (rows, k), where the logits are; made if None.
        workspace: device array of at least the plan's `workspace_bytes`; lent from the device's pool if None.
        stream: handle, object with `__cuda_stream__`, or None for the legacy default stream. A numpy call returns
            when the result is there, a device call when it is launched.
        max_seq_len: no length is expected to exceed it; a wrong hint costs time only.
        route: "auto", "persistent" or "filtered".
        waits: "never" forbids launches in which blocks wait for each other: one free block slot is then enough.
        sm_budget: at most as many blocks as so many SMs hold at once.

    Returns `out`, or what was made: a numpy array, or a DeviceArray.
    Raises InvalidArgument, PlanError, DriverUnavailable, CompileError, DriverError; NotPrepared inside a capture.
    """
    check_k(k)
    if isinstance(logits, np.ndarray):
        hints = {"max_seq_len": max_seq_len, "waits": waits, "sm_budget": sm_budget}
        return _topk_numpy(logits, k, lengths, out, workspace, stream, route, hints)
    values = _logits_view(logits)
    rows, width = values.shape
    problem = Problem(
        rows=rows,
        width=width,
        k=k,
        stride=values.strides[0] if rows > 1 else width,
        offset=values.address // 4 % 4,
        max_seq_len=max_seq_len,
        waits=waits,
        sm_budget=sm_budget,
    )
    engine = current_engine()
    handle = stream_handle(stream)
    if stream is None and values.stream is not None:
        handle = values.stream
    capturing = engine.driver.stream_is_capturing(handle)
    if capturing:
        prepared = engine.remembered(problem, route)
        if prepared is None:
            raise NotPrepared(
                "the stream is capturing and this problem was never run: use prepare() or run it once before"
            )
        if out is None or (workspace is None and prepared.workspace_bytes):
            raise NotPrepared("the stream is capturing, where nothing may be allocated: give out and workspace")
    else:
        prepared = engine.prepare_once(problem, route)
    result = DeviceArray(engine, (rows, k), handle) if out is None else out
    if workspace is None and prepared.workspace_bytes:
        lent = engine.driver.mem_alloc_async(prepared.workspace_bytes, handle)
        try:
            borrowed = _Borrowed(lent, prepared.workspace_bytes)
            _launch(prepared, values, lengths, result, borrowed, handle, engine)
        finally:
            engine.driver.mem_free_async(lent, handle)
    else:
        _launch(prepared, values, lengths, result, workspace, handle, engine)
    return result


class _Borrowed:
    """Bytes of device memory, for the length of a call."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {"shape": (size,), "typestr": "|u1", "data": (address, False), "version": 3}


def _logits_view(logits: Any) -> DeviceView:
    if not is_device_array(logits):
        raise InvalidArgument(
            "logits", type(logits).__name__, "a numpy array, or a device array with __cuda_array_interface__"
        )
    return rows_view("logits", logits, "<f4")


def _launch(
    prepared: _Prepared,
    logits: DeviceView,
    lengths: Any,
    out: Any,
    workspace: Any,
    stream: int,
    engine: Engine | None = None,
) -> None:
    """Checks every argument against the prepared problem, then launches once."""
    rows, k = prepared.problem.rows, prepared.problem.k
    result = rows_view("out", out, "<i4", writable=True)
    if result.shape != (rows, k):
        raise InvalidArgument("out", f"shape {result.shape}", f"({rows}, {k})")
    inputs = [("logits", logits)]
    if lengths is not None:
        given = view("lengths", lengths, "<i4")
        if given.size != rows:
            raise InvalidArgument("lengths", f"shape {given.shape}", f"one value for each of the {rows} rows")
        if not given.contiguous:
            raise InvalidArgument("lengths", f"strides {given.strides} (elements)", "a contiguous array")
        inputs.append(("lengths", given))
    if prepared.workspace_bytes:
        if workspace is None:
            raise WorkspaceTooSmall(0, prepared.workspace_bytes)
        lent = view("workspace", workspace, None, writable=True)
        if not lent.contiguous:
            raise InvalidArgument("workspace", f"strides {lent.strides}", "a contiguous array")
        if lent.size * lent.item_bytes < prepared.workspace_bytes:
            raise WorkspaceTooSmall(lent.size * lent.item_bytes, prepared.workspace_bytes)
        inputs.append(("workspace", lent))
    for name, other in inputs:
        if overlap(result, other):
            raise InvalidArgument("out", f"memory that {name} lies in", "memory of its own")
    if engine is not None:
        for _, other in inputs:
            if other.stream is not None and other.stream != stream:
                engine.driver.stream_wait(stream, other.stream)
    prepared.launch(
        logits.address,
        inputs[1][1].address if lengths is not None else 0,
        result.address,
        inputs[-1][1].address if prepared.workspace_bytes else 0,
        stream,
        out_stride=result.strides[0] if rows > 1 else k,
    )


def _topk_numpy(
    logits: npt.NDArray[Any],
    k: int,
    lengths: Any,
    out: Any,
    workspace: Any,
    stream: Any,
    route: str,
    hints: dict[str, Any],
) -> npt.NDArray[np.int32]:
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise InvalidArgument("logits", f"{logits.dtype} of shape {logits.shape}", "float32 of shape (rows, width)")
    rows, width = logits.shape
    if workspace is not None:
        raise InvalidArgument("workspace", type(workspace).__name__, "None with numpy arrays, which are copied")
    result: npt.NDArray[np.int32]
    if out is None:
        result = np.empty((rows, k), dtype=np.int32)
    elif not isinstance(out, np.ndarray) or out.dtype != np.int32 or out.shape != (rows, k):
        what = f"{getattr(out, 'dtype', type(out).__name__)} {getattr(out, 'shape', '')}"
        raise InvalidArgument("out", what, f"a numpy array, int32 of shape ({rows}, {k}), as the logits are numpy")
    else:
        result = out
    if lengths is not None:
        if not isinstance(lengths, np.ndarray) or lengths.dtype.kind not in "iu":
            what = str(getattr(lengths, "dtype", type(lengths).__name__))
            raise InvalidArgument("lengths", what, "a numpy array of integers, as the logits are numpy")
        lengths = row_lengths(rows, width, lengths).astype(np.int32)
    problem = Problem(rows=rows, width=width, k=k, **hints)
    handle = stream_handle(stream)
    with primary_context(), contextlib.ExitStack() as stack:
        engine = current_engine()
        driver = engine.driver
        prepared = engine.prepare_once(problem, route)

        def device(size: int) -> int:
            address = driver.mem_alloc(size)
            stack.callback(driver.mem_free, address)
            return address

        values, indices = device(logits.nbytes), device(rows * k * 4)
        driver.copy_to_device(values, np.ascontiguousarray(logits))
        counts = 0
        if lengths is not None and rows:
            counts = device(lengths.nbytes)
            driver.copy_to_device(counts, lengths)
        prepared.launch(values, counts, indices, device(prepared.workspace_bytes), handle)
        driver.stream_synchronize(handle)
        host = np.empty((rows, k), dtype=np.int32)
        driver.copy_to_host(host, indices)
    result[...] = host
    return result
