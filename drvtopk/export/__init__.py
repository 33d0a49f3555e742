"""Kernels in a folder, for processes without a compiler and for hosts in C (../DEPLOY.md, ../EMBED.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from drvtopk.export.manifest import ExportedKernel
    from drvtopk.export.write import export_kernels

__all__ = ["ExportedKernel", "export_kernels"]


def __getattr__(name: str) -> object:
    if name == "export_kernels":
        from drvtopk.export import write

        return write.export_kernels
    if name == "ExportedKernel":
        from drvtopk.export import manifest

        return manifest.ExportedKernel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
