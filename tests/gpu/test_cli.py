"""The commands on a machine with a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from drvtopk.__main__ import main
from drvtopk.reference import faults
from tests.gpu.support import Gpu
from tests.inputs import make


def test_demo_runs_on_the_device_and_is_exact(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert gpu.engine.device.name in shown and "us on the device" in shown and "exact: all" in shown
    assert main(["demo", "--json", "--k", "2048"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == gpu.engine.device.name and found["exact"] and found["microseconds"] > 0
    assert found["plan"]["cooperative"] and found["plan"]["why"].startswith("persistent")


def test_topk_of_a_file_runs_on_the_device(gpu: Gpu, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x, lengths = make("normal", 4, 40_000), np.array([40_000, 39_000, 5, -1])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "n.npy", lengths)
    out = tmp_path / "out.npy"
    arguments = ["topk", str(tmp_path / "x.npy"), "--lengths", str(tmp_path / "n.npy"), "--out", str(out), "--json"]
    for k, route in (("512", "auto"), ("700", "filtered")):
        assert main([*arguments, "--k", k, "--route", route]) == 0
        shown = capsys.readouterr()
        assert json.loads(shown.out)["device"] == gpu.engine.device.name and shown.err == ""
        assert faults(x, int(k), lengths, np.load(out)) == []


def test_plan_asks_the_driver(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "4", "--stride", "1118304", "--k", "1024", "--chunk", "8472", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["occupancy_source"] == "driver" and found["device"] == gpu.engine.device.name
    assert found["kernels"][-1]["occupancy"] == found["occupancy"]


def test_doctor_is_content(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert gpu.engine.device.name in capsys.readouterr().out
