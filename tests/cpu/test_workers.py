"""Compiling on all cores: in this process and in workers, which end with it and whose failures cost time only."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import drvtopk
from drvtopk import compile_worker, compiler, nvrtc, workers
from drvtopk.cache import Cache
from drvtopk.compiler import compile_source, compile_variant, compile_variants
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import CompileError, InvalidArgument
from drvtopk.plan import Problem
from drvtopk.spec import Variant
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.fake_driver import FakeDriver
from tests.needs import needs_nvrtc

ROOT = Path(__file__).resolve().parents[2]
SOURCE = b'extern "C" __global__ void nothing() {}'
OPTIONS = ("--gpu-architecture=sm_90", "--no-source-include", "--ptxas-options=-v")
linux = pytest.mark.skipif(sys.platform != "linux", reason="workers need the file of the NVRTC, known on Linux only")


@pytest.fixture(autouse=True)
def several_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 4)
    monkeypatch.setattr(workers, "_usable", True)


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Something is being compiled here, so that the next goes to a worker."""
    with workers.place() as other:
        assert not other
        yield


def asked_of_a_worker(source: bytes = SOURCE) -> tuple[int, str, bytes]:
    return workers.compile_elsewhere(nvrtc.nvrtc_path(), nvrtc.nvrtc_version(), source, "it.cu", {}, OPTIONS)


def standing_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """A worker that does this instead."""
    monkeypatch.setattr(workers, "_command", lambda: [sys.executable, "-c", code])


# -- one worker --------------------------------------------------------------------------------------------------------


@linux
def test_a_worker_makes_the_same_bytes(elsewhere: None) -> None:
    variant = Variant(route="persistent", k=77, vec_size=1)
    there = compile_variant(variant, "sm_90a")
    assert workers._usable
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "compile_elsewhere", lambda *_: pytest.fail("in a worker"))
        patch.setattr(workers, "_under_way", {})
        here = compile_variant(variant, "sm_90a")
    assert (there.cubin, there.info) == (here.cubin, here.info) and there.info.seconds > 0
    assert re.sub(r"[\d.]+ ms", "", there.log) == re.sub(r"[\d.]+ ms", "", here.log)


@linux
def test_what_a_worker_refuses_is_the_programs_fault(elsewhere: None) -> None:
    with pytest.raises(CompileError, match=r'bad\.cu\(1\): error: identifier "unknown" is undefined'):
        compile_source("bad", b"__device__ int a = unknown;", "bad.cu", {}, "sm_90", ("--gpu-architecture=sm_90",))
    assert workers._usable


@linux
def test_a_worker_has_nothing_of_the_hosts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither its environment, nor modules beside it, nor open files, nor ignored or blocked signals."""
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    (tmp_path / "sitecustomize.py").write_text("raise SystemExit('customised')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("LD_PRELOAD", "/nowhere.so")
    before = signal.signal(signal.SIGALRM, signal.SIG_IGN)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM, signal.SIGTERM})
    try:
        code, log, cubin = asked_of_a_worker()
        assert code == 0 and "registers" in log and cubin.startswith(b"\x7fELF")
        monkeypatch.setattr(workers, "SECONDS", 1)
        hold = workers._command()
        process = subprocess.Popen(hold, stdin=subprocess.PIPE)  # which never gets a request
        assert process.wait(20) == -signal.SIGALRM, "it ends by itself, whatever the parent does"
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


@linux
def test_a_worker_is_started_apart_from_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    monkeypatch.setenv("LD_PRELOAD", "")
    open_here = os.open(tmp_path, os.O_RDONLY)
    os.set_inheritable(open_here, True)
    code = f"""
