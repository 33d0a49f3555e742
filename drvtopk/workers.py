"""Compilations side by side: NVRTC compiles one program at a time in a process, so more of them go to processes.

The first that is under way runs in this process, further ones in workers (`compile_worker.py`), one program each, as
many in all as there are cores. Where a worker cannot be started, or fails, this process compiles.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextvars import ContextVar
from pathlib import Path
from typing import TypeVar

from drvtopk import forks
from drvtopk.compile_worker import ANSWER, MAGIC

T = TypeVar("T")

SECONDS = 300
"""How long one compilation may take in a worker, which is then ended; and the longest wait for another process."""
_PYTHON = r"(python|pypy)[0-9.]*t?w?(\.exe)?"
_PROGRAM = Path(__file__).with_name("compile_worker.py")
_DECIDED = (0, 6)  # NVRTC_SUCCESS, NVRTC_ERROR_COMPILATION: any other answer may be the worker's own trouble
_KEPT = ("LD_LIBRARY_PATH",)  # of the environment: where NVRTC may find its builtins


class WorkerFailed(Exception):
    """A worker did not compile, for a reason that is not the program's."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Group:
    """Compilations that are given up together."""

    def __init__(self) -> None:
        self.stopped = False
        self.running: set[subprocess.Popen[bytes]] = set()

    def stop(self) -> None:
        self.stopped = True
        for process in list(self.running):
            process.kill()


_group: ContextVar[_Group | None] = ContextVar("drvtopk_group", default=None)
_changed = forks.condition()
_under_way: dict[object, bool] = {}  # the compilations of this process, and which of them are a worker's
_usable = True  # until one worker failed: what it met, the next would meet too


@forks.in_child
def _in_child() -> None:
    """What was under way stays with the parent."""
    _under_way.clear()


def check() -> None:
    """CancelledError in a thread whose work was given up."""
    group = _group.get()
    if group is not None and group.stopped:
        raise CancelledError


def pause() -> None:
    """A short wait for somebody else's work. CancelledError as `check`."""
    check()
    time.sleep(0.02)


@contextlib.contextmanager
def place() -> Iterator[bool]:
    """Around one compilation: waits for a core, and says whether to compile in a worker."""
    ours = object()
    try:
        with _changed:
            while _usable and not all(_under_way.values()) and len(_under_way) >= cores():
                check()
                _changed.wait(0.1)
            check()
            elsewhere = _under_way[ours] = _usable and not all(_under_way.values())
        yield elsewhere
    finally:
        with _changed:
            _under_way.pop(ours, None)
            _changed.notify_all()


def compile_elsewhere(
    library: str | None,
    version: tuple[int, int],
    source: bytes,
    name: str,
    headers: Mapping[str, bytes],
    options: Sequence[str],
) -> tuple[int, str, bytes]:
    """(NVRTC's code: 0, or 6 where it refused; log; cubin) from a worker with this very library.

    Raises WorkerFailed, after which every compilation is one of this process.
    """
    global _usable
    request = {
        "library": library,
        "version": version,
        "source": source.decode("latin-1"),
        "name": name,
        "names": list(headers),
        "headers": [text.decode("latin-1") for text in headers.values()],
        "options": list(options),
    }
    try:
        if library is None:
            raise WorkerFailed("the file of this NVRTC is not known")
        return _opened(_exchanged(_command(), json.dumps(request).encode()))
    except WorkerFailed:
        check()  # or it was ended with its group
        _usable = False
        raise


def _command() -> list[str]:
    """What starts a worker. A host that embeds Python may name itself in sys.executable: it is not started again."""
    python = sys.executable or ""
    if getattr(sys, "frozen", False) or not re.fullmatch(_PYTHON, Path(python).name) or not _PROGRAM.exists():
        raise WorkerFailed(f"there is no Python to start ({python or 'sys.executable is empty'})")
    return [python, "-I", "-S", str(_PROGRAM), str(os.getpid()), str(SECONDS)]


def _exchanged(command: Sequence[str], request: bytes) -> bytes:
    """What a worker answers. It has no terminal, so that Ctrl-C comes to this process alone, which ends it."""
    group = _group.get()
    try:
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={name: os.environ[name] for name in _KEPT if name in os.environ},
            start_new_session=True,
        ) as process:
            try:
                if group is not None:
                    group.running.add(process)
                check()
                return process.communicate(len(request).to_bytes(8, "little") + request, SECONDS)[0]
            finally:
                process.kill()
                if group is not None:
                    group.running.discard(process)
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        raise WorkerFailed(str(error) or type(error).__name__) from error


def _opened(answer: bytes) -> tuple[int, str, bytes]:
    if len(answer) < ANSWER.size:
        raise WorkerFailed("it ended without an answer")
    magic, code, log_bytes, cubin_bytes = ANSWER.unpack_from(answer)
    if magic != MAGIC or len(answer) != ANSWER.size + log_bytes + cubin_bytes or code not in _DECIDED:
        raise WorkerFailed(f"its answer is not one (NVRTC's code {code}, {len(answer)} bytes)")
    middle = ANSWER.size + log_bytes
    return code, answer[ANSWER.size : middle].decode(errors="replace"), answer[middle:]


def together(
    calls: Sequence[Callable[[], T]],
    watch: Callable[[Sequence[Future[T]]], Iterator[Future[T]]] | None = None,
) -> list[T]:
    """What the calls return, in order, each made in a thread, as many at once as there are cores.

    The first that raises, or Ctrl-C, ends the workers of the others, and those that have not begun never do.
    `watch` passes the calls through on their way, to show how far they are.
    """
    group = _Group()
    token = _group.set(group)
    try:
        with ThreadPoolExecutor(min(len(calls), cores()) or 1) as pool:
            try:
                running = [pool.submit(contextvars.copy_context().run, call) for call in calls]
                return [future.result() for future in (watch(running) if watch else running)]
            except BaseException:
                group.stop()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    finally:
        _group.reset(token)
