"""The command's streams: closed, full, read by nobody, in a poor encoding; and Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOPK = ["topk", "x.npy", "--k", "4", "--out", "o.npy"]
PLAN = ["plan", "--device", "h200", "--rows", "4", "--stride", "100", "--k", "8", "--occupancy", "2"]
NO_GPU = """
import sys
from drvtopk.cli import options, selecting
from drvtopk.__main__ import main
options.devices = list
sys.exit(main())
"""
SLOW = NO_GPU.replace(
    "options.devices", "selecting.topk_reference = lambda **_: __import__('time').sleep(9)\noptions.devices"
)


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.arange(27, dtype=np.float32).reshape(3, 9))


def shell(rest: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a shell, with redirections; never with a traceback."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONUNBUFFERED", "PYTHONIOENCODING")}
    env = {**kept, "PYTHONPATH": str(ROOT), **environment}
    command = f"{shlex.join([sys.executable, '-c', NO_GPU, *argv])} {rest}"
    done = subprocess.run(["sh", "-c", command], env=env, capture_output=True, text=True, errors="replace", timeout=60)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done


CLOSED = "drvtopk: error: stdout is closed: what was to be printed is lost\n"


@pytest.mark.exhaustive("streams")
@pytest.mark.parametrize("extra", [[], ["--json"]], ids=["", "json"])
@pytest.mark.parametrize(
    ("rest", "code"),
    [(">&-", 1), ("2>&-", 0), (">&- 2>&-", 1), ("<&- >&- 2>&-", 1), ("> /dev/full", 1), ("2> /dev/full", 0)],
)
def test_a_result_is_not_lost_with_a_stream(rest: str, code: int, extra: list[str]) -> None:
    done = shell(rest, *TOPK, *extra)
    assert done.returncode == code
    assert np.load("o.npy").shape == (3, 4)
    if ">&-" not in rest.partition("2>&-")[0] and "2>" in rest:
        assert done.stdout.startswith("{" if extra else "no GPU")
        assert not extra or json.loads(done.stdout)["rows"] == 3, "the warning is not among it"
    if rest == ">&-":
        assert done.stderr.endswith(CLOSED)


@pytest.mark.exhaustive("streams")
@pytest.mark.parametrize("rest", [">&-", "> /dev/full"])
@pytest.mark.parametrize("argv", [PLAN, ["--help"], ["--version"], ["plan", "--help"]], ids=" ".join)
def test_what_is_only_printed_is_an_error_where_it_cannot_be(rest: str, argv: list[str]) -> None:
    done = shell(rest, *argv)
    assert done.returncode == 1 and done.stderr.startswith("drvtopk: error: ")


@pytest.mark.exhaustive("streams")
@pytest.mark.parametrize("rest", ["2>&-", "2> /dev/full", "> /dev/full 2>&1", ">&- 2>&-"])
def test_an_error_that_nobody_can_read_has_its_code(rest: str) -> None:
    done = shell(rest, "topk", "missing.npy", "--k", "4", "--out", "o.npy")
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.exhaustive("streams")
@pytest.mark.parametrize("argv", [TOPK, [*TOPK, "--json"], PLAN, ["--help"]], ids=" ".join)
def test_a_reader_that_goes_away_is_no_complaint(argv: list[str]) -> None:
    done = shell("| true", *argv)
    assert "error" not in done.stderr
    assert argv[0] != "topk" or np.load("o.npy").shape == (3, 4)
    assert shell("| head -1", *argv).stdout.count("\n") == 1


@pytest.mark.exhaustive("streams")
@pytest.mark.parametrize("encoding", ["ascii", "ascii:strict", "latin-1", "cp1252"])
def test_a_name_that_the_terminal_cannot_spell_is_written_all_the_same(encoding: str) -> None:
    name = "größe 日本語 \udcff"
    Path(name).mkdir()
    for extra in ([], ["--json"]):
        done = shell("", "topk", "x.npy", "--k", "4", "--out", f"{name}/o.npy", *extra, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and np.load(f"{name}/o.npy").shape == (3, 4)
        if extra:
            assert json.loads(done.stdout)["out"] == f"{name}/o.npy"
        Path(name, "o.npy").unlink()


# -- Ctrl-C ------------------------------------------------------------------------------------------------------------

COMPILES = """
import ctypes, os, sys
from drvtopk import compiler
from tests import tiny
tiny.install()
def endless(*_):
    print("begun", file=sys.stderr, flush=True)
    lock = ctypes.create_string_buffer(64)
    for _ in range(2):  # the second waits without the GIL, whatever signals come, as NVRTC works
        ctypes.CDLL(None).pthread_mutex_lock(lock)
compiler._run = endless
from drvtopk.__main__ import main
raise SystemExit(main())
"""


@pytest.mark.parametrize(
    ("argv", "presses"),
    [
        (["compile", "--arch", "sm_80", "--k", "5", "--vec-size", "1"], 2),
        (["plan", "--device", "h200", "--rows", "4", "--stride", "100", "--k", "8", "--json"], 1),
    ],
    ids=["compile", "plan"],
)
@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_ends_a_compilation_at_once(argv: list[str], presses: int, tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "DRVTOPK_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", COMPILES, *argv]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        try:
            assert process.stderr is not None and process.stdout is not None
            assert process.stderr.readline() == "begun\n"
            time.sleep(0.05)
            started = time.monotonic()
            for _ in range(presses):
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
            code = process.wait(timeout=10)
            assert time.monotonic() - started < 1
            assert (code, process.stderr.read(), process.stdout.read()) == (130, "drvtopk: error: interrupted\n", "")
        finally:
            process.kill()


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_that_python_sees_is_one_line_too() -> None:
    command = [sys.executable, "-c", SLOW, *TOPK]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None and "no GPU" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert (process.wait(timeout=10), process.stderr.read()) == (130, "drvtopk: error: interrupted\n")
    assert not Path("o.npy").exists()
