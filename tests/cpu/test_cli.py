"""python -m drvtopk as a person or a script meets it, on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk.__main__ import main
from drvtopk.cli import indexer
from drvtopk.errors import CompileError, DriverUnavailable
from drvtopk.plan import Plan
from drvtopk.reference import faults, topk_reference
from drvtopk.spec import KernelInfo

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are the answers of a machine without one; tests/gpu has the others."""

    def load() -> None:
        raise DriverUnavailable("no CUDA driver: libcuda could not be loaded")

    monkeypatch.setattr("drvtopk.driver.load", load)
    monkeypatch.setattr("drvtopk.engine.load", load)
    monkeypatch.setattr("drvtopk.cli.doctor.load", load)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DRVTOPK_CACHE", str(tmp_path_factory.mktemp("cli-cache")))
        yield


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_demo_without_a_gpu_compiles_plans_checks_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "no GPU: nothing ran on a device" in shown and "compiled 18 instantiations" in shown and "exact" in shown
    found = document(capsys, "demo", "--k", "512")
    assert found["device"] is None and found["note"] == "no GPU: nothing ran on a device"
    assert found["exact"] and found["k"] == 512 and max(found["lengths"]) > 32768
    assert len(found["instantiations"]) == 18 and found["plan"]["device"] == "h200"


def test_the_demos_logits_are_those_of_the_formula() -> None:
    logits = indexer.indexer_logits(2, 40_000, seed=3)
    random = np.random.default_rng(3)
    q = random.standard_normal((2 * indexer.HEADS, indexer.HEAD_DIM), dtype=np.float32).reshape(2, indexer.HEADS, -1)
    w = random.standard_normal((2, indexer.HEADS), dtype=np.float32)
    keys = np.concatenate(
        [random.standard_normal((n, indexer.HEAD_DIM), dtype=np.float32) for n in (16384, 16384, 40_000 - 32768)]
    )
    expected = (w[:, :, None] * np.maximum(np.einsum("rhd,sd->rhs", q, keys), 0)).sum(1)
    assert np.allclose(logits, expected, atol=1e-3)


def test_topk_runs_the_reference_and_warns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal((3, 5000)).astype(np.float32)
    lengths = np.array([5000, 20, -4])
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "n.npy", lengths)
    out = tmp_path / "indices.npy"
    arguments = ["topk", str(tmp_path / "x.npy"), "--k", "64", "--lengths", str(tmp_path / "n.npy"), "--out", str(out)]
    assert main(arguments) == 0
    assert "no GPU: nothing ran on a device" in capsys.readouterr().err
    assert faults(x, 64, lengths, np.load(out)) == []
    found = document(capsys, *arguments)
    assert found["device"] is None and found["rows"] == 3


