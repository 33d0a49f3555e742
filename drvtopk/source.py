"""What the package ships beside its code: cuda_src/ as bytes, inside the package (a wheel) or beside it (a checkout).

Everything is read by importlib.resources, so that the package may lie in a .zip.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from drvtopk.errors import CompilerUnavailable

if TYPE_CHECKING:
    from importlib.abc import Traversable


def _package() -> Any:
    """A Path, or one inside a .zip."""
    from importlib import resources  # a third of what `import drvtopk` would cost

    return resources.files("drvtopk")


def _places() -> tuple[Any, Any]:
    """Where the kernels' sources may be."""
    package = _package()
    return package / "cuda_src", package.parent / "cuda_src"


def shipped(name: str) -> Traversable:
    """A file of the package, which need not be one of the file system."""
    found: Traversable = _package() / name
    return found


@cache
def kernel_sources() -> dict[str, bytes]:
    """Every entry file (*.cu) and header (*.cuh) by name, read once. Raises CompilerUnavailable if there are none."""
    for folder in (places := _places()):
        listed = sorted(folder.iterdir(), key=lambda file: file.name) if folder.is_dir() else ()
        found = {file.name: file.read_bytes() for file in listed if file.name.endswith((".cu", ".cuh"))}
        if found:
            return found
    raise CompilerUnavailable(
        f"the kernel sources are missing from {' and '.join(map(str, places))}: reinstall drvtopk"
    )


@cache
def sources_digest() -> str:
    """SHA-256 over the names and texts of all kernel sources, hexadecimal. Raises CompilerUnavailable as above."""
    import hashlib  # not before it is needed: `import drvtopk` is quick

    digest = hashlib.sha256()
    for name, text in kernel_sources().items():
        for field in (name.encode(), text):
            digest.update(len(field).to_bytes(8, "little") + field)
    return digest.hexdigest()
