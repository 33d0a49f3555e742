"""Times rows x length x k x input on this machine's GPU, beside the time to just read the same bytes.

    python tools/bench.py --out tools/results/h200.jsonl
    python tools/bench.py --quick                 # a few cells, under a minute
    python tools/bench.py --rows 1,64 --len 4096,131072 --k 1024 --input normal,all_equal --route auto,filtered

Method: a CUDA graph of N launches, each on its own slice of a pool larger than L2 and with its own output and
workspace; L2 flushed by reading before each replay; replay time / N; the median of 51 replays. Every timed output is
checked exactly afterwards; a wrong one ends the run with exit code 1. The floor is timed by the same method, before
and after, and the lower one counts. `control_us` is one fixed small read, timed in every cell: where it differs between
cells, so did the machine, and the cells cannot be compared.
"""

from __future__ import annotations

import argparse
import contextlib
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
QUICK_ROWS, QUICK_LENGTHS, QUICK_KS = (1, 32, 256), (4096, 65536, 262144), (1024,)
REPLAYS = 51
MOST_LAUNCHES = 100  # a replay's own cost, some microseconds, is shared by so many
POOL_BYTES = 4 << 30
FLUSH_BYTES = 256 << 20  # at least twice any L2
LARGEST_SLICE = 512 << 20
CONTROL_BYTES = 16 << 10
DRIFT = 0.05  # of the control read, beyond which the cells of a run cannot be compared
WARM_UP_SECONDS = 0.05  # of reading before each timing: a GPU that has just idled runs at another clock

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

    def floor(self, size: int, step: int, launches: int) -> float:
        """Microseconds to read `size` bytes once, from slices that are `step` bytes apart."""
        return self.time(lambda which, stream: self.read(self.pool + which * step, size, stream), launches)[0]

    def control(self) -> float:
        """The same small read in every cell: it differs only where the machine does."""
        return self.floor(CONTROL_BYTES, CONTROL_BYTES, MOST_LAUNCHES)

    def time(self, launch: Launch, launches: int) -> tuple[float, float]:
        """Microseconds a launch: the median over the replays, and half the spread of the middle half."""
        driver, stream = self.driver, self.stream
        launch(0, stream)  # loads outside the capture
        until = time.monotonic() + WARM_UP_SECONDS
        while time.monotonic() < until:
            self.read(self.flush, FLUSH_BYTES, stream)
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
    floor = clock.floor(x.nbytes, size, launches)
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
            floor_after, control = clock.floor(x.nbytes, size, launches), clock.control()
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
                "floor_us": round(min(floor, floor_after), 3),
                "control_us": round(control, 3),
                "launches": launches,
                "grid": plan.grid,
                "group": plan.group,
                "chunk": plan.chunk,
                "vec_size": plan.vec_size,
            }
        )
    return found


def numbers(text: str) -> list[int]:
    """Comma-separated positive integers."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def drift(results: Sequence[dict[str, Any]]) -> float:
    """How far apart the control reads of a run are: 0.1 is ten per cent."""
    controls = [row["control_us"] for row in results]
    return float(max(controls) / min(controls) - 1)


class Budget:
    """Seconds for a whole run. A cell is begun only if it is expected to end in time."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.slower = 1.0  # than the guess below: the worst cell so far

    @staticmethod
    def guess(rows: int, length: int, k: int, routes: int) -> float:
        """Seconds of a cell: kernels to compile, slices to fill, the oracle's reading, outputs to check."""
        size = 4 * rows * length
        launches = max(1, min(MOST_LAUNCHES, POOL_BYTES // size))
        return 1 + 4e-10 * size * launches + routes * (2 + 1.5e-8 * size + 1e-7 * rows * k * launches)

    def allows(self, guess: float) -> bool:
        return time.monotonic() + guess * self.slower <= self.until

    def spent(self, guess: float, seconds: float) -> None:
        self.slower = max(self.slower, seconds / guess)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=numbers, help="comma-separated")
    parser.add_argument("--len", type=numbers, dest="lengths", help="comma-separated")
    parser.add_argument("--k", type=numbers, help="comma-separated")
    parser.add_argument("--input", default="normal", help=f"comma-separated, or 'all': {', '.join(INPUTS)}")
    parser.add_argument("--route", default="auto", help=f"comma-separated: auto, {', '.join(ROUTES)}")
    parser.add_argument("--quick", action="store_true", help="a few cells, where --rows, --len, --k name no others")
    parser.add_argument("--out", type=Path, help="JSON lines, each written when measured (default: not at all)")
    parser.add_argument(
        "--time-budget", type=float, default=500, help="seconds; cells that would end later are named and left out"
    )
    asked = parser.parse_args(argv)
    rows, lengths, ks = (QUICK_ROWS, QUICK_LENGTHS, QUICK_KS) if asked.quick else (GRID_ROWS, GRID_LENGTHS, GRID_KS)
    asked.rows, asked.lengths, asked.k = asked.rows or rows, asked.lengths or lengths, asked.k or ks
    asked.inputs = list(INPUTS) if asked.input == "all" else asked.input.split(",")
    asked.routes = asked.route.split(",")
    for option, given, known in (("--input", asked.inputs, INPUTS), ("--route", asked.routes, ("auto", *ROUTES))):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"{option}: got {','.join(unknown)}, allowed is {', '.join(known)}")
    return asked


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    if not drvtopk.devices():
        print("no GPU: nothing was measured", file=sys.stderr)
        return 1
    budget = Budget(asked.time_budget)
    results, left_out = [], []
    with contextlib.ExitStack() as stack:
        stack.enter_context(drvtopk.primary_context())
        out = None
        if asked.out is not None:
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            out = stack.enter_context(asked.out.open("w"))
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
                for name in asked.inputs:
                    for k in asked.k:
                        guess = budget.guess(rows, length, k, len(asked.routes))
                        if 4 * rows * length > LARGEST_SLICE or not budget.allows(guess):
                            left_out.append((k, rows, length, name))
                            continue
                        begun = time.monotonic()
                        measured = measure(clock, engine, rows, length, k, name, asked.routes)
                        budget.spent(guess, time.monotonic() - begun)
                        for row in measured:
                            results.append({**row, **about})
                            if out is not None:
                                out.write(json.dumps(results[-1]) + "\n")
                                out.flush()
                            print(
                                f"{k:>5} {rows:>5} {length:>8} {name:<22} {row['route']:<11} {row['us']:>9.2f} "
                                f"{row['spread_us']:>6.2f} {row['floor_us']:>8.2f} {row['us'] / row['floor_us']:>6.2f}",
                                flush=True,
                            )
    if results:
        ratios = [row["us"] / row["floor_us"] for row in results]
        print(f"{len(results)} cells, all exact; geometric mean over the floor {np.exp(np.mean(np.log(ratios))):.2f}x")
        if drift(results) > DRIFT:
            print(f"NOT COMPARABLE: the control read took {drift(results):.0%} longer in some cells than in others")
    if left_out:
        print(f"left out (time budget, or over {LARGEST_SLICE >> 20} MiB): {len(left_out)} cells: {left_out[:12]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
