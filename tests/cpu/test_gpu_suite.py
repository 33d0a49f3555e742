"""The GPU tests themselves, on an emulated device: they run, and each kind of wrong answer makes one of them fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from drvtopk.spec import Variant
from tests.emulated import FAULTS
from tests.gpu import support

ROOT = Path(__file__).resolve().parents[2]
EXACT, LIVENESS, OPTIONS = (f"tests/gpu/test_{name}.py" for name in ("exact", "liveness", "options"))
CLUSTERS, DEPENDENT = (f"tests/gpu/test_{name}.py" for name in ("clusters", "dependent"))
# A fault, and the one test at one instantiation that has to notice it.
CAUGHT = {
    "coarse_keys": f"{EXACT}::test_named_inputs_at_every_path[narrow_1.245-filtered-2048-4]",
    "first_missed": f"{EXACT}::test_members_at_the_seams[filtered-512-1]",
    "last_missed": f"{EXACT}::test_members_at_the_seams[filtered-512-1]",
    "seams_missed": f"{EXACT}::test_members_at_the_seams[persistent-512-1]",
    "infinity_is_nan": f"{EXACT}::test_named_inputs_at_every_path[few_specials-filtered-512-4]",
    "nan_is_minus_infinity": f"{EXACT}::test_minus_infinity_comes_before_nan[filtered-512-4]",
    "denormals_flushed": f"{EXACT}::test_named_inputs_at_every_path[denormals-filtered-512-4]",
    "saturated": f"{EXACT}::test_named_inputs_at_every_path[saturates_fp16-filtered-512-4]",
    "raw_nan_order": f"{EXACT}::test_named_inputs_at_every_path[nan_payloads-filtered-512-4]",
    "wide_bin_dropped": f"{EXACT}::test_a_threshold_bin_with_as_many_keys_as_a_block_keeps[0-filtered-2048-4]",
    "duplicate": f"{EXACT}::test_ties_fill_the_prefix[filtered-512-4]",
    "hole": f"{EXACT}::test_ties_fill_the_prefix[filtered-512-4]",
    "stale_tail": f"{EXACT}::test_degenerate_shapes[filtered-512-4]",
    "unsigned_lengths": f"{EXACT}::test_negative_and_zero_lengths_are_empty_rows[filtered-512-4]",
    "unclamped_lengths": f"{EXACT}::test_lengths_are_clamped_and_nothing_past_the_width_is_selected[filtered-512-4]",
    "lengths_ignored": f"{EXACT}::test_rows_of_every_path_in_all_orders[1-filtered-512-4]",
    "hint_believed": f"{EXACT}::test_a_wrong_hint_costs_time_only[persistent-512-4]",
    "writes_beside": f"{EXACT}::test_layouts[0-0-filtered]",
    "writes_behind_workspace": f"{EXACT}::test_members_at_the_seams[persistent-512-4]",
    "reads_workspace": f"{LIVENESS}::test_a_workspace_left_by_another_problem_is_as_good_as_a_fresh_one",
    "rows_shifted_in_groups": f"{EXACT}::test_rows_of_every_path_in_all_orders[3-persistent-1024-4]",
    "graph_keeps_lengths": f"{LIVENESS}::test_a_captured_graph_is_right_for_any_later_lengths[filtered]",
    "oversubscription_accepted": (
        f"{LIVENESS}::test_the_driver_refuses_real_oversubscription_and_the_fallback_answers[4]"
    ),
    "tie_break_ignored": f"{OPTIONS}::test_every_option_on_every_path[smallest-filtered]",
    "order_ignored": f"{OPTIONS}::test_every_option_on_every_path[by_value-filtered]",
    "row_starts_ignored": f"{OPTIONS}::test_windows_begin_anywhere[float32-4-filtered]",
    "nan_policy_ignored": f"{OPTIONS}::test_nan_of_either_sign_is_lowest_or_highest[highest-filtered]",
    "values_of_empty_places": f"{OPTIONS}::test_values_of_short_rows_are_filled_with_minus_infinity[float32-filtered]",
    "pages_of_minus_one": f"{OPTIONS}::test_page_tables[3-filtered]",
    "last_part_missed": f"{CLUSTERS}::test_members_at_the_seams_of_the_parts[16]",
    "successor_early": f"{DEPENDENT}::test_ten_thousand_launches_each_read_the_one_before[eager-filtered]",
    "high_words_left": f"{OPTIONS}::test_every_option_on_every_path[int64-filtered]",
}


RUNS = """
import os, sys, pytest
for line in sys.stdin:
    os.environ["EMULATED_FAULT"], test = line.rstrip().split(",", 1)
    print("code", int(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "tests.emulated", test])), flush=True)
"""
Suite = Callable[[str, str], tuple[int, str]]


@pytest.fixture(scope="module")
def suite() -> Iterator[Suite]:
    """Runs one test on a device with one fault, or "" for none: pytest's exit code, and its output.

    All in one process, which imports everything once.
    """
    env = {**os.environ, "PYTEST_ADDOPTS": ""}
    process = subprocess.Popen(
        [sys.executable, "-c", RUNS],
        cwd=ROOT,
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    asked, answers = process.stdin, process.stdout

    def run(fault: str, test: str) -> tuple[int, str]:
        print(fault, test, sep=",", file=asked, flush=True)
        said = ""
        for line in answers:
            code = re.fullmatch(r"code (\d+)\n", line)
            if code:
                return int(code[1]), said
            said += line
        raise AssertionError(f"it has ended: {said}")

    with process:
        yield run
        asked.close()


def test_every_fault_has_its_test() -> None:
    assert {*CAUGHT, "hangs"} == set(FAULTS), "a hang takes a minute to be noticed, so it is not tried here"


@pytest.mark.exhaustive("device faults")
@pytest.mark.parametrize("fault", CAUGHT)
def test_a_right_device_passes_what_a_wrong_one_fails(suite: Suite, fault: str) -> None:
    code, said = suite("", CAUGHT[fault])
    assert code == pytest.ExitCode.OK, said
    code, said = suite(fault, CAUGHT[fault])
    assert code == pytest.ExitCode.TESTS_FAILED, said


def test_what_is_cached_is_not_compiled_ahead_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path))
    known = Variant(route="persistent", k=8, vec_size=1)
    support.compile_ahead([known], "sm_90a")
    entries = list(tmp_path.iterdir())
    assert len(entries) == 1

    def refuse(**how: object) -> None:
        raise RuntimeError("a process is begun")

    monkeypatch.setattr(support, "ProcessPoolExecutor", refuse)
    support.compile_ahead([known], "sm_90a")
    with pytest.raises(RuntimeError, match="a process is begun"):
        support.compile_ahead([known, Variant(route="persistent", k=9, vec_size=1)], "sm_90a")
    assert list(tmp_path.iterdir()) == entries
