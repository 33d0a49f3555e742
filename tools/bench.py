"""Times rows x length x k x input on this machine's GPU, beside the time to just read the same bytes.

    python tools/bench.py --out tools/results/h200.jsonl
    python tools/bench.py --rows 1,64 --len 4096,131072 --k 1024 --input normal,all_equal --route auto,filtered

Method: a CUDA graph of N launches, each on its own slice of a pool larger than L2 and with its own output and
workspace; L2 flushed by reading before each replay; replay time / N; the median of 51 replays. Every timed output is
checked exactly afterwards; a wrong one ends the run with exit code 1. The floor is timed by the same method.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

import drvtopk
from drvtopk.cache import Cache, default_folder
from drvtopk.compiler import compile_source
from drvtopk.engine import Engine, current_engine
from drvtopk.plan import Problem
from drvtopk.reference import faults, ordered_keys
from drvtopk.spec import ROUTES, align
from tests.inputs import INPUTS, make
from tools.provenance import provenance

GRID_ROWS = (1, 4, 16, 64, 256)
GRID_LENGTHS = (4096, 8192, 32768, 65536, 131072, 262144, 1048576)
GRID_KS = (512, 1024, 2048)
REPLAYS = 51
MOST_LAUNCHES = 100  # a replay's own cost, some microseconds, is shared by so many
POOL_BYTES = 4 << 30
FLUSH_BYTES = 256 << 20  # at least twice any L2
LARGEST_SLICE = 512 << 20

Launch = Callable[[int, int], None]  # (which slice, stream)


class Clock:
    """Times N launches as one graph, L2 cold."""

    def __init__(self, engine: Engine, pool: int, flush: int) -> None:
        self.driver = engine.driver
        self.sms = engine.device.sms
        source = (Path(__file__).parent / "read_floor.cu").read_bytes()
        options = (f"--gpu-architecture={engine.device.arch}", "-std=c++17")
        made = compile_source(
            "read_floor", source, "read_floor.cu", {}, engine.device.arch, options, cache=Cache(default_folder())
        )
        self.function = self.driver.load_function(made.cubin, "read_floor")
        self.stream = self.driver.stream_create()
        self.pool, self.flush = pool, flush

    def read(self, address: int, size: int, stream: int, *, per_sm: int = 2) -> None:
        """Launches the kernel that reads `size` bytes once, with `per_sm` blocks for each SM at most."""
        values = (ctypes.c_uint64 * 3)(address, size // 16, self.flush)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * 3)(start, start + 8, start + 16)
        blocks = max(1, min(per_sm * self.sms, size // 16 // 1024))
        self.driver.launch(self.function, blocks, 0, stream, ctypes.addressof(pointers), "read_floor")

    def time(self, launch: Launch, launches: int) -> tuple[float, float]:
        """Microseconds a launch: the median over the replays, and half the spread of the middle half."""
        driver, stream = self.driver, self.stream
        launch(0, stream)  # loads and warms up outside the capture
        driver.stream_synchronize(stream)
        driver.begin_capture(stream)
        for which in range(launches):
            launch(which, stream)
        graph = driver.end_capture(stream)
        executable = driver.graph_instantiate(graph)
        start, stop = driver.event_create(), driver.event_create()
        times = []
        for _ in range(REPLAYS):
            self.read(self.flush, FLUSH_BYTES, stream)
            driver.event_record(start, stream)
            driver.graph_launch(executable, stream)
            driver.event_record(stop, stream)
            times.append(driver.event_elapsed_ms(start, stop) * 1000 / launches)
        for event in (start, stop):
            driver.event_destroy(event)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
        low, middle, high = np.percentile(times, [25, 50, 75])
        return float(middle), float(high - low) / 2


def right(x: npt.NDArray[np.float32], k: int, outs: npt.NDArray[np.int32]) -> list[str]:
    """Faults of N outputs of one input: the first held against the oracle, the others against the first one's keys."""
    found = faults(x, k, None, outs[0])
    m = min(k, x.shape[1])

    def keys(out: npt.NDArray[np.int32]) -> npt.NDArray[np.uint32]:
        return np.sort(ordered_keys(np.take_along_axis(x, out[:, :m].astype(np.int64), 1)), axis=1)

    if found or m == 0:
        return found
    expected = keys(outs[0])
    for which, out in enumerate(outs[1:], 1):
        inside = np.all((out[:, :m] >= 0) & (out[:, :m] < x.shape[1])) and np.all(out[:, m:] == -1)
        distinct = np.all(np.diff(np.sort(out[:, :m], axis=1), axis=1) > 0)
        if not (inside and distinct and np.array_equal(keys(out), expected)):
            found.append(f"launch {which} of the graph differs from the first")
    return found


