"""topk(): anybody's arrays and streams in, addresses out to the engine."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from drvtopk import driver as drv
from drvtopk.checks import as_int, flag, one_of, shown
from drvtopk.engine import Engine, current_engine
from drvtopk.errors import DriverUnavailable, InvalidArgument, NotPrepared
from drvtopk.interop import hosts
from drvtopk.interop.arrays import (
    PROTOCOLS,
    DeviceView,
    dtype_of,
    from_address,
    is_device_array,
    protocol_of,
    stream_handle,
    view,
)
from drvtopk.interop.calls import CallArrays, launch, logits_and_stream
from drvtopk.interop.device_array import DeviceArray
from drvtopk.interop.host_arrays import (
    check_overlaps,
    host_logits,
    host_pages,
    host_result,
    problem_of,
    row_lengths,
    row_starts_of,
)
from drvtopk.problem import Problem
from drvtopk.spec import ASKED_ROUTES, DeviceInfo, Options, Selected, check_k
from drvtopk.words import Dtype, IndexDtype, Nan, Order, Route, TieBreak, Waits


def devices() -> list[DeviceInfo]:
    """The GPUs of this machine; empty without a driver or a device."""
    try:
        return drv.load().devices()
    except DriverUnavailable:
        return []


@contextlib.contextmanager
def primary_context(device: Any = 0) -> Iterator[None]:
    """Leaves the current context as it is, or, if there is none, makes the primary context of a device current.

    `device` is an ordinal, or a device object of cuda.core (`device_id`). A convenience for programs without a CUDA
    host. Raises DriverUnavailable without a driver or a device, InvalidArgument for a device that is not there.
    """
    driver = drv.load()
    ordinal = as_int(device)
    if ordinal is None:
        with contextlib.suppress(Exception):  # of an object that has no such thing
            ordinal = as_int(device.device_id)
    count = driver.device_count()
    if ordinal is None or not 0 <= ordinal < count:
        raise InvalidArgument("device", shown(device), f"an ordinal in 0..{count - 1}, or a cuda.core.Device")
    if driver.current_context() is not None:
        yield
    else:
        with driver.primary_context(ordinal):
            yield


if TYPE_CHECKING:
    from typing_extensions import TypedDict, Unpack

    class Asked(TypedDict, total=False):
        """What else a call may ask for."""

        row_starts: Any
        index_dtype: IndexDtype | None
        order: Order
        tie_break: TieBreak
        deterministic: bool
        nan: Nan
        page_table: Any
        page_size: SupportsIndex
        dtype: Dtype | None
        workspace: Any
        stream: Any
        max_seq_len: SupportsIndex | None
        route: Route
        waits: Waits
        sm_budget: SupportsIndex | None
        pdl: bool


Array: TypeAlias = npt.NDArray[Any]
T = TypeVar("T")


@overload
def topk(
    logits: Array,
    k: SupportsIndex,
    lengths: Any = None,
    *,
    out: Array | None = None,
    values: Literal[False] | None = False,
    **asked: Unpack[Asked],
) -> Array: ...
@overload
def topk(
    logits: Any,
    k: SupportsIndex,
    lengths: Any = None,
    *,
    out: None = None,
    values: Literal[False] | None = False,
    **asked: Unpack[Asked],
) -> DeviceArray: ...
@overload
def topk(
    logits: Any,
    k: SupportsIndex,
    lengths: Any = None,
    *,
    out: T,
    values: Literal[False] | None = False,
    **asked: Unpack[Asked],
) -> T: ...
@overload
def topk(
    logits: Any,
    k: SupportsIndex,
    lengths: Any = None,
    *,
    out: Any = None,
    values: Literal[True],
    **asked: Unpack[Asked],
) -> Selected: ...
@overload
def topk(
    logits: Any, k: SupportsIndex, lengths: Any = None, *, out: Any = None, values: bool, **asked: Unpack[Asked]
) -> Any: ...
@overload
def topk(
    logits: Any, k: SupportsIndex, lengths: Any = None, *, out: Any = None, values: Any, **asked: Unpack[Asked]
) -> Selected: ...
def topk(
    logits: Any,
    k: SupportsIndex,
    lengths: Any = None,
    *,
    row_starts: Any = None,
    out: Any = None,
    values: Any = False,
    index_dtype: IndexDtype | None = None,
    order: Order = "none",
    tie_break: TieBreak = "any",
    deterministic: bool = False,
    nan: Nan = "lowest",
    page_table: Any = None,
    page_size: SupportsIndex = 1,
    dtype: Dtype | None = None,
    workspace: Any = None,
    stream: Any = None,
    max_seq_len: SupportsIndex | None = None,
    route: Route = "auto",
    waits: Waits = "allowed",
    sm_budget: SupportsIndex | None = None,
    pdl: bool = False,
) -> Any:
    """Indices of the k largest of each row, exactly; -1 past min(length, k).

    Args:
        logits: float32, float16 or bfloat16 (rows, width): a numpy array (copied in and out), or a device array: a
            torch tensor, anything that speaks DLPack or `__cuda_array_interface__`, or `from_address(...)`; elements of
            a row adjacent, any row stride and alignment. It lies on the device of the current context.
        k: 1..4096; an integer here and below is whatever has `__index__`, but for bools.
        lengths: int32, one a row in any shape ((rows,), (rows, 1), (batch, next_n)), where the logits are; clamped to
            [0, width]. None: all there is. Nobody may write lengths or row_starts while a launch reads them: blocks
            that share a row would disagree about it, and the launch may fail or never end. (Other logits meanwhile
            only make a wrong row.)
        row_starts: int32, one a row: the row's window begins there (clamped to [0, width]), its length is cut to what
            follows, and indices count from it.
        out: int32 or int64 (rows, k), where the logits are; made if None.
        values: True, or an array (rows, k) of the logits' dtype to fill: the members' values beside their indices, bit
            for bit, and -inf beside -1.
        index_dtype: "int32" or "int64"; that of `out` unless given, int32 without either.
        order: "none", "index" (ascending) or "value" (the largest first, equal ones by ascending index).
        tie_break: which of equal values fill the last places: "any", or those of the "smallest" or "largest" index.
            -0.0 equals +0.0, and any NaN any other.
        deterministic: the same bits in give the same array out, whatever the batch, row, stream, route or graph: where
            `tie_break` and `order` leave a choice, the smallest index and ascending order.
        nan: "lowest": below -inf; "highest": above +inf; whatever the sign.
        page_table: int32 (rows or a divisor of it, pages): the output is page_table[r][i // page_size] * page_size
            + i % page_size of each index i, with table row r = row // (rows / tables); -1 stays -1, and a page below 0
            gives -1. `page_size` columns a page (1 without a table), and enough pages for the width. Where the product
            passes 2^31 - 1, ask for int64.
        dtype: "bfloat16" where the array says only that it holds 2-byte words (uint16).
        workspace: device array of at least the plan's `workspace_bytes`; lent from the device's pool if None.
        stream: handle, object with `__cuda_stream__`, stream of torch, CuPy or numba. None: the stream that is current
            in torch or CuPy where the logits are theirs, else the one that the logits' interface names, else the
            legacy default stream. It waits for the work of any other stream that an array names or hands over, except
            inside a capture, which may not depend on work outside. A numpy call returns when the result is there, a
            device call when it is launched. A result that is made here keeps the stream's object, since its exports
            name the stream; a stream that was given as a handle has to outlive it. On a stream of a green context the
            plan keeps within the green context's SMs, whatever context is current.
        max_seq_len: no length is expected to exceed it; a wrong hint costs time only. It counts as the next power of
            two.
        route: "auto", "persistent", "filtered" or "clustered" (on GPUs with thread-block clusters).
        waits: "never" forbids launches in which blocks wait for each other: one free block slot is then enough.
        sm_budget: at most as many blocks as so many SMs hold at once.
        pdl: programmatic dependent launch, on GPUs of compute capability 9.0 and later: the launch may begin while its
            predecessor on the stream ends, and waits for that before it touches memory. Elsewhere, and where blocks go
            out cooperatively, it changes nothing.

    Returns `out`, or what was made: a numpy array, or a DeviceArray. With `values`, Selected(indices, values) of these.
    Raises InvalidArgument, PlanError, DriverUnavailable, CompileError, DriverError; NotPrepared inside a capture.
    """
    k = check_k(k)
    asked_route = one_of("route", route, ASKED_ROUTES)
    beside = CallArrays(lengths, out, values, row_starts, page_table, page_size, workspace)
    on_host = isinstance(logits, np.ndarray)
    if on_host:
        logits, kind = host_logits(logits, dtype)
    else:
        if not is_device_array(logits):
            raise InvalidArgument("logits", type(logits).__name__, f"a numpy array, or a device array ({PROTOCOLS})")
        try:
            engine = current_engine()
            missing = False
        except DriverUnavailable:
            missing = True
        if missing:
            here = locals()
            with _context_of(logits):  # raises it again unless that is what was missing
                return topk(**{name: here[name] for name in inspect.signature(topk).parameters})
        given, handle = logits_and_stream(engine, logits, stream, None)
        kind = dtype_of("logits", given, dtype)
    options = Options(
        dtype=kind,
        index_dtype=_index_dtype(out, index_dtype, on_host=on_host),
        values=beside.values is not None,
        row_starts=row_starts is not None,
        order=order,
        tie_break=tie_break,
        nan=nan,
        page_table=page_table is not None,
    )
    request = _Request(
        k=k,
        route=asked_route,
        options=options.made_deterministic() if flag("deterministic", deterministic) else options,
        max_seq_len=max_seq_len,
        waits=waits,
        sm_budget=sm_budget,
        pdl=pdl,
    )
    if on_host:
        return _topk_numpy(request, logits, beside, stream_handle(stream))
    with engine.driver.relaxed_capture():
        keep = stream
        if stream is None and (out is None or beside.values is True):
            keep = getattr(logits, "_keep", None) or hosts.current_stream(protocol_of(logits), logits)
        return _topk_device(request, engine, given, beside, handle, keep)


@contextlib.contextmanager
def _context_of(logits: Any) -> Iterator[None]:
    """On a thread without a context: the primary one of the array's device, as the CUDA runtime would have it.

    Raises DriverUnavailable where the array does not say its device, or nobody uses that context: the memory is then
    another one's.
    """
    driver = drv.load()
    device = view("logits", logits, None).device if driver.current_context() is None else None
    if device is not None:
        count = driver.device_count()
        if not 0 <= device < count:
            raise InvalidArgument("logits", f"on device {device}", f"a device in 0..{count - 1}")
        if driver.primary_is_active(device):
            with driver.primary_context(device):
                yield
            return
    current_engine()
    yield  # it came meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What a call asks for, whatever its arrays are."""

    k: int
    route: str
    options: Options
    max_seq_len: Any
    waits: Any
    sm_budget: Any
    pdl: Any

    def problem(self, shape: tuple[int, int], *, stride: int | None = None, offset: int = 0) -> Problem:
        """With logits of this shape. Raises InvalidArgument."""
        return problem_of(
            shape,
            self.k,
            stride=stride,
            offset=offset,
            options=self.options,
            max_seq_len=self.max_seq_len,
            waits=self.waits,
            sm_budget=self.sm_budget,
            pdl=self.pdl,
        )


def _index_dtype(out: Any, asked: str | None, *, on_host: bool) -> str:
    """What the caller asked for, else what `out` has, else int32. A later check refuses an `out` that differs."""
    if asked is not None:
        return asked
    if on_host or isinstance(out, np.ndarray):
        return "int64" if isinstance(out, np.ndarray) and out.dtype == np.int64 else "int32"
    return "int64" if out is not None and view("out", out, None).dtype == "int64" else "int32"


def _topk_device(
    request: _Request, engine: Engine, logits: DeviceView, beside: CallArrays, handle: int, keep: object
) -> Any:
    rows, width = logits.shape
    k, route, options = request.k, request.route, request.options
    problem = request.problem(
        (rows, width),
        stride=logits.strides[0] if rows > 1 else width,
        offset=logits.address // options.item_bytes % 8,
    )
    making_values = options.values and beside.values is True
    share = engine.share_of(handle)
    if engine.driver.stream_is_capturing(handle):
        prepared = engine.remembered(problem, route, share)
        if prepared is None:
            raise NotPrepared(
                "the stream is capturing and this problem was never run: use prepare() or run it once before"
            )
        if beside.out is None or making_values or (beside.workspace is None and prepared.workspace_bytes):
            raise NotPrepared("the stream is capturing, where nothing may be allocated: give out, values and workspace")
    else:
        prepared = engine.prepare_once(problem, route, share)
    if beside.out is None:
        beside.out = DeviceArray(engine, (rows, k), handle, options.index_dtype, keep=keep)
    if making_values:
        beside.values = DeviceArray(engine, (rows, k), handle, options.dtype, keep=keep)
    size = prepared.workspace_bytes
    if beside.workspace is None and size:
        with engine.driver.temporary(size, handle) as address:
            beside.workspace = from_address(address, (size,), "uint8", device=engine.ordinal)
            launch(engine, prepared, logits, beside, handle, asking=True)
    else:
        launch(engine, prepared, logits, beside, handle, asking=True)
    return Selected(beside.out, beside.values) if options.values else beside.out


def _topk_numpy(request: _Request, logits: npt.NDArray[Any], beside: CallArrays, handle: int) -> Any:
    rows, width = logits.shape
    k, options = request.k, request.options
    if beside.workspace is not None:
        raise InvalidArgument("workspace", type(beside.workspace).__name__, "None with numpy arrays, which are copied")
    shape = rows, k
    results = {"out": host_result("out", beside.out, shape, np.dtype(options.index_dtype))}
    if options.values:
        wanted = None if beside.values is True else beside.values
        results["values"] = host_result("values", wanted, shape, logits.dtype)
    given = {name: getattr(beside, name) for name in ("lengths", "out", "values", "row_starts", "page_table")}
    check_overlaps({"logits": logits, **given, **results}, results)
    arrays: dict[str, npt.NDArray[Any]] = {"logits": np.ascontiguousarray(logits)}
    if beside.lengths is not None:
        found = row_lengths(rows, width, beside.lengths)
        arrays["lengths"] = found.astype(np.int32)
    if options.row_starts:
        starts = row_starts_of(rows, width, beside.row_starts)
        arrays["row_starts"] = starts.astype(np.int32)
    per_table = 1
    if options.page_table:
        table, per_table = host_pages(logits.shape, beside.page_table, beside.page_size)
        arrays["page_table"] = np.ascontiguousarray(table, dtype=np.int32)
    problem = request.problem((rows, width))
    with primary_context(), contextlib.ExitStack() as stack:
        engine = current_engine()
        driver = engine.driver
        stack.enter_context(driver.relaxed_capture())
        prepared = engine.prepare_once(problem, request.route, engine.share_of(handle))

        def device(size: int) -> int:
            return stack.enter_context(driver.temporary(size, handle))

        at: dict[str, int] = {}
        for name, array in arrays.items():
            at[name] = device(array.nbytes)
            engine.staging.to_device(at[name], array, handle)
        host = {name: np.empty(shape, dtype=array.dtype) for name, array in results.items()}
        for name, array in host.items():
            at[name] = device(array.nbytes)
        more: dict[str, int] = {}
        if options.extras:
            more = {name: at.get(name, 0) for name in ("values", "row_starts", "page_table")}
            more |= {"page_size": beside.page_size, "rows_per_table": per_table}
            if options.page_table:
                more["page_table_stride"] = arrays["page_table"].shape[1]
        prepared.launch(at["logits"], at.get("lengths", 0), at["out"], device(prepared.workspace_bytes), handle, **more)
        for name, array in host.items():
            engine.staging.to_host(array, at[name], handle)
            results[name][...] = array
        driver.stream_synchronize(handle)  # of no width nothing was copied
    return Selected(results["out"], results["values"]) if options.values else results["out"]
