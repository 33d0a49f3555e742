"""How much a neighbour on another stream is slowed by a selection beside it, with and without a budget of SMs.

    python tools/neighbour.py --out tools/results/neighbour.jsonl

The neighbour reads 64 MiB again and again; it is timed alone, then while selections run back to back on another
stream, planned without a budget and with several. Prints microseconds a read and the ratio to the read alone.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import drvtopk
from drvtopk.engine import Engine, current_engine
from drvtopk.launch import Prepared
from drvtopk.plan import Problem
from tools.provenance import provenance
from tools.timing import Clock

BYTES = 64 << 20
WAVES = 16  # blocks an SM: small enough that the neighbour shares SMs instead of waiting for a second wave
READS = 60
SELECTIONS = 400
BUDGETS = (None, 99, 66, 33, 8)
ROWS, WIDTH, K = 64, 131072, 1024


def read_time(clock: Clock, engine: Engine, address: int, beside: Prepared | None, memory: Sequence[int]) -> float:
    """Median microseconds of one read by the neighbour, `beside` running all the while on the other stream."""
    driver = engine.driver
    other = driver.stream_create()
    driver.synchronize()
    if beside is not None:
        for _ in range(SELECTIONS):
            beside.launch(memory[0], 0, memory[1], memory[2], other)
    pairs = [(driver.event_create(), driver.event_create()) for _ in range(READS)]
    for start, stop in pairs:
        driver.event_record(start, clock.stream)
        clock.read(address, BYTES, clock.stream, per_sm=WAVES)
        driver.event_record(stop, clock.stream)
    times = [driver.event_elapsed_ms(start, stop) * 1000 for start, stop in pairs]
    driver.synchronize()
    driver.stream_destroy(other)
    for pair in pairs:
        for event in pair:
            driver.event_destroy(event)
    return float(np.median(times[5:]))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON lines are written here")
    asked = parser.parse_args(argv)
    if not drvtopk.devices():
        print("no GPU: nothing was measured", file=sys.stderr)
        return 1
    results: list[dict[str, Any]] = []
    with drvtopk.primary_context():
        engine = current_engine()
        driver = engine.driver
        pool, flush = driver.mem_alloc(BYTES), driver.mem_alloc(16)
        driver.memset(pool, 0, BYTES)
        clock = Clock(engine, pool, flush)
        x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), np.float32)
        values, out = driver.mem_alloc(x.nbytes), driver.mem_alloc(4 * ROWS * K)
        driver.copy_to_device(values, x)
        alone = read_time(clock, engine, pool, None, ())
        about = provenance(engine, "tools/neighbour.py", argv)
        print(f"{about['gpu']}: the neighbour alone reads {BYTES >> 20} MiB in {alone:.1f} us")
        for route in ("persistent", "filtered"):
            for budget in BUDGETS:
                problem = Problem(rows=ROWS, width=WIDTH, k=K, sm_budget=budget)
                prepared = engine.prepare(problem, route=route)
                workspace = driver.mem_alloc(prepared.workspace_bytes)
                beside = read_time(clock, engine, pool, prepared, (values, out, workspace))
                driver.mem_free(workspace)
                row: dict[str, Any] = {
                    "route": route,
                    "sm_budget": budget,
                    "grid": prepared.plan.grid,
                    "rows": ROWS,
                    "len": WIDTH,
                    "k": K,
                }
                row |= {"alone_us": round(alone, 2), "beside_us": round(beside, 2), "ratio": round(beside / alone, 2)}
                results.append({**row, **about})
                times = f"{beside:8.1f} us {beside / alone:6.2f}x"
                print(f"beside {route:<10} budget {budget!s:>4} grid {prepared.plan.grid:>3}: {times}")
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text("".join(json.dumps(row) + "\n" for row in results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
