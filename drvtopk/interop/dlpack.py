"""DLPack, both ways: other people's capsules as plain figures, and our own memory as a capsule.

The layouts are those of dlpack.h (https://dmlc.github.io/dlpack/latest/c_api.html), the calls those of the array API's
`__dlpack__`. A capsule that is read here is not consumed: it stays its producer's, who frees it when it goes.
"""

from __future__ import annotations

import atexit
import ctypes
import struct
import sys
from dataclasses import dataclass
from typing import Any

from drvtopk.checks import integers, reason, shown
from drvtopk.errors import InvalidArgument

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13
DEVICE_TYPES = {CPU: "cpu", CUDA: "cuda", CUDA_HOST: "pinned host", 4: "opencl", 7: "vulkan", 8: "metal", 10: "rocm"}
DEVICE_TYPES |= {11: "pinned rocm host", CUDA_MANAGED: "managed", 14: "oneapi"}
_CODES = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}
_READ_ONLY = 1
_MAX_NDIM = 64  # as many as numpy has
VERSION = (1, 0)  # what is asked for, and what is made; any 1.x can be read

# DLTensor: data, device type and id, ndim, dtype code, bits and lanes, shape, strides, byte_offset.
_TENSOR = struct.Struct("=Q2iiBBH3Q")
# DLManagedTensorVersioned before its tensor: major, minor, manager_ctx, deleter, flags. The unversioned one has its
# tensor in front, and manager_ctx and deleter behind.
_VERSIONED_HEAD = struct.Struct("=2I3Q")
_TAIL = struct.Struct("=2Q")

_NAME, _VERSIONED_NAME = b"dltensor", b"dltensor_versioned"
_api = ctypes.pythonapi
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_count_up = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("Py_IncRef", _api))
_capsule_is = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """What a capsule says."""

    address: int
    """Of the first element, the byte offset included."""
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    """Elements; None: compact, the last dimension fastest."""
    dtype: str
    """'float32', 'bfloat16', 'uint8', ..."""
    bits: int
    """Of an element."""
    device_type: int
    device: int
    read_only: bool


def check_device(argument: str, value: Any) -> None:
    """InvalidArgument unless the array says that it lies in device memory; nothing is exported for that."""
    try:
        answer = value.__dlpack_device__()
    except Exception as error:
        what = f"{type(value).__name__}, whose __dlpack_device__ fails ({reason(error)})"
        raise InvalidArgument(argument, what, "an array in CUDA device memory") from error
    try:
        kind, _ = integers("device", answer, -(2**31), 2**31 - 1)
    except ValueError as error:
        what = f"{shown(answer)} from __dlpack_device__"
        raise InvalidArgument(argument, what, "a device type and an ordinal") from error
    _check_kind(argument, value, kind)


def _check_kind(argument: str, value: object, kind: int) -> None:
    if kind not in (CUDA, CUDA_MANAGED):
        there = DEVICE_TYPES.get(kind, f"a device of type {kind}")
        raise InvalidArgument(argument, f"{type(value).__name__} in {there} memory", "CUDA device memory")


def read(argument: str, value: Any, stream: int) -> tuple[Tensor, object]:
    """An array's figures, and the capsule that keeps them true while it is held.

    `stream` is the consumer's, as DLPack counts them (1 legacy, 2 per thread, -1: order nothing): the producer makes it
    wait for its own work. Raises InvalidArgument, also where the producer refuses.
    """
    try:
        try:
            capsule = value.__dlpack__(stream=stream, max_version=VERSION)
        except TypeError:  # a producer from before versions
            capsule = value.__dlpack__(stream=stream)
    except Exception as error:
        what = f"{type(value).__name__}, whose __dlpack__ refuses ({reason(error)})"
        raise InvalidArgument(argument, what, "an array that can be exported") from error
    found = parse(argument, capsule)
    _check_kind(argument, value, found.device_type)
    return found, capsule


