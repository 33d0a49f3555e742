"""What frameworks do not tell by any protocol: the stream that is current in them. None of them is imported here."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from drvtopk.checks import as_int


def _framework(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def framework_of(kind: type) -> str:
    """ "torch" for tensors (parameters and other subclasses too), "cupy" for CuPy arrays, "" for anything else."""
    for base in kind.__mro__:
        if _framework(base) == "torch" and hasattr(base, "data_ptr"):
            return "torch"
        if _framework(base) == "cupy" and hasattr(base, "__cuda_array_interface__"):
            return "cupy"
    return ""


def current_stream(framework: str, value: Any) -> Any:
    """The stream on which the framework of this array works now; None if it has no such thing."""
    if framework == "torch":
        return sys.modules["torch"].cuda.current_stream(value.device)
    if framework == "cupy":
        return sys.modules["cupy"].cuda.get_current_stream()
    return None


def stream_of(framework: str, value: Any) -> int | None:
    """The handle of `current_stream`."""
    stream = current_stream(framework, value)
    if stream is None:
        return None
    handle: int = stream.cuda_stream if framework == "torch" else stream.ptr
    return handle


def handle_of(stream: Any) -> int | None:
    """The handle in a stream object that has no `__cuda_stream__`: of torch, CuPy, numba or cuda.bindings."""
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(stream, name, None)
        if found is not None:
            break
    else:
        if _framework(type(stream)) not in ("cuda", "ctypes"):
            return None
        found = stream
    found = getattr(found, "value", found)  # ctypes
    if found is None:  # what ctypes makes of a null pointer
        return 0
    return as_handle(found)


def address_of(value: Any) -> int | None:
    """The address that an object stands for, or that its `handle` does (`cuda.core.Buffer`); None of anything else."""
    try:
        return as_handle(getattr(value, "handle", value))
    except Exception:  # of a buffer that is closed
        return None


def as_handle(value: Any) -> int | None:
    """A plain int of an integer, or of an object for a pointer, which converts to int and not to float; else None."""
    number, kind = as_int(value), type(value)
    if number is None and hasattr(kind, "__int__") and not hasattr(kind, "__float__"):
        with contextlib.suppress(Exception):
            number = int(value)
    return number
