"""Draws problems from a seed, runs them and holds each result against the oracle, until the time is up.

    python tools/fuzz.py --seconds 600 --seed 1 --on gpu
    python tools/fuzz.py --seconds 60 --seed 1 --on cpu            # the kernels in the CPU harness: schedules, races
    python tools/fuzz.py --seed 1 --on gpu --case 4711             # one of them again

Shapes, options, layouts, distributions, lengths, leftovers in workspace and output, hints, routes, budgets; on a GPU
also eager launches, graphs and two streams at once. What is compiled (`Kind`) is drawn from a pool that grows with the
run. A wrong result, an error or a hang ends the run with exit code 1 and one line that repeats it.
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
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from drvtopk.errors import PlanError
from drvtopk.plan import Plan, Problem
from tests.cases import Case, draw

SILENCE = 90.0  # seconds after which a case counts as hung: compiling its kernel takes two
MODES = ("eager", "eager", "graph", "streams")
Runner = Callable[[int, Case], tuple[str, Plan | None]]  # what is wrong with a case, and how it was planned


def kinds_for(number: int) -> int:
    """How many kinds of kernel the cases up to this one are drawn from."""
    return 8 + number // 4


def on_gpu() -> Runner:
    """Runs cases on this process's device."""
    import drvtopk
    from drvtopk.engine import current_engine
    from drvtopk.reference import faults
    from tests.gpu.support import Gpu, layout

    contextlib.ExitStack().enter_context(drvtopk.primary_context())
    gpu = Gpu(current_engine())

    def run(number: int, case: Case) -> tuple[str, Plan | None]:
        rows, width = case.logits.shape
        kind = case.kind
        offset, stride = layout(width, kind.vec)
        problem = Problem(
            rows=rows,
            width=width,
            k=kind.k,
            stride=stride,
            offset=offset % 8,
            max_seq_len=case.max_seq_len,
            waits=case.waits,
            sm_budget=case.sm_budget,
            options=kind.options,
        )
        try:
            prepared = gpu.engine.prepare(problem, route=kind.route, chunk=case.chunk, tuning=kind.tuning)
        except PlanError:  # a named route that does not fit says so
            return ("", None) if kind.route == "persistent" else ("no plan", None)
        found = gpu.run(
            case.logits,
            kind.k,
            case.lengths,
            options=kind.options,
            row_starts=case.row_starts,
            page_table=case.page_table,
            page_size=case.page_size,
            offset=offset,
            stride=stride,
            out_stride=case.out_stride,
            values_stride=case.values_stride,
            prepared=prepared,
            mode=MODES[number % len(MODES)],
        )
        wrong = faults(
            case.logits,
            kind.k,
            case.lengths,
            found.indices,
            options=kind.options,
            row_starts=case.row_starts,
            values=found.values,
            page_table=case.page_table,
            page_size=case.page_size,
        )
        return "; ".join(wrong[:2]), prepared.plan

    return run


def on_cpu() -> Runner:
    """Runs cases in the CPU harness, on a GPU of a few block slots."""
    from tests.harness.scenario import WORKSPACES, Scenario, layout_of, plan_for

    def run(number: int, case: Case) -> tuple[str, Plan | None]:
        random = np.random.default_rng(number)
        rows, width = case.logits.shape
        kind = case.kind
        slots = int(random.integers(2, 9))
        offset, stride = layout_of(width, kind.vec)
        problem = Problem(
            rows=rows,
            width=width,
            k=kind.k,
            stride=stride,
            offset=offset,
            max_seq_len=case.max_seq_len,
            waits=case.waits,
            sm_budget=None if case.sm_budget is None else 1 + case.sm_budget % slots,
            options=kind.options,
        )
        try:
            plan = plan_for(problem, slots, route=kind.route, chunk=case.chunk)
        except PlanError:
            return ("", None) if kind.route == "persistent" else ("no plan", None)
        scenario = Scenario(
            plan=plan,
            logits=case.logits,
            lengths=np.full(rows, width, np.int32) if case.lengths is None else case.lengths,
            row_starts=case.row_starts,
            page_table=case.page_table,
            page_size=case.page_size,
            workspace=str(random.choice(WORKSPACES)),
            offset=offset,
            slots=slots,
            seed=number,
        )
        return scenario.complaint(), plan

    return run


