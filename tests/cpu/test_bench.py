"""The benchmark without a GPU: what it refuses, what it notices, what it writes. The times are an emulated device's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drvtopk import driver as drv
from drvtopk import engine
from drvtopk.driver import Driver
from drvtopk.reference import topk_reference
from tests import emulated
from tests.inputs import make
from tools import bench


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> emulated.EmulatedDriver:
    """A device that is not there, and little memory for it."""
    fake = emulated.EmulatedDriver()
    monkeypatch.setattr(drv, "_loaded", Driver(fake))
    monkeypatch.setattr(engine, "_engines", {})
    monkeypatch.setattr(engine, "compile_variant", emulated._compile)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))
    for name, value in (("POOL_BYTES", 16 << 20), ("FLUSH_BYTES", 1 << 20), ("WARM_UP_SECONDS", 0), ("REPLAYS", 3)):
        monkeypatch.setattr(bench, name, value)
    return fake


def test_each_cell_is_written_with_what_repeats_it(device: emulated.EmulatedDriver, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cells.jsonl"
    command = "--rows 1,3 --len 600,40000 --k 512 --input normal,all_equal --route auto,filtered --out"
    assert bench.main([*command.split(), str(out)]) == 0
    cells = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(cells) == 2 * 2 * 2 * 2
    assert {(c["rows"], c["len"], c["k"], c["dtype"]) for c in cells} == {
        (rows, length, 512, "float32") for rows in (1, 3) for length in (600, 40000)
    }
    assert {c["len"]: c["route"] for c in cells if c["planned"]} == {600: "filtered", 40000: "persistent"}
    assert {c["route"] for c in cells if not c["planned"]} == {"filtered"}
    assert all(c["us"] > 0 and c["floor_us"] > 0 and c["control_us"] > 0 for c in cells)
    assert all(command in c["command"] and {"gpu", "driver", "date", "input"} <= c.keys() for c in cells)
    assert not device.held or all(size >= 1 << 20 for _, size in device.held.values()), "only pool and flush are left"


def test_a_wrong_output_ends_the_run_and_keeps_what_was_right(device: emulated.EmulatedDriver, tmp_path: Path) -> None:
    out = tmp_path / "cells.jsonl"
    device.fault = "hole"
    with pytest.raises(SystemExit, match=r"WRONG: 1 x 4096, k 512, normal, auto.*row 0"):
        bench.main(["--rows", "1", "--len", "100,4096", "--k", "512", "--out", str(out)])
    assert [json.loads(line)["len"] for line in out.read_text().splitlines()] == [100], "shorter than k: no hole there"


def test_every_launch_of_the_graph_is_checked() -> None:
    x = make("normal", 2, 3000)
    good = np.stack([topk_reference(x, 512)] * 3)
    assert bench.right(x, 512, good) == []
    for which in range(3):
        for spoil in (lambda row: row.__setitem__(0, row[1]), lambda row: row.__setitem__(0, -1), np.ndarray.sort):
            bad = good.copy()
            spoil(bad[which, 1])
            assert (bench.right(x, 512, bad) == []) == (spoil is np.ndarray.sort), "order does not matter"
        bad = good.copy()
        bad[which, 0, 7] = np.setdiff1d(np.arange(3000), good[0, 0])[0]
        assert bench.right(x, 512, bad)


def test_a_machine_that_changed_during_the_run_is_noticed(
    device: emulated.EmulatedDriver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for controls, noticed in (((1.38, 1.40), False), ((1.39, 1.80), True)):
        answers = iter(controls)
        monkeypatch.setattr(bench.Clock, "control", lambda self, answers=answers: next(answers))
        assert bench.main(["--rows", "1", "--len", "600,700", "--k", "8"]) == 0
        assert ("NOT COMPARABLE" in capsys.readouterr().out) == noticed


def test_cells_that_would_end_too_late_are_named_and_left_out(
    device: emulated.EmulatedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--quick", "--rows", "1", "--len", "600", "--time-budget", "0.1"]) == 0
    shown = capsys.readouterr().out
    assert "left out" in shown and "(1024, 1, 600, 'normal')" in shown and "all exact" not in shown


def test_the_time_budget_learns_from_slow_cells() -> None:
    budget = bench.Budget(100)
    guess = budget.guess(1, 4096, 1024, 1)
    assert guess < budget.guess(256, 524288, 1024, 1) < 60 and budget.allows(guess)
    budget.spent(guess, 50 * guess)
    assert not budget.allows(guess)
    assert not bench.Budget(0).allows(guess)


@pytest.mark.parametrize(
    ("option", "value"), [("--input", "abnormal"), ("--route", "best"), ("--rows", "0"), ("--len", "many"), ("--k", "")]
)
def test_bad_options_are_one_clear_line(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main([option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("drvtopk.devices", list)
    out = tmp_path / "cells.jsonl"
    assert bench.main(["--out", str(out)]) == 1
    assert "nothing was measured" in capsys.readouterr().err and not out.exists()
