"""Runs every kernel under compute-sanitizer: memcheck, racecheck, synccheck, initcheck, at several group sizes.

    python tools/sanitize.py                      # all four tools
    python tools/sanitize.py --tool racecheck     # one

Small thresholds (`Tuning`) send short rows down every path, so a run takes seconds. Exit code 1 if a tool finds
anything or a result is wrong. Needs a GPU and compute-sanitizer of the CUDA toolkit.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
GROUPS = {"persistent": (2, 5, 93), "filtered": (1,), "clustered": (2, 8)}


def target() -> int:
    """What runs under the tool: every path of each kernel, at each group size; returns how many runs were exact."""
    import numpy as np

    import drvtopk
    from drvtopk.engine import current_engine
    from drvtopk.plan import Problem
    from drvtopk.spec import PLAIN, Options, Tuning
    from drvtopk.testing.inputs import make
    from drvtopk.testing.oracle import narrowed
    from tests.gpu.support import Gpu, layout

    tuning = Tuning(
        short_max=512, radix_threshold=1024, cluster_threshold=1024, min_chunk=4, max_candidates=160, samples=128
    )
    asked = (
        PLAIN,
        Options(dtype="bfloat16", values=True, order="value", tie_break="smallest", index_dtype="int64"),
        Options(row_starts=True, page_table=True, order="index", tie_break="largest", nan="highest"),
    )
    runs = 0
    with drvtopk.primary_context():
        gpu = Gpu(current_engine())
        gpu.leftovers = (
            False  # initcheck would take the reading of an unprepared workspace, which is meant, for a fault
        )
        for route in gpu.routes:
            for group in GROUPS[route]:
                for vec, options in ((1, asked[0]), (2, asked[0]), (4, asked[0]), (8, asked[1]), (4, asked[2])):
                    for name in ("normal", "all_equal", "low_10_bits"):
                        chunk = round(3000 / group / 8) * 8
                        width = group * chunk - 1
                        offset, stride = layout(width, vec)
                        problem = Problem(rows=8, width=width, k=64, stride=stride, offset=offset, options=options)
                        prepared = gpu.engine.prepare(
                            problem,
                            route=route,
                            tuning=tuning,
                            chunk=chunk if route == "persistent" else None,
                            group=group if route == "clustered" else None,
                        )
                        if prepared.plan.group != group:
                            raise SystemExit(f"meant to run {group} blocks a row: {prepared.plan}")
                        lengths = np.array([width, -1, 64, 65, 500, 800, 1025, width - 1], np.int32)
                        x = narrowed(make(name, 8, width), options.dtype)
                        beside: dict[str, Any] = {"options": options}
                        if options.page_table:
                            pages = -(-width // 16)
                            table = np.random.default_rng(0).permutation(2 * pages)[:pages]
                            beside |= {"page_table": table.astype(np.int32)[None], "page_size": 16}
                            beside["row_starts"] = np.array([0, 1, 2, 3, 5, 700, -1, width], np.int32)
                        gpu.check(x, 64, lengths, vec=vec, prepared=prepared, **beside)
                        runs += 1
    print(f"{runs} runs exact")
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", choices=TOOLS, action="append", help="repeatable (default: all)")
    parser.add_argument("--target", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.target:
        return 0 if target() else 1
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is None:
        print("sanitize: error: compute-sanitizer is not on the path; it comes with the CUDA toolkit", file=sys.stderr)
        return 2
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    failed = []
    for tool in asked.tool or TOOLS:
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", sys.executable, str(Path(__file__)), "--target"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        lines = (done.stdout + done.stderr).strip().splitlines()
        print(f"{tool}: exit code {done.returncode}: {' | '.join(lines[-3:])}", flush=True)
        if done.returncode != 0:
            failed.append(tool)
            print("\n".join(lines[:60]), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
