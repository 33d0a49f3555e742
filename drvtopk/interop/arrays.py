"""Other people's device arrays as addresses and strides, whatever they speak; refusals name the argument.

In this order: what `from_address` made, arrays of torch and CuPy by their own methods (the cheapest, and nothing is
asked of the driver), DLPack (it tells device, read-only memory and every dtype, and its producers order streams),
`__cuda_array_interface__`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drvtopk.checks import as_int, flag, integer, integers, one_of, reason, shown
from drvtopk.errors import InvalidArgument
from drvtopk.interop import dlpack, hosts
from drvtopk.spec import DTYPES, INDEX_DTYPES

# numpy has no name for bfloat16: ml_dtypes exports its words as '<V2', others as uint16.
TYPESTRS = {
    "float32": ("<f4",),
    "float16": ("<f2",),
    "bfloat16": ("<V2", "<u2", "|V2"),
    "int32": ("<i4",),
    "int64": ("<i8",),
}
_BYTES = {**DTYPES, **INDEX_DTYPES, "uint8": 1, "int8": 1, "uint16": 2}
_KINDS = {"f": "float", "i": "int", "u": "uint", "c": "complex", "b": "bool", "V": "void"}
_TYPESTR = re.compile(r"[<>|][fiucbV][1-9]\d{0,8}")
_TYPESTRS = "one like '<f4'"
_WORD = 2**64  # addresses are below
_SIZE = 2**63 - 1  # sizes and strides in every protocol are of 64 bits, signed
UNORDERED = -1  # DLPack's word for: let no stream wait
PROTOCOLS = "a torch tensor, DLPack, __cuda_array_interface__ or drvtopk.from_address"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceView:
    """A device array as the driver sees it."""

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """Elements."""
    item_bytes: int
    dtype: str
    """'float32', 'bfloat16', 'uint8', ..."""
    stream: int | None = None
    """The stream whose work the array still waits for, where its owner says so and lets us do the waiting."""
    device: int | None = None
    """Ordinal of its device, where its owner says so."""
    read_only: bool = False
    owner: object = None
    """What keeps the memory."""

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
        elements = 1
        for n, stride in zip(self.shape, self.strides, strict=True):
            if n == 0:
                return self.address, self.address
            elements += (n - 1) * stride
        return self.address, self.address + elements * self.item_bytes


def from_address(
    address: Any,
    shape: Sequence[int],
    dtype: str,
    *,
    strides: Sequence[int] | None = None,
    stream: Any = None,
    device: int | None = None,
    read_only: bool = False,
    owner: object = None,
) -> DeviceView:
    """Device memory as an array, for hosts that have nothing but an address.

    Args:
        address: of the first element: an integer, or an object with a `handle` that is one (`cuda.core.Buffer`).
        shape: elements in each dimension.
        dtype: "float32", "float16", "bfloat16", "int32", "int64", or "uint8" for a workspace.
        strides: elements; compact, the last dimension fastest, unless given.
        stream: one whose work is waited for before the memory is touched.
        device: ordinal of its device, if it shall be held against the current context's.
        read_only: refuse it where it would be written.
        owner: kept as long as the view is.

    Raises InvalidArgument.
    """
    first = as_int(address)
    if first is None:
        owner = address if owner is None else owner
        first = hosts.address_of(address)
    if first is None or not 0 <= first < _WORD:
        allowed = "0..2^64 - 1: an integer, or an object whose handle is one"
        raise InvalidArgument("address", shown(address), allowed)
    dtype = one_of("dtype", dtype, _BYTES)
    sizes = integers("shape", shape, 0, _SIZE)
    steps = dlpack.compact(sizes) if strides is None else integers("strides", strides, -_SIZE, _SIZE)
    if len(steps) != len(sizes):
        raise InvalidArgument("strides", steps, f"one for each of the {len(sizes)} dimensions")
    if any(stride < 0 and n > 1 for stride, n in zip(steps, sizes, strict=True)):
        raise InvalidArgument("strides", steps, "no negative strides")
    found = DeviceView(
        address=first,
        shape=sizes,
        strides=steps,
        item_bytes=_BYTES[dtype],
        dtype=dtype,
        stream=None if stream is None else stream_handle(stream),
        device=None if device is None else integer("device", device, 0, 2**31 - 1),
        read_only=flag("read_only", read_only),
        owner=owner,
    )
    _, past = found.span
    if past > _WORD:
        too_far = "address" if past - first <= _WORD else "shape" if strides is None else "strides"
        value = hex(first) if too_far == "address" else sizes if too_far == "shape" else steps
        raise InvalidArgument(too_far, value, f"memory below 2^64; this ends {past - first} bytes after its address")
    return found


_protocols: dict[type, str] = {}  # of the types seen


def protocol_of(value: object) -> str:
    """How an array is read: "view", "ours", "torch", "cupy", "dlpack"; "interface" if by nothing that a type tells."""
    kind = type(value)
    found = _protocols.get(kind)
    if found is None:
        if len(_protocols) > 256:
            _protocols.clear()
        found = _protocols[kind] = _protocol_of(kind)
    return found


def _protocol_of(kind: type) -> str:
    if issubclass(kind, DeviceView):
        return "view"
    if hasattr(kind, "_device_view"):
        return "ours"
    if hasattr(kind, "__dlpack__") and hasattr(kind, "__dlpack_device__") and not hosts.framework_of(kind):
        return "dlpack"
    return hosts.framework_of(kind) or "interface"


def is_device_array(value: object) -> bool:
    """Whether it offers a protocol; `view` checks what the protocol says."""
    try:
        return protocol_of(value) != "interface" or hasattr(value, "__cuda_array_interface__")
    except Exception:  # an interface that fails is one
        return True


def needs_ordering(value: object) -> bool:
    """Whether its producer orders streams while we look at it, which it must not do inside a capture."""
    return protocol_of(value) == "dlpack"


def view(
    argument: str, value: object, dtype: str | None, *, writable: bool = False, stream: int = UNORDERED
) -> DeviceView:
    """`value` as a DeviceView of element type `dtype` (a key of TYPESTRS; None: any).

    `stream`, a handle, is what a DLPack producer lets wait for its own work; UNORDERED: nothing. Raises
    InvalidArgument.
    """
    given: Any = value
    protocol = protocol_of(value)
    if protocol == "view":
        found: DeviceView = given
    elif protocol in _FRAMEWORKS:
        found = _framework_view(argument, given, protocol)
    elif protocol == "dlpack":
        found = _dlpack_view(argument, given, stream)
    elif protocol == "ours":
        found = given._device_view
    else:
        found = _interface_view(argument, given)
    if not found.address and found.size:
        raise InvalidArgument(argument, f"{type(value).__name__} without memory", "an array in device memory")
    if dtype is not None and found.dtype != dtype and (dtype, found.dtype) != ("bfloat16", "uint16"):
        raise InvalidArgument(argument, f"dtype {found.dtype}", dtype)
    if writable and found.read_only:
        raise InvalidArgument(argument, "a read-only array", "a writable array")
    return found


def _torch_view(argument: str, tensor: Any) -> DeviceView:
    if not tensor.is_cuda:
        raise InvalidArgument(argument, f"a tensor on {tensor.device}", "a tensor on a CUDA device")
    layout = "nested" if getattr(tensor, "is_nested", False) else _last_word(tensor.layout)
    lazy = tensor.is_quantized or (tensor.is_complex() and tensor.is_conj()) or tensor.is_neg()
    if lazy or tensor.is_sparse or layout != "strided":
        what = "a quantized, conjugated or negated tensor" if lazy else f"a tensor of layout {layout}"
        raise InvalidArgument(argument, what, "a strided tensor of plain values")
    return DeviceView(
        address=tensor.data_ptr(),
        shape=tuple(tensor.shape),
        strides=tensor.stride(),
        item_bytes=tensor.element_size(),
        dtype=_last_word(tensor.dtype),
        stream=hosts.stream_of("torch", tensor),
        device=tensor.get_device(),
        owner=tensor,
    )


@functools.lru_cache(64)
def _last_word(name: object) -> str:
    """torch.float32 -> 'float32'."""
    return str(name).rpartition(".")[2]


def _cupy_view(argument: str, array: Any) -> DeviceView:
    item = int(array.dtype.itemsize)
    return DeviceView(
        address=int(array.data.ptr),
        shape=tuple(array.shape),
        strides=tuple(stride // item for stride in array.strides),
        item_bytes=item,
        dtype=_name_of(array.dtype.str) if array.dtype.kind == "V" else str(array.dtype),
        stream=hosts.stream_of("cupy", array),
        device=int(array.device.id),
        owner=array,
    )


_FRAMEWORKS = {"torch": _torch_view, "cupy": _cupy_view}


def _framework_view(argument: str, value: object, framework: str) -> DeviceView:
    """An array by its framework's own methods. They fail for fake and vmapped tensors, which have no memory."""
    try:
        return _FRAMEWORKS[framework](argument, value)
    except InvalidArgument:
        raise
    except Exception as error:
        what = f"{type(value).__name__} whose memory {framework} does not tell ({reason(error)})"
        raise InvalidArgument(argument, what, "an array in device memory") from error


