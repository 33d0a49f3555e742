"""Kernels of the tests' own, from the .cu files beside this one: producers and neighbours of a selection."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

from drvtopk.compiler import compile_source
from tests.gpu.conftest import CHILD, SECONDS
from tests.gpu.support import Gpu


def within(seconds: int) -> pytest.MarkDecorator:
    """For tests marked `alone` of which many might hang: the process of one ends that soon, and says where it stood."""
    # Fixtures have kernels compiled, which may wait for other processes.
    return pytest.mark.timeout(seconds if CHILD in os.environ else SECONDS, method="thread", func_only=True)


class Kernel:
    """The one kernel of `name`.cu, whose arguments are all 64-bit words.

    Its SMs keep as much shared memory as they have, so that a selection finds room beside it.
    """

    def __init__(self, gpu: Gpu, name: str) -> None:
        driver, arch = gpu.driver, gpu.engine.device.arch
        source = (Path(__file__).parent / f"{name}.cu").read_bytes()
        options = (f"--gpu-architecture={arch}", "-std=c++17")
        cubin = compile_source(name, source, f"{name}.cu", {}, arch, options).cubin
        self.name, self.driver = name, driver
        self.function = driver.load_function(cubin, name)
        carveout = driver.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT
        driver._call("cuFuncSetAttribute", self.function, carveout, 100)

    def __call__(self, grid: int, threads: int, stream: int, *words: int) -> None:
        """Launches; the driver copies the arguments meanwhile."""
        values = (ctypes.c_uint64 * len(words))(*words)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(words))(*(start + 8 * i for i in range(len(words))))
        self.driver.launcher(self.function, grid, 0, ctypes.addressof(pointers), self.name, threads)(stream)
