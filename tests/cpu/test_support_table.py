"""README's tables of what is supported: as their rows say, and every cell with tests that there are."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from drvtopk.spec import ARCHITECTURES, ROUTES, Options
from tools import support_table
from tools.support_table import ARCHITECTURE_TESTS, ROWS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def collected() -> set[str]:
    """The names that pytest itself gives to every test, with and without their parameters."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--exhaustive",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "tests",
    ]
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    names = [line for line in done.stdout.splitlines() if "::" in line]
    assert done.returncode == 0 and names, done.stdout + done.stderr
    return {*names, *(name.split("[")[0] for name in names)}


def test_the_tables_are_what_the_rows_say() -> None:
    text = (ROOT / "README.md").read_text()
    assert support_table.rewritten(text) == text


def test_check_sees_a_table_that_is_out_of_date(monkeypatch: pytest.MonkeyPatch) -> None:
    assert support_table.main(["--check"]) == 0
    monkeypatch.setattr(support_table, "ROWS", ROWS[1:])
    assert support_table.main(["--check"]) == 1


@pytest.mark.parametrize("name", [*(row.name for row in ROWS), "architectures"])
def test_every_test_that_is_named_exists(collected: set[str], name: str) -> None:
    tests = [test for row in ROWS if row.name == name for test in row.tests] or ARCHITECTURE_TESTS
    assert [test for test in tests if test not in collected] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_cell_has_a_test_behind_it(collected: set[str], row: support_table.Row) -> None:
    for route in ROUTES:
        running = [test for test in row.on(route) if test.startswith("tests/gpu/")]
        assert running == list(row.on(route))
        exactly = [name for test in running for name in collected if name == test or name.startswith(f"{test}[")]
        assert any(re.search(rf"[\[-]{route}[\]-]", name) for name in exactly), f"no test of {row.name} runs {route}"
    assert row.cpu and all(test.startswith("tests/cpu/") for test in row.cpu)


def test_every_option_has_a_row() -> None:
    names = {row.name for row in ROWS}
    assert {field.name for field in dataclasses.fields(Options)} - {"dtype"} < names
    assert {"float32", "bfloat16", "float16", "k", "lengths", "deterministic", "zeros"} < names
    assert len(names) == len(ROWS)


def test_the_tests_behind_a_row_are_printed_for_pytest(capsys: pytest.CaptureFixture[str]) -> None:
    assert support_table.main(["--tests", "nan"]) == 0
    (row,) = [row for row in ROWS if row.name == "nan"]
    assert capsys.readouterr().out.split("\n") == [*row.tests, ""]
    assert support_table.main(["--tests"]) == 0
    shown = set(capsys.readouterr().out.splitlines())
    assert shown == {*ARCHITECTURE_TESTS, *(test for row in ROWS for test in row.tests)}


@pytest.mark.parametrize("test", ARCHITECTURE_TESTS)
def test_a_column_says_yes_where_the_tests_compile(collected: set[str], test: str) -> None:
    compiled = {name.split("[")[1].split("-")[0] for name in collected if name.startswith(f"{test}[")}
    assert compiled == set(ARCHITECTURE_TESTS[test])


def test_every_architecture_has_a_column() -> None:
    assert {arch for archs in ARCHITECTURE_TESTS.values() for arch in archs} == set(ARCHITECTURES)
