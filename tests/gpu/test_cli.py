"""The commands on a machine with a GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drvtopk.__main__ import main
from drvtopk.spec import ROUTES, Options
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors, narrowed
from tests.gpu.support import Gpu


def test_demo_runs_on_the_device_and_is_exact(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert gpu.engine.device.name in shown and "us on the device" in shown and "exact: all" in shown
    assert main(["demo", "--json", "--k", "2048"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == gpu.engine.device.name and found["exact"] and found["microseconds"] > 0
    assert found["plan"]["rejected"] is None and f"{found['plan']['route']}: " in found["plan"]["why"]
    assert [step["faults"] for step in found["story"]] == [[], [], []] and "720" in found["story"][2]["seen"]


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
        assert find_errors(x, int(k), lengths, np.load(out)) == []


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(4,), (4, 1), (2, 2)], ids=lambda shape: "x".join(map(str, shape)))
def test_topk_of_files_with_every_option(
    gpu: Gpu, capsys: pytest.CaptureFixture[str], tmp_path: Path, shape: tuple[int, ...], route: str
) -> None:
    random = np.random.default_rng(3)
    x = narrowed(random.integers(0, 50, (4, 40_000)).astype(np.float32), "bfloat16")
    given = {
        "logits": x,
        "lengths": np.array([40_000, 39_000, 5, -1]).reshape(shape),
        "row_starts": np.array([0, 77, 39_998, 5]).reshape(shape),
        "page_table": np.stack([random.permutation(5000)[:625] for _ in range(2)]),
    }
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    out, beside = tmp_path / "out.npy", tmp_path / "values.npy"
    argv = ["topk", str(tmp_path / "logits.npy"), "--k", "600", "--out", str(out), "--values-out", str(beside)]
    argv += [f"--{name.replace('_', '-')}={tmp_path / name}.npy" for name in ("lengths", "row_starts", "page_table")]
    argv += ["--page-size", "64", "--dtype", "bfloat16", "--index-dtype", "int64", "--deterministic", "--json"]
    argv += ["--nan", "highest"]
    options = Options(
        dtype="bfloat16",
        index_dtype="int64",
        values=True,
        row_starts=True,
        order="index",
        tie_break="smallest",
        nan="highest",
        page_table=True,
    )
    more: dict[str, Any] = {name: given[name] for name in ("row_starts", "page_table")}
    assert main([*argv, "--route", route]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["device"] == gpu.engine.device.name and shown["plan"]["route"] == route
    values = np.load(beside)
    wrong = find_errors(x, 600, given["lengths"], np.load(out), options=options, values=values, page_size=64, **more)
    assert wrong == []


def test_plan_asks_the_driver(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--rows", "4", "--stride", "1118304", "--k", "1024", "--chunk", "8472", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["occupancy_source"] == "driver" and found["device"] == gpu.engine.device.name
    assert found["kernels"][-1]["occupancy"] == found["occupancy"]


def test_plan_asks_the_driver_for_clusters(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    gpu.needs("clustered")
    argv = [
        "plan",
        "--rows",
        "4",
        "--stride",
        "100000",
        "--k",
        "1024",
        "--route",
        "clustered",
        "--group",
        "8",
        "--json",
    ]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["route"], found["grid"], found["block"]) == ("clustered", 32, 512)
    assert (
        found["clusters"][-1]["clusters"] >= 1 and f"{found['clusters'][-1]['clusters']} clusters fit" in found["why"]
    )


def test_doctor_is_content(gpu: Gpu, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    assert gpu.engine.device.name in capsys.readouterr().out
