"""What a prepared call costs the host: `Prepared.launch` and a bound one, beside their driver call, and torch.topk."""

from __future__ import annotations

import contextlib
import gc
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import PlanError
from tools.cells import Cell, split_route

SHAPES = ((1, 4096), (8, 131072))  # rows, length: the planner gives them different routes
K = 1024
BATCHES = 51
CALLS = 100  # a batch: fewer than a stream takes before it makes the host wait


class Recorder:
    """The driver's functions as they are, with the launches written down."""

    def __init__(self, api: Any) -> None:
        self._api = api
        self.launches: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._api, name)
        if not name.startswith("cuLaunch"):
            return found

        def call(*args: Any) -> Any:
            self.launches.append((name, args))
            return found(*args)

        return call


def medians(calls: dict[str, Callable[[], object]], wait: Callable[[], None]) -> dict[str, float]:
    """Microseconds a call of each, the median over batches, which take turns so that what drifts is shared."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    wait()
    gc.disable()
    try:
        for _ in range(BATCHES):
            for name, call in calls.items():
                begun = time.perf_counter()
                for _ in range(CALLS):
                    call()
                times[name].append((time.perf_counter() - begun) / CALLS * 1e6)
                wait()
    finally:
        gc.enable()
    return {name: round(float(np.median(found)), 3) for name, found in times.items()}


def host_costs(engine: Engine, routes: Sequence[str], *, pdl: bool) -> Iterator[dict[str, Any]]:
    """One row for each shape and route that has a plan."""
    for rows, length in SHAPES:
        cell = Cell(k=K, rows=rows, len=length, stride=length)
        for route in routes:
            with contextlib.suppress(PlanError):
                yield _host_cost(engine, cell, route, pdl)


def _host_cost(engine: Engine, cell: Cell, route: str, pdl: bool) -> dict[str, Any]:
    driver = engine.driver
    name, group = split_route(route)
    problem = cell.problem(pdl=pdl)
    prepared = engine.prepare(problem, route=name, group=group)
    # The same problem prepared over functions that write down what they are called with: the very call, no more.
    recorder = Recorder(driver.api)
    again = Engine(Driver(recorder), engine.device).prepare(problem, route=name, group=group)
    with contextlib.ExitStack() as stack:
        sizes = (4 * cell.rows * cell.len, 4 * cell.rows * cell.k, prepared.workspace_bytes)
        logits, out, workspace = [driver.mem_alloc(size) for size in sizes]
        for address in (logits, out, workspace):
            stack.callback(driver.mem_free, address)
        stream = driver.stream_create()
        stack.callback(driver.stream_destroy, stream)
        driver.memset(logits, 0, sizes[0])
        driver.synchronize()
        bound = prepared.bind(prepared.args(logits, 0, out, workspace))
        recorder.launches.clear()
        again.launch(logits, 0, out, workspace, stream)
        driver.stream_synchronize(stream)
        if len(recorder.launches) != 1:
            raise RuntimeError(f"a prepared call made {len(recorder.launches)} launches, not one")
        call, args = recorder.launches[0]
        bare = getattr(driver.api, call)
        calls: dict[str, Callable[[], object]] = {
            "us": lambda: prepared.launch(logits, 0, out, workspace, stream),
            "bound_us": lambda: bound(stream),
            "bare_us": lambda: bare(*args),
        }
        torch_call, version = _torch_call(cell)
        if torch_call is not None:
            calls["torch_us"] = torch_call
        found = medians(calls, driver.synchronize)
        driver.synchronize()
    return {
        "kind": "host",
        "rows": cell.rows,
        "len": cell.len,
        "k": cell.k,
        "route": prepared.plan.route,
        "group": prepared.plan.group,
        "planned": route == "auto",
        "pdl": pdl,
        "bare_call": call,
        **found,
        **({"torch": version} if torch_call is not None else {}),
    }


def _torch_call(cell: Cell) -> tuple[Callable[[], object] | None, str]:
    """torch.topk of the same shape into arrays that are there, if there is a torch that sees the GPU."""
    try:
        torch: Any = importlib.import_module("torch")
    except ImportError:
        return None, ""
    if not torch.cuda.is_available():
        return None, ""
    x = torch.zeros((cell.rows, cell.len), device="cuda")
    values, indices = torch.topk(x, cell.k, sorted=False)
    return lambda: torch.topk(x, cell.k, sorted=False, out=(values, indices)), str(torch.__version__)
