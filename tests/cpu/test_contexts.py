"""Contexts, threads and forks on an emulated device: one engine a context, nothing compiled twice, nobody stuck."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import driver as drv
from drvtopk import engine
from drvtopk.engine import current_engine
from drvtopk.errors import CompileError, DriverError, DriverUnavailable, InvalidArgument
from drvtopk.interop.arrays import from_address
from drvtopk.spec import Variant
from drvtopk.testing.oracle import find_errors
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.producers import CupyArray, Interface, Memory, Tensor, Versioned, frameworks

THREADS = 32


class Compiler:
    """Takes its time, counts, and can be told to fail or to wait."""

    def __init__(self) -> None:
        self.made: Counter[Variant] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()
        self.failing = 0

    def __call__(self, variant: Variant, arch: str, **how: Any) -> object:
        self.made[variant] += 1
        self.waiting.set()
        assert self.gate.wait(20)
        time.sleep(0.02)
        if self.failing:
            self.failing -= 1
            raise CompileError(str(variant), (), "it was told to")
        return emulated._compile(variant, arch)


@pytest.fixture
def compiler() -> Compiler:
    return Compiler()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> EmulatedDriver:
    return emulated.use(monkeypatch, EmulatedDriver(), compiler)


def logits(seed: int, rows: int, width: int) -> Any:
    return np.random.default_rng(seed).standard_normal((rows, width)).astype(np.float32)


@pytest.mark.parametrize("failing", [0, 3])
def test_many_threads_use_everything_first_at_once(api: EmulatedDriver, compiler: Compiler, failing: int) -> None:
    """The same problems in every thread, started together; a compiler that fails at first harms only who asked."""
    compiler.failing = failing
    shapes = [(2, 3000, 16), (3, 20_000, 64), (2, 40_000, 16)]
    together = threading.Barrier(THREADS)

    def work(which: int) -> list[str]:
        together.wait()
        complaints = []
        for turn in range(6):
            rows, width, k = shapes[(which + turn) % len(shapes)]
            x = logits(100 * which + turn, rows, width)
            try:
                given: Any = x if which % 2 else Interface(drv.load(), x)
                found: Any = drvtopk.topk(given, k)
            except CompileError:
                complaints.append("compile")
                continue
            complaints += find_errors(x, k, None, found if which % 2 else found.numpy())
        return complaints

    with ThreadPoolExecutor(THREADS) as pool:
        complaints = [c for found in pool.map(work, range(THREADS)) for c in found]
    assert complaints == ["compile"] * failing
    assert sum(compiler.made.values()) == len(compiler.made) + failing, "an instantiation was compiled twice"
    assert len(engine._engines) == 1
    loads = api.names.count("cuModuleLoadData")
    assert loads == len(compiler.made)


def test_who_is_prepared_does_not_wait_for_who_compiles(api: EmulatedDriver, compiler: Compiler) -> None:
    x = logits(1, 2, 3000)
    drvtopk.topk(x, 16)
    ready = drvtopk.prepare(rows=2, width=3000, k=16)
    compiler.waiting.clear()
    compiler.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(drvtopk.topk, x, 17)
        assert compiler.waiting.wait(20)
        again = pool.submit(drvtopk.topk, x, 16)
        assert find_errors(x, 16, None, again.result(timeout=20)) == []
        array, out = Interface(drv.load(), x), Interface(drv.load(), np.zeros((2, 16), np.int32))
        pool.submit(ready, array, out=out).result(timeout=20)
        assert not other.done()
        compiler.gate.set()
        assert find_errors(x, 17, None, other.result(timeout=20)) == []


def test_each_context_has_an_engine_of_its_own(api: EmulatedDriver) -> None:
    first = current_engine()
    x = logits(1, 2, 3000)
    drvtopk.topk(x, 16)
    loads = api.names.count("cuModuleLoadData")
    api.contexts.append(0x88)
    second = current_engine()
    assert second is not first and second.context == 0x88
    assert find_errors(x, 16, None, drvtopk.topk(x, 16)) == []
    assert api.names.count("cuModuleLoadData") == loads + 1, "a kernel belongs to the context that loaded it"
    api.contexts.pop()
    assert current_engine() is first
    drvtopk.topk(x, 16)
    assert api.names.count("cuModuleLoadData") == loads + 1


def test_contexts_that_come_and_go_do_not_pile_up(api: EmulatedDriver) -> None:
    first = current_engine()
    api.contexts.append(0)
    used = [0x77, *range(1000, 1000 + 2 * engine._CONTEXTS)]
    for context in used:
        api.contexts[-1] = context
        current_engine()
        api.contexts[-1] = 0x77
        assert current_engine() is first, "the one in use is kept"
    assert len(engine._engines) == engine._CONTEXTS


def test_the_callers_context_is_never_changed(api: EmulatedDriver) -> None:
    drvtopk.topk(logits(1, 2, 3000), 16)
    array = drvtopk.topk(Interface(drv.load(), logits(1, 2, 3000)), 16)
    array.numpy()
    assert not {n for n in api.names if n.startswith(("cuCtxCreate", "cuCtxSet", "cuCtxDestroy", "cuDevicePrimary"))}


FORKS = """
import os, signal, sys, threading, time
signal.alarm(30)
import numpy as np
import drvtopk
from drvtopk import driver as drv, engine
from tests import emulated
x = np.random.default_rng(1).standard_normal((2, 3000)).astype(np.float32)

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            work()
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(3)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def fresh():
    emulated.install()
    assert drvtopk.topk(x, 16).shape == (2, 16)

