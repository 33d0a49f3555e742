"""Beside neighbours: blockers that wait for us, graph branches, green contexts, budgets; the debug build's watchdog."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drvtopk.compiler import compile_source
from drvtopk.engine import Engine
from drvtopk.plan import Problem
from drvtopk.reasons import Kind
from drvtopk.spec import ROUTES
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import POISON, Gpu

K = 1024
PATIENCE_SECONDS = 20


class Blocker:
    """Blocks of a neighbour's kernel, each with an SM's whole shared memory, that end when told to."""

    def __init__(self, gpu: Gpu, blocks: int) -> None:
        self.gpu, self.blocks = gpu, blocks
        driver = gpu.driver
        arch = gpu.engine.device.arch
        source = (Path(__file__).parent / "blocker.cu").read_bytes()
        options = (f"--gpu-architecture={arch}", "-std=c++17")
        cubin = compile_source("blocker", source, "blocker.cu", {}, arch, options).cubin
        self.function = driver.load_function(cubin, "blocker")
        self.smem = gpu.engine.device.smem_optin
        driver.raise_shared_memory_limit(self.function, self.smem)
        self.streams = [driver.stream_create(), driver.stream_create()]
        self.words = driver.mem_alloc(8)

    def __enter__(self) -> Blocker:
        driver = self.gpu.driver
        driver.memset(self.words, 0, 8)
        driver.synchronize()
        values = (ctypes.c_uint64 * 3)(self.words, self.words + 4, PATIENCE_SECONDS * 10**9)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * 3)(start, start + 8, start + 16)
        driver.launcher(self.function, self.blocks, self.smem, ctypes.addressof(pointers), "blocker")(self.streams[0])
        deadline = time.monotonic() + 10
        while self.started() < self.blocks:
            assert time.monotonic() < deadline, "the blockers did not start"
        return self

    def _word(self) -> int:
        found = np.zeros(1, np.uint32)
        call = self.gpu.driver._call
        call("cuMemcpyDtoHAsync", found.ctypes.data, self.words + 4, 4, self.streams[1])
        self.gpu.driver.stream_synchronize(self.streams[1])
        return int(found[0])

    def started(self) -> int:
        return self._word() & 0xFFFF

    def gave_up(self) -> int:
        return self._word() >> 16

    def release(self) -> None:
        self.gpu.driver.memset32(self.words, 1, 1, self.streams[1])
        self.gpu.driver.stream_synchronize(self.streams[1])

    def __exit__(self, *failure: Any) -> None:
        self.release()
        driver = self.gpu.driver
        driver.stream_synchronize(self.streams[0])
        for stream in self.streams:
            driver.stream_destroy(stream)
        driver.mem_free(self.words)


@pytest.mark.parametrize("held", [1, 16, 131])
@pytest.mark.parametrize(("rows", "width"), [(1, 262_144), (4, 2_236_609), (32, 262_144)])
def test_it_finishes_beside_blockers_that_wait_for_it(gpu: Gpu, held: int, rows: int, width: int) -> None:
    """waits="never" needs one free block slot only, whoever holds the others and for however long."""
    driver = gpu.driver
    held = min(held, gpu.engine.device.sms - 1)
    x = make("normal", rows, width)
    prepared = gpu.engine.prepare(Problem(rows=rows, width=width, k=K, waits="never"))
    assert not prepared.plan.cooperative and prepared.workspace_bytes == 0 and prepared.plan.route == "filtered"
    with gpu.memory(x.nbytes, 4 * rows * K) as (values, out):
        driver.copy_to_device(values, x)
        driver.memset(out, POISON, 4 * rows * K)
        driver.synchronize()
        stream = driver.stream_create()
        with Blocker(gpu, held) as blocker:
            prepared.launch(values, 0, out, 0, stream)
            driver.stream_synchronize(stream)
            assert blocker.started() == held and blocker.gave_up() == 0, "it finished while they were waiting"
        driver.stream_destroy(stream)
        found = np.empty((rows, K), np.int32)
        driver.copy_to_host(found, out)
    assert find_errors(x, K, None, found) == []


def test_headroom_lets_a_cooperative_launch_start_beside_a_neighbour(gpu: Gpu) -> None:
    """With one block an SM to spare, 16 held SMs leave enough room for a whole group."""
    driver = gpu.driver
    x = make("normal", 2, 500_000)
    prepared = gpu.engine.prepare(Problem(rows=2, width=500_000, k=K), route="persistent")
    plan = prepared.plan
    assert plan.cooperative and plan.headroom_kept and plan.grid <= (plan.sms - 16) * plan.occupancy
    with gpu.memory(x.nbytes, 4 * 2 * K, prepared.workspace_bytes) as (values, out, workspace):
        driver.copy_to_device(values, x)
        driver.synchronize()
        stream = driver.stream_create()
        with Blocker(gpu, 16) as blocker:
            prepared.launch(values, 0, out, workspace, stream)
            driver.stream_synchronize(stream)
            assert blocker.gave_up() == 0
        driver.stream_destroy(stream)
        found = np.empty((2, K), np.int32)
        driver.copy_to_host(found, out)
    assert find_errors(x, K, None, found) == []


@pytest.mark.parametrize("route", ["persistent", "clustered"])
def test_parallel_branches_of_one_graph(gpu: Gpu, route: str) -> None:
    driver, rows, width = gpu.driver, 32, 262_144
    x = make("normal", rows, width)
    prepared = gpu.engine.prepare(Problem(rows=rows, width=width, k=K), route=route)
    first, second = driver.stream_create(), driver.stream_create()
    size = 4 * rows * K
    with gpu.memory(x.nbytes, size, size, prepared.workspace_bytes, prepared.workspace_bytes) as held:
        values, out_a, out_b, ws_a, ws_b = held
        driver.copy_to_device(values, x)
        driver.synchronize()
        driver.begin_capture(first)
        driver.stream_wait(second, first)
        prepared.launch(values, 0, out_a, ws_a, first)
        prepared.launch(values, 0, out_b, ws_b, second)
        driver.stream_wait(first, second)
        graph = driver.end_capture(first)
        executable = driver.graph_instantiate(graph)
        for _ in range(500):
            driver.graph_launch(executable, first)
        driver.memset(out_a, POISON, size, first)
        driver.memset(out_b, POISON, size, first)
        driver.graph_launch(executable, first)
        driver.stream_synchronize(first)
        for out in (out_a, out_b):
            found = np.empty((rows, K), np.int32)
            driver.copy_to_host(found, out)
            assert find_errors(x, K, None, found) == []
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
    driver.stream_destroy(first)
    driver.stream_destroy(second)


@pytest.mark.parametrize("budget", [1, 16, 66])
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_a_budget_of_sms_caps_every_grid(gpu: Gpu, route: str, budget: int) -> None:
    rows, width = 200, 40_000
    problem = Problem(rows=rows, width=width, k=K, sm_budget=budget)
    prepared = gpu.engine.prepare(problem, route=route)
    assert prepared.plan.grid <= budget * prepared.plan.occupancy
    lengths = np.random.default_rng(budget).integers(0, width + 1, rows).astype(np.int32)
    gpu.check(make("uniform", rows, width), K, lengths, prepared=prepared)


def test_the_first_and_the_hundredth_plan_are_alike(gpu: Gpu) -> None:
    problem = Problem(rows=3, width=700_000, k=K)
    fresh = Engine(gpu.driver, gpu.engine.device)
    first = fresh.plan(problem)
    for k in (1, 4096, 512, 2048):
        fresh.plan(Problem(rows=3, width=700_000, k=k))
    assert all(fresh.plan(problem) == first for _ in range(100))


def test_a_green_contexts_share_is_what_is_planned_for(gpu: Gpu) -> None:
    api, driver = gpu.driver.api, gpu.driver
    device = driver._call("cuCtxGetDevice")
    kind = api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM
    try:
        whole = driver._call("cuDeviceGetDevResource", device, kind)
        answer = driver._call("cuDevSmResourceSplitByCount", 1, whole, 0, 32)
        description = driver._call("cuDevResourceGenerateDesc", answer[0], 1)
        flags = int(api.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)
        green = driver._call("cuGreenCtxCreate", description, device, flags)
        context = driver._call("cuCtxFromGreenCtx", green)
    except Exception as error:
        pytest.skip(f"no green contexts here: {error}")
    before = driver.current_context()
    driver._call("cuCtxSetCurrent", context)
    try:
        engine = Engine(driver, driver.context_device(context))
        assert 0 < engine.device.sms < gpu.engine.device.sms
        problem = Problem(rows=2, width=300_000, k=K)
        prepared = engine.prepare(problem, route="persistent")
        assert prepared.plan.resident_cap == engine.device.sms * prepared.plan.occupancy
        assert prepared.plan.grid <= prepared.plan.resident_cap
        inside = Gpu(engine)
        inside.check(make("normal", 2, 300_000), K, prepared=prepared)
        assert prepared.plan.route == "persistent", prepared.plan.why
        if "clustered" in gpu.routes:
            shared = engine.prepare(problem, route="clustered", group=4)
            assert shared.plan.resident_cap == engine.device.sms * shared.plan.occupancy
            inside.check(make("normal", 2, 300_000), K, prepared=shared)
        # A plan made for the whole device is refused in its share, and falls back.
        too_large = gpu.engine.plan(problem, route="persistent")
        assert too_large.grid > prepared.plan.resident_cap
        refused = engine.prepare(problem, plan=too_large)
        inside.check(make("normal", 2, 300_000), K, prepared=refused)
        assert refused.plan.route == "filtered" and refused.plan.reason.kind is Kind.REFUSED
    finally:
        driver._call("cuCtxSetCurrent", before)
        driver._call("cuGreenCtxDestroy", green)


def test_two_contexts_have_engines_of_their_own(gpu: Gpu) -> None:
    driver = gpu.driver
    device = driver._call("cuCtxGetDevice")
    try:
        other = driver._call("cuCtxCreate", 0, device)  # bindings 12
    except TypeError:
        other = driver._call("cuCtxCreate", None, 0, device)  # bindings 13
    try:
        from drvtopk.engine import current_engine

        engine = current_engine()
        assert engine is not gpu.engine
        Gpu(engine).check(make("normal", 2, 100_000), K)
    finally:
        driver._call("cuCtxDestroy", other)
    assert driver.current_context() is not None
    gpu.check(make("normal", 2, 100_000), K)


CORRUPTED = """
import dataclasses, sys
import drvtopk
from drvtopk.engine import current_engine
from drvtopk.plan import Problem
from drvtopk.spec import Tuning
from drvtopk.errors import DriverError

