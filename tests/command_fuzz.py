"""Command lines drawn from a seed, on an emulated device: whatever is asked for, the command ends as it says.

    python -m tests.command_fuzz --seconds 600 --seed 1

An exit code of 0, 1, 2 or 130; a message of one line for each that is not 0; an output that is whole or absent; nothing
half-written left behind; and never a traceback.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from drvtopk.__main__ import main

WORDS = (
    "",
    "x",
    "-1",
    "0",
    "1",
    "2",
    "3.5",
    "1e3",
    "0x10",
    "nan",
    "inf",
    "9" * 30,
    "None",
    "true",
    "é",
    "\udcff",
    " 4",
    "--",
)
ARCHS = ("sm_80", "sm_90a", "sm_90", "sm_75", "sm_100f", "sm_", "h200")
OPTIONS: dict[str, tuple[str, ...]] = {
    "--dtype": ("float32", "bfloat16", "float16", "int8"),
    "--index-dtype": ("int32", "int64", "uint8"),
    "--order": ("none", "index", "value", "valu"),
    "--tie-break": ("any", "smallest", "largest"),
    "--nan": ("lowest", "highest"),
    "--route": ("auto", "filtered", "persistent", "clustered", "filterd"),
    "--k": ("1", "5", "64", "4096", "4097"),
    "--gpu": ("0", "1", "7"),
    "--max-seq-len": ("0", "100", "2147483648"),
    "--page-size": ("1", "16", "0"),
}
FLAGS = ("--deterministic", "--json", "--pdl", "--help", "--bogus", "--values", "--row-starts", "--page-table")
PLAN: dict[str, tuple[str, ...]] = {
    "--device": ("h200", "a100", "auto", "gb10", "h999"),
    "--rows": ("0", "1", "4", "700", "2147483647", "2147483648"),
    "--stride": ("0", "9", "40000", "1000003", "4611686018427387904"),
    "--width": ("0", "9", "40000"),
    "--waits": ("allowed", "never"),
    "--sm-budget": ("1", "60", "0"),
    "--sms": ("1", "24", "0"),
    "--smem-optin": ("1", "49152", "232448"),
    "--occupancy": ("0", "1", "2", "9"),
    "--chunk": ("1", "8192"),
    "--group": ("2", "8", "16", "3"),
    "--offset": ("0", "1", "-1"),
}


def _files(chance: random.Random, folder: Path) -> dict[str, str]:
    """Names of what may be read, some of which is damaged or no file at all."""
    rows, width = chance.choice([0, 1, 3]), chance.choice([0, 1, 50, 300])
    made: dict[str, Any] = {
        "x.npy": np.zeros((rows, width), np.float32),
        "half.npy": np.zeros((rows, width), np.float16),
        "words.npy": np.zeros((rows, width), np.uint16),
        "n.npy": np.full(rows, width, np.int64),
        "table.npy": np.zeros((max(rows, 1), width + 1), np.int32),
        "three.npy": np.zeros((1, 2, 3), np.float32),
        "objects.npy": np.zeros(3, np.uint8),
    }
    for name, array in made.items():
        np.save(folder / name, array)
    whole = (folder / "x.npy").read_bytes()
    at = chance.randrange(len(whole))
    (folder / "damaged.npy").write_bytes(whole[:at] + bytes([chance.randrange(256)]) + whole[at + 1 :])
    (folder / "short.npy").write_bytes(whole[:at])
    (folder / "text.npy").write_text("no array\n")
    (folder / "folder.npy").mkdir()
    os.mkfifo(folder / "pipe.npy")
    (folder / "loop.npy").symlink_to(folder / "loop.npy")
    return {
        name: str(folder / name) for name in (*made, "damaged.npy", "short.npy", "text.npy", "folder.npy", "pipe.npy")
    }


def _outputs(folder: Path) -> list[str]:
    names = ("out.npy", "again.npy", "x.npy", "nowhere/out.npy", "folder.npy", "loop.npy", "made", "")
    return [str(folder / name) for name in names] + ["/proc/nothing", "/dev/full"]


def command(seed: int, folder: Path) -> list[str]:
    """One command line."""
    chance = random.Random(seed)
    files, outputs = list(_files(chance, folder).values()), _outputs(folder)

    def some(options: dict[str, tuple[str, ...]], likely: float) -> list[str]:
        argv = []
        for name, values in options.items():
            if chance.random() < likely:
                argv += [name, chance.choice(values if chance.random() < 0.9 else WORDS)]
        return argv

    what = chance.choice(["topk"] * 6 + ["plan"] * 5 + ["cache", "doctor", "compile", "export", "", "tpok"])
    argv = [what] if what else []
    if what == "topk":
        argv += [chance.choice(files)] if chance.random() < 0.95 else []
        argv += ["--k", chance.choice(("1", "5", "64"))] if chance.random() < 0.9 else []
        argv += ["--out", chance.choice(outputs)] if chance.random() < 0.95 else []
        for name in ("--lengths", "--row-starts", "--page-table"):
            argv += [name, chance.choice(files)] if chance.random() < 0.3 else []
        argv += ["--values-out", chance.choice(outputs)] if chance.random() < 0.3 else []
    elif what == "plan":
        argv += ["--device", "h200", "--rows", "4", "--stride", "40000", "--k", "64"] if chance.random() < 0.8 else []
        argv += some(PLAN, 0.2)
    elif what in ("compile", "export"):  # refused ones only: kernels would be compiled
        argv += [
            "--arch",
            chance.choice(ARCHS),
            "--out",
            chance.choice(outputs),
            "--k",
            chance.choice(("0", "x", "9999")),
        ]
    elif what == "cache":
        argv += chance.choice([["--list"], ["--clear"], [], ["--list", "--clear"], ["--list", "--json"]])
    argv += some(OPTIONS, 0.1)
    argv += [flag for flag in FLAGS if chance.random() < 0.08]
    if chance.random() < 0.1:
        argv.insert(chance.randrange(len(argv) + 1), chance.choice(WORDS))
    return argv


def complaint(seed: int) -> tuple[str, int]:
    """What is wrong with how one command line ended, or nothing; and its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="command-"))
    out, err = io.StringIO(), io.StringIO()
    argv: list[str] = []
    code = -1
    try:
        argv = command(seed, folder)
        before = {path.name for path in folder.iterdir()}
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(argv)
        said = [line for line in err.getvalue().splitlines() if line.startswith("drvtopk: error")]
        wrong = []
        if code not in (0, 1, 2):
            wrong.append(f"exit code {code}")
        if (code == 0) == bool(said) and not (code == 1 and argv[:1] == ["doctor"]):
            wrong.append(f"exit code {code} with {len(said)} errors")
        if len(said) > 1 or "Traceback" in err.getvalue() + out.getvalue():
            wrong.append(err.getvalue())
        if code == 0 and "--json" in argv and "--help" not in argv:
            json.loads(out.getvalue())
        for path in folder.iterdir():
            if path.suffix == ".npy" and path.name not in before:
                np.load(path)  # whole, or absent
            elif path.name not in before and path.name not in ("made", "nowhere"):
                wrong.append(f"{path.name} was left behind")
        return "; ".join(wrong) and f"seed {seed}: {argv}: {'; '.join(wrong)}", code
    except BaseException:
        return f"seed {seed}: {argv}: {traceback.format_exc()}", code
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run() -> int:
    from drvtopk.cli import planning
    from tests import emulated

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    emulated.install()
    vars(planning).update(compile_variant=emulated._compile)
    codes: Counter[int] = Counter()
    number, end = arguments.seed * 10**7, time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        wrong, code = complaint(number)
        if wrong:
            print(wrong)
            return 1
        codes[code] += 1
        number += 1
    print(f"{sum(codes.values())} command lines, seed {arguments.seed}; exit codes {dict(sorted(codes.items()))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(_run())
