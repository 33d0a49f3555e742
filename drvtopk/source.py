"""cuda_src/ as {name: bytes}, from a wheel (inside the package) or from a checkout (beside it)."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from drvtopk.errors import CompilerUnavailable

_HERE = Path(__file__).resolve().parent
_PLACES = (_HERE / "cuda_src", _HERE.parent / "cuda_src")


@cache
def kernel_sources() -> dict[str, bytes]:
    """Every entry file (*.cu) and header (*.cuh) by name, read once. Raises CompilerUnavailable if there are none."""
    for folder in _PLACES:
        found = {f.name: f.read_bytes() for f in sorted(folder.glob("*.cu*")) if f.suffix in (".cu", ".cuh")}
        if found:
            return found
    raise CompilerUnavailable(
        f"the kernel sources are missing from {' and '.join(map(str, _PLACES))}: reinstall drvtopk"
    )
