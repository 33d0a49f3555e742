"""python -m drvtopk doctor: what is here, what is missing, how to get it. Exit code 0: ready to run on a GPU."""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
from collections.abc import Callable
from importlib import metadata
from typing import Any

from drvtopk import __version__
from drvtopk.cache import Cache, default_folder
from drvtopk.cli.output import add_json, print_json, print_pairs
from drvtopk.compiler import check_nvrtc, never_compile
from drvtopk.driver import load
from drvtopk.errors import CompilerUnavailable, InvalidArgument, TopKError
from drvtopk.export.prebuilt import current
from drvtopk.nvrtc import NVRTC_VARIABLE, check_arch, nvrtc_path, nvrtc_version, supported_archs
from drvtopk.source import kernel_sources
from drvtopk.spec import DeviceInfo


def add(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what is here, and what is missing", description=__doc__)
    add_json(parser)
    parser.set_defaults(run=run)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _compiles_for(device: DeviceInfo) -> bool:
    try:
        check_arch(device.arch)
    except InvalidArgument:
        return False
    return True


def examine() -> dict[str, Any]:
    """Everything the report says, as data; `missing` has a sentence for each thing without which nothing runs."""
    missing: list[str] = []

    def ask(question: Callable[[], Any]) -> Any:
        try:
            return question()
        except TopKError as error:
            if str(error) not in missing:
                missing.append(str(error))
            return None

    cache = Cache(default_folder())
    cache_fault = cache.fault()
    ask(kernel_sources)
    holdings = current().holdings()
    driver = ask(load)
    devices = ask(driver.devices) if driver is not None else None
    version = ask(driver.driver_version) if driver is not None else None
    prebuilt = {kernel.arch for holding in holdings for kernel in holding.usable}
    never = ask(never_compile)
    nvrtc, without = None, None
    try:
        nvrtc = nvrtc_version()
        check_nvrtc()
    except CompilerUnavailable as error:
        without = str(error)
        if not prebuilt.intersection(d.arch for d in devices or []):  # else what is prebuilt runs all the same
            missing.insert(0, without)
    if nvrtc and version and nvrtc[0] > version[0]:
        missing.append(
            f"NVRTC {_dotted(nvrtc)} is newer than the driver, which runs CUDA {_dotted(version)}: install "
            f"nvidia-cuda-nvrtc-cu{version[0]}, or name its library in {NVRTC_VARIABLE}"
        )
    if nvrtc and devices and not any(map(_compiles_for, devices)):
        listed = ", ".join(f"{d.name} ({d.arch})" for d in devices)
        missing.append(
            f"no device that NVRTC {_dotted(nvrtc)} compiles these kernels for, only {listed}: they need compute "
            f"capability 8.0; for a device newer than this NVRTC, name a newer library in {NVRTC_VARIABLE}"
        )
    elif nvrtc and devices and not _compiles_for(devices[0]):
        first, usable = devices[0], next(filter(_compiles_for, devices))
        missing.append(
            f"the first device, {first.name} ({first.arch}), is taken where no context is current, and is none that "
            f"NVRTC {_dotted(nvrtc)} compiles these kernels for; {usable.name} is: name it in CUDA_VISIBLE_DEVICES"
        )
    return {
        "drvtopk": __version__,
        "python": platform.python_version(),
        "numpy": _installed("numpy"),
        "bindings": _installed("cuda-bindings"),
        "nvrtc": _dotted(nvrtc) if nvrtc else None,
        "nvrtc_path": ask(nvrtc_path) if nvrtc else None,
        "nvrtc_variable": os.environ.get(NVRTC_VARIABLE),
        "compiles": {True: "never", False: "what is needed"}.get(never),
        "archs": list(supported_archs()) if nvrtc else [],
        "driver": _dotted(version) if version else None,
        "devices": [
            {**dataclasses.asdict(d), "max_cluster": d.max_cluster, "has_pdl": d.has_pdl} for d in devices or []
        ],
        "only_prebuilt": without if without not in missing else None,
        "cubins": [
            {
                "folder": str(holding.folder),
                "kernels": holding.kernels,
                "usable": len(holding.usable),
                "archs": sorted({kernel.arch for kernel in holding.usable}),
                "fault": holding.fault,
            }
            for holding in holdings
        ],
        "cache": None if cache.folder is None else str(cache.folder),
        "cache_writable": cache_fault is None,
        "cache_fault": cache_fault,
        "missing": missing,
    }


def _in_words(device: dict[str, Any]) -> str:
    clusters = f", clusters of up to {device['max_cluster']}" if device["max_cluster"] > 1 else ""
    return f"{device['name']} ({device['arch']}, {device['sms']} SMs{clusters})"


def _folder_in_words(found: dict[str, Any]) -> str:
    archs = f" for {', '.join(found['archs'])}" if found["archs"] else ""
    fault = f" ({found['fault']})" if found["fault"] else ""
    return f"{found['folder']}: {found['usable']} of {found['kernels']} kernels usable{archs}{fault}"


def run(arguments: argparse.Namespace) -> int:
    found = examine()
    if arguments.json:
        print_json(found)
    else:
        shown = dict(found)
        shown["archs"] = " ".join(found["archs"]) or None
        shown["devices"] = ", ".join(map(_in_words, found["devices"])) or "none"
        fault, _ = shown.pop("cache_fault"), shown.pop("cache_writable")
        kept = "" if fault is None else f" (kernels stay in memory only: {fault})"
        shown["cache"] = f"{found['cache'] or 'no folder'}{kept}"
        shown["only_prebuilt"] = found["only_prebuilt"] and f"yes: {found['only_prebuilt']}"
        shown["cubins"] = "; ".join(map(_folder_in_words, found["cubins"])) or None
        shown["missing"] = "; ".join(found["missing"]) or "nothing"
        print_pairs((name, "-" if value is None else value) for name, value in shown.items())
    return 1 if found["missing"] else 0
