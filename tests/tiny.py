"""Kernels that do next to nothing, under the names of the real ones, for tests of what happens around a compilation.

`python -m tests.tiny` is `python -m drvtopk` with them.
"""

from __future__ import annotations

from drvtopk import compiler
from drvtopk.spec import ROUTES

KERNEL = b"""
extern "C" __global__ void __launch_bounds__(DRVTOPK_THREADS, DRVTOPK_MIN_BLOCKS) DRVTOPK_ENTRY(unsigned* out) {
  out[DRVTOPK_K] = DRVTOPK_VEC + 16 * DRVTOPK_CLUSTER + 1024 * DRVTOPK_PDL;  // so that no two are the same
}
"""
SOURCES = {f"{route}.cu": KERNEL for route in ROUTES}


def install() -> None:
    """For all of this process."""
    vars(compiler).update(kernel_sources=lambda: SOURCES)


if __name__ == "__main__":
    from drvtopk.__main__ import main

    install()
    raise SystemExit(main())
