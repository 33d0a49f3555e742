"""python -m drvtopk demo: the launch that once deadlocked, and the main job, each checked against the numpy oracle.

Without a GPU: what would be launched is compiled, with its fallback, and the numpy reference runs.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.api import primary_context
from drvtopk.cache import Cache, default_folder
from drvtopk.cli import story
from drvtopk.cli.indexer import HEAD_DIM, HEADS, indexer_logits
from drvtopk.cli.options import add_gpu, asked_gpu
from drvtopk.cli.output import add_json, print_json, print_table, whole
from drvtopk.cli.planning import calculator
from drvtopk.cli.selecting import NOT_ON_A_DEVICE
from drvtopk.compiler import compile_variant
from drvtopk.engine import Engine, current_engine
from drvtopk.launch import Prepared
from drvtopk.plan import after_refusal, plan
from drvtopk.planned import Plan
from drvtopk.problem import Problem
from drvtopk.spec import KNOWN_DEVICES, MAX_K
from drvtopk.testing.oracle import find_errors, topk_reference

ROWS, WIDTH, SEED = 128, 32768, 20250929
LAUNCHES, RUNS = 20, 5


def add(commands: Any) -> None:
    parser = commands.add_parser("demo", help="run the main job and check it", description=__doc__)
    parser.add_argument("--k", type=whole(1, MAX_K), default=1024)
    parser.add_argument("--seed", type=whole(0, 2**63), default=SEED)
    add_gpu(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def batch_lengths(k: int) -> npt.NDArray[np.int32]:
    """Mixed as a server's batch is: empty, as many as there are places, short, medium, and long rows."""
    mixed = (WIDTH, 0, k - 1, 600, 16384, k, k + 1, 4097, 32000, 8192, 20000, 16385, 25_001, 32767, 12_500, WIDTH)
    return np.resize(np.minimum(np.array(mixed, dtype=np.int32), WIDTH), ROWS)


def run(arguments: argparse.Namespace) -> int:
    k = arguments.k
    lengths = batch_lengths(k)
    if not arguments.json:
        print(f"logits of a lightning indexer: {ROWS} rows x {WIDTH} positions, {HEADS} heads of {HEAD_DIM}, k {k}")
    logits = indexer_logits(ROWS, WIDTH, seed=arguments.seed)
    problem = Problem(rows=ROWS, width=WIDTH, k=k)
    device = asked_gpu(arguments.gpu)
    if device is not None:
        document, indices = _on_a_device(arguments, problem, logits, lengths)
    else:
        document, indices = _without_a_device(problem, logits, lengths, quiet=arguments.json)
    wrong = find_errors(logits, k, lengths, indices)
    wrong += [f"{step['step']}: {fault}" for step in document.get("story", ()) for fault in step["faults"]]
    document |= {
        "rows": ROWS,
        "width": WIDTH,
        "k": k,
        "lengths": lengths.tolist(),
        "heads": HEADS,
        "head_dim": HEAD_DIM,
        "seed": arguments.seed,
        "exact": not wrong,
        "faults": wrong,
    }
    if arguments.json:
        print_json(document)
    elif wrong:
        print("WRONG:", *wrong, sep="\n  ")
    else:
        answer = "" if device else " of the numpy reference"
        print(f"exact: all {ROWS} rows{answer} hold the k largest, held against the numpy oracle bit for bit")
    return 1 if wrong else 0


def _on_a_device(
    arguments: argparse.Namespace, problem: Problem, logits: npt.NDArray[np.float32], lengths: npt.NDArray[np.int32]
) -> tuple[dict[str, Any], npt.NDArray[np.int32]]:
    quiet = arguments.json
    with primary_context(arguments.gpu or 0):
        engine = current_engine()
        told = []
        for step in story.steps(engine, logits, _timed):
            told.append(step)
            if not quiet:
                took = f"{step['microseconds']:.1f} us" if "microseconds" in step else f"{step['plan_ms']:.1f} ms"
                print(f"{step['step']} ({took}): {step['seen']}", *step["faults"], sep="\n  WRONG: ")
        started = time.perf_counter()
        prepared = engine.prepare(problem)
        seconds = time.perf_counter() - started
        indices, microseconds = _timed(engine, prepared, [logits, lengths])
        made, device = prepared.plan, engine.device
    timed = f"a launch of {LAUNCHES} back to back between two events; median of {RUNS} such runs, L2 warm"
    return {"story": told} | _report(made, device.name, seconds, microseconds, timed, quiet=quiet), indices


