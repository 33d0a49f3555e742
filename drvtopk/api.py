"""topk() and prepare(): anybody's arrays and streams in, addresses out to the engine."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk import driver as drv
from drvtopk.checks import as_int, flag, instance, integer, one_of, shown
from drvtopk.engine import Bound, Engine, current_engine
from drvtopk.engine import Prepared as _Prepared
from drvtopk.errors import DriverUnavailable, InvalidArgument, NotPrepared, WorkspaceTooSmall
from drvtopk.interop.arrays import (
    SPOKEN,
    UNORDERED,
    DeviceView,
    dtype_of,
    from_address,
    is_device_array,
    needs_ordering,
    overlapping,
    rows_view,
    same_stream,
    stream_handle,
    view,
)
from drvtopk.interop.device_array import DeviceArray
from drvtopk.interop.host_arrays import (
    check_page_size,
    check_pages,
    host_logits,
    host_pages,
    plain_array,
    problem_of,
    row_lengths,
    row_starts_of,
)
from drvtopk.planned import Plan
from drvtopk.problem import MAX_OFFSET, Problem
from drvtopk.progress import preparing
from drvtopk.spec import ASKED_ROUTES, DEFAULT_TUNING, DeviceInfo, Options, Selected, Tuning, check_k
from drvtopk.workers import together


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
        self,
        logits: Any,
        lengths: Any = None,
        *,
        out: Any,
        values: Any = None,
        row_starts: Any = None,
        page_table: Any = None,
        page_size: int = 1,
        workspace: Any = None,
        stream: Any = None,
    ) -> None:
        """Launches with device arrays (see `topk` for shapes and dtypes); `workspace` of `workspace_bytes` bytes.

        `values`, `row_starts` and `page_table` are given exactly where they were prepared for. `stream` as in `topk`.
        This is one driver call, the launch, unless an array names another stream that it waits for; a cooperative one
        asks its stream for its SMs before. `launch` takes addresses.
        """
        given, handle = _logits_and_stream(self.engine, logits, stream, self.problem.options.dtype)
        self._check_logits(given)
        beside = _Beside(lengths, out, values, row_starts, page_table, page_size, workspace)
        _launch(self._inner, given, beside, handle, self.engine)

    def bind(
        self,
        logits: Any,
        lengths: Any = None,
        *,
        out: Any,
        values: Any = None,
        row_starts: Any = None,
        page_table: Any = None,
        page_size: int = 1,
        workspace: Any = None,
    ) -> Bound:
        """A launch of these very arrays, checked and packed now: calling what comes back, with a stream's handle, is
        the driver call and nothing else. It keeps the arrays. Nothing is waited for then: what it reads has to be ready
        on that stream.
        """
        given = rows_view("logits", logits, self.problem.options.dtype)
        self._check_logits(given)
        beside = _Beside(lengths, out, values, row_starts, page_table, page_size, workspace)
        arrays, strides = _gathered(self._inner, given, beside, UNORDERED, self.engine, asking=True)
        addresses = [arrays[name].address if name in arrays else 0 for name in ("lengths", "out", "workspace")]
        return self._inner.bind(given.address, *addresses, **strides, keep=(logits, beside))

    def _check_logits(self, given: DeviceView) -> None:
        problem = self.problem
        if given.shape != (problem.rows, problem.width):
            raise InvalidArgument("logits", f"shape {given.shape}", f"({problem.rows}, {problem.width}), as prepared")
        if problem.rows > 1 and given.strides[0] != problem.row_stride:
            raise InvalidArgument("logits", f"a row stride of {given.strides[0]}", f"{problem.row_stride}, as prepared")


def prepare(
    *,
    rows: int,
    width: int,
    k: int,
    stride: int | None = None,
    offset: int = 0,
    max_seq_len: int | None = None,
    dtype: str = "float32",
    index_dtype: str = "int32",
    values: bool = False,
    row_starts: bool = False,
    order: str = "none",
    tie_break: str = "any",
    deterministic: bool = False,
    nan: str = "lowest",
    page_table: bool = False,
    route: str = "auto",
    waits: str = "allowed",
    sm_budget: int | None = None,
    pdl: bool = False,
    chunk: int | None = None,
    group: int | None = None,
    tuning: Tuning = DEFAULT_TUNING,
    assume: DeviceInfo | None = None,
    stream: Any = None,
) -> Prepared:
    """Compiles, loads and plans `rows` x `width` for the current context.

    `stride` (elements) is the width unless given; `offset` is the base address in elements modulo 8; `max_seq_len` is
    a hint that costs only time when it is wrong, and counts as the next power of two. `dtype` to `page_table` are the
    options of `topk`; what a call will give as an array is named here by True. `route` is "auto", "persistent",
    "filtered" or "clustered"; a named route that cannot run raises PlanError. `waits="never"` plans only launches in
    which no block waits for another, which finish with one free block slot; `sm_budget` caps the grid at what so many
    SMs hold; `pdl` lets a launch begin while its predecessor on the stream ends (see `topk`). `chunk` (of
    "persistent"), `group` (2, 4, 8 or 16 blocks of a cluster, of "clustered"), `tuning` and `assume` replace the
    planner's inputs, for tests and study.

    `stream` is one that the launches will go to (as in `topk`). It matters where it belongs to a green context while
    another context is current: the plan then keeps within the green context's SMs. Without it the plan is for what the
    current context holds; on such a stream the driver may refuse it, and this preparation falls back once and for all.
    In a capture the driver refuses no cluster: the graph then cannot be instantiated.
    """
    return _preparation(**locals())()


def prepare_many(problems: Sequence[Mapping[str, Any]]) -> list[Prepared]:
    """`prepare` for several problems, side by side: each is a mapping of its keyword arguments. In the given order.

    Kernels are compiled on all cores, each once; this is the fastest warm-up of a server. Raises as `prepare` does, and
    TypeError for arguments that it has not got, before anything is compiled. The first preparation that fails ends the
    others, as does Ctrl-C.
    """
    accepted = inspect.signature(prepare)
    ready = []
    for given in problems:
        bound = accepted.bind(**given)
        bound.apply_defaults()
        ready.append(_preparation(**bound.arguments))
    engine = current_engine()

    def in_context(make: Callable[[], Prepared]) -> Prepared:
        with engine.driver.current(engine.context):
            return make()

    with preparing():
        return together([partial(in_context, make) for make in ready])


def _preparation(
    *,
    rows: int,
    width: int,
    k: int,
    stride: int | None,
    offset: int,
    max_seq_len: int | None,
    waits: str,
    sm_budget: int | None,
    pdl: bool,
    deterministic: bool,
    stream: Any,
    route: str,
    chunk: int | None,
    group: int | None,
    tuning: Tuning,
    assume: DeviceInfo | None,
    **options: Any,
) -> Callable[[], Prepared]:
    """What prepares a problem in the context that is current now. Its arguments are checked here."""
    asked = Options(**options)
    route = one_of("route", route, ASKED_ROUTES)
    instance("tuning", tuning, Tuning)
    if assume is not None:
        instance("assume", assume, DeviceInfo)
    problem = Problem(
        rows=rows,
        width=width,
        k=k,
        stride=stride,
        offset=integer("offset", offset, 0, MAX_OFFSET) % 8,
        max_seq_len=max_seq_len,
        waits=waits,
        sm_budget=sm_budget,
        options=asked.made_deterministic() if flag("deterministic", deterministic) else asked,
        pdl=pdl,
    )
    engine = current_engine()
    share = None if stream is None else engine.share_of(stream_handle(stream))

    def make() -> Prepared:
        how: dict[str, Any] = {"route": route, "chunk": chunk, "group": group, "tuning": tuning, "assume": assume}
        return Prepared(engine, engine.prepare(problem, share=share, **how))

    return make


def topk(
    logits: Any,
    k: int,
    lengths: Any = None,
    *,
    row_starts: Any = None,
    out: Any = None,
    values: Any = False,
    index_dtype: str | None = None,
    order: str = "none",
    tie_break: str = "any",
    deterministic: bool = False,
    nan: str = "lowest",
    page_table: Any = None,
    page_size: int = 1,
    dtype: str | None = None,
    workspace: Any = None,
    stream: Any = None,
    max_seq_len: int | None = None,
    route: str = "auto",
    waits: str = "allowed",
    sm_budget: int | None = None,
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
            device call when it is launched. On a stream of a green context the plan keeps within the green context's
            SMs, whatever context is current.
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
    route = one_of("route", route, ASKED_ROUTES)
    beside = _Beside(lengths, out, values, row_starts, page_table, page_size, workspace)
    on_host = isinstance(logits, np.ndarray)
    if on_host:
        logits, kind = host_logits(logits, dtype)
    else:
        if not is_device_array(logits):
            raise InvalidArgument("logits", type(logits).__name__, f"a numpy array, or a device array ({SPOKEN})")
        engine = current_engine()
        given, handle = _logits_and_stream(engine, logits, stream, None)
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
    hints: dict[str, Any] = {
        "max_seq_len": max_seq_len,
        "waits": waits,
        "sm_budget": sm_budget,
        "pdl": pdl,
        "options": options.made_deterministic() if flag("deterministic", deterministic) else options,
    }
    if on_host:
        return _topk_numpy(logits, k, beside, stream_handle(stream), route, hints)
    with engine.driver.relaxed_capture():
        return _topk_device(engine, given, k, beside, handle, route, hints)


@dataclasses.dataclass(slots=True)
class _Beside:
    """What a call is given beside the logits, as the caller gave it."""

    lengths: Any
    out: Any
    values: Any
    row_starts: Any
    page_table: Any
    page_size: int
    workspace: Any

    def __post_init__(self) -> None:
        self.page_size = check_page_size(self.page_size, paged=self.page_table is not None)
        if isinstance(self.values, (bool, np.bool_)):
            self.values = True if self.values else None


def _index_dtype(out: Any, asked: str | None, *, on_host: bool) -> str:
    """What the caller asked for, else what `out` has, else int32. A later check refuses an `out` that differs."""
    if asked is not None:
        return asked
    if on_host or isinstance(out, np.ndarray):
        return "int64" if isinstance(out, np.ndarray) and out.dtype == np.int64 else "int32"
    return "int64" if out is not None and view("out", out, None).dtype == "int64" else "int32"


def _logits_and_stream(engine: Engine, logits: Any, stream: Any, dtype: str | None) -> tuple[DeviceView, int]:
    """The logits as they are, and the handle of the stream to launch on."""
    handle = None if stream is None else stream_handle(stream)
    given = rows_view("logits", logits, dtype, stream=_order(engine, handle or 0, logits))
    return given, (given.stream or 0) if handle is None else handle


def _order(engine: Engine, stream: int, *arrays: Any) -> int:
    """What producers are told to let wait: the stream, unless it is capturing, which nothing outside may be part of."""
    for array in arrays:
        if array is not None and needs_ordering(array) and engine.driver.stream_is_capturing(stream):
            return UNORDERED
    return stream


def _topk_device(
    engine: Engine, logits: DeviceView, k: int, beside: _Beside, handle: int, route: str, hints: dict[str, Any]
) -> Any:
    rows, width = logits.shape
    options: Options = hints["options"]
    problem = problem_of(
        (rows, width),
        k,
        stride=logits.strides[0] if rows > 1 else width,
        offset=logits.address // options.item_bytes % 8,
        **hints,
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
        beside.out = DeviceArray(engine, (rows, k), handle, options.index_dtype)
    if making_values:
        beside.values = DeviceArray(engine, (rows, k), handle, options.dtype)
    size = prepared.workspace_bytes
    if beside.workspace is None and size:
        with engine.driver.lent(size, handle) as address:
            beside.workspace = from_address(address, (size,), "uint8", device=engine.ordinal)
            _launch(prepared, logits, beside, handle, engine, asking=True)
    else:
        _launch(prepared, logits, beside, handle, engine, asking=True)
    return Selected(beside.out, beside.values) if options.values else beside.out


def _one_a_row(name: str, value: Any, rows: int, order: int) -> DeviceView:
    found = view(name, value, "int32", stream=order)
    if found.size != rows:
        raise InvalidArgument(name, f"shape {found.shape}", f"one value for each of the {rows} rows")
    if not found.contiguous:
        raise InvalidArgument(name, f"strides {found.strides} (elements)", "a contiguous array")
    return found


def _result(name: str, value: Any, shape: tuple[int, int], dtype: str, order: int) -> DeviceView:
    found = rows_view(name, value, dtype, writable=True, stream=order)
    if found.shape != shape:
        raise InvalidArgument(name, f"shape {found.shape}", str(shape))
    return found


def _check_device(engine: Engine, name: str, array: DeviceView, *, asking: bool) -> None:
    """Refuses an array of another device. Where it does not say itself, the driver is asked if `asking`."""
    device = array.device
    if device is None and asking and array.size:
        device = engine.driver.pointer_ordinal(array.address)
        if device is None:
            raise InvalidArgument(name, hex(array.address), "an address in device memory")
    if device is not None and device != engine.ordinal:
        raise InvalidArgument(name, f"on device {device}", f"device {engine.ordinal}, whose context is current")


def _launch(
    prepared: _Prepared, logits: DeviceView, beside: _Beside, stream: int, engine: Engine, *, asking: bool = False
) -> None:
    """Checks every argument against the prepared problem, then launches once. `asking` may ask the driver of them."""
    order = _order(
        engine,
        stream,
        *(beside.lengths, beside.out, beside.values, beside.row_starts, beside.page_table, beside.workspace),
    )
    arrays, more = _gathered(prepared, logits, beside, order, engine, asking=asking)
    producers = {array.stream or 1 for array in arrays.values() if array.stream is not None}
    others = [producer for producer in producers if not same_stream(producer, stream)]
    if others and not engine.driver.stream_is_capturing(stream):
        for producer in others:
            engine.driver.stream_wait(stream, producer)
    lengths, workspace = arrays.get("lengths"), arrays.get("workspace")
    prepared.launch(
        logits.address,
        lengths.address if lengths else 0,
        arrays["out"].address,
        workspace.address if workspace else 0,
        stream,
        **more,
    )


def _gathered(
    prepared: _Prepared, logits: DeviceView, beside: _Beside, order: int, engine: Engine, *, asking: bool
) -> tuple[dict[str, DeviceView], dict[str, int]]:
    """Every array by its name, checked against the prepared problem and the others; and what else a launch is told."""
    rows, k, options = prepared.problem.rows, prepared.problem.k, prepared.problem.options
    outputs = {"out": _result("out", beside.out, (rows, k), options.index_dtype, order)}
    inputs = {"logits": logits}
    if beside.lengths is not None:
        inputs["lengths"] = _one_a_row("lengths", beside.lengths, rows, order)
    if options.extras or beside.values is not None or beside.row_starts is not None or beside.page_table is not None:
        for name in ("values", "row_starts", "page_table"):
            given, wanted = getattr(beside, name), getattr(options, name)
            if wanted != (given is not None):
                raise InvalidArgument(name, type(given).__name__, "an array, as prepared" if wanted else "None")
        if options.values:
            outputs["values"] = _result("values", beside.values, (rows, k), options.dtype, order)
        if options.row_starts:
            inputs["row_starts"] = _one_a_row("row_starts", beside.row_starts, rows, order)
        if options.page_table:
            inputs["page_table"] = rows_view("page_table", beside.page_table, "int32", stream=order)
    per_table = 1
    if options.page_table:
        per_table = check_pages(logits.shape, inputs["page_table"].shape, beside.page_size)
    needed = prepared.workspace_bytes  # one look: another thread may fall back to a plan that needs none
    if needed:
        if beside.workspace is None:
            raise WorkspaceTooSmall(0, needed)
        lent = view("workspace", beside.workspace, None, writable=True, stream=order)
        if not lent.contiguous:
            raise InvalidArgument("workspace", f"strides {lent.strides}", "a contiguous array")
        if lent.size * lent.item_bytes < needed:
            raise WorkspaceTooSmall(lent.size * lent.item_bytes, needed)
        outputs["workspace"] = lent
    arrays = inputs | outputs
    for name, array in arrays.items():
        _check_device(engine, name, array, asking=asking)
    met = overlapping(outputs, arrays)
    if met is not None:
        raise InvalidArgument(met[0], f"memory that {met[1]} lies in", "memory of its own")
    more = {"out_stride": outputs["out"].strides[0] if rows > 1 else k}
    if options.extras:
        more |= {n: arrays[n].address if n in arrays else 0 for n in ("values", "row_starts", "page_table")}
        more |= {"page_size": beside.page_size, "rows_per_table": per_table}
        if options.values:
            more["values_stride"] = outputs["values"].strides[0] if rows > 1 else k
        if options.page_table:
            more["page_table_stride"] = inputs["page_table"].strides[0]
    return arrays, more


def _host_result(name: str, given: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if given is None:
        return np.empty(shape, dtype=dtype)
    if not plain_array(given) or given.dtype != dtype or given.shape != shape:
        what = f"dtype {given.dtype} of shape {given.shape}" if plain_array(given) else type(given).__name__
        raise InvalidArgument(name, what, f"a numpy array, {dtype} of shape {shape}, as the logits are numpy")
    if not given.flags.writeable:
        raise InvalidArgument(name, "a read-only array", "a writable array")
    made: npt.NDArray[Any] = given
    return made


def _check_overlaps(given: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    for name, result in results.items():
        for other, array in given.items():
            if other != name and isinstance(array, np.ndarray) and np.may_share_memory(result, array):
                raise InvalidArgument(name, f"memory that {other} lies in", "memory of its own")


def _topk_numpy(
    logits: npt.NDArray[Any], k: int, beside: _Beside, handle: int, route: str, hints: dict[str, Any]
) -> Any:
    rows, width = logits.shape
    options: Options = hints["options"]
    if beside.workspace is not None:
        raise InvalidArgument("workspace", type(beside.workspace).__name__, "None with numpy arrays, which are copied")
    shape = rows, k
    results = {"out": _host_result("out", beside.out, shape, np.dtype(options.index_dtype))}
    if options.values:
        wanted = None if beside.values is True else beside.values
        results["values"] = _host_result("values", wanted, shape, logits.dtype)
    given = {name: getattr(beside, name) for name in ("lengths", "out", "values", "row_starts", "page_table")}
    _check_overlaps({"logits": logits, **given, **results}, results)
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
    problem = problem_of((rows, width), k, **hints)
    with primary_context(), contextlib.ExitStack() as stack:
        engine = current_engine()
        driver = engine.driver
        stack.enter_context(driver.relaxed_capture())
        prepared = engine.prepare_once(problem, route, engine.share_of(handle))

        def device(size: int) -> int:
            return stack.enter_context(driver.lent(size, handle))

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
