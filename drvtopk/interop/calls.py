"""The arrays of a call, each checked against the prepared problem, and packed for the launch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from drvtopk.engine import Engine
from drvtopk.errors import InvalidArgument, WorkspaceTooSmall
from drvtopk.interop.arrays import (
    UNORDERED,
    DeviceView,
    needs_ordering,
    overlapping,
    rows_view,
    same_stream,
    stream_handle,
    view,
)
from drvtopk.interop.host_arrays import check_page_size, check_pages
from drvtopk.launch import Bound, LaunchArgs, Prepared
from drvtopk.spec import Options

NAMES = ("lengths", "out", "values", "row_starts", "page_table", "workspace")


@dataclasses.dataclass(slots=True)
class CallArrays:
    """The arrays of a call beside the logits, as the caller gave them."""

    lengths: Any
    out: Any
    values: Any
    row_starts: Any
    page_table: Any
    page_size: Any
    workspace: Any

    def __post_init__(self) -> None:
        self.page_size = check_page_size(self.page_size, paged=self.page_table is not None)
        if isinstance(self.values, (bool, np.bool_)):
            self.values = True if self.values else None

    def __iter__(self) -> Iterator[Any]:
        """The arrays themselves, None where there is none."""
        return (getattr(self, name) for name in NAMES)


def order(engine: Engine, stream: int, *arrays: Any) -> int:
    """What producers are told to let wait: the stream, unless it is capturing: nothing outside may be part of that."""
    for array in arrays:
        if array is not None and needs_ordering(array) and engine.driver.stream_is_capturing(stream):
            return UNORDERED
    return stream


def logits_and_stream(engine: Engine, logits: Any, stream: Any, dtype: str | None) -> tuple[DeviceView, int]:
    """The logits as they are, and the handle of the stream to launch on."""
    handle = None if stream is None else stream_handle(stream)
    given = rows_view("logits", logits, dtype, stream=order(engine, handle or 0, logits))
    return given, (given.stream or 0) if handle is None else handle


def launch(
    engine: Engine, prepared: Prepared, logits: DeviceView, beside: CallArrays, stream: int, *, asking: bool = False
) -> None:
    """Checks every argument against the prepared problem, lets the stream wait for other producers, launches once.

    `asking`: whether the driver may be asked of addresses.
    """
    arrays, args = _checked(engine, prepared, logits, beside, order(engine, stream, *beside), asking=asking)
    producers = {array.stream or 1 for array in arrays.values() if array.stream is not None}
    others = [producer for producer in producers if not same_stream(producer, stream)]
    if others and not engine.driver.stream_is_capturing(stream):
        for producer in others:
            engine.driver.stream_wait(stream, producer)
    prepared.launch_args(args, stream)


def bind(engine: Engine, prepared: Prepared, logits: DeviceView, beside: CallArrays, keep: object) -> Bound:
    """A launch of these very arrays, checked now. Nothing is waited for."""
    _, args = _checked(engine, prepared, logits, beside, UNORDERED, asking=True)
    return prepared.bind(args, keep)


def _checked(
    engine: Engine, prepared: Prepared, logits: DeviceView, beside: CallArrays, order: int, *, asking: bool
) -> tuple[dict[str, DeviceView], LaunchArgs]:
    """Every array by its name, held against the prepared problem and the others; and what the launch is told."""
    problem = prepared.problem
    rows, k, options = problem.rows, problem.k, problem.options
    outputs = {"out": _result("out", beside.out, (rows, k), options.index_dtype, order)}
    inputs = {"logits": logits}
    if beside.lengths is not None:
        inputs["lengths"] = _one_a_row("lengths", beside.lengths, rows, order)
    per_table = 1
    if options.extras or beside.values is not None or beside.row_starts is not None or beside.page_table is not None:
        _check_asked(beside, options)
        if options.values:
            outputs["values"] = _result("values", beside.values, (rows, k), options.dtype, order)
        if options.row_starts:
            inputs["row_starts"] = _one_a_row("row_starts", beside.row_starts, rows, order)
        if options.page_table:
            inputs["page_table"] = table = rows_view("page_table", beside.page_table, "int32", stream=order)
            per_table = check_pages(logits.shape, table.shape, beside.page_size)
    needed = prepared.workspace_bytes  # one look: another thread may fall back to a plan that needs none
    if needed:
        outputs["workspace"] = _workspace(beside.workspace, needed, order)
    arrays = inputs | outputs
    for name, array in arrays.items():
        _check_device(engine, name, array, asking=asking)
    overlap = overlapping(outputs, arrays)
    if overlap is not None:
        raise InvalidArgument(overlap[0], f"memory that {overlap[1]} lies in", "memory of its own")
    more = {"out_stride": outputs["out"].strides[0] if rows > 1 else k}
    if options.extras:
        more |= {n: arrays[n].address if n in arrays else 0 for n in ("values", "row_starts", "page_table")}
        more |= {"page_size": beside.page_size, "rows_per_table": per_table}
        if options.values:
            more["values_stride"] = outputs["values"].strides[0] if rows > 1 else k
        if options.page_table:
            more["page_table_stride"] = inputs["page_table"].strides[0]
    at = [arrays[name].address if name in arrays else 0 for name in ("logits", "lengths", "out", "workspace")]
    return arrays, prepared.args(*at, **more)


def _check_asked(beside: CallArrays, options: Options) -> None:
    for name in ("values", "row_starts", "page_table"):
        given, wanted = getattr(beside, name), getattr(options, name)
        if wanted != (given is not None):
            raise InvalidArgument(name, type(given).__name__, "an array, as prepared" if wanted else "None")


def _check_device(engine: Engine, name: str, array: DeviceView, *, asking: bool) -> None:
    """Refuses an array of another device. Where it does not say itself, the driver is asked if `asking`."""
    device = array.device
    if device is None and asking and array.size:
        device = engine.driver.pointer_ordinal(array.address)
        if device is None:
            raise InvalidArgument(name, hex(array.address), "an address in device memory")
    if device is not None and device != engine.ordinal:
        raise InvalidArgument(name, f"on device {device}", f"device {engine.ordinal}, whose context is current")


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


def _workspace(value: Any, needed: int, order: int) -> DeviceView:
    if value is None:
        raise WorkspaceTooSmall(0, needed)
    lent = view("workspace", value, None, writable=True, stream=order)
    if not lent.contiguous:
        raise InvalidArgument("workspace", f"strides {lent.strides}", "a contiguous array")
    if lent.size * lent.item_bytes < needed:
        raise WorkspaceTooSmall(lent.size * lent.item_bytes, needed)
    return lent