def _timed(engine: Engine, prepared: Prepared, arrays: list[npt.NDArray[Any]]) -> tuple[npt.NDArray[np.int32], float]:
    """What a launch selects from logits and lengths, and its microseconds."""
    driver, problem = engine.driver, prepared.problem
    indices = np.full((problem.rows, problem.k), 0x7B7B7B7B, dtype=np.int32)
    arrays = [*arrays, indices]
    memory = [driver.mem_alloc(size) for size in (*(a.nbytes for a in arrays), prepared.workspace_bytes)]
    start, stop = driver.event_create(), driver.event_create()
    times = []
    try:
        for address, array in zip(memory, arrays, strict=False):
            driver.copy_to_device(address, array)
        for _ in range(1 + RUNS):  # the first run warms up
            driver.event_record(start)
            for _ in range(LAUNCHES):  # a single one would be timed with the host's own time to launch it
                prepared.launch(*memory)
            driver.event_record(stop)
            times.append(driver.event_elapsed_ms(start, stop) * 1000 / LAUNCHES)
        driver.copy_to_host(indices, memory[2])
    finally:
        driver.event_destroy(start)
        driver.event_destroy(stop)
        for address in memory:
            driver.mem_free(address)
    return indices, float(np.median(times[1:]))


def _report(made: Plan, device: str, seconds: float, microseconds: float, timed: str, *, quiet: bool) -> dict[str, Any]:
    document = {
        "device": device,
        "plan": made.document(),
        "prepare_seconds": seconds,
        "microseconds": microseconds,
        "timed": timed,
    }
    if not quiet:
        print(f"{device}: {made.why}")
        print(f"prepared (compiled or taken from the cache, loaded, planned) in {seconds:.2f} s")
        print(f"{microseconds:.1f} us on the device: {timed}")
    return document


def _without_a_device(
    problem: Problem, logits: npt.NDArray[np.float32], lengths: npt.NDArray[np.int32], *, quiet: bool
) -> tuple[dict[str, Any], npt.NDArray[np.int32]]:
    device = KNOWN_DEVICES["h200"]
    asked = calculator(device)
    made = plan(problem, device, asked)
    variants = [made.variant]
    if made.cooperative or made.variant.cluster > 1:
        variants.append(after_refusal(made, problem, device, asked).variant)
    compiled = [compile_variant(one, device.arch, cache=Cache(default_folder())) for one in variants]
    started = time.perf_counter()
    indices = topk_reference(logits, problem.k, lengths)
    seconds = time.perf_counter() - started
    if not quiet:
        and_fallback = ", and its fallback" if len(variants) > 1 else ""
        print(f"compiled for {device.arch}: what is planned{and_fallback}")
        print_table(
            ("instantiation", "registers", "spills", "cubin bytes"),
            ((one.what, one.info.registers, one.info.spill_bytes, one.info.cubin_bytes) for one in compiled),
        )
        print(f"plan for {device.name}: {made.why}")
        print(f"numpy reference: {seconds * 1000:.0f} ms on this CPU")
        print(NOT_ON_A_DEVICE)
    document = {
        "device": None,
        "note": NOT_ON_A_DEVICE,
        "planned_for": device.name,
        "plan": made.document(),
        "reference_seconds": seconds,
        "instantiations": [{"variant": one.what, "arch": one.arch, **dataclasses.asdict(one.info)} for one in compiled],
    }
    return document, indices
