"""Draws problems from a seed, runs them and holds each result against the oracle, until the time is up.

    python tools/fuzz.py --seconds 600 --seed 1 --on gpu
    python tools/fuzz.py --seconds 60 --seed 1 --on cpu            # the kernels in the CPU harness: schedules, races
    python tools/fuzz.py --seconds 600 --seed 1 --on gpu --inputs scale_mixes
    python tools/fuzz.py --seed 1 --on gpu --case 4711             # one of them again

Shapes, options, layouts, distributions, lengths, windows, page tables, leftovers in workspace and output, hints,
routes, budgets; on a GPU also eager launches, graphs and two streams at once. What is compiled (`Kind`) is drawn from a
pool that grows with the run. A wrong result, an error or a hang ends the run with exit code 1; the last line then is
the command that repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing as mp
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import drvtopk
from drvtopk.errors import PlanError
from drvtopk.plan import Plan
from drvtopk.testing.cases import Case, draw
from drvtopk.testing.inputs import INPUTS

JOBS = {"gpu": 8, "cpu": os.cpu_count() or 1}
# Seconds of silence after which a case counts as hung, compiling included. In the harness each launch has a limit of
# its own, which also says which block waits for what.
PATIENCE = {"gpu": 60.0, "cpu": 240.0}
# Kinds that the pool soon holds, and the cases after which it then grows by one: so that neither NVRTC (a second for
# each kind) nor the host's compiler (three) takes most of the time.
POOL = {"gpu": (300, 200), "cpu": (24, 16)}
MODES = ("eager", "eager", "graph", "streams")
Runner = Callable[[int, Case], tuple[str, Plan | None]]  # what is wrong with a case, and how it was planned


def kinds_for(number: int, on: str) -> int:
    """How many kinds of kernel this case is drawn from: a fact of its number, so that it can be repeated alone."""
    soon, pace = POOL[on]
    grown = 8 + number // 4
    return grown if grown <= soon else soon + (number - 4 * (soon - 8)) // pace


def on_gpu() -> Runner:
    """Runs cases in the current context."""
    from drvtopk.engine import current_engine
    from tests.gpu.support import Gpu

    gpu = Gpu(current_engine())
    gpu.leftovers = False  # those of another case would not come back with this one

    def run(number: int, case: Case) -> tuple[str, Plan | None]:
        kind = case.kind
        gpu.dirt = number
        try:
            prepared = gpu.engine.prepare(
                case.problem, route=kind.route, chunk=case.chunk, group=kind.group, tuning=kind.tuning
            )
        except PlanError as error:  # a named route that does not fit says so
            return ("", None) if kind.route in ("persistent", "clustered") else (f"no plan: {error}", None)
        found = gpu.run(
            case.logits,
            kind.k,
            case.lengths,
            options=kind.options,
            **case.beside,
            offset=case.offset,
            stride=case.stride,
            out_stride=case.out_stride,
            values_stride=case.values_stride,
            prepared=prepared,
            mode=MODES[number % len(MODES)],
        )
        return "; ".join(case.wrong(found.indices, found.values)[:2]), prepared.plan

    return run


def on_cpu() -> Runner:
    """Runs cases in the CPU harness, on a GPU of a few block slots."""
    from tests.harness.runner import simulate
    from tests.harness.scenario import WORKSPACES, dirt, plan_for

    def run(number: int, case: Case) -> tuple[str, Plan | None]:
        random = np.random.default_rng(number)
        kind = case.kind
        slots = int(random.integers(2, 9)) + (kind.group or 0)
        problem = case.problem
        if problem.sm_budget is not None:
            problem = replace(problem, sm_budget=1 + problem.sm_budget % slots)
        try:
            plan = plan_for(problem, slots, route=kind.route, chunk=case.chunk, group=kind.group)
        except PlanError as error:
            return ("", None) if kind.route in ("persistent", "clustered") else (f"no plan: {error}", None)
        workspace = str(random.choice(WORKSPACES))
        words = dirt(workspace, plan.workspace_bytes // 4, random)
        for launch in range(2 if workspace == "leftovers" else 1):
            found = simulate(
                plan,
                case.logits,
                case.lengths,
                **case.beside,
                workspace=words,
                slots=slots,
                seed=number + launch,
                offset=case.offset,
            )
            if found.status != "done":
                return f"{found.status}: {found.report}", plan
            wrong = case.wrong(found.out, found.values)
            if wrong:
                return "; ".join(wrong[:2]), plan
            words = found.workspace
        return "", plan

    return run


def work(
    pipe: Connection, on: str, seed: int, first: int, step: int, until: float, small: bool, inputs: tuple[str, ...]
) -> None:
    """Cases first, first + step, ...; says which one is under way, and ends with counts or with what is wrong."""
    counts: Counter[str] = Counter()
    number = first
    try:
        held = contextlib.ExitStack()  # by a name: a context manager that nobody refers to is left at once
        if on == "gpu":
            held.enter_context(drvtopk.primary_context())
        run = on_gpu() if on == "gpu" else on_cpu()
        while time.monotonic() < until or number == first:
            pipe.send(number)
            case = draw(seed, number, kinds_for(number, on), small=small, inputs=inputs)
            try:
                wrong, plan = run(number, case)
            except Exception as error:
                wrong = f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)}"
            if wrong:
                pipe.send(f"{case}: {wrong}")
                return
            count(counts, case, plan)
            if step == 0:
                break
            number += step
        pipe.send(counts)
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error} {traceback.format_exc(limit=-3)}")


def count(counts: Counter[str], case: Case, plan: Plan | None) -> None:
    """What a case was, for the report at the end."""
    options = case.kind.options
    counts["cases"] += 1
    if plan is None:
        counts["route that does not fit"] += 1
        return
    waits = "cooperative" if plan.cooperative else f"clusters of {plan.group}" if plan.group > 1 else "none waits"
    counts[f"{plan.route}, {waits}"] += 1
    counts[f"loads of {plan.vec_size}"] += 1
    counts[options.dtype] += 1
    if plan.rejected is not None:
        counts["fallback"] += 1
    for name in ("values", "row_starts", "page_table"):
        counts[name] += bool(getattr(options, name))
    for name, plain in (("index_dtype", "int32"), ("order", "none"), ("tie_break", "any"), ("nan", "lowest")):
        if getattr(options, name) != plain:
            counts[f"{name} {getattr(options, name)}"] += 1
    counts.update(case.paths(plan))


def one_line(text: str) -> str:
    return " ".join(text.split())[:1500]


def repeat(on: str, seed: int, case: int, small: bool, inputs: tuple[str, ...]) -> str:
    words = ["python tools/fuzz.py --on", on, "--seed", str(seed), "--case", str(case), *["--small"] * small]
    return " ".join(words if inputs == tuple(INPUTS) else [*words, "--inputs", *inputs])


def fuzz(
    on: str,
    seed: int,
    seconds: float,
    jobs: int,
    case: int | None,
    small: bool,
    patience: float,
    inputs: tuple[str, ...] = tuple(INPUTS),
) -> int:
    """Several processes, each with cases of its own, watched by this one. Returns the exit code."""
    context = mp.get_context("spawn")
    began = time.monotonic()
    short = small or on == "cpu"  # the harness has no time for long rows
    workers: dict[Any, Any] = {}
    heard: dict[Any, float] = {}
    latest: dict[Any, int] = {}
    for job in range(1 if case is not None else jobs):
        ours, theirs = context.Pipe()
        first, step = (job, jobs) if case is None else (case, 0)
        given = (theirs, on, seed, first, step, began + seconds, short, inputs)
        process = context.Process(target=work, args=given, daemon=True)
        process.start()
        theirs.close()
        workers[ours], heard[ours], latest[ours] = process, time.monotonic(), first
    running = list(workers.values())
    total: Counter[str] = Counter()
    failure: tuple[int, str] | None = None
    while workers and failure is None:
        for pipe in wait(list(workers), timeout=0.5):
            assert isinstance(pipe, Connection)
            heard[pipe] = time.monotonic()
            try:
                said = pipe.recv()
            except EOFError:
                workers[pipe].join(5)
                said = f"the process ended with exit code {workers[pipe].exitcode}"
            if isinstance(said, int):
                latest[pipe] = said
            elif isinstance(said, Counter):
                total += said
                del workers[pipe]
            else:
                failure = failure or (latest[pipe], said)
        for pipe in workers:
            if time.monotonic() - heard[pipe] > patience:
                failure = failure or (latest[pipe], f"hangs: silent for {patience:g} s")
    if failure is None:
        cases = "1 case" if total["cases"] == 1 else f"{total['cases']} cases"
        print(f"{cases} exact on {on}, seed {seed}, {time.monotonic() - began:.0f} s, {len(running)} processes")
        print("; ".join(f"{name}: {number}" for name, number in sorted(total.items()) if name != "cases"))
        return 0
    print(f"case {failure[0]}: {one_line(failure[1])}")
    print(repeat(on, seed, failure[0], small, inputs), flush=True)
    for process in running:
        process.kill()
    for process in running:
        process.join(5)
    if any(process.is_alive() for process in running):
        os._exit(1)  # a launch that never ends may keep its process from dying, and Python would wait for that
    return 1


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="N", help="how long to draw new cases (default 60)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="default: the clock; it is printed")
    parser.add_argument("--on", choices=("gpu", "cpu"), required=True, help="a device, or the CPU harness")
    parser.add_argument("--case", type=int, metavar="I", help="only this one")
    parser.add_argument(
        "--jobs", type=int, metavar="J", help="processes (default: 8 on a GPU, one for each core on a CPU)"
    )
    parser.add_argument("--small", action="store_true", help="short rows that take every path; always so on the CPU")
    parser.add_argument(
        "--patience", type=float, metavar="N", help="seconds until a case counts as hung (default: 60 on a GPU, 240)"
    )
    parser.add_argument(
        "--inputs", nargs="+", choices=INPUTS, default=list(INPUTS), metavar="NAME", help="named inputs (default: all)"
    )
    asked = parser.parse_args(argv)
    for name in ("seed", "case"):
        if (getattr(asked, name) or 0) < 0:
            parser.error(f"--{name} must not be negative")
    if asked.jobs is not None and asked.jobs < 1:
        parser.error("--jobs must be at least 1")
    if asked.on == "gpu" and not drvtopk.devices():
        print("fuzz: error: no GPU: nothing was run; --on cpu needs none", file=sys.stderr)
        return 2
    seed = int(time.time()) if asked.seed is None else asked.seed
    print(f"seed {seed}", flush=True)
    patience = PATIENCE[asked.on] if asked.patience is None else asked.patience
    jobs, inputs = asked.jobs or JOBS[asked.on], tuple(asked.inputs)
    return fuzz(asked.on, seed, asked.seconds, jobs, asked.case, asked.small, patience, inputs)


if __name__ == "__main__":
    raise SystemExit(main())
