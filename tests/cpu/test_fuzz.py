"""The fuzzer: a seed draws the same cases, right kernels pass, and each kind of wrong ends it with its repeat."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import asdict
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

import drvtopk
from drvtopk.plan import Problem, plan
from drvtopk.routes import vec_size
from drvtopk.spec import KNOWN_DEVICES, ROUTES
from drvtopk.testing.cases import CHOICES, draw, every_pair
from tests.needs import needs_cpp, needs_nvrtc
from tools import fuzz

ROOT = Path(__file__).resolve().parents[2]
TREE = ("drvtopk", "cuda_src", "tests", "tools")
SEED = ("--seed", "1")

# fuzz.py on the emulated device of tests/emulated.py, in its processes too: they import this file first.
EMULATED = """
import os
from tests import emulated
emulated.install(os.environ["EMULATED_FAULT"])
from tools import fuzz
if __name__ == "__main__":
    raise SystemExit(fuzz.main())
"""


def run(*command: str | Path, cwd: Path = ROOT, fault: str = "") -> tuple[int, list[str], str]:
    """(exit code, lines of standard output, standard error)."""
    env = {**os.environ, "PYTHONPATH": str(cwd), "EMULATED_FAULT": fault}
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout.splitlines(), done.stderr


def tree(folder: Path, file: str, text: str, by: str) -> Path:
    """A copy of the project with one thing changed."""
    for name in TREE:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed = folder / file
    assert changed.read_text().count(text) == 1
    changed.write_text(changed.read_text().replace(text, by))
    return folder


def test_a_fallback_is_counted_as_one() -> None:
    case, device = draw(1, 7, 20, small=True), KNOWN_DEVICES["a100"]
    for width, fallbacks in ((1000, 0), (9_000_000, 1)):
        counts: Counter[str] = Counter()
        fuzz.count(counts, case, plan(Problem(rows=1, width=width, k=64), device, lambda variant, smem: 2))
        assert counts["cases"] == 1 and counts["fallback"] == fallbacks


def test_a_seed_and_a_number_are_one_case() -> None:
    for number in (0, 7, 400):
        for small in (False, True):
            kinds = fuzz.kinds_for(number, "gpu")
            one, two = (draw(3, number, kinds, small=small) for _ in range(2))
            assert str(one) == str(two) and one.kind == two.kind
            for name, value in ((name, getattr(one, name)) for name in one.__slots__):
                other = getattr(two, name)
                assert value.tobytes() == other.tobytes() if isinstance(value, np.ndarray) else value == other, name
    texts = {str(draw(seed, number, 20, small=True)) for seed in (1, 2) for number in range(20)}
    assert len(texts) == 40, "every number and every seed is another case"


@pytest.mark.parametrize("on", fuzz.POOL)
def test_the_pool_grows_and_growing_slows_down(on: str) -> None:
    sizes = [fuzz.kinds_for(number, on) for number in range(20_000)]
    assert sizes[0] == 8 and all(0 <= after - before <= 1 for before, after in pairwise(sizes))
    assert sizes[3000] - sizes[0] > sizes[19_000] - sizes[16_000]


@needs_nvrtc
def test_what_is_drawn_covers_everything() -> None:
    cases = [draw(1, number, 60, small=True) for number in range(500)]
    for name, allowed in CHOICES.items():
        assert {getattr(case.kind.options, name) for case in cases} == set(allowed)
    assert {case.kind.route for case in cases} == {*ROUTES, "auto"}
    assert {case.waits for case in cases} == {"allowed", "never"}
    tables = [case.page_table for case in cases if case.page_table is not None]
    assert any(table.min(initial=0) < 0 for table in tables) and any(table.max(initial=0) > 2**30 for table in tables)
    for case in cases:
        assert vec_size(case.problem, case.kind.vec) == case.kind.vec, "the layout gives the load that was drawn"
        assert case.stride >= case.logits.shape[1]
    assert any(case.lengths is None for case in cases)
    assert any(case.lengths is not None and case.lengths.min() < 0 < 2000 < case.lengths.max() for case in cases)


def test_every_pair_of_options_meets() -> None:
    sets = [asdict(options) for options in every_pair()]
    assert len(sets) < 20
    for a, b in combinations(CHOICES, 2):
        assert len({(one[a], one[b]) for one in sets}) == len(CHOICES[a]) * len(CHOICES[b]), (a, b)


@needs_cpp
def test_right_kernels_pass() -> None:
    code, lines, errors = run("tools/fuzz.py", "--on", "cpu", *SEED, "--seconds", "5", "--jobs", "2")
    assert code == 0, (lines, errors)
    assert lines[0] == "seed 1" and " exact on cpu, seed 1, " in lines[1] and "2 processes" in lines[1]
    assert "rows short: " in lines[2] and "loads of " in lines[2]


@needs_cpp
@pytest.mark.exhaustive("planted")
@pytest.mark.parametrize(
    ("file", "text", "by", "says"),
    [
        ("cuda_src/row_alone.cuh", "if (i < row.n) {", "if (i <= row.n) {", "row "),
        (
            "drvtopk/testing/oracle.py",
            "best = np.sort(np.partition(keys, n - m)[n - m :])",
            "best = np.sort(keys[:m])",
            "keys",
        ),
        ("tests/harness/runner.py", "timeout: float = 60,", "timeout: float = 0.001,", "timeout"),
    ],
    ids=["kernel", "oracle", "hang"],
)
def test_a_wrong_kernel_or_oracle_ends_it_with_the_line_that_repeats_it(
    tmp_path: Path, file: str, text: str, by: str, says: str
) -> None:
    there = tree(tmp_path / "tree", file, text, by)
    code, lines, errors = run("tools/fuzz.py", "--on", "cpu", *SEED, "--seconds", "60", "--jobs", "1", cwd=there)
    assert code == 1 and errors == "", (lines, errors)
    seed, what, command = lines
    assert seed == "seed 1" and what.startswith("case ") and says in what
    python, *again = shlex.split(command)
    assert python == "python" and "--case" in again
    assert run(*again, cwd=there) == (code, lines, ""), "the same case is wrong in the same way"


@pytest.mark.exhaustive("device faults")
@pytest.mark.parametrize("fault", ["", "hole", "writes_beside", "order_ignored", "pages_of_minus_one"])
def test_on_a_gpu(tmp_path: Path, fault: str) -> None:
    """On the emulated one: eager, graphs, streams and what they write."""
    script = tmp_path / "emulated_fuzz.py"
    script.write_text(EMULATED)
    asked = ("--on", "gpu", "--small", *SEED, "--seconds", "2" if fault == "" else "60", "--jobs", "1")
    code, lines, errors = run(script, *asked, fault=fault)
    if fault == "":
        assert code == 0 and " exact on gpu" in lines[1] and "persistent, cooperative: " in lines[2], (lines, errors)
        return
    assert code == 1 and lines[1].startswith("case ") and lines[2].endswith("--small"), (lines, errors)
    assert run(script, *shlex.split(lines[2])[2:], fault=fault) == (code, lines, "")


def test_a_launch_that_never_ends_does_not_hang_the_fuzzer(tmp_path: Path) -> None:
    script = tmp_path / "emulated_fuzz.py"
    script.write_text(EMULATED)
    asked = ("--on", "gpu", "--small", *SEED, "--seconds", "60", "--jobs", "2", "--patience", "2")
    code, lines, _ = run(script, *asked, fault="hangs")
    assert code == 1 and lines[1].endswith("hangs: silent for 2 s") and "--case" in lines[2]


def test_without_a_gpu_it_says_so() -> None:
    if drvtopk.devices():
        pytest.skip("there is a GPU")
    code, lines, errors = run("tools/fuzz.py", "--on", "gpu", *SEED, "--seconds", "1")
    assert code == 2 and lines == [] and errors.startswith("fuzz: error: no GPU") and errors.count("\n") == 1


@pytest.mark.parametrize("wrong", [("--jobs", "0"), ("--seed", "-1"), ("--case", "-3")])
def test_bad_arguments_are_named(wrong: tuple[str, str]) -> None:
    code, _, errors = run("tools/fuzz.py", "--on", "cpu", *wrong)
    assert code == 2 and f"error: {wrong[0]} must" in errors
