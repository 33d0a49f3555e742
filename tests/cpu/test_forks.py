"""A child that was forked while other threads held every lock there is: it does what needs no CUDA, and never hangs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HELD = """
import os, signal, sys, threading
signal.alarm(50)
import numpy as np
import drvtopk
from drvtopk import cache, compiler, driver as drv, engine, forks, nvrtc, progress, workers
from drvtopk.interop import dlpack
from drvtopk.plan import plan
from drvtopk.testing.oracle import find_errors
from tests import emulated
from tests.producers import Interface

SOURCE = b'extern "C" __global__ void nothing() {}'
x = np.random.default_rng(1).standard_normal((2, 40_000)).astype(np.float32)
emulated.install()
memory = cache.Cache(None)

def compiled():
    return compiler.compile_source("nothing", SOURCE, "nothing.cu", {}, "sm_90", ("--gpu-architecture=sm_90",),
                                   cache=memory)

compiled()
drvtopk.topk(x, 16)
prepared = drvtopk.prepare(rows=2, width=40_000, k=16, route="persistent")
here = prepared.engine
array = drvtopk.topk(Interface(drv.load(), x), 16)
exports = [array.__dlpack__(stream=-1) for _ in range(3)]
launcher = prepared._inner._active
mine = {
    "driver": drv._lock, "compiler": nvrtc._lock, "terminal": progress._terminal, "engines": engine._lock,
    "engine": here._lock, "remembered": here._memory, "staging": here.staging._lock, "launcher": launcher._lock,
    "cache": memory._lock, "workers": workers._changed,
}
every = list(forks._locks)
assert all(any(one is held for one in every) for held in mine.values())
taken, stop = threading.Barrier(2), threading.Event()

def hold():
    for one in every:
        one.acquire()
    taken.wait()
    stop.wait(60)
    for one in every:
        one.release()

holder = threading.Thread(target=hold)
holder.start()
taken.wait()

def work():
    problem = prepared.problem
    before = len(dlpack._exported)
    del exports[:]
    dlpack.drop_abandoned()
    assert before == 3 and not dlpack._exported, "exports"
    assert compiled().from_cache, "the cache"
    memory._memory.clear()
    assert not compiled().from_cache, "the compiler"
    limits = drvtopk.KNOWN_DEVICES["h200"]
    assert plan(problem, limits, lambda variant, smem: 1).route, "a plan"
    assert here.plan(problem, route="persistent").route == "persistent", "the plan of an engine"
    assert here.remembered(problem, "persistent") is None and here.prepare_once(problem, "filtered"), "preparing"
    with progress.preparing():
        pass
    given, out, workspace = (here.driver.mem_alloc(n) for n in (x.nbytes, 2 * 16 * 4, prepared.workspace_bytes))
    here.staging.to_device(given, x, 0)
    prepared.launch(given, 0, out, workspace)  # the emulated device works in a child, unlike CUDA
    host = np.empty((2, 16), np.int32)
    here.staging.to_host(host, out, 0)
    assert find_errors(x, 16, None, host) == [], "a launch"
    for name, held in mine.items():
        assert held.acquire(timeout=5), name
        held.release()
    try:
        drvtopk.topk(x, 16)
    except drvtopk.DriverUnavailable:
        pass
    else:
        raise AssertionError("CUDA in a forked child")

pid = os.fork()
if pid == 0:
    signal.alarm(30)
    try:
        work()
    except BaseException as error:
        print(type(error).__name__, error, flush=True)
        os._exit(3)
    os._exit(0)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
stop.set()
holder.join()
assert code == 0, code
assert drvtopk.topk(x, 16).shape == (2, 16), "the parent goes on"
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_child_forked_while_every_lock_was_held_does_what_needs_no_cuda() -> None:
    done = subprocess.run([sys.executable, "-c", HELD], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.endswith("done\n"), done.stdout + done.stderr


def test_every_lock_is_one_that_forks_renew() -> None:
    made = re.compile(
        r"\b(threading|multiprocessing)\.(R?Lock|Condition|(Bounded)?Semaphore|Event)\(|import .*\bR?Lock\b"
    )
    others = [path for path in (ROOT / "drvtopk").rglob("*.py") if path.name != "forks.py"]
    assert not [path.name for path in others if made.search(path.read_text())]
    assert len(others) > 20