import json, os, pathlib, sys
sys.stdin.read()
said = [sorted(os.environ), os.getcwd(), os.getsid(0), sorted(os.listdir("/proc/self/fd"))]
pathlib.Path({str(tmp_path / "said")!r}).write_text(json.dumps(said))
"""
    standing_in(monkeypatch, code)
    with pytest.raises(workers.WorkerFailed):
        asked_of_a_worker()
    os.close(open_here)
    names, folder, session, files = json.loads((tmp_path / "said").read_text())
    assert set(names) <= {"LD_LIBRARY_PATH", "LC_CTYPE"} and folder == "/"
    assert session != os.getsid(0), "a terminal's Ctrl-C is not for it"
    assert str(open_here) not in files or open_here < 4


@linux
def test_a_worker_of_another_library_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(workers.WorkerFailed, match="without an answer"):
        workers.compile_elsewhere(nvrtc.nvrtc_path(), (11, 0), SOURCE, "it.cu", {}, OPTIONS)


FAILURES: dict[str, str] = {
    "ends at once": "",
    "fails": "raise SystemExit(3)",
    "kills itself": "import os; os.kill(os.getpid(), 9)",
    "talks": "import sys; sys.stdin.read(); print('hello ' * 20)",
    "stops in the middle": "import sys; sys.stdin.read(); sys.stdout.write('drvtopk1' + chr(0) * 12 + chr(9) * 30)",
    "cannot compile": "import sys, struct; sys.stdin.read();"
    " sys.stdout.buffer.write(struct.pack('<8siQQ', b'drvtopk1', 7, 0, 0))",
    "takes too long": "import time; time.sleep(60)",
}


@linux
@pytest.mark.parametrize("failure", FAILURES)
def test_a_worker_that_fails_is_replaced_by_this_process(
    elsewhere: None, failure: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="drvtopk")
    standing_in(monkeypatch, FAILURES[failure])
    monkeypatch.setattr(workers, "SECONDS", 1)
    made = compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1])
    assert made.cubin.startswith(b"\x7fELF")
    (said, _) = [record.getMessage() for record in caplog.records]
    assert said.startswith("no worker process compiles (")
    monkeypatch.setattr(workers, "_command", lambda: pytest.fail("a second worker"))
    assert compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1]).cubin == made.cubin


@pytest.mark.parametrize("python", ["", None, "/opt/blender/blender", "/usr/bin/uwsgi", "/nowhere/python3"])
def test_where_there_is_no_python_to_start_this_process_compiles(
    elsewhere: None, python: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    assert compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1]).cubin


@linux
def test_a_host_that_is_named_as_the_interpreter_is_not_started_again(
    elsewhere: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    host = tmp_path / "blender"
    host.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    host.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(host))
    assert compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1]).cubin
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize("what", ["frozen", "no file", "no library"])
def test_where_no_worker_can_be_started_this_process_compiles(
    elsewhere: None, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if what == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    if what == "no file":
        monkeypatch.setattr(workers, "_PROGRAM", Path("/nowhere/worker.py"))
    if what == "no library":
        monkeypatch.setattr(compiler, "nvrtc_path", lambda: None)
    monkeypatch.setattr(workers, "_exchanged", lambda *_: pytest.fail("a worker was started"))
    assert compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1]).cubin


# -- who compiles where ------------------------------------------------------------------------------------------------


def test_one_compiles_here_and_as_many_as_there_are_cores_in_all() -> None:
    inside, most, go_on = [], [], threading.Event()

    def work(_: int) -> bool:
        with workers.place() as elsewhere:
            inside.append(elsewhere)
            most.append(len(workers._under_way))
            assert go_on.wait(20)
        return elsewhere

    with ThreadPoolExecutor(9) as pool:
        running = [pool.submit(work, number) for number in range(9)]
        until = time.monotonic() + 20
        while len(inside) < 4 and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.2)
        assert sorted(inside) == [False, True, True, True]
        go_on.set()
        assert len([future.result(20) for future in running]) == 9
    assert max(most) == 4 and not workers._under_way


def test_a_process_of_one_core_starts_no_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "cores", lambda: 1)
    monkeypatch.setattr(workers, "compile_elsewhere", lambda *_: pytest.fail("a worker"))
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: compile_source("it", SOURCE, "it.cu", {}, "sm_90", OPTIONS[:1]), range(3)))
    assert len({one.cubin for one in made}) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_nothing_under_way(elsewhere: None) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(len(workers._under_way))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- several together --------------------------------------------------------------------------------------------------


def test_calls_together_return_in_order_and_the_first_error_ends_the_others() -> None:
    def after(seconds: float, number: int) -> int:
        time.sleep(seconds)
        return number

    assert workers.together([partial(after, (5 - n) / 50, n) for n in range(5)]) == list(range(5))
    assert workers.together([]) == []
    ended: list[str] = []

    def wait() -> None:
        try:
            for _ in range(1000):
                workers.pause()
        except CancelledError:
            ended.append("it")
            raise

    def fail() -> None:
        raise ValueError("it")

    calls: list[Callable[[], object]] = [fail, wait, wait, *[partial(after, 1, 0)] * 9]
    with pytest.raises(ValueError, match="it"):
        workers.together(calls)
    assert set(ended) <= {"it"}
    workers.check()


@linux
@needs_nvrtc
def test_the_first_error_ends_the_workers_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    standing_in(monkeypatch, "import time; time.sleep(60)")
    started = threading.Event()
    exchanged = workers._exchanged

    def exchanging(*given: Any) -> bytes:
        started.set()
        return exchanged(*given)

    monkeypatch.setattr(workers, "_exchanged", exchanging)

    def fail() -> None:
        assert started.wait(20)
        time.sleep(0.3)
        raise ValueError("it")

    begun = time.monotonic()
    calls: list[Callable[[], object]] = [fail, asked_of_a_worker, asked_of_a_worker]
    with pytest.raises(ValueError, match="it"):
        workers.together(calls)
    assert time.monotonic() - begun < 15 and workers._usable, "their end says nothing of workers"


# -- a process that ends ---------------------------------------------------------------------------------------------

MANY = """
import sys, time
from pathlib import Path
sys.path.insert(0, {root!r})
from drvtopk import compiler, driver as drv, workers
from drvtopk.driver import Driver
from tests.fake_driver import FakeDriver
import drvtopk
workers.cores = lambda: 3
drv._loaded = Driver(FakeDriver())
waiting = Path({folder!r}) / "waiting.py"
waiting.write_text("import time, sys; sys.stdin.read(); time.sleep(100)")
workers._command = lambda: [sys.executable, str(waiting)]
compiler._run = lambda *_: time.sleep({here})
print("begun", flush=True)
drvtopk.prepare_many([dict(rows=2, width=100, k=k, route="filtered") for k in (5, 6, 7, 8)])
"""


def waiting_in(folder: Path) -> list[int]:
    """The workers that are there."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder / "waiting.py").encode() in path.read_bytes():
                found.append(int(path.parent.name))
    return found


