"""An ordinary run takes a sample of the exhaustive sets; a case that is named runs in any case."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest
from tests.sampling import SAMPLE, SOURCES, Case, Draw, changed_files, sources_digest

ROOT = Path(__file__).resolve().parents[2]
FILE = "tests/cpu/test_gpu_suite.py"
SET = "device faults"
CASES = [Case(id=f"test[{n}]", file=f"cuda_src/{n % 5}.cuh") for n in range(100)]


def taken(digest: str = "a", *, changed: Iterable[str] = (), failed: Iterable[str] = ()) -> set[str]:
    return Draw(digest=digest, changed=frozenset(changed), failed=frozenset(failed)).taken(CASES, 12)


def test_the_same_sources_draw_the_same_cases_and_others_draw_others() -> None:
    assert taken() == taken() and len(taken()) == 12
    assert set().union(*(taken(str(n)) for n in range(100))) == {case.id for case in CASES}
    assert Draw(digest="a").taken(CASES[:5], 12) == {case.id for case in CASES[:5]}


def test_what_failed_comes_first_and_then_what_changed() -> None:
    assert {int(id[5:-1]) % 5 for id in taken(changed=["cuda_src/3.cuh"])} == {3}
    drawn = taken(changed=["cuda_src/3.cuh"], failed=["test[4]", "another.py::test"])
    assert "test[4]" in drawn and {int(id[5:-1]) % 5 for id in drawn - {"test[4]"}} == {3}


def test_every_change_of_a_source_is_another_digest(tmp_path: Path) -> None:
    for name in SOURCES:
        (tmp_path / name / "__pycache__").mkdir(parents=True)
    file = tmp_path / "cuda_src" / "a.cuh"
    digests = []
    for text in ("one", "two"):
        file.write_text(text)
        digests.append(sources_digest(tmp_path))
    digests.append(sources_digest(tmp_path))
    (tmp_path / "tests" / "__pycache__" / "a.pyc").write_bytes(b"compiled")
    digests.append(sources_digest(tmp_path))
    file.rename(file.with_name("b.cuh"))
    digests.append(sources_digest(tmp_path))
    one, two, again, compiled, renamed = digests
    assert two == again == compiled and len({one, two, renamed}) == 3


def test_files_that_differ_from_the_last_commit_and_its_own_are_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert changed_files(tmp_path / "nowhere") == frozenset()
    try:
        git("init")
    except FileNotFoundError:
        pytest.skip("no git")
    assert changed_files(tmp_path) == frozenset()
    for name in ("first", "last", "new"):
        for before in ("first", "last"):
            (tmp_path / before).touch()
        (tmp_path / name).write_text(name)
        if name != "new":
            git("add", name)
            git("commit", "-m", name)
    assert changed_files(tmp_path) == {"last", "new"}
    (tmp_path / "first").write_text("again")
    assert changed_files(tmp_path) == {"first", "last", "new"}


def collected(*arguments: str) -> list[str]:
    """The cases of the set that pytest collects, without pytest-xdist."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(f"{FILE}::") and line.endswith("]")]


def test_a_case_that_is_named_runs_beside_the_sample() -> None:
    every, some = collected("--exhaustive", FILE), collected(FILE)
    assert len(some) == SAMPLE[SET] < len(every) and set(some) < set(every)
    left = min(set(every) - set(some))
    beside = collected(FILE, left)
    assert left in beside and len(beside) in (len(some), len(some) + 1), "another sample where a file was changed since"
    test = left.partition("[")[0]
    assert collected(test) == every
    assert collected(FILE, "-k", f"{every[0].partition('[')[2][:-1]} or nothing") == every[:1]


def chosen(monkeypatch: pytest.MonkeyPatch, *arguments: str, gpus: int = 0, **option: Any) -> tuple[Any, Any]:
    """(processes, how tests are distributed) for these arguments, where `option` is what pytest-xdist understands."""
    monkeypatch.setattr("drvtopk.devices", lambda: [None] * gpus)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    given = {"usepdb": False, "collectonly": False, "capture": "fd", **option}
    config: Any = SimpleNamespace(
        option=SimpleNamespace(**given), args=list(arguments), invocation_params=SimpleNamespace(dir=ROOT)
    )
    conftest.pytest_cmdline_main(config)
    return getattr(config.option, "numprocesses", "absent"), getattr(config.option, "dist", "absent")


def test_two_processes_share_a_run_where_nothing_speaks_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    free: dict[str, Any] = {"numprocesses": None, "dist": "no", "tx": []}
    assert chosen(monkeypatch, "tests", **free) == (2, "worksteal")
    assert chosen(monkeypatch, "tests") == ("absent", "absent")
    assert chosen(monkeypatch, "tests", gpus=1, **free) == (None, "no")
    assert chosen(monkeypatch, f"{FILE}::test", **free) == (None, "no")
    told: dict[str, Any]
    for told in ({"numprocesses": 0}, {"numprocesses": 8}, {"dist": "loadfile"}, {"tx": ["popen"]}):
        assert chosen(monkeypatch, "tests", **{**free, **told}) == tuple({**free, **told}.values())[:2]
    for told in ({"usepdb": True}, {"collectonly": True}, {"capture": "no"}):
        assert chosen(monkeypatch, "tests", **free, **told) == (None, "no")
