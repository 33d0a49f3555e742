"""What the package ships beside its code: cuda_src/ as bytes, inside the package (a wheel) or beside it (a checkout).

Everything is read by importlib.resources, so that the package may lie in a .zip.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from drvtopk.errors import CompilerUnavailable

if TYPE_CHECKING:
    from importlib.abc import Traversable

_PACKAGE: Any = resources.files("drvtopk")  # a Path, or one inside a .zip
_PLACES = (_PACKAGE / "cuda_src", _PACKAGE.parent / "cuda_src")


def shipped(name: str) -> Traversable:
    """A file of the package, which need not be one of the file system."""
    found: Traversable = _PACKAGE / name
    return found


@cache
def kernel_sources() -> dict[str, bytes]:
    """Every entry file (*.cu) and header (*.cuh) by name, read once. Raises CompilerUnavailable if there are none."""
    for folder in _PLACES:
        listed = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ()
        found = {file.name: file.read_bytes() for file in listed if file.name.endswith((".cu", ".cuh"))}
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