def work(pipe: Connection, on: str, seed: int, first: int, step: int, until: float, small: bool) -> None:
    """Cases first, first + step, ...; says which one is under way, and ends with counts or with what is wrong."""
    counts: Counter[str] = Counter()
    number = first
    try:
        run = on_gpu() if on == "gpu" else on_cpu()
        while time.monotonic() < until or number == first:
            pipe.send(number)
            case = draw(seed, number, kinds_for(number), small=small)
            wrong, plan = run(number, case)
            if wrong:
                pipe.send(f"{case}: {wrong}")
                return
            count(counts, case, plan)
            if step == 0:
                break
            number += step
        pipe.send(counts)
    except BaseException as error:
        pipe.send(f"{type(error).__name__}: {error} {traceback.format_exc(limit=3)}")


def count(counts: Counter[str], case: Case, plan: Plan | None) -> None:
    """What a case was, for the report at the end."""
    options = case.kind.options
    counts["cases"] += 1
    counts["rows"] += len(case.logits)
    if plan is None:
        counts["route that does not fit"] += 1
        return
    counts[f"{plan.route}, {'cooperative' if plan.cooperative else 'none waits'}"] += 1
    counts[options.dtype] += 1
    if plan.why.startswith("fallback"):
        counts["fallback"] += 1
    for name in ("values", "row_starts", "page_table"):
        counts[name] += bool(getattr(options, name))
    for name, plain in (("index_dtype", "int32"), ("order", "none"), ("tie_break", "any"), ("nan", "lowest")):
        if getattr(options, name) != plain:
            counts[f"{name} {getattr(options, name)}"] += 1


def one_line(text: str) -> str:
    return " ".join(text.split())[:1500]


def fuzz(on: str, seed: int, seconds: float, jobs: int, case: int | None, small: bool) -> int:
    """Several processes, each with cases of its own, watched by this one. Returns the exit code."""
    context = mp.get_context("spawn")
    until = time.monotonic() + seconds
    workers: dict[Any, tuple[Any, list[float]]] = {}
    latest: dict[Any, int] = {}
    for job in range(1 if case is not None else jobs):
        ours, theirs = context.Pipe()
        first, step = (job, jobs) if case is None else (case, 0)
        process = context.Process(target=work, args=(theirs, on, seed, first, step, until, small), daemon=True)
        process.start()
        theirs.close()
        workers[ours] = process, [time.monotonic()]
        latest[ours] = first
    total: Counter[str] = Counter()
    failure = ""
    while workers and not failure:
        for pipe in wait(list(workers), timeout=1):
            assert isinstance(pipe, Connection)
            process, heard = workers[pipe]
            heard[0] = time.monotonic()
            try:
                said = pipe.recv()
            except EOFError:
                said = f"the process ended with exit code {process.exitcode}"
            if isinstance(said, int):
                latest[pipe] = said
            elif isinstance(said, str):
                failure = f"case {latest[pipe]}: {one_line(said)} | " + repeat(on, seed, latest[pipe], small)
            else:
                total += said
                del workers[pipe]
        for pipe, (_, heard) in workers.items():
            if time.monotonic() - heard[0] > SILENCE and not failure:
                failure = f"case {latest[pipe]}: hangs, silent for {SILENCE:.0f} s | " + repeat(
                    on, seed, latest[pipe], small
                )
    for process, _ in workers.values():
        process.kill()
    if failure:
        print(failure, flush=True)
        return 1
    print(f"{total['cases']} cases exact on {on}, seed {seed}, {seconds:g} s, {jobs} processes")
    print("; ".join(f"{name}: {number}" for name, number in sorted(total.items()) if name != "cases"))
    return 0


def repeat(on: str, seed: int, case: int, small: bool) -> str:
    return f"repeat: python tools/fuzz.py --on {on} --seed {seed} --case {case}" + (" --small" if small else "")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seconds", type=float, default=60, metavar="N", help="how long to draw new cases (default 60)"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="default: the clock; it is printed")
    parser.add_argument("--on", choices=("gpu", "cpu"), required=True, help="a device, or the CPU harness")
    parser.add_argument("--case", type=int, metavar="I", help="only this one")
    parser.add_argument("--jobs", type=int, help="processes (default: 6 on a GPU, one for each core on a CPU)")
    parser.add_argument("--small", action="store_true", help="short rows that take every path; always so on the CPU")
    asked = parser.parse_args(argv)
    if asked.on == "gpu":
        import drvtopk

        if not drvtopk.devices():
            print("no GPU: nothing was run", file=sys.stderr)
            return 2
    seed = int(time.time()) if asked.seed is None else asked.seed
    jobs = asked.jobs or (6 if asked.on == "gpu" else os.cpu_count() or 1)
    print(f"seed {seed}", flush=True)
    return fuzz(asked.on, seed, asked.seconds, jobs, asked.case, asked.small or asked.on == "cpu")


if __name__ == "__main__":
    raise SystemExit(main())
