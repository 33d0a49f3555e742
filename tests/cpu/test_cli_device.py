"""The commands with a device under them, which is emulated: right, wrong, too old, or failing."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drvtopk.__main__ import main
from drvtopk.cli import demo, indexer
from drvtopk.driver import Driver
from drvtopk.spec import ROUTES, Options
from drvtopk.testing.oracle import find_errors, narrowed
from tests import emulated
from tests.emulated import EmulatedDriver


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    """The process's only device, for one test."""
    return emulated.use(monkeypatch, EmulatedDriver())


def test_demo_times_launches_back_to_back_and_nothing_else(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["exact"] and found["device"] == "Fake H200" and found["plan"]["route"] == "filtered"
    assert (found["seed"], found["heads"], found["head_dim"]) == (demo.SEED, indexer.HEADS, indexer.HEAD_DIM)
    timed = [name for name in api.names if name.startswith(("cuEvent", "cuLaunch"))]
    run = ["cuEventRecord", *["cuLaunchKernel"] * demo.LAUNCHES, "cuEventRecord"]
    run += ["cuEventSynchronize", "cuEventElapsedTime"]
    assert timed[-2 - len(run) * (1 + demo.RUNS) : -2] == run * (1 + demo.RUNS)
    assert found["microseconds"] == pytest.approx(0.001 * 1000 / demo.LAUNCHES)  # the emulated device's millisecond
    assert f"{demo.LAUNCHES} back to back" in found["timed"]


def test_demo_tells_what_becomes_of_the_launch_that_once_deadlocked(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["demo", "--json"]) == 0
    refused, planned, oversubscribed = json.loads(capsys.readouterr().out)["story"]
    assert "cannot run" in refused["seen"] and "265" in refused["seen"] and "264" in refused["seen"]
    assert "headroom" in planned["step"] and planned["seen"].startswith("persistent") and planned["microseconds"] > 0
    assert oversubscribed["step"].startswith("265 blocks") and "720" in oversubscribed["seen"]
    assert "265 blocks, 264 were to fit" in oversubscribed["seen"]
    assert [step["faults"] for step in (refused, planned, oversubscribed)] == [[], [], []]
    grids = [args[1] for name, args in api.calls if name == "cuLaunchCooperativeKernel"]
    assert grids.count(265) == 1 and set(grids) == {265, grids[0]} and grids[0] <= 264


def test_the_warming_run_is_not_counted(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([*[7.0] * 12, 5000.0, 1.0, 1.0, 2.0, 3.0, 3.0])  # two launches of the story first
    monkeypatch.setattr(api, "replace", {"cuEventElapsedTime": lambda *_: (0, next(times))})
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["microseconds"] == pytest.approx(2000 / demo.LAUNCHES)


@pytest.mark.parametrize("fault", ["duplicate", "hole", "stale_tail", "lengths_ignored"])
def test_demo_on_a_wrong_device_fails_and_names_the_rows(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], fault: str
) -> None:
    api.fault = fault
    assert main(["demo"]) == 1
    shown = capsys.readouterr().out
    assert "WRONG:\n  row " in shown and "exact: all" not in shown
    assert main(["demo", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["exact"] and found["faults"]


def test_topk_reports_the_plan_that_ran(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    x, lengths = np.random.default_rng(1).standard_normal((3, 40_000)).astype(np.float32), np.array([40_000, 3, -1])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "n.npy", lengths)
    out = tmp_path / "out.npy"
    argv = ["topk", str(tmp_path / "x.npy"), "--k", "64", "--out", str(out), "--json"]
    assert main([*argv, "--lengths", str(tmp_path / "n.npy"), "--route", "filtered"]) == 0
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert shown.err == "" and found["device"] == "Fake H200" and found["lengths"] == str(tmp_path / "n.npy")
    assert found["plan"]["route"] == "filtered" and found["plan"]["why"] == found["why"]
    launched = [name for name in api.names if name.startswith("cuLaunch")]
    assert launched == ["cuLaunchKernel"], "what ran is what is reported"
    assert find_errors(x, 64, lengths, np.load(out)) == []
    assert main([*argv, "--max-seq-len", "100"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["max_seq_len"] == 128, "the next power of two"
    assert "cuLaunchCooperativeKernel" not in api.names, "the hint was given to what ran, too"


@pytest.mark.parametrize("route", ROUTES)
def test_topk_with_every_option_reports_what_ran_with_them(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], tmp_path: Path, route: str
) -> None:
    random = np.random.default_rng(3)
    x = narrowed(random.integers(0, 50, (4, 40_000)).astype(np.float32), "bfloat16")
    given = {
        "logits": x,
        "lengths": np.array([40_000, 39_000, 5, -1]),
        "row_starts": np.array([0, 77, 39_998, 5]),
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
    assert main([*argv, "--route", route]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["device"] == "Fake H200" and found["plan"]["route"] == route
    assert found["options"] == found["plan"]["options"] == dataclasses.asdict(options)
    assert len([name for name in api.names if name.startswith("cuLaunch")]) == 1
    modules = 1 if route == "filtered" else 2  # with the fallback's; a plan of something else would load more
    assert api.names.count("cuModuleLoadData") == modules
    more: dict[str, Any] = {name: given[name] for name in ("row_starts", "page_table")}
    values = np.load(beside)
    wrong = find_errors(x, 600, given["lengths"], np.load(out), options=options, values=values, page_size=64, **more)
    assert wrong == []


def test_topk_with_a_route_that_does_not_fit_is_bad_input(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    api.blocks = lambda smem: 0 if smem > 90_000 else 1
    api.sms = 2
    np.save(tmp_path / "x.npy", np.zeros((1, 200_000), np.float32))
    out = tmp_path / "out.npy"
    argv = ["topk", str(tmp_path / "x.npy"), "--k", "64", "--out", str(out)]
    assert main([*argv, "--route", "persistent"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.count("\n") == 1 and "cannot run" in shown.err and not out.exists()
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("Fake H200: filtered: by a model the fastest for 1 x 200000")


def test_plan_auto_shows_the_drivers_clusters(api: EmulatedDriver, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["plan", "--rows", "4", "--stride", "100000", "--k", "1024", "--route", "clustered", "--json"]

    def shown(*more: str) -> Any:
        assert main([*argv, *more]) == 0
        return json.loads(capsys.readouterr().out)

    found = shown("--group", "16")
    resident = api.resident_clusters(16, found["smem_bytes"])
    assert found["clusters"][-1] == {
        "variant": found["kernels"][-1]["variant"],
        "smem_bytes": found["smem_bytes"],
        "clusters": resident,
    }
    assert f"; {resident} clusters fit at once" in found["why"] and found["grid"] == 64 and not found["pdl"]
    few = shown("--group", "16", "--sms", "20")
    assert few["clusters"][-1]["clusters"] == 20 * few["occupancy"] // 16 and few["sms"] == 20
    assert shown("--pdl")["pdl"]
    api.replace["cuOccupancyMaxActiveClusters"] = lambda function, config: (0, int(config.gridDimX == 2))
    assert [one["clusters"] for one in shown()["clusters"]] == [0, 0, 0, 1] and shown()["group"] == 2
    assert main([*argv, "--group", "16"]) == 2
    assert "no cluster of 16 blocks" in capsys.readouterr().err


def test_plan_auto_is_the_drivers_answer_within_the_given_limits(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", "--rows", "4", "--stride", "100000", "--k", "1024", "--chunk", "25000", "--json"]
    api.blocks = lambda smem: 2 if smem <= 113_000 else 1
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["occupancy"], found["occupancy_source"], found["device"]) == (2, "driver", "Fake H200")
    assert main([*argv, "--smem-optin", "60000", "--sms", "50"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["route"] == "filtered" and found["rejected"]["occupancy"] == 0 and found["sms"] == 50


@pytest.mark.parametrize(
    ("argv", "call"),
    [
        (["demo"], "cuLaunchKernel"),
        (["demo", "--json"], "cuMemAlloc"),
        (["plan", "--rows", "4", "--stride", "100000", "--k", "8"], "cuModuleLoadData"),
        (["plan", "--rows", "4", "--stride", "100000", "--k", "8"], "cuDeviceGetAttribute"),
    ],
    ids=lambda v: v if isinstance(v, str) else v[0],
)
def test_a_driver_error_is_one_line_and_exit_code_1(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], argv: list[str], call: str
) -> None:
    api.fail[call] = 2
    assert main(argv) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"drvtopk: error: {call} returned 2 ") and shown.count("\n") == 1


def test_doctor_is_content_only_with_a_device_that_the_kernels_run_on(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drvtopk.cli.doctor.nvrtc_version", lambda: (12, 9))

    def examined(code: int) -> list[str]:
        assert main(["doctor", "--json"]) == code
        missing = json.loads(capsys.readouterr().out)["missing"]
        assert isinstance(missing, list)
        return missing

    assert examined(0) == []
    assert main(["doctor"]) == 0
    assert "Fake H200 (sm_90a, 132 SMs, clusters of up to 16)" in capsys.readouterr().out
    api.version = 11080
    (said,) = examined(1)
    assert "newer than the driver, which runs CUDA 11.8" in said and "nvidia-cuda-nvrtc-cu11" in said
    api.version = 13000
    api.attributes |= {"COMPUTE_CAPABILITY_MAJOR": 7, "COMPUTE_CAPABILITY_MINOR": 5}
    (said,) = examined(1)
    assert "Fake H200 (sm_75)" in said and "8.0" in said
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "Fake H200" in shown and "numpy" in shown, "the rest is printed all the same"
    api.attributes |= {"COMPUTE_CAPABILITY_MAJOR": 9, "COMPUTE_CAPABILITY_MINOR": 0}
    new = Driver(api).devices()[0]
    old = dataclasses.replace(new, name="Old T4", arch="sm_75")
    monkeypatch.setattr(Driver, "devices", lambda _: [new, old])
    assert examined(0) == []
    monkeypatch.setattr(Driver, "devices", lambda _: [old, new])
    (said,) = examined(1)
    assert said.startswith("the first device, Old T4 (sm_75), is taken where no context") and "Fake H200 is" in said


@pytest.mark.parametrize("command", ["topk", "demo", "plan"])
def test_the_gpu_that_is_named_is_the_one_that_runs(
    api: EmulatedDriver, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    """Of two. Without a context a command takes the primary one of its device."""
    api.replace |= {"cuDeviceGetCount": lambda: (0, 2), "cuDeviceGet": lambda ordinal: (0, ordinal)}
    api.replace["cuDeviceGetName"] = lambda length, device: (0, f"GPU number {device}".encode())
    api.replace["cuCtxGetCurrent"] = lambda: (0, api.contexts[-1] if used else 0)
    used: list[int] = []

    def retain(device: int) -> tuple[int, int]:
        used.append(device)
        return 0, 0x77

    api.replace["cuDevicePrimaryCtxRetain"] = retain
    api.replace["cuCtxGetDevice"] = lambda: (0, used[-1])
    np.save(tmp_path / "x.npy", np.zeros((2, 50), np.float32))
    argv = {
        "topk": ["topk", str(tmp_path / "x.npy"), "--k", "4", "--out", str(tmp_path / "out.npy"), "--json"],
        "demo": ["demo", "--json"],
        "plan": ["plan", "--rows", "2", "--stride", "50", "--k", "4", "--json"],
    }[command]
    assert main([*argv, "--gpu", "1"]) == 0
    assert "GPU number 1" in capsys.readouterr().out and set(used) == {1}
    assert main([*argv, "--gpu", "2"]) == 2
    said = capsys.readouterr().err
    assert "gpu" in said or "device" in said, said
    assert "2" in said and "0: GPU number 0, 1: GPU number 1" in said, "what there is is listed"
