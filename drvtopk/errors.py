"""The exception tree. Every error drvtopk raises on purpose is a `TopKError`."""

from __future__ import annotations

import copyreg
import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "CacheWarning",
    "CompileError",
    "CompilerUnavailable",
    "DriverError",
    "DriverUnavailable",
    "InvalidArgument",
    "NotPrepared",
    "PlanError",
    "TopKError",
    "WorkspaceTooSmall",
]

_SHOWN = 3  # lines of a compiler's log


class TopKError(Exception):
    """Base of every error of this package. Pickle and copy keep its type, its message and all its fields."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Without `__init__`, which takes the fields: `args` is the message that it made of them."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]


class InvalidArgument(TopKError, ValueError):
    """An argument was refused before anything was launched."""

    def __init__(self, argument: str, value: object, allowed: str) -> None:
        self.argument = argument
        self.value = value
        self.allowed = allowed
        super().__init__(f"{argument}: got {value}, allowed is {allowed}")


class WorkspaceTooSmall(InvalidArgument):
    """The caller's workspace holds fewer bytes than the plan needs."""

    def __init__(self, given: int, required: int) -> None:
        self.given = given
        self.required = required
        super().__init__("workspace", f"{given} bytes", f"at least {required} bytes")


class PlanError(TopKError):
    """The route that was asked for cannot run this problem on this device."""

    def __init__(self, route: str, constraint: str) -> None:
        self.route = route
        self.constraint = constraint
        super().__init__(f"route {route!r} cannot run: {constraint}")


class NotPrepared(TopKError):
    """A launch inside a stream capture needed work that only `prepare()` may do."""


class CompilerUnavailable(TopKError):
    """NVRTC is missing, incomplete, too old, or newer than the driver can read; or compiling is forbidden."""


class CompileError(TopKError):
    """NVRTC refused an instantiation. The message has its first errors, `log` all it said, `options` what it got."""

    def __init__(self, what: str, options: Sequence[str], log: str) -> None:
        self.what = what
        self.options = tuple(options)
        self.log = log
        lines = [line.strip() for line in log.splitlines() if line.strip()]
        found = [line for line in lines if re.search(r"\berror\b[^:]{0,9}:", line)] or lines
        shown = found[:_SHOWN]
        if len(found) > _SHOWN:
            shown.append(f"and {len(found) - _SHOWN} more (`CompileError.log`)")
        super().__init__("\n  ".join([f"{what} did not compile:", *shown]))


class DriverUnavailable(TopKError):
    """There is no CUDA driver, no device, or no current context."""


class DriverError(TopKError):
    """A CUDA driver call failed."""

    def __init__(self, call: str, code: int, name: str, text: str, about: str = "") -> None:
        self.call = call
        self.code = code
        self.name = name
        self.text = text
        self.about = about
        tail = f" [{about}]" if about else ""
        super().__init__(f"{call} returned {code} ({name}): {text}{tail}")


class CacheWarning(UserWarning):
    """The cache folder cannot be written, so kernels live in memory only; or exported ones are passed over."""
