"""What it takes to repeat a measurement: GPU, driver, compiler, version, date, command."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import drvtopk
from drvtopk.engine import Engine
from drvtopk.nvrtc import nvrtc_version


def provenance(engine: Engine, script: str, argv: Sequence[str] | None) -> dict[str, str]:
    """The fields that each line of a results file ends with."""
    cuda = ".".join(map(str, engine.driver.driver_version()))
    try:
        found = re.search(r"\d{3}\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
    except OSError:
        found = None
    return {
        "gpu": engine.device.name,
        "driver": f"{found[0]} (CUDA {cuda})" if found else f"CUDA {cuda}",
        "nvrtc": ".".join(map(str, nvrtc_version())),
        "date": date.today().isoformat(),
        "drvtopk": drvtopk.__version__,
        "command": command(script, sys.argv[1:] if argv is None else argv),
    }


def command(script: str, arguments: Sequence[str]) -> str:
    """The command line, for other machines: of a path that is only this one's, the last part."""
    given = []
    for argument in arguments:
        option, equals, value = argument.rpartition("=") if argument.startswith("--") else ("", "", argument)
        given.append(option + equals + (Path(value).name if Path(value).is_absolute() else value))
    return " ".join(["python", script, *given])
