"""What `demo` shows first on a GPU: the launch that once deadlocked servers, and what becomes of it here.

The ancestor launched blocks that wait for each other in a greater number than the GPU could hold.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.engine import Engine
from drvtopk.errors import PlanError
from drvtopk.launch import Prepared
from drvtopk.plan import plan
from drvtopk.problem import Problem
from drvtopk.testing.oracle import find_errors

Floats = npt.NDArray[np.float32]
Timed = Callable[[Engine, Prepared, list[npt.NDArray[Any]]], tuple[npt.NDArray[np.int32], float]]
K, CHUNK = 1024, 4096
_ROUTE = "persistent"


def one_block_too_many(engine: Engine) -> Problem:
    """One row of so many columns that, at CHUNK columns a block, one block more than fits would share it."""
    made = engine.plan(Problem(rows=1, width=16 * CHUNK, k=K), route=_ROUTE, chunk=CHUNK)
    return Problem(rows=1, width=(made.resident_cap + 1) * CHUNK, k=K)


def steps(engine: Engine, logits: Floats, timed: Timed) -> Iterator[dict[str, Any]]:
    """Each step as it is done: its name, what was seen, the planner's milliseconds or a launch's microseconds, and what
    is wrong with its result. `logits` are repeated to fill the row."""
    problem = one_block_too_many(engine)
    row = np.resize(logits, (1, problem.width))

    started = time.perf_counter()
    try:
        seen, refused = engine.plan(problem, route=_ROUTE, chunk=CHUNK).why, False
    except PlanError as error:
        seen, refused = str(error), True
    planning = (time.perf_counter() - started) * 1000
    wrong = [] if refused else ["the planner accepted it"]
    yield {"step": "refused by the planner", "seen": seen, "plan_ms": planning, "faults": wrong}

    def launched(step: str, prepared: Prepared, expected: Callable[[Prepared], bool]) -> dict[str, Any]:
        indices, microseconds = timed(engine, prepared, [row, np.array([problem.width], np.int32)])
        wrong = find_errors(row, K, None, indices)
        if not expected(prepared):
            wrong.append(f"what ran is {prepared.plan.route}: {prepared.plan.why}")
        return {"step": step, "seen": prepared.plan.why, "microseconds": microseconds, "faults": wrong}

    yield launched(
        "planned with headroom, launched cooperatively",
        engine.prepare(problem, route=_ROUTE),
        lambda prepared: prepared.plan.cooperative and prepared.plan.grid <= prepared.plan.resident_cap,
    )
    larger = replace(engine.device, sms=2 * engine.device.sms)  # a GPU that would hold it
    oversubscribed = plan(problem, larger, engine.occupancy, route=_ROUTE, chunk=CHUNK)
    oversubscribed = replace(oversubscribed, limits=engine.device)
    yield launched(
        f"{oversubscribed.grid} blocks launched all the same",
        engine.prepare(problem, plan=oversubscribed),
        lambda prepared: prepared.plan.route == "filtered" and prepared.plan.rejected is not None,
    )
