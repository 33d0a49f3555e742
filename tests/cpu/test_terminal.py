"""Progress: on stderr, where a terminal is and kernels are really compiled; never on stdout, and else nothing."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from tests.needs import needs_nvrtc

ROOT = Path(__file__).resolve().parents[2]

PREPARE = """
import sys
if "no tqdm" in sys.argv:
    sys.modules["tqdm"] = None
from pathlib import Path
from drvtopk import driver as drv
from drvtopk.driver import Driver
from tests.fake_driver import FakeDriver
drv._loaded = Driver(FakeDriver())
from tests import tiny
tiny.install()
import drvtopk
drvtopk.prepare(rows=2, width=9, k=5, route="filtered")
drvtopk.prepare(rows=2, width=9, k=6, route="filtered")
print("done")
"""
REFUSED = PREPARE.replace(
    "import drvtopk\n",
    """import drvtopk
from drvtopk import compiler
def refuse(*_):
    raise compiler.CompileError("it", (), "no")
compiler._run = refuse
""",
)


def in_a_terminal(code: str, *arguments: str, cwd: Path = ROOT, **environment: str) -> tuple[int, str, str]:
    """(exit code, stdout, what the terminal behind stderr got)."""
    watched, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 40, 120, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("TQDM_", "DRVTOPK_"))}
    env = {**inherited, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, *(("-c", code) if code else ("-m", "tests.tiny")), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, cwd=cwd, env=env)
    os.close(theirs)
    seen = b""
    while True:
        readable, _, _ = select.select([watched], [], [], 60)
        try:
            piece = os.read(watched, 4096) if readable else b""
        except OSError:  # nobody has the other end any more
            break
        if not piece:
            break
        seen += piece
    os.close(watched)
    out, _ = process.communicate(timeout=60)
    return process.returncode, out.decode(), seen.decode()


def piped(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, "-c", code, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("how", ["tqdm", "no tqdm"])
def test_a_preparation_that_compiles_says_so_and_leaves_nothing_behind(how: str, tmp_path: Path) -> None:
    if how == "tqdm":
        pytest.importorskip("tqdm")
    code, out, seen = in_a_terminal(PREPARE, how, DRVTOPK_CACHE=str(tmp_path))
    assert (code, out) == (0, "done\n"), seen
    for k in (5, 6):
        assert f"drvtopk: compiling filtered<{k},1,alone> for sm_90a (0 done" in seen
    assert seen.rpartition("\r")[2].replace("\033[K", "").strip() == "", "the line is cleared"
    again = in_a_terminal(PREPARE, how, DRVTOPK_CACHE=str(tmp_path))
    assert again == (0, "done\n", ""), "nothing is compiled, so there is nothing to wait for"


@pytest.mark.parametrize("how", ["tqdm", "no tqdm"])
@needs_nvrtc
def test_it_can_be_turned_off(how: str, tmp_path: Path) -> None:
    assert in_a_terminal(PREPARE, how, DRVTOPK_CACHE=str(tmp_path), DRVTOPK_PROGRESS="0") == (0, "done\n", "")


@needs_nvrtc
def test_without_a_terminal_nothing_is_written(tmp_path: Path) -> None:
    done = piped(PREPARE, DRVTOPK_CACHE=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


@needs_nvrtc
def test_a_process_without_stderr_prepares_all_the_same(tmp_path: Path) -> None:
    for line in ("sys.stderr = None", "sys.stderr.close()"):
        done = piped(PREPARE.replace("from pathlib", f"{line}\nfrom pathlib"), DRVTOPK_CACHE=str(tmp_path))
        assert (done.returncode, done.stdout) == (0, "done\n")


@needs_nvrtc
def test_a_kernel_that_does_not_compile_ends_the_display_too(tmp_path: Path) -> None:
    code, out, seen = in_a_terminal(REFUSED, DRVTOPK_CACHE=str(tmp_path))
    assert code == 1 and out == "" and "compiling filtered<5,1,alone>" in seen
    shown, _, error = seen.partition("Traceback")
    assert shown.rpartition("\r")[2].replace("\033[K", "").strip() == "" and "CompileError" in error


@pytest.mark.parametrize("command", ["compile", "export"])
@needs_nvrtc
def test_commands_show_how_far_they_are(command: str, tmp_path: Path) -> None:
    argv = [command, "--arch", "sm_80", "--k", "5", "--vec-size", "1", "--route", "filtered", "--json"]
    argv += ["--out", str(tmp_path / "out")]
    code, out, seen = in_a_terminal("", *argv, DRVTOPK_CACHE=str(tmp_path))
    assert code == 0 and out.startswith("{") and f"{command} sm_80: " in seen and "0/2" in seen
    code, out, seen = in_a_terminal("", *argv, DRVTOPK_CACHE=str(tmp_path), DRVTOPK_PROGRESS="0")
    assert code == 0 and out.startswith("{") and seen == ""


def test_many_preparations_share_one_display(tmp_path: Path) -> None:
    first = PREPARE.partition("drvtopk.prepare(")[0]
    problems = '[dict(rows=2, width=9, k=k, route="filtered") for k in (5, 6)]'
    many = f'{first}drvtopk.prepare_many({problems})\nprint("done")\n'
    code, out, seen = in_a_terminal(many, "no tqdm", DRVTOPK_CACHE=str(tmp_path))
    assert (code, out) == (0, "done\n"), seen
    for k in (5, 6):
        assert f"drvtopk: compiling filtered<{k},1,alone> for sm_90a (" in seen
    assert seen.rpartition("\r")[2].replace("\033[K", "").strip() == "", "the line is cleared"
    assert in_a_terminal(many, "no tqdm", DRVTOPK_CACHE=str(tmp_path)) == (0, "done\n", "")


@needs_nvrtc
def test_two_preparations_at_once_do_not_write_over_each_other(tmp_path: Path) -> None:
    """The one that comes second shows nothing."""
    threads = PREPARE.replace(
        """drvtopk.prepare(rows=2, width=9, k=5, route="filtered")
drvtopk.prepare(rows=2, width=9, k=6, route="filtered")
""",
        """import threading
from drvtopk import compiler
from drvtopk.progress import preparing
really, both = compiler._compile, threading.Barrier(2)
def run(what, *rest):
    both.wait(30)
    return really(what, *rest)
compiler._compile = run
def one(k):
    with preparing():
        compiler.compile_variant(drvtopk.Variant(route="filtered", k=k, vec_size=1), "sm_80")
running = [threading.Thread(target=one, args=(k,)) for k in (5, 6)]
[thread.start() for thread in running]
[thread.join() for thread in running]
""",
    )
    code, out, seen = in_a_terminal(threads, DRVTOPK_CACHE=str(tmp_path))
    assert (code, out) == (0, "done\n"), seen
    assert ("<5,1>" in seen) + ("<6,1>" in seen) == 1
