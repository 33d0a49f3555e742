"""cuda_src/ as bytes, from a wheel (inside the package) or from a checkout (beside it)."""

from __future__ import annotations

import hashlib
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


@cache
def sources_digest() -> str:
    """SHA-256 over the names and texts of all kernel sources, hexadecimal. Raises CompilerUnavailable as above."""
    digest = hashlib.sha256()
    for name, text in kernel_sources().items():
        for field in (name.encode(), text):
            digest.update(len(field).to_bytes(8, "little") + field)
    return digest.hexdigest()
