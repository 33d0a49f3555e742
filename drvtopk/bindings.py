"""One call of the CUDA driver: values in, values or a named error out."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any

from drvtopk.errors import DriverError, DriverUnavailable

_NO_DRIVER = "no CUDA driver: libcuda could not be loaded; install the NVIDIA driver"
# What the bindings say of a function that the driver lacks.
_NOT_FOUND = re.compile(r'(?:[Ff]unction |Failed to get _*)"?(\w+)"?(?: (?:is )?not found|$)')
_PER_THREAD = "CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM"  # has the bindings take handle 0 for the thread's own stream


class Bindings:
    """What the methods of `Driver` are made of. `api` is the module `cuda.bindings.driver`, or a stand-in."""

    def __init__(self, api: Any) -> None:
        self.api = api
        # What the bindings take for the legacy default stream. Some of them take any value of the variable for a yes.
        self._legacy = 1 if os.environ.get(_PER_THREAD) else 0

    def driver_version(self) -> tuple[int, int]:
        """The newest CUDA version this driver runs: (12, 9)."""
        version = int(self._call("cuDriverGetVersion"))
        return version // 1000, version % 1000 // 10

    def _call(self, name: str, *args: Any, about: str = "") -> Any:
        function = getattr(self.api, name, None)
        if function is None:
            raise DriverUnavailable(f"these cuda.bindings have no {name}; pip install 'cuda-python>=12.9,<14'")
        try:
            code, *values = function(*args)
        except RuntimeError as error:
            raise self._unavailable(name, error) from error
        if int(code) != 0:
            raise self._error(name, code, about)
        return values[0] if len(values) == 1 else tuple(values)

    def _unavailable(self, name: str, error: Exception) -> DriverUnavailable:
        """The bindings find libcuda at the first call, and each of its functions at the first call of that."""
        missing = _NOT_FOUND.search(str(error))
        if missing is None:
            return DriverUnavailable(f"{_NO_DRIVER} ({(str(error).splitlines() or [type(error).__name__])[0]})")
        version = ""
        if name != "cuDriverGetVersion":
            with contextlib.suppress(DriverError, DriverUnavailable):
                version = " (CUDA {}.{})".format(*self.driver_version())
        return DriverUnavailable(f"this NVIDIA driver{version} has no {missing[1]}: install a newer one")

    def _optional(self, name: str, *args: Any, about: str = "") -> Any | None:
        """What the call answers; None where the driver or the bindings are older than the function."""
        try:
            return self._call(name, *args, about=about)
        except DriverUnavailable:
            return None

    def _error(self, call: str, code: Any, about: str) -> DriverError:
        texts = []
        for getter in ("cuGetErrorName", "cuGetErrorString"):
            try:
                failed, text = getattr(self.api, getter)(code)
            except RuntimeError:  # the driver lacks even this
                failed, text = 1, None
            text = None if int(failed) else text
            texts.append(text.decode() if isinstance(text, bytes) else str(text or "unknown"))
        return DriverError(call, int(code), texts[0], texts[1], about)