def until(condition: Callable[[], object], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return bool(condition())


@linux
@pytest.mark.parametrize("group", [False, True], ids=["to it", "from a terminal"])
@needs_nvrtc
@pytest.mark.exhaustive("streams")
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_the_workers_at_once(tmp_path: Path, group: bool) -> None:
    code = MANY.format(root=str(ROOT), folder=str(tmp_path), here=5)
    env = {**os.environ, "DRVTOPK_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert until(lambda: len(waiting_in(tmp_path)) == 2), "two workers beside the one here"
        (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        assert until(lambda: not waiting_in(tmp_path), 4), "before the one here is done"
        _, said = process.communicate(timeout=30)
        assert process.returncode == -signal.SIGINT and "KeyboardInterrupt" in said
    finally:
        process.kill()


@linux
def test_a_worker_ends_with_its_parent(tmp_path: Path) -> None:
    code = f"""
import subprocess, sys, time
sys.path.insert(0, {str(ROOT)!r})
from drvtopk import workers
worker = subprocess.Popen(workers._command())
print(worker.pid, flush=True)
time.sleep(100)
"""
    silent, held = os.pipe()  # the worker's stdin, which somebody else keeps open
    process = subprocess.Popen([sys.executable, "-c", code], stdin=silent, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    try:
        time.sleep(0.5)
        assert Path(f"/proc/{worker}").exists()
        process.kill()
        process.wait()
        assert until(lambda: "Z" in state(worker) or not state(worker), 5)
    finally:
        os.close(held)
        os.close(silent)
        process.stdout.close()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


# -- prepare_many ----------------------------------------------------------------------------------------------------


class Slow:
    """Counts what it compiles, and how much at once."""

    def __init__(self) -> None:
        self.made: list[Variant] = []
        self.now = self.most = 0
        self.lock = threading.Lock()

    def __call__(self, variant: Variant, arch: str, **how: Any) -> object:
        with self.lock:
            self.made.append(variant)
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(0.1)
        with self.lock:
            self.now -= 1
        return emulated._compile(variant, arch)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch, slow: Slow) -> EmulatedDriver:
    return emulated.use(monkeypatch, EmulatedDriver(), slow)


def test_threads_that_prepare_different_problems_do_not_wait_for_each_other(api: EmulatedDriver, slow: Slow) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda k: drvtopk.prepare(rows=2, width=100, k=k, route="filtered"), range(1, 9)))
    assert slow.most > 4 and len(set(slow.made)) == len(slow.made) == 8


def test_many_are_prepared_side_by_side_in_order_and_each_kernel_once(api: EmulatedDriver, slow: Slow) -> None:
    wanted = [{"rows": 2, "width": 100, "k": k, "route": "filtered"} for k in (7, 8, 9, 10, 7, 8)]
    made = drvtopk.prepare_many(wanted)
    assert [one.plan.k for one in made] == [7, 8, 9, 10, 7, 8] and isinstance(made[0], drvtopk.Prepared)
    assert slow.most > 1 and sorted(variant.k for variant in slow.made) == [7, 8, 9, 10]
    pushed = [arguments for name, arguments in api.calls if name == "cuCtxPushCurrent"]
    assert pushed == [(0x77,)] * 6, "in the context of the caller"
    assert api.names.count("cuCtxPopCurrent") == 6
    assert drvtopk.prepare_many([]) == []
    alone = drvtopk.prepare(**wanted[0])  # type: ignore[arg-type]
    assert alone.plan == made[0].plan
    every: dict[str, Any] = {"deterministic": True, "dtype": "float16", "values": True, "stream": 0, "offset": 9}
    (one,) = drvtopk.prepare_many([{**wanted[0], **every}])
    assert one.problem == drvtopk.prepare(rows=2, width=100, k=7, route="filtered", **every).problem
    assert one.problem.offset == 1 and one.problem.options.order == "index"


@pytest.mark.parametrize(
    ("wrong", "error", "said"),
    [
        ({"rows": 2, "width": 100, "k": 0}, InvalidArgument, "k: got 0"),
        ({"rows": 2, "width": 100, "k": 9, "order": "up"}, InvalidArgument, "order: got 'up'"),
        ({"rows": 2, "width": 100}, TypeError, "'k'"),
        ({"rows": 2, "width": 100, "k": 9, "colour": "red"}, TypeError, "'colour'"),
    ],
)
def test_a_problem_that_is_wrong_is_refused_before_any_is_compiled(
    api: EmulatedDriver, slow: Slow, wrong: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        drvtopk.prepare_many([{"rows": 2, "width": 100, "k": 7}, wrong])
    assert slow.made == []


@linux
def test_many_are_really_compiled_in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    command = workers._command

    def commanding() -> list[str]:
        commands.append(command())
        return commands[-1]

    monkeypatch.setattr(workers, "_command", commanding)
    driver = Driver(FakeDriver())
    here = Engine(driver, driver.context_device(0x77), cache=Cache(tmp_path))
    problems = [Problem(rows=2, width=100, k=k) for k in (5, 6, 7)]
    made = workers.together([partial(here.prepare, problem, route="persistent") for problem in problems])
    assert [one.plan.k for one in made] == [5, 6, 7] and 1 <= len(commands) <= 2 and workers._usable
    again = compile_variants([one.plan.variant for one in made], "sm_90a", cache=Cache(tmp_path), label="again")
    assert all(one.from_cache for one in again)


def test_the_worker_is_a_program_of_its_own() -> None:
    imported = re.findall(r"^(?:from|import) (\w+)", Path(compile_worker.__file__).read_text(), re.MULTILINE)
    assert set(imported) <= {"__future__", "ctypes", "json", "os", "signal", "struct", "sys", "typing"}