def _dlpack_view(argument: str, value: Any, stream: int) -> DeviceView:
    dlpack.check_device(argument, value)
    found, capsule = dlpack.read(argument, value, stream or 1)  # DLPack's 1 is our 0: the legacy default stream
    return _within(
        argument,
        DeviceView(
            address=found.address,
            shape=found.shape,
            strides=dlpack.compact(found.shape) if found.strides is None else found.strides,
            item_bytes=max(found.bits // 8, 1),
            dtype=found.dtype,
            device=found.device,
            read_only=found.read_only,
            owner=capsule,
        ),
    )


def _within(argument: str, found: DeviceView) -> DeviceView:
    """`found`, if its sizes, strides and memory are possible. Raises InvalidArgument."""
    for n, stride in zip(found.shape, found.strides, strict=True):
        if n < 0 or (n > 1 and stride < 0):
            what = f"shape {found.shape} with strides {found.strides} (elements)"
            raise InvalidArgument(argument, what, "neither sizes nor strides below 0")
    first, past = found.span
    if not 0 <= first <= past <= _WORD:
        raise InvalidArgument(argument, f"memory from {first:#x} to {past:#x}", "memory in 0..2^64")
    return found


def _interface_view(argument: str, value: object) -> DeviceView:
    try:
        interface: Any = getattr(value, "__cuda_array_interface__", None)
    except Exception as error:
        what = f"{type(value).__name__}, whose __cuda_array_interface__ fails ({reason(error)})"
        raise InvalidArgument(argument, what, f"a device array ({PROTOCOLS})") from error
    if not isinstance(interface, Mapping):
        raise InvalidArgument(argument, type(value).__name__, f"a device array ({PROTOCOLS})")
    if interface.get("mask") is not None:
        raise InvalidArgument(argument, "a masked array", "an array without a mask")
    try:
        return _within(argument, _read_interface(interface, value))
    except InvalidArgument as error:
        if error.argument == argument:
            raise
        what = f"{error.argument} {error.value} in its __cuda_array_interface__"
        raise InvalidArgument(argument, what, error.allowed) from error


def _read_interface(interface: Mapping[str, Any], owner: object) -> DeviceView:
    """What an interface says. Raises InvalidArgument, which names the entry."""
    integer("version", interface.get("version"), 0, 3)
    shape = integers("shape", interface.get("shape"), 0, _SIZE)
    typestr = interface.get("typestr")
    if not isinstance(typestr, str):
        raise InvalidArgument("typestr", shown(typestr), _TYPESTRS)
    item, dtype = _typed(typestr)
    data = interface.get("data")
    if not isinstance(data, (tuple, list)) or len(data) != 2:
        raise InvalidArgument("data", shown(data), "an address, and whether it is read-only")
    address = 0 if data[0] is None else integer("data", data[0], 0, _WORD - 1)
    word = as_int(data[1])
    read_only = word == 1 if word in (0, 1) else flag("data", data[1])
    strides = interface.get("strides")
    if strides is None:
        steps = dlpack.compact(shape)
    else:
        steps = integers("strides", strides, -_SIZE, _SIZE)
        if len(steps) != len(shape) or any(n > 1 and step % item for step, n in zip(steps, shape, strict=True)):
            raise InvalidArgument("strides", steps, f"one for each of {len(shape)} dimensions, in multiples of {item}")
        steps = tuple(step // item for step in steps)
    stream = interface.get("stream")
    if stream is not None:
        stream = integer("stream", stream, 0, _WORD - 1)
        if stream == 0:
            raise InvalidArgument("stream", 0, "1 (legacy), 2 (per thread) or a stream handle")
    return DeviceView(
        address=address,
        shape=shape,
        strides=steps,
        item_bytes=item,
        dtype=dtype,
        stream=stream,
        read_only=read_only,
        owner=owner,
    )


@functools.lru_cache(64)
def _typed(typestr: str) -> tuple[int, str]:
    """Bytes of an element, and its type's name. Raises InvalidArgument."""
    if not _TYPESTR.fullmatch(typestr):
        raise InvalidArgument("typestr", shown(typestr), _TYPESTRS)
    return int(typestr[2:]), _name_of(typestr)


def _name_of(typestr: str) -> str:
    """'<f4' -> 'float32'; two bytes of nothing in particular are bfloat16, as numpy has no other word for it."""
    if typestr[0] == ">" and typestr[2:] != "1":
        return f"big-endian {typestr}"
    if typestr[1:] == "V2":
        return "bfloat16"
    if typestr[1] == "b":
        return "bool"
    return f"{_KINDS.get(typestr[1], typestr[1])}{int(typestr[2:]) * 8}"


def rows_view(
    argument: str, value: object, dtype: str | None, *, writable: bool = False, stream: int = UNORDERED
) -> DeviceView:
    """A two-dimensional view whose elements of a row are adjacent."""
    found = view(argument, value, dtype, writable=writable, stream=stream)
    if len(found.shape) != 2:
        raise InvalidArgument(argument, f"shape {found.shape}", "two dimensions: (rows, columns)")
    if found.shape[1] > 1 and found.strides[1] != 1:
        raise InvalidArgument(
            argument, f"an inner stride of {found.strides[1]} elements", "1: the elements of a row are adjacent"
        )
    return found


def dtype_of(argument: str, found: DeviceView, dtype: str | None) -> str:
    """One of float32, float16, bfloat16: what a view's elements are. `dtype` has to agree, and is what tells bfloat16
    from uint16."""
    own = found.dtype
    asked = None if dtype is None else one_of("dtype", dtype, DTYPES)
    if own in DTYPES and asked in (None, own):
        return own
    if own == "uint16" and asked == "bfloat16":
        return asked
    raise InvalidArgument(argument, f"dtype {own}", asked or "float32, float16 or bfloat16")


def overlapping(outputs: Iterable[str], arrays: Mapping[str, DeviceView]) -> tuple[str, str] | None:
    """The first of the outputs whose bytes another array has too, and that array, by their names."""
    spans = {name: array.span for name, array in arrays.items()}
    for name in outputs:
        first, past = spans[name]
        for other, (other_first, other_past) in spans.items():
            if first < other_past and other_first < past and other != name:
                return name, other
    return None


def stream_handle(stream: object) -> int:
    """A stream as its handle: an int, None (the legacy default stream), an object with `__cuda_stream__`, or a stream
    of the bindings, torch, CuPy or numba."""
    if stream is None:
        return 0
    if type(stream) is int and 0 <= stream < _WORD:
        return stream
    try:
        found = _handle_in(stream)
    except InvalidArgument:
        raise
    except Exception:  # an object's own error
        found = None
    if found is None or not 0 <= found < _WORD:
        allowed = (
            "a stream handle as int >= 0, an object with __cuda_stream__, a stream of torch, CuPy or numba, or None"
        )
        raise InvalidArgument("stream", shown(stream), allowed)
    return found


def _handle_in(stream: object) -> int | None:
    protocol = getattr(stream, "__cuda_stream__", None)
    if protocol is not None:
        version, handle = protocol() if callable(protocol) else protocol
        if as_int(version) != 0:
            raise InvalidArgument("stream", f"version {shown(version)} of __cuda_stream__", "version 0")
        return hosts.as_handle(handle)
    number = as_int(stream)
    return hosts.handle_of(stream) if number is None and not isinstance(stream, bool) else number


def same_stream(a: int, b: int) -> bool:
    """Whether two handles are one stream: 0 and 1 both name the legacy default stream."""
    return (a or 1) == (b or 1)
