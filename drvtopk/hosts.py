"""What frameworks do not tell by any protocol: the stream that is current in them. None of them is imported here."""

from __future__ import annotations

import sys
from typing import Any


def _framework(value: object) -> str:
    return type(value).__module__.partition(".")[0]


def is_torch(value: object) -> bool:
    """Whether it is a torch tensor (a parameter or another subclass too)."""
    if _framework(value) == "torch":
        return hasattr(value, "data_ptr")
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def is_cupy(value: object) -> bool:
    """Whether it is a CuPy array."""
    return _framework(value) == "cupy" and hasattr(value, "data")


def current_stream(value: Any) -> int | None:
    """The handle of the stream on which the framework of this array works now; None if it has no such thing."""
    if is_torch(value):
        stream: int = sys.modules["torch"].cuda.current_stream(value.device).cuda_stream
        return stream
    if is_cupy(value):
        handle: int = sys.modules["cupy"].cuda.get_current_stream().ptr
        return handle
    return None


def handle_of(stream: Any) -> int | None:
    """The handle in a stream object that has no `__cuda_stream__`: of torch, CuPy, numba or cuda.bindings."""
    for name in ("cuda_stream", "ptr", "handle"):
        found = getattr(stream, name, None)
        if found is not None:
            break
    else:
        if _framework(stream) not in ("cuda", "ctypes"):
            return None
        found = stream
    found = getattr(found, "value", found)  # ctypes
    if found is None:  # what ctypes makes of a null pointer
        return 0
    try:
        return int(found)
    except (TypeError, ValueError):
        return None