def test_compile_reports_and_writes_every_instantiation(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "cubins"
    found = document(capsys, "compile", "--arch", "sm_90a", "--k", "1024", "--out", str(out))
    rows = found["instantiations"]
    assert [(r["route"], r["vec_size"]) for r in rows] == [
        (r, v) for r in ("persistent", "filtered") for v in (1, 2, 4)
    ]
    for row in rows:
        assert {f.name for f in dataclasses.fields(KernelInfo)} <= set(row)
        assert Path(row["file"]).stat().st_size == row["cubin_bytes"] and row["spill_bytes"] == 0
    assert main(["compile", "--arch", "sm_80", "--k", "7", "--vec-size", "4", "--no-cache"]) == 0
    assert "persistent<7,4>" in capsys.readouterr().out


def test_compile_gives_seconds_only_where_it_compiled(capsys: pytest.CaptureFixture[str]) -> None:
    one = ("compile", "--arch", "sm_80", "--k", "9", "--vec-size", "1", "--route", "filtered")
    for extra, cached in (((), False), ((), True), (("--no-cache",), False)):
        (row,) = document(capsys, *one, *extra)["instantiations"]
        assert row["from_cache"] is cached and (row["seconds"] == 0) is cached
    assert main([*one]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  cached")
    assert main([*one, "--no-cache"]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split()[-1]) > 0


def test_plan_is_a_calculator(capsys: pytest.CaptureFixture[str]) -> None:
    common = ("plan", "--device", "h200", "--rows", "4", "--k", "1024", "--chunk", "8472")
    found = document(capsys, *common, "--stride", "1118304")
    assert {f.name for f in dataclasses.fields(Plan)} <= set(found)
    assert (found["occupancy"], found["group"], found["headroom_kept"]) == (2, 132, True)
    assert found["kernels"][0]["registers"] <= 32
    assert not document(capsys, *common, "--stride", "1118305")["headroom_kept"]
    beyond = document(capsys, *common, "--stride", "2236609")
    assert beyond["route"] == "filtered" and "265 blocks, 264 fit" in beyond["why"]
    given = document(capsys, *common, "--stride", "1118304", "--occupancy", "1", "--sms", "200")
    assert (given["resident_cap"], given["headroom"], given["kernels"]) == (200, 1, [])
    small = document(capsys, *common, "--stride", "100000", "--smem-optin", "40000", "--route", "auto")
    assert small["route"] == "filtered" and small["rejected"]["occupancy"] == 0
    assert document(capsys, *common[:7], "--stride", "100000", "--offset", "1")["vec_size"] == 1
    hinted = document(capsys, *common[:7], "--stride", "100000", "--max-seq-len", "9000")
    assert not hinted["cooperative"] and hinted["group"] == 1
    assert main([*common, "--stride", "400000"]) == 0
    assert capsys.readouterr().out.startswith("persistent: 48 blocks of 8472 elements share a row")


def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "no CUDA driver" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["nvrtc"] and found["cache_writable"] and found["devices"] == [] and found["missing"]
    assert found["drvtopk"] == drvtopk.__version__


PLAN = ["plan", "--device", "h200", "--rows", "4", "--stride", "100", "--k", "8"]
BAD = [
    [],
    ["frobnicate"],
    ["demo", "--k", "0"],
    ["demo", "--k", "five"],
    ["compile", "--arch", "sm_12"],
    ["compile", "--arch", "sm_90a", "--k", "4097"],
    ["compile", "--arch", "sm_90a", "--vec-size", "3"],
    ["compile"],
    ["plan", "--rows", "4", "--stride", "100", "--k", "8"],
    ["plan", "--device", "h300", "--rows", "4", "--stride", "100", "--k", "8"],
    [*PLAN, "--rows", "-1"],
    [*PLAN, "--k", "9999"],
    [*PLAN, "--route", "fastest"],
    [*PLAN, "--sms", "0"],
    [*PLAN, "--chunk", "0"],
    [*PLAN, "--stride", "9999999", "--route", "persistent"],
    [*PLAN, "--occupancy", "0"],
    [*PLAN, "--occupancy", "65"],
    ["topk", "missing.npy", "--k", "8", "--out", "o.npy"],
    ["topk", "{bad}", "--k", "8", "--out", "o.npy"],
    ["topk", "{f64}", "--k", "8", "--out", "o.npy"],
    ["topk", "{zip}", "--k", "8", "--out", "o.npy"],
    ["topk", "{huge}", "--k", "8", "--out", "o.npy"],
    ["topk", "{cut}", "--k", "8", "--out", "o.npy"],
    ["topk", "{flat}", "--k", "8", "--out", "o.npy"],
    ["topk", "{good}", "--k", "8", "--lengths", "{zip}", "--out", "o.npy"],
    ["topk", "{good}", "--k", "8", "--lengths", "{f64}", "--out", "o.npy"],
    ["topk", "{good}", "--k", "8", "--lengths", "{short}", "--out", "o.npy"],
    ["topk", "{good}", "--k", "8", "--out", "/nowhere/at/all.npy"],
    ["topk", "{good}", "--k", "8", "--out", "folder"],
    ["topk", "{good}", "--out", "o.npy"],
]


@pytest.mark.parametrize("argv", BAD, ids=lambda a: " ".join(a) or "nothing")
def test_bad_input_is_one_clear_line_and_exit_code_2(
    argv: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.npy").write_bytes(b"not an array")
    np.save("f64.npy", np.zeros((3, 9)))
    np.save("good.npy", np.zeros((3, 9), np.float32))
    np.save("short.npy", np.zeros(2, np.int32))
    np.save("flat.npy", np.zeros(9, np.float32))
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:150])
    Path("zip.npy").write_bytes(b"PK\3\4 and no more of the archive")
    with Path("huge.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)}
        np.lib.format.write_array_header_1_0(file, header)
    Path("folder").mkdir()
    names = ("bad", "f64", "good", "short", "flat", "cut", "zip", "huge")
    filled = [a.format(**{name: f"{name}.npy" for name in names}) for a in argv]
    assert main(filled) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("drvtopk: error: ") and shown.err.count("\n") == 1
    assert not Path("o.npy").exists()


def test_a_failure_that_is_not_the_callers_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CompileError("persistent<512,1>", ("-std=c++17",), "line 1\nline 2")

    monkeypatch.setattr("drvtopk.cli.compiling.compile_variant", refuse)
    for argv in (["compile", "--arch", "sm_90a"], ["compile", "--arch", "sm_90a", "--json"]):
        assert main(argv) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and "line 1 line 2" in shown.err


def test_a_cache_that_cannot_be_written_is_one_line_beside_the_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path / "file" / "folder"))
    assert main([*PLAN, "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["route"] == "filtered"
    assert shown.err.startswith("drvtopk: warning: compiled kernels") and shown.err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_one_line_too() -> None:
    command = [sys.executable, "-m", "drvtopk", *PLAN, "--occupancy", "2"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=env)
    assert done.returncode == 1 and done.stderr.startswith("drvtopk: error: ") and done.stderr.count("\n") == 1


def test_a_demo_that_is_wrong_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> Any:
        out = topk_reference(*arguments)
        out[0, 0] = out[0, 1]
        return out

    monkeypatch.setattr("drvtopk.cli.demo.topk_reference", wrong)
    assert main(["demo", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["exact"] and len(found["faults"]) == 1
    assert main(["demo"]) == 1
    shown = capsys.readouterr().out
    assert "WRONG:" in shown and "exact: all" not in shown
