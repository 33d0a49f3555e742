"""What tests need of the machine beside Python, and the reason that a skip for want of it gives."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from drvtopk.nvrtc import NVRTC_VARIABLE
from tests.harness.runner import COMPILER

NO_CPP = f"no host C++ compiler, {COMPILER}"
NO_NVRTC = "no NVRTC"
NEEDED = (NO_CPP, NO_NVRTC)
"""What an exhaustive run may not lack."""


def nvrtc_is_missing() -> bool:
    """Whether there is no NVRTC to be found, by other means than those of drvtopk/compiler.py."""
    try:
        ours = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ImportError:
        ours = None
    folders = (ours and ours.submodule_search_locations) or ()  # a folder may be left of what was uninstalled
    if any(path for folder in folders for path in Path(folder).rglob("*nvrtc*") if path.suffix != ".pyc"):
        return False
    return NVRTC_VARIABLE not in os.environ and ctypes.util.find_library("nvrtc") is None


needs_cpp = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=NO_CPP)
needs_nvrtc = pytest.mark.skipif(nvrtc_is_missing(), reason=NO_NVRTC)