assert child(fresh) == 0, "forking before the first use is fine"
emulated.install()
prepared = drvtopk.prepare(rows=2, width=3000, k=16)
array = drvtopk.from_address(1 << 20, (2, 3000), "float32")
stop = threading.Event()

def hold(lock):
    with lock:
        stop.wait(20)

for lock in (drv._lock, engine._lock, prepared._inner._active._lock):
    threading.Thread(target=hold, args=(lock,), daemon=True).start()
time.sleep(0.2)

def refused():
    for call in (
        lambda: drvtopk.topk(x, 16),
        lambda: drvtopk.prepare(rows=2, width=3000, k=16),
        drvtopk.primary_context().__enter__,
    ):
        try:
            call()
        except drvtopk.DriverUnavailable as error:
            assert "forked after CUDA was initialised" in str(error), error
        else:
            raise AssertionError("not refused")
    assert drvtopk.devices() == []
    drvtopk.topk_reference(x, 16)
    assert child(lambda: drvtopk.topk(x, 16)) == 3, "nor does a child of it"
    prepared._inner._active._lock.acquire(timeout=5) or os._exit(4)

assert child(refused) == 0
stop.set()
time.sleep(0.2)
assert drvtopk.topk(x, 16).shape == (2, 16), "the parent goes on"
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_is_told_so_and_never_hangs() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", FORKS], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr
    assert "forked after CUDA was initialised" in done.stdout  # of the grandchild


# Threads without a context

# What the driver answers without one; the rest is told CUDA_ERROR_INVALID_CONTEXT.
FREE = {"cuCtxGetCurrent", "cuCtxSetCurrent", "cuCtxPushCurrent", "cuCtxPopCurrent", "cuCtxGetId", "cuDeviceGet"}
FREE |= {"cuDeviceGetCount", "cuDeviceGetName", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain", "cuInit"}
FREE |= {"cuDevicePrimaryCtxGetState"}
FREE |= {"cuDriverGetVersion", "cuGetErrorName", "cuGetErrorString", "cuGetProcAddress", "cuStreamGetGreenCtx"}
FREE |= {"cuThreadExchangeStreamCaptureMode"}


class Strict(EmulatedDriver):
    """Each thread has contexts of its own, and every other one begins without any."""

    def __init__(self) -> None:
        super().__init__()
        self.mine = threading.local()
        self.stack.append(0x77)

    @property
    def stack(self) -> list[int]:
        if not hasattr(self.mine, "stack"):
            self.mine.stack = []
        found: list[int] = self.mine.stack
        return found

    def __getattr__(self, name: str) -> Any:
        call = super().__getattr__(name)
        if name in FREE:
            return call

        def within(*args: Any) -> Any:
            return call(*args) if self.stack else (201,)

        return within

    def _cuCtxGetCurrent(self) -> int:
        return self.stack[-1] if self.stack else 0

    def _cuCtxPushCurrent(self, context: int) -> tuple[int]:
        self.stack.append(context)
        return (0,)

    def _cuCtxPopCurrent(self) -> int:
        return self.stack.pop()

    def _cuCtxSetCurrent(self, context: int) -> tuple[int]:
        self.stack[-1:] = [context] if context else []
        return (0,)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return 0x77


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch, compiler: Compiler) -> Strict:
    api = Strict()
    emulated.use(monkeypatch, api, compiler)
    return api


