"""Other people's device arrays, by `__cuda_array_interface__`, as addresses and strides; refusals name the argument."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from drvtopk.errors import InvalidArgument

# numpy has no name for bfloat16: ml_dtypes and torch export its words as '<V2'.
TYPESTRS = {
    "float32": ("<f4",),
    "float16": ("<f2",),
    "bfloat16": ("<V2", "<u2", "|V2"),
    "int32": ("<i4",),
    "int64": ("<i8",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device array as the driver sees it."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""
    item_bytes: int
    typestr: str
    stream: int | None
    """The stream whose work the array still waits for, where its owner says so."""

    @property
    def size(self) -> int:
        product = 1
        for n in self.shape:
            product *= n
        return product

    @property
    def contiguous(self) -> bool:
        step = 1
        for n, stride in zip(reversed(self.shape), reversed(self.strides), strict=True):
            if n > 1 and stride != step:
                return False
            step *= n
        return True

    @property
    def span(self) -> tuple[int, int]:
        """First byte and one past the last."""
        if self.size == 0:
            return self.address, self.address
        last = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return self.address, self.address + (last + 1) * self.item_bytes


def is_device_array(value: object) -> bool:
    return hasattr(value, "__cuda_array_interface__")


def view(argument: str, value: object, dtype: str | None, *, writable: bool = False) -> DeviceView:
    """`value` as a DeviceView of element type `dtype` (a key of TYPESTRS; None: any). Raises InvalidArgument."""
    interface: Any = getattr(value, "__cuda_array_interface__", None)
    if not isinstance(interface, Mapping):
        raise InvalidArgument(
            argument, type(value).__name__, "a device array with __cuda_array_interface__, as the other arguments are"
        )
    given = str(interface["typestr"])
    if dtype is not None and given.replace("=", "<") not in TYPESTRS[dtype]:
        raise InvalidArgument(argument, f"dtype {given}", f"{dtype} ({TYPESTRS[dtype][0]})")
    item = int(given[2:])
    if interface.get("mask") is not None:
        raise InvalidArgument(argument, "a masked array", "an array without a mask")
    address, readonly = interface["data"]
    if writable and readonly:
        raise InvalidArgument(argument, "a read-only array", "a writable array")
    shape = tuple(int(n) for n in interface["shape"])
    byte_strides = interface.get("strides")
    if byte_strides is None:
        steps: list[int] = []
        step = 1
        for n in reversed(shape):
            steps.append(step)
            step *= n
        strides = tuple(reversed(steps))
    else:
        for stride, n in zip(byte_strides, shape, strict=True):
            if n > 1 and (stride % item or stride < 0):
                raise InvalidArgument(argument, f"a stride of {stride} bytes", f"strides >= 0 in multiples of {item}")
        strides = tuple(int(stride) // item for stride in byte_strides)
    stream = interface.get("stream")
    if stream == 0:
        raise InvalidArgument(argument, "stream 0 in its interface", "1 (legacy), 2 (per thread) or a stream handle")
    return DeviceView(
        address=int(address or 0),
        shape=shape,
        strides=strides,
        item_bytes=item,
        typestr=given,
        stream=None if stream is None else int(stream),
    )


def rows_view(argument: str, value: object, dtype: str | None, *, writable: bool = False) -> DeviceView:
    """A two-dimensional view whose elements of a row are adjacent."""
    found = view(argument, value, dtype, writable=writable)
    if len(found.shape) != 2:
        raise InvalidArgument(argument, f"shape {found.shape}", "two dimensions: (rows, columns)")
    if found.shape[1] > 1 and found.strides[1] != 1:
        raise InvalidArgument(
            argument, f"an inner stride of {found.strides[1]} elements", "1: the elements of a row are adjacent"
        )
    return found


def dtype_of(argument: str, found: DeviceView, dtype: str | None) -> str:
    """The name in TYPESTRS of a view's elements, one of float32, float16, bfloat16. `dtype` has to agree, and is what
    tells bfloat16 from uint16."""
    given = found.typestr.replace("=", "<")
    own = [name for name in ("float32", "float16", "bfloat16") if given in TYPESTRS[name]]
    if own and dtype in (None, own[0]) and (given != "<u2" or dtype is not None):
        return own[0]
    allowed = f"{dtype} ({TYPESTRS[dtype][0]})" if dtype in TYPESTRS else "float32, float16 or bfloat16"
    raise InvalidArgument(argument, f"dtype {found.typestr}", allowed)


def overlap(a: DeviceView, b: DeviceView) -> bool:
    """Whether the byte ranges of two arrays meet."""
    (a0, a1), (b0, b1) = a.span, b.span
    return a0 < b1 and b0 < a1


def stream_handle(stream: object) -> int:
    """A stream as its handle: an int, None (the legacy default stream), or an object with `__cuda_stream__`."""
    if stream is None:
        return 0
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        answer = protocol() if callable(protocol) else protocol
        return int(answer[1])
    if isinstance(stream, bool) or not isinstance(stream, int):
        raise InvalidArgument("stream", repr(stream), "a stream handle as int, an object with __cuda_stream__, or None")
    return stream
