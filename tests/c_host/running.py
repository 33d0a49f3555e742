"""Builds host.c beside an export, and runs it on a driver: the real one, or fake_cuda.c."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.plan import Plan

SOURCES = Path(__file__).resolve().parent
CC = shutil.which("cc")
STRICT = ("-Wall", "-Wextra", "-Werror", "-pedantic")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
CANARY = np.float32(3e38)  # between and behind the rows: a kernel that looks there selects it


def cc(*arguments: str | Path, compiler: str = "cc") -> None:
    """Compiles, and shows what the compiler says if it refuses."""
    done = subprocess.run([compiler, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def build(export: Path, program: Path, *flags: str) -> None:
    """Compiles host.c with the kernels of an export."""
    cc("-std=c99", *STRICT, "-O1", *flags, "-I", export, SOURCES / "host.c", "-ldl", "-lm", "-o", program)


def undefined_is_fatal(folder: Path) -> tuple[str, ...]:
    """The flags that end a program at undefined behaviour, where the compiler has them."""
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    done = subprocess.run([str(CC), *UNDEFINED, str(probe), "-o", str(folder / "probe")], capture_output=True)
    return UNDEFINED if done.returncode == 0 else ()


class Host:
    """The program, built with the kernels of `folder`, and what it is started with."""

    def __init__(self, folder: Path, program: Path, environment: dict[str, str] | None = None) -> None:
        self.folder = folder
        self.program = program
        self.environment = environment or {}

    def run(
        self,
        x: npt.NDArray[Any],
        folder: Path,
        *,
        k: int,
        lengths: npt.ArrayLike | None = None,
        row_starts: npt.ArrayLike | None = None,
        values: bool = False,
        stride: int | None = None,
        offset: int = 0,
        fault: str = "",
        environment: dict[str, str] | None = None,
        cubins: Path | None = None,
        arguments: tuple[str, ...] = (),
        **given: Any,
    ) -> Ran:
        """Selects from the rows of float32 `x`, laid out with `stride` and `offset`, by files in `folder`.

        `given` and `arguments` are the program's own; `fault` and `environment` are for fake_cuda.c.
        """
        rows, width = x.shape
        step = width if stride is None else stride
        flat = np.full(offset + max(rows - 1, 0) * step + width + 8, CANARY, np.float32)
        for row in range(rows):
            flat[offset + row * step : offset + row * step + width] = x[row]
        flat.tofile(folder / "logits")
        named = {"rows": rows, "width": width, "k": k, "stride": step, "offset": offset, **given}
        for name, array in (("lengths", lengths), ("row_starts", row_starts)):
            if array is not None:
                np.asarray(array, np.int32).tofile(folder / name)
                named[name] = folder / name
        if values:
            named["values"] = folder / "values"
        for name in ("out", "values", "log"):
            (folder / name).unlink(missing_ok=True)
        done = subprocess.run(
            [
                *map(str, (self.program, cubins or self.folder, folder / "logits", folder / "out")),
                *arguments,  # of two of a name the first counts
                *(f"{name}={value}" for name, value in named.items()),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            env={
                **os.environ,
                **self.environment,
                "FAKE_CUDA_K": str(k),
                "FAKE_CUDA_LOG": str(folder / "log"),
                "FAKE_CUDA_FAULT": fault,
                **(environment or {}),
            },
        )
        index = np.dtype(np.int64 if given.get("index_dtype") else np.int32)
        return Ran(done, folder, (rows, k), index)


class Ran:
    """What a run of the program left."""

    def __init__(
        self, done: subprocess.CompletedProcess[str], folder: Path, shape: tuple[int, int], index: np.dtype[Any]
    ) -> None:
        self.code, self.said, self._printed = done.returncode, done.stderr, done.stdout
        self._folder, self._shape, self._index = folder, shape, index

    @property
    def plan(self) -> dict[str, Any]:
        """What was launched; the program's complaint as an error if nothing was."""
        assert self.code == 0, f"exit code {self.code}: {self.said}"
        found: dict[str, Any] = json.loads(self._printed)
        return found

    @property
    def indices(self) -> npt.NDArray[Any]:
        return self._file("out", self._index)

    @property
    def values(self) -> npt.NDArray[Any]:
        return self._file("values", np.dtype(np.float32))

    def _file(self, name: str, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        found: npt.NDArray[Any] = np.fromfile(self._folder / name, dtype)
        return found.reshape(self._shape)

    @property
    def calls(self) -> list[str]:
        """Of the fake driver: those that launched, and "refused"."""
        path = self._folder / "log"
        return [line.partition(" ")[0] for line in path.read_text().splitlines()] if path.exists() else []


def as_printed(made: Plan) -> dict[str, Any]:
    """Python's plan as the C host prints the same one."""
    fields = made.document()
    del fields["tuning"], fields["options"], fields["why"]
    found = {"kernel": str(made.variant), "reason": made.reason.kind.value, "missing": 0, "first_missing": ""}
    return {**fields, **found}