def elsewhere(work: Callable[[], Any]) -> Any:
    """What it gives on a thread that is new."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=20)


@pytest.mark.parametrize("kind", [Tensor, CupyArray, Versioned])
def test_an_array_that_says_its_device_works_on_a_thread_without_a_context(
    monkeypatch: pytest.MonkeyPatch, strict: Strict, kind: type[Memory]
) -> None:
    frameworks(monkeypatch, 0)
    x = logits(1, 2, 3000)
    given = kind(drv.load(), x)
    found = elsewhere(lambda: drvtopk.topk(given, 16))
    assert find_errors(x, 16, None, found.numpy()) == []
    assert elsewhere(lambda: strict.stack) == [] and strict.stack == [0x77]


def test_one_that_does_not_say_it_is_refused_as_ever(strict: Strict) -> None:
    given = Interface(drv.load(), logits(1, 2, 3000))
    with pytest.raises(DriverUnavailable, match="no CUDA context is current on this thread"):
        elsewhere(lambda: drvtopk.topk(given, 16))
    assert not {"cuLaunchKernel", "cuMemAlloc"} & set(strict.names[-3:])


@pytest.mark.parametrize("route", ["filtered", "persistent"])
def test_what_is_prepared_runs_in_its_context_on_any_thread(strict: Strict, route: Any) -> None:
    x = logits(1, 2, 40_000)
    ready = drvtopk.prepare(rows=2, width=40_000, k=16, route=route)
    driver = drv.load()
    array, out = Interface(driver, x), Interface(driver, np.zeros((2, 16), np.int32))
    workspace = from_address(driver.mem_alloc(ready.workspace_bytes or 1), (ready.workspace_bytes,), "uint8")
    bound = ready.bind(array, out=out, workspace=workspace)
    for call in (
        lambda: ready(array, out=out, workspace=workspace),
        lambda: ready.launch(array.at, 0, out.at, workspace.address),
        lambda: ready.bind(array, out=out, workspace=workspace)(0),
        lambda: bound(0),
    ):
        driver.memset(out.at, 0x55, 4 * 2 * 16)
        elsewhere(call)
        found = np.empty((2, 16), np.int32)
        driver.copy_to_host(found, out.at)
        assert find_errors(x, 16, None, found) == []
    strict.fail["cuLaunchCooperativeKernel" if route == "persistent" else "cuLaunchKernel"] = 700
    with pytest.raises(DriverError, match="700"):
        elsewhere(lambda: bound(0))
    assert strict.stack == [0x77]


def test_a_refusal_on_such_a_thread_falls_back_there(strict: Strict) -> None:
    x = logits(1, 2, 40_000)
    driver = drv.load()
    ready = drvtopk.prepare(rows=2, width=40_000, k=16, route="persistent")
    array, out = Interface(driver, x), Interface(driver, np.zeros((2, 16), np.int32))
    workspace = from_address(driver.mem_alloc(ready.workspace_bytes), (ready.workspace_bytes,), "uint8")
    first = ready.bind(array, out=out, workspace=workspace)
    strict.fail["cuLaunchCooperativeKernel"] = 720
    elsewhere(lambda: first(0))
    found = np.empty((2, 16), np.int32)
    driver.copy_to_host(found, out.at)
    assert find_errors(x, 16, None, found) == [] and ready.plan.route == "filtered"


@pytest.mark.parametrize(
    ("change", "kind", "says"),
    [
        ({"cuDevicePrimaryCtxGetState": lambda device: (0, 0, 0)}, DriverUnavailable, "no CUDA context is current"),
        ({"cuDeviceGetCount": lambda: (0, 0)}, InvalidArgument, "logits: got on device 0"),
    ],
)
def test_an_array_of_nobodys_primary_context_is_refused(
    strict: Strict, change: dict[str, Any], kind: type[Exception], says: str
) -> None:
    """An inactive primary context owns no memory, so the array is another context's."""
    given = Versioned(drv.load(), logits(1, 2, 3000))
    drvtopk.topk(given, 16)
    strict.replace |= change
    with pytest.raises(kind, match=says) as refused:
        elsewhere(lambda: drvtopk.topk(given, 16))
    assert refused.value.__cause__ is None and "cuDevicePrimaryCtxRetain" not in strict.names


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("way", ["launch", "bound", "call"])
def test_only_a_thread_without_a_context_borrows_one_and_only_one_that_is_there(
    strict: Strict, gone: bool, way: str
) -> None:
    """The driver says 201 of a destroyed context, too."""
    x = logits(1, 2, 3000)
    driver = drv.load()
    ready = drvtopk.prepare(rows=2, width=3000, k=16)
    array, out = Interface(driver, x), Interface(driver, np.zeros((2, 16), np.int32))
    bound = ready.bind(array, out=out)
    calls: dict[str, Callable[[], Any]] = {
        "launch": lambda: ready.launch(array.at, 0, out.at),
        "bound": lambda: bound(0),
        "call": lambda: ready(array, out=out),
    }
    if gone:
        strict.replace["cuCtxGetId"] = lambda context: (201,)
    strict.fail["cuLaunchKernel"] = 201
    strict.calls.clear()
    with pytest.raises(DriverError, match="returned 201"):
        elsewhere(calls[way]) if gone else calls[way]()
    assert "cuCtxPushCurrent" not in strict.names and strict.stack == [0x77]
