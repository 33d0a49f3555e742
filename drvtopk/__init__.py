"""Exact Top-K indices of each row on NVIDIA GPUs, through the CUDA driver.

Importing this package imports no CUDA library; the first call that needs one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from drvtopk.errors import (
    CacheWarning,
    CompileError,
    CompilerUnavailable,
    DriverError,
    DriverUnavailable,
    InvalidArgument,
    NotPrepared,
    PlanError,
    TopKError,
    WorkspaceTooSmall,
)
from drvtopk.explain import explain
from drvtopk.plan import Plan, Problem
from drvtopk.spec import KNOWN_DEVICES, DeviceInfo, Options, Selected, Tuning, Variant
from drvtopk.testing.oracle import topk_reference

if TYPE_CHECKING:
    from drvtopk.api import Prepared, devices, prepare, prepare_many, primary_context, topk
    from drvtopk.engine import Bound
    from drvtopk.export.prebuilt import use_cubins
    from drvtopk.interop.arrays import DeviceView, from_address
    from drvtopk.interop.device_array import DeviceArray

__version__ = "0.1.0"

__all__ = [
    "KNOWN_DEVICES",
    "Bound",
    "CacheWarning",
    "CompileError",
    "CompilerUnavailable",
    "DeviceArray",
    "DeviceInfo",
    "DeviceView",
    "DriverError",
    "DriverUnavailable",
    "InvalidArgument",
    "NotPrepared",
    "Options",
    "Plan",
    "PlanError",
    "Prepared",
    "Problem",
    "Selected",
    "TopKError",
    "Tuning",
    "Variant",
    "WorkspaceTooSmall",
    "devices",
    "explain",
    "from_address",
    "prepare",
    "prepare_many",
    "primary_context",
    "topk",
    "topk_reference",
    "use_cubins",
]

_LAZY = {"Bound", "DeviceArray", "DeviceView", "Prepared", "devices", "from_address", "prepare", "prepare_many"}
_LAZY |= {"primary_context", "topk"}


def __getattr__(name: str) -> object:
    if name == "use_cubins":
        from drvtopk.export import prebuilt

        return prebuilt.use_cubins
    if name in _LAZY:
        from drvtopk import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
