"""Exact Top-K indices of each row on NVIDIA GPUs, through the CUDA driver.

Importing this package imports no CUDA library; the first call that needs one does.
"""

from __future__ import annotations

from importlib import import_module
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

if TYPE_CHECKING:
    from drvtopk.api import devices, primary_context, topk
    from drvtopk.export.prebuilt import use_cubins
    from drvtopk.interop.arrays import DeviceView, from_address
    from drvtopk.interop.device_array import DeviceArray
    from drvtopk.launch import Bound
    from drvtopk.prepared import Prepared, prepare, prepare_many
    from drvtopk.testing.oracle import topk_reference

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

# Where the names are that need numpy's or the driver's side: imported when they are first asked for.
_HOMES = {
    "Bound": "drvtopk.launch",
    "DeviceArray": "drvtopk.interop.device_array",
    "DeviceView": "drvtopk.interop.arrays",
    "Prepared": "drvtopk.prepared",
    "devices": "drvtopk.api",
    "from_address": "drvtopk.interop.arrays",
    "prepare": "drvtopk.prepared",
    "prepare_many": "drvtopk.prepared",
    "primary_context": "drvtopk.api",
    "topk": "drvtopk.api",
    "topk_reference": "drvtopk.testing.oracle",
    "use_cubins": "drvtopk.export.prebuilt",
}


def __getattr__(name: str) -> object:
    if name in _HOMES:
        found: object = getattr(import_module(_HOMES[name]), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
