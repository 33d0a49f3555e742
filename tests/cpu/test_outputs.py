"""What the command writes: whole or not there, never on an input, and refused before the work where it cannot be."""

from __future__ import annotations

import os
import pty
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from drvtopk import compiler, files
from drvtopk.__main__ import main
from drvtopk.cli import options, selecting
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]
X = np.arange(27, dtype=np.float32).reshape(3, 9)


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(options, "devices", list)
    np.save("x.npy", X)
    for name in ("lengths", "row_starts", "page_table"):
        np.save(f"{name}.npy", np.full((3, 9), 3, np.int32) if name == "page_table" else np.full(3, 3, np.int32))
    Path("folder").mkdir()


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: object, **__: object) -> None:
        pytest.fail("it was not refused before the work")

    monkeypatch.setattr(selecting, "topk_reference", work)
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    monkeypatch.setattr(compiler, "_compile", work)


def contents() -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path().rglob("*")) if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The line that refuses, which changes no file."""
    before = contents()
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("drvtopk: error: ") and shown.err.count("\n") == 1
    assert contents() == before
    return shown.err


EVERY_INPUT = ["--lengths", "lengths.npy", "--row-starts", "row_starts.npy", "--page-table", "page_table.npy"]


def linked(name: str) -> str:
    Path("link.npy").symlink_to(name)
    return "link.npy"


def linked_twice(name: str) -> str:
    Path("a").symlink_to(name)
    Path("folder/b").symlink_to("../a")
    return "folder/b"


def hard_linked(name: str) -> str:
    os.link(name, "hard.npy")
    return "hard.npy"


def in_a_linked_folder(name: str) -> str:
    Path("here").symlink_to(".")
    return f"here/{name}"


BY: dict[str, Callable[[str], str]] = {
    "itself": lambda name: name,
    "the absolute path": lambda name: str(Path(name).absolute()),
    "a path around": lambda name: f"folder/../{name}",
    "a symbolic link": linked,
    "a link of links": linked_twice,
    "a hard link": hard_linked,
    "a linked folder": in_a_linked_folder,
}


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("option", ["--out", "--values-out"])
@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("name", ["x", "lengths", "row_starts", "page_table"])
def test_an_output_never_lands_on_an_input(capsys: pytest.CaptureFixture[str], option: str, by: str, name: str) -> None:
    other = ["--out", "o.npy"] if option == "--values-out" else []
    path = BY[by](f"{name}.npy")
    said = refused(capsys, "topk", "x.npy", "--k", "4", *EVERY_INPUT, *other, option, path)
    argument = "logits" if name == "x" else f"--{name.replace('_', '-')}"
    assert f"{option}: got {path}, allowed is another file than {argument}" in said


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("by", [*BY, "a dangling link", "another case", "another composition"])
def test_two_outputs_are_two_files(capsys: pytest.CaptureFixture[str], by: str) -> None:
    first = "é.npy"
    if by in BY:
        np.save(first, X)
        second = BY[by](first)
    elif by == "a dangling link":
        Path("link.npy").symlink_to(first)
        second = "link.npy"
    else:
        second = "É.NPY" if by == "another case" else "e\u0301.npy"
    assert "than --out" in refused(capsys, "topk", "x.npy", "--k", "4", "--out", first, "--values-out", second)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def device(path: Path) -> None:
    """A terminal, which no file can take the place of, even where the tests run as root and what they test is wrong."""
    path.symlink_to(os.ttyname(pty.openpty()[1]))


NO_FILES = [Path.mkdir, pipe, unix_socket, loop, device]


@pytest.mark.usefixtures("no_work")
@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", NO_FILES, ids=lambda make: make.__name__)
def test_what_is_no_file_is_refused_as_an_output_and_as_an_input(
    capsys: pytest.CaptureFixture[str], make: Callable[[Path], None]
) -> None:
    make(Path("it.npy"))
    assert "--out: got it.npy" in refused(capsys, "topk", "x.npy", "--k", "4", "--out", "it.npy")
    assert "--values-out" in refused(capsys, "topk", "x.npy", "--k", "4", "--out", "o.npy", "--values-out", "it.npy")
    assert "logits: got it.npy" in refused(capsys, "topk", "it.npy", "--k", "4", "--out", "o.npy")
    Path("out").mkdir()
    make(Path("out/filtered_k4_v1_sm_80.cubin"))
    for command in ("compile", "export"):
        argv = [command, "--arch", "sm_80", "--k", "4", "--vec-size", "1", "--route", "filtered", "--out", "out"]
        assert "v1_sm_80.cubin" in refused(capsys, *argv)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("folder", ["/proc", "/nowhere/at/all", "x.npy", "\0", "long" * 100])
def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(
    capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    assert "--out" in refused(capsys, "topk", "x.npy", "--k", "4", "--out", f"{folder}/o.npy")
    if folder == "/nowhere/at/all":
        return  # it is made
    for command in ("compile", "export"):
        refused(capsys, command, "--arch", "sm_80", "--k", "4", "--route", "filtered", "--out", folder)


def fails(at: int) -> Callable[[int], None]:
    left = at
    really = os.fsync

    def fsync(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        really(handle)

    return fsync


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("there", [False, True])
def test_a_write_that_fails_leaves_what_was_there(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, at: int, there: bool
) -> None:
    if there:
        Path("o.npy").write_bytes(b"earlier")
        Path("v.npy").write_bytes(b"earlier too")
    before = contents()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails(at))
        assert main(["topk", "x.npy", "--k", "4", "--out", "o.npy", "--values-out", "v.npy"]) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1].startswith("drvtopk: error: [Errno 28] No space left on device: '")
    assert contents() == before, "both results or none, and no unfinished file"


def test_numpys_own_complaint_names_the_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("12 requested and 0 written")

    monkeypatch.setattr(np, "save", full)
    assert main(["topk", "x.npy", "--k", "4", "--out", "o.npy"]) == 1
    assert re.search("12 requested and 0 written: '.*/o.npy'", capsys.readouterr().err)


KILLED = """
import os, signal, sys
from drvtopk.__main__ import main
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_a_writer_that_is_killed_leaves_what_was_there() -> None:
    Path("o.npy").write_bytes(b"earlier")
    argv = ["topk", "x.npy", "--k", "4", "--out", "o.npy"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", KILLED, *argv], env=env, capture_output=True)
    assert done.returncode == -9 and Path("o.npy").read_bytes() == b"earlier"
    (left,) = Path().glob(f"{files.TEMPORARY}*")
    for name in (".new-thing", f"{left.name}.txt", left.name[:-1]):
        Path(name).write_bytes(b"somebody's")
        os.utime(name, (0, 0))
    assert main(argv) == 0 and left.exists(), "it may yet be written"
    os.utime(left, (0, 0))
    assert main(argv) == 0 and not left.exists()
    assert len(list(Path().glob(".new-*"))) == 3 and np.load("o.npy").shape == (3, 4)


def test_a_link_and_a_mode_stay_what_they_are() -> None:
    Path("folder/there.npy").write_bytes(b"")
    Path("folder/there.npy").chmod(0o640)
    Path("link.npy").symlink_to("folder/there.npy")
    assert main(["topk", "x.npy", "--k", "4", "--out", "link.npy", "--values-out", "new.npy"]) == 0
    assert Path("link.npy").is_symlink() and np.load("folder/there.npy").shape == (3, 4)
    umask = os.umask(0)
    os.umask(umask)
    assert Path("folder/there.npy").stat().st_mode & 0o777 == 0o640
    assert Path("new.npy").stat().st_mode & 0o777 == 0o666 & ~umask
    assert not list(Path().rglob(f"{files.TEMPORARY}*"))


def test_an_output_is_not_the_file_that_stdout_goes_to() -> None:
    command = [sys.executable, "-m", "drvtopk", "topk", "x.npy", "--k", "4", "--out", "o.npy"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("o.npy").open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, env=env)
    assert done.returncode == 2 and "another file than the one that stdout writes to" in done.stderr


def test_two_cubins_are_two_files_whatever_links_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    first, second = (Path("out") / f"filtered_k4_v1{alone}_sm_80.cubin" for alone in ("", "_alone"))
    argv = ["--arch", "sm_80", "--k", "4", "--vec-size", "1", "--route", "filtered", "--out", "out"]
    for command, link in (("compile", os.symlink), ("export", os.symlink), ("compile", os.link)):
        shutil.rmtree("out", ignore_errors=True)
        Path("out").mkdir()
        first.write_bytes(b"earlier")
        link(first.absolute(), second)
        assert main([command, *argv]) == 0
        assert not files.is_same(first, second) and first.read_bytes() != second.read_bytes()