def measure(
    clock: Clock, engine: Engine, rows: int, length: int, k: int, name: str, routes: Sequence[str]
) -> list[dict[str, Any]]:
    """One cell: its floor and every route."""
    driver = engine.driver
    x = make(name, min(rows, 64), length)
    x = x[np.arange(rows) % len(x)]  # beyond 64 rows the same ones again, at other addresses
    slice_bytes = align(x.nbytes, 512)
    launches = max(1, min(MOST_LAUNCHES, POOL_BYTES // slice_bytes))
    for which in range(launches):
        driver.copy_to_device(clock.pool + which * slice_bytes, x)
    driver.synchronize()
    size = slice_bytes
    floor, _ = clock.time(lambda which, stream: clock.read(clock.pool + which * size, x.nbytes, stream), launches)
    found = []
    out_bytes = 4 * rows * k
    for route in routes:
        prepared = engine.prepare(Problem(rows=rows, width=length, k=k), route=route)
        step = align(prepared.workspace_bytes, 512)
        outs, workspaces = driver.mem_alloc(out_bytes * launches), driver.mem_alloc(step * launches)
        try:
            driver.memset(outs, 0x7B, out_bytes * launches)
            driver.synchronize()

            def launch(
                which: int,
                stream: int,
                prepared: Any = prepared,
                outs: int = outs,
                ws: int = workspaces,
                step: int = step,
            ) -> None:
                prepared.launch(clock.pool + which * size, 0, outs + which * out_bytes, ws + which * step, stream)

            microseconds, spread = clock.time(launch, launches)
            host = np.empty((launches, rows, k), np.int32)
            driver.copy_to_host(host, outs)
        finally:
            driver.mem_free(outs)
            driver.mem_free(workspaces)
        wrong = right(x, k, host)
        if wrong:
            raise SystemExit(f"WRONG: {rows} x {length}, k {k}, {name}, {route}: {wrong[:3]}")
        plan = prepared.plan
        found.append(
            {
                "k": k,
                "rows": rows,
                "len": length,
                "dtype": "float32",
                "input": name,
                "route": plan.route if route == "auto" else route,
                "planned": route == "auto",
                "us": round(microseconds, 3),
                "spread_us": round(spread, 3),
                "floor_us": round(floor, 3),
                "launches": launches,
                "grid": plan.grid,
                "group": plan.group,
                "chunk": plan.chunk,
                "vec_size": plan.vec_size,
            }
        )
    return found


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=numbers, default=GRID_ROWS, help="comma-separated")
    parser.add_argument("--len", type=numbers, default=GRID_LENGTHS, dest="lengths", help="comma-separated")
    parser.add_argument("--k", type=numbers, default=GRID_KS, help="comma-separated")
    parser.add_argument("--input", default="normal", help=f"comma-separated, or 'all': {', '.join(INPUTS)}")
    parser.add_argument("--route", default="auto", help=f"comma-separated: auto, {', '.join(ROUTES)}")
    parser.add_argument("--out", type=Path, help="JSON lines are written here (default: not at all)")
    parser.add_argument(
        "--time-budget", type=float, default=500, help="seconds; cells beyond it are named and left out"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    if not drvtopk.devices():
        print("no GPU: nothing was measured", file=sys.stderr)
        return 1
    started = time.monotonic()
    inputs = list(INPUTS) if asked.input == "all" else asked.input.split(",")
    unknown = [name for name in inputs if name not in INPUTS]
    if unknown:
        print(f"bench: error: --input: got {unknown}, allowed is {', '.join(INPUTS)}", file=sys.stderr)
        return 2
    results, left_out = [], []
    with drvtopk.primary_context():
        engine = current_engine()
        driver = engine.driver
        about = provenance(engine, "tools/bench.py", argv)
        pool, flush = driver.mem_alloc(POOL_BYTES), driver.mem_alloc(FLUSH_BYTES)
        driver.memset(flush, 0, FLUSH_BYTES)
        clock = Clock(engine, pool, flush)
        print(f"{about['gpu']}, driver {about['driver']}, NVRTC {about['nvrtc']}, {about['date']}")
        print(
            f"{'k':>5} {'rows':>5} {'len':>8} {'input':<22} {'route':<11} {'us':>9} {'+-':>6} {'floor':>8} {'ratio':>6}"
        )
        for length in asked.lengths:
            for rows in asked.rows:
                for name in inputs:
                    for k in asked.k:
                        if 4 * rows * length > LARGEST_SLICE or time.monotonic() - started > asked.time_budget:
                            left_out.append((k, rows, length, name))
                            continue
                        for row in measure(clock, engine, rows, length, k, name, asked.route.split(",")):
                            results.append({**row, **about})
                            print(
                                f"{k:>5} {rows:>5} {length:>8} {name:<22} {row['route']:<11} {row['us']:>9.2f} "
                                f"{row['spread_us']:>6.2f} {row['floor_us']:>8.2f} {row['us'] / row['floor_us']:>6.2f}",
                                flush=True,
                            )
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(row) + "\n" for row in results))
    if results:
        ratios = [row["us"] / row["floor_us"] for row in results]
        print(f"{len(results)} cells, all exact; geometric mean over the floor {np.exp(np.mean(np.log(ratios))):.2f}x")
    if left_out:
        print(f"left out (time budget, or over {LARGEST_SLICE >> 20} MiB): {len(left_out)} cells: {left_out[:12]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