def parse(argument: str, capsule: Any) -> Tensor:
    """The figures of a capsule that nobody consumed yet. Raises InvalidArgument."""
    flags = 0
    if _capsule_is(capsule, _VERSIONED_NAME):
        at = int(_capsule_pointer(capsule, _VERSIONED_NAME) or 0)
        major, minor, _, _, flags = _VERSIONED_HEAD.unpack(ctypes.string_at(at, _VERSIONED_HEAD.size))
        if major != VERSION[0]:
            raise InvalidArgument(argument, f"DLPack {major}.{minor}", f"DLPack {VERSION[0]}.x, or without a version")
        at += _VERSIONED_HEAD.size
    elif _capsule_is(capsule, _NAME):
        at = int(_capsule_pointer(capsule, _NAME) or 0)
    else:
        raise InvalidArgument(argument, f"{shown(capsule)} from __dlpack__", "a capsule that was not consumed")
    data, kind, ordinal, ndim, code, bits, lanes, shape_at, strides_at, offset = _TENSOR.unpack(
        ctypes.string_at(at, _TENSOR.size)
    )
    if lanes != 1 or not bits or bits % 8:
        raise InvalidArgument(argument, f"elements of {bits} bits in {lanes} lanes", "scalar elements of whole bytes")
    if not 0 <= ndim <= _MAX_NDIM or (ndim and not shape_at):
        raise InvalidArgument(argument, f"{ndim} dimensions, whose sizes are at {shape_at:#x}", "a shape")
    words = ctypes.c_int64 * ndim
    strides = tuple(words.from_address(strides_at)) if strides_at else None
    return Tensor(
        address=data + offset,
        shape=tuple(words.from_address(shape_at)) if ndim else (),
        strides=strides,
        dtype="bool" if code == 6 else f"{_CODES.get(code, f'type{code}_')}{bits}",
        bits=bits,
        device_type=kind,
        device=ordinal,
        read_only=bool(flags & _READ_ONLY),
    )


# What was exported and not yet given back, by the address of its managed tensor. No lock guards it: each use is one
# operation of a dict, which is whole by itself. A deleter may be called under any lock of its caller, and a garbage
# collection may run finalizers in the middle of anything here.
_exported: dict[int, _Export] = {}


class _Export:
    """One managed tensor in memory of ours, and what it keeps alive."""

    def __init__(self, tensor: Tensor, owner: object, *, versioned: bool) -> None:
        self.owner = owner
        ndim = len(tensor.shape)
        words = (ctypes.c_int64 * (2 * ndim))(*tensor.shape, *(tensor.strides or compact(tensor.shape)))
        self.words = words
        at = ctypes.addressof(words)
        code = next(code for code, name in _CODES.items() if tensor.dtype.rstrip("0123456789") == name)
        body = _TENSOR.pack(
            tensor.address, tensor.device_type, tensor.device, ndim, code, tensor.bits, 1, at, at + 8 * ndim, 0
        )
        deleter = ctypes.cast(_deleter, ctypes.c_void_p).value or 0
        if versioned:
            head = _VERSIONED_HEAD.pack(*VERSION, 0, deleter, _READ_ONLY if tensor.read_only else 0)
            whole, self.deleter_at = head + body, 16
        else:
            whole, self.deleter_at = body + _TAIL.pack(0, deleter), _TENSOR.size + 8
        self.memory = ctypes.create_string_buffer(whole, len(whole))
        self.address = ctypes.addressof(self.memory)
        self.capsule: Any = _capsule_new(self.address, _VERSIONED_NAME if versioned else _NAME, None)

    def references(self) -> int:
        """Those to the capsule: of who holds it, of this export and of the question itself."""
        return sys.getrefcount(self.capsule)

    def abandoned(self, unshared: int) -> bool:
        """Whether the capsule went without having been consumed: nobody will ever call the deleter.

        `unshared` is what `references` answers where nobody else holds the capsule. A destructor of the capsule would
        tell, but Python code must not run there while an error is under way.
        """
        # References first: as long as somebody else holds the capsule, it may yet be consumed, and so renamed.
        if self.capsule is None or self.references() > unshared:
            return False
        if any(_capsule_is(self.capsule, name) for name in (_NAME, _VERSIONED_NAME)):
            return True
        self.capsule = None  # consumed: the deleter tells when the tensor is done with
        return False


def compact(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Strides in elements of an array without gaps, the last dimension fastest."""
    steps: list[int] = []
    step = 1
    for n in reversed(shape):
        steps.append(step)
        step *= n
    return tuple(reversed(steps))


def _delete(at: int) -> None:
    """Called by whoever took the tensor, from any thread, when it is done with it."""
    _exported.pop(at, None)


_deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_delete)


@atexit.register
def _forget_deleters() -> None:
    """Who still holds a tensor when Python has ended must not call into it, and may still read it."""
    for export in list(_exported.values()):
        _TAIL.pack_into(export.memory, export.deleter_at - 8, 0, 0)
        _count_up(export)


def capsule_of(tensor: Tensor, owner: object, *, versioned: bool) -> Any:
    """A new capsule, which keeps `owner` alive until its consumer is done with it.

    One that is never consumed is found out when the next one is made.
    """
    drop_abandoned()
    export = _Export(tensor, owner, versioned=versioned)
    capsule = export.capsule  # held before it is entered, or another thread would find it abandoned
    _exported[export.address] = export
    return capsule


def drop_abandoned() -> None:
    """Lets go of what was exported in capsules that went without having been consumed."""
    probe = _Export.__new__(_Export)  # nobody else holds its capsule; versions of Python differ in what they count then
    probe.capsule = object()
    unshared = probe.references()
    for export in list(_exported.values()):
        if export.abandoned(unshared):
            _exported.pop(export.address, None)  # nothing else has this address while the export is held here