with drvtopk.primary_context():
    engine = current_engine()
    driver = engine.driver
    problem = Problem(rows=2000, width=200_000, k=1024, stride=0)
    tuning = Tuning(wait_limit=200_000)
    plan = engine.plan(problem, route="persistent", tuning=tuning)
    if sys.argv[1] == "missing block":
        plan = dataclasses.replace(plan, grid=plan.grid - 1)
    prepared = engine.prepare(problem, plan=plan)
    values, out, workspace = (driver.mem_alloc(n) for n in (800_000, 4 * 2000 * 1024, prepared.workspace_bytes))
    driver.memset(values, 1, 800_000)
    driver.synchronize()
    streams = driver.stream_create(), driver.stream_create()
    prepared.launch(values, 0, out, workspace, streams[0])
    if sys.argv[1] == "corrupted counter":
        for _ in range(200):
            driver.memset(workspace, 0, 4, streams[1])  # the first group's arrivals are forgotten
    try:
        driver.stream_synchronize(streams[0])
        print("ended", flush=True)
    except DriverError as error:
        print("error", error.call, error.code, error.name, flush=True)
"""


@pytest.mark.real
@pytest.mark.parametrize("how", ["missing block", "corrupted counter", "nothing"])
def test_the_watchdog_of_a_debug_build_turns_a_hang_into_a_message(gpu: Gpu, how: str) -> None:
    """In a process of its own: a launch that fails leaves a context that is of no more use."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", CORRUPTED, how],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=root,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
    )
    shown = done.stdout + done.stderr
    if how == "nothing":
        assert "ended" in done.stdout, shown
    else:
        assert "drvtopk: block" in shown and "gave up waiting" in shown and "error cuStreamSynchronize" in shown, shown
