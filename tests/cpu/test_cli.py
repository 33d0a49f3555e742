"""python -m drvtopk as a person or a script meets it, on a machine without a GPU."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import compiler
from drvtopk.__main__ import main
from drvtopk.cli import indexer
from drvtopk.errors import CompileError, CompilerUnavailable, DriverUnavailable, InvalidArgument
from drvtopk.planned import FIGURES
from drvtopk.spec import DTYPES, ROUTES, KernelInfo, Options, Variant
from drvtopk.testing.oracle import find_errors, narrowed, topk_reference
from tests import tiny
from tests.needs import needs_nvrtc

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """These are the answers of a machine without one; tests/gpu has the others."""

    def load() -> None:
        raise DriverUnavailable("no CUDA driver: libcuda could not be loaded")

    monkeypatch.setattr("drvtopk.driver.load", load)
    monkeypatch.setattr("drvtopk.engine.load", load)
    monkeypatch.setattr("drvtopk.cli.doctor.load", load)


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_demo_without_a_gpu_compiles_plans_checks_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    shown = capsys.readouterr().out
    assert "no GPU: nothing ran on a device" in shown and "compiled for sm_90a" in shown and "exact" in shown
    found = document(capsys, "demo", "--k", "512")
    assert found["device"] is None and found["note"] == "no GPU: nothing ran on a device"
    assert found["exact"] and found["k"] == 512 and max(found["lengths"]) == found["width"] == 32768
    assert [row["variant"] for row in found["instantiations"]] == ["filtered<512,4,alone>"], (
        "none waits, so no fallback"
    )
    assert found["plan"]["device"] == "h200" and found["plan"]["route"] == "filtered"


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
    assert find_errors(x, 64, lengths, np.load(out)) == []
    found = document(capsys, *arguments)
    assert found["device"] is None and found["rows"] == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_topk_takes_every_option_and_writes_the_values_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str
) -> None:
    random = np.random.default_rng(1)
    x = narrowed(random.choice(np.array([np.nan, -1, -0.0, 0, 1, 2], np.float32), (4, 300)), dtype)
    given = {
        "logits": x,
        "lengths": np.array([[300], [20], [-4], [290]]),
        "row_starts": np.array([3, 290, 5, 30], np.int16),
        "page_table": np.stack([random.choice(2**27, 80, replace=False) for _ in range(2)]),
    }
    for name, array in given.items():
        np.save(tmp_path / f"{name}.npy", array)
    files = {name: str(tmp_path / f"{name}.npy") for name in (*given, "out", "values")}
    options = Options(
        dtype=dtype,
        index_dtype="int64",
        values=True,
        row_starts=True,
        order="value",
        tie_break="largest",
        nan="highest",
        page_table=True,
    )
    argv = ["topk", files["logits"], "--k", "64", "--out", files["out"], "--values-out", files["values"]]
    for name in ("lengths", "row_starts", "page_table"):
        argv += ["--" + name.replace("_", "-"), files[name]]
    argv += ["--page-size", "4", "--order", "value", "--tie-break", "largest", "--nan", "highest"]
    argv += ["--index-dtype", "int64", "--dtype", dtype]
    found = document(capsys, *argv)
    assert {name: found[name] for name in files} == files
    assert found["options"] == dataclasses.asdict(options) and found["page_size"] == 4
    out, values = np.load(files["out"]), np.load(files["values"])
    assert values.dtype == x.dtype
    asked: dict[str, Any] = {name: given[name] for name in ("row_starts", "page_table")}
    wrong = find_errors(x, 64, given["lengths"], out, options=options, values=values, page_size=4, **asked)
    assert wrong == []
    assert main(argv) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[-2:] == [f"indices written to {files['out']}", f"values written to {files['values']}"]
    assert "order value" in shown[-3] and "nan highest" in shown[-3]


def test_deterministic_leaves_the_command_no_choice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 50), np.float32))
    out = tmp_path / "out.npy"
    found = document(capsys, "topk", str(tmp_path / "x.npy"), "--k", "5", "--out", str(out), "--deterministic")
    assert (found["options"]["order"], found["options"]["tie_break"]) == ("index", "smallest")
    assert found["values"] is None and np.load(out).tolist() == [[0, 1, 2, 3, 4]] * 2


def test_the_other_byte_order_is_read_as_what_it_says(tmp_path: Path) -> None:
    x = np.random.default_rng(2).standard_normal((2, 500)).astype(np.float32)
    np.save(tmp_path / "x.npy", x.astype(">f4"))
    np.save(tmp_path / "n.npy", np.array([400, 7], ">i4"))
    out = tmp_path / "out.npy"
    argv = ["topk", str(tmp_path / "x.npy"), "--k", "9", "--lengths", str(tmp_path / "n.npy"), "--out", str(out)]
    assert main([*argv, "--values-out", str(tmp_path / "v.npy")]) == 0
    values = np.load(tmp_path / "v.npy")
    assert values.dtype == np.dtype("=f4")
    assert find_errors(x, 9, np.array([400, 7]), np.load(out), options=Options(values=True), values=values) == []


@pytest.mark.parametrize(
    ("page", "size", "fits"),
    [(2**25 - 1, 64, True), (2**25, 64, False), (715_827_881, 3, True), (715_827_882, 3, False)],
    ids=["to 2^31 - 1", "to 2^31 + 63", "to 2^31 - 3", "to 2^31"],
)
def test_an_index_type_that_the_pages_need_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, page: int, size: int, fits: bool
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, size), np.float32))
    np.save(tmp_path / "p.npy", np.array([[page, 2**31 - 1]]))  # no column lies in the second page
    argv = ["topk", str(tmp_path / "x.npy"), "--k", str(size), "--out", str(tmp_path / "out.npy")]
    argv += ["--page-table", str(tmp_path / "p.npy"), "--page-size", str(size)]
    assert main(argv) == (0 if fits else 2)
    said = "drvtopk: error: --index-dtype: got int32, allowed is int64, as the "
    assert capsys.readouterr().err.startswith(said) is not fits
    assert main([*argv, "--index-dtype", "int64"]) == 0
    assert np.load(tmp_path / "out.npy").max() == page * size + size - 1


@pytest.mark.parametrize("vec", [1, 2, 4])
@pytest.mark.parametrize("route", ROUTES)
def test_compile_reports_and_writes_every_instantiation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, route: str, vec: int
) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    argv = ["compile", "--arch", "sm_90a", "--k", "1024", "--route", route, "--vec-size", str(vec)]
    argv += ["--group", "2", "--group", "16"] if route == "clustered" else []
    found = document(capsys, *argv, "--out", str(tmp_path / "cubins"))
    rows = found["instantiations"]
    assert [(r["route"], r["group"], r["residency"], r["vec_size"], r["threads"]) for r in rows] == {
        "persistent": [("persistent", 1, 2, vec, 1024)],
        "filtered": [("filtered", 1, 1, vec, 1024), ("filtered", 1, 2, vec, 512)],
        "clustered": [("clustered", group, residency, vec, 512) for group in (2, 16) for residency in (1, 2)],
    }[route]
    for row in rows:
        assert {f.name for f in dataclasses.fields(KernelInfo)} <= set(row)
        assert Path(row["file"]).stat().st_size == row["cubin_bytes"] and row["spill_bytes"] <= 40
    assert len({row["file"] for row in rows}) == len({row["variant"] for row in rows}) == len(rows)


@pytest.mark.parametrize(("dtype", "vecs"), [("float32", [1, 2, 4]), ("bfloat16", [1, 2, 4, 8])])
def test_compile_compiles_for_every_load_unless_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, dtype: str, vecs: list[int]
) -> None:
    seen: list[Variant] = []

    def only_look(variants: list[Variant], *_: object, **__: object) -> None:
        seen.extend(variants)
        raise InvalidArgument("looked", "at", "nothing")

    monkeypatch.setattr("drvtopk.cli.compiling.compile_variants", only_look)
    assert main(["compile", "--arch", "sm_90a", "--k", "64", "--group", "2", "--group", "16", "--dtype", dtype]) == 2
    assert [(v.route, v.cluster, v.residency, v.vec_size) for v in seen] == [
        *(("persistent", 1, 2, v) for v in vecs),
        *(("filtered", 1, residency, v) for residency in (1, 2) for v in vecs),
        *(("clustered", group, residency, v) for group in (2, 16) for residency in (1, 2) for v in vecs),
    ]


def test_compile_without_a_cache_and_without_clusters(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    assert main(["compile", "--arch", "sm_80", "--k", "7", "--vec-size", "4", "--no-cache"]) == 0
    shown = capsys.readouterr().out
    assert "persistent<7,4>" in shown and "clustered" not in shown, "there are no clusters on sm_80"


@pytest.mark.parametrize("route", ROUTES)
def test_compile_for_dependent_launches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    one = ["compile", "--arch", "sm_90a", "--k", "64", "--vec-size", "4", "--route", route]
    one += ["--group", "8"] if route == "clustered" else []
    plain, dependent = (document(capsys, *one, *extra)["instantiations"] for extra in ((), ("--pdl",)))
    assert [row["pdl"] for row in dependent] == ([False] if route == "persistent" else [True, True])
    assert not any(row["pdl"] for row in plain)
    assert [row["variant"].replace(",pdl", "") for row in dependent] == [row["variant"] for row in plain]


@pytest.mark.parametrize("vec", [1, 2, 4, 8])
def test_compile_shows_any_option_variant(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, vec: int
) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    argv = ["compile", "--arch", "sm_90a", "--k", "8", "--route", "filtered", "--out", str(tmp_path)]
    argv += ["--dtype", "bfloat16", "--deterministic", "--values", "--row-starts", "--page-table"]
    argv += ["--nan", "highest", "--index-dtype", "int64", "--vec-size", str(vec)]
    found = document(capsys, *argv)
    assert found["options"]["order"] == "index" and found["options"]["tie_break"] == "smallest"
    assert [row["vec_size"] for row in found["instantiations"]] == [vec, vec]
    for row in found["instantiations"]:
        cubin = Path(row["file"]).read_bytes()
        alone = "_alone" * (row["residency"] == 1)
        said = Path(row["file"]).stem.removesuffix(f"_k8_v{row['vec_size']}{alone}_sm_90a")
        assert f"\0.text.drvtopk_{said}\0".encode() in cubin, "the file and the kernel have one name"
        assert "bfloat16_int64_by_index_smallest_nan_highest_values_row_starts_page_table" in said
    assert main(argv) == 0
    assert "options: dtype bfloat16, index_dtype int64, values, row_starts, order index" in capsys.readouterr().out


def test_compile_gives_seconds_only_where_it_compiled(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path))
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    one = ("compile", "--arch", "sm_80", "--k", "9", "--vec-size", "1", "--route", "filtered")
    for extra, cached in (((), False), ((), True), (("--no-cache",), False)):
        for row in document(capsys, *one, *extra)["instantiations"]:
            assert row["from_cache"] is cached and (row["seconds"] == 0) is cached
    assert main([*one]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  cached")
    assert main([*one, "--no-cache"]) == 0
    assert float(capsys.readouterr().out.splitlines()[-1].split()[-1]) > 0


def test_plan_is_a_calculator(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
    common = ("plan", "--device", "h200", "--rows", "4", "--k", "1024", "--chunk", "8472")
    found = document(capsys, *common, "--stride", "1118304")
    assert tuple(found)[: len(FIGURES)] == FIGURES
    assert (found["occupancy"], found["group"], found["headroom_kept"]) == (2, 132, True)
    assert found["kernels"][0]["registers"] <= 32
    assert not document(capsys, *common, "--stride", "1118305")["headroom_kept"]
    beyond = document(capsys, *common, "--stride", "2236609")
    assert beyond["route"] == "filtered" and "265 blocks, 264 fit" in beyond["why"]
    given = document(capsys, *common, "--stride", "1118304", "--occupancy", "1", "--sms", "200")
    assert (given["resident_cap"], given["headroom"], given["kernels"]) == (200, 1, [])
    small = document(capsys, *common, "--stride", "100000", "--smem-optin", "40000", "--route", "auto")
    assert small["route"] == "filtered" and small["rejected"]["occupancy"] == 0
    assert document(capsys, *common[:7], "--stride", "100000", "--offset", "1", "--occupancy", "2")["vec_size"] == 1
    shared = document(capsys, *common[:7], "--stride", "100000", "--route", "clustered", "--group", "4")
    assert (shared["grid"], shared["group"], shared["block"], shared["workspace_bytes"]) == (16, 4, 512, 0)
    assert shared["clusters"] == [{**shared["clusters"][0], "clusters": 29}] and "29 clusters fit" in shared["why"]
    assert shared["kernels"][0]["variant"] == shared["clusters"][0]["variant"] == "clustered<1024,4,x4,alone>"
    hinted = document(capsys, *common[:7], "--stride", "100000", "--max-seq-len", "8000", "--occupancy", "2")
    assert not hinted["cooperative"] and hinted["group"] == 1
    assert main([*common, "--stride", "400000"]) == 0
    assert "\nWhy: persistent: 48 blocks of 8472 elements share a row" in capsys.readouterr().out


@needs_nvrtc
def test_doctor_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 1
    assert "no CUDA driver" in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["nvrtc"] and found["cache_writable"] and found["devices"] == [] and found["missing"]
    assert found["drvtopk"] == drvtopk.__version__ and found["compiles"] == "what is needed"


def test_doctor_shows_whether_compiling_is_forbidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRVTOPK_COMPILE", "never")
    assert main(["doctor"]) == 1
    assert re.search(r"^compiles +never$", capsys.readouterr().out, re.MULTILINE)
    monkeypatch.setenv("DRVTOPK_COMPILE", "Never")
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["compiles"] is None and "allowed is 'never', or nothing" in " ".join(found["missing"])


def test_doctor_names_an_nvrtc_that_is_too_old(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def old() -> None:
        raise CompilerUnavailable("NVRTC 12.4 (/old) is too old: it")

    monkeypatch.setattr("drvtopk.cli.doctor.nvrtc_version", old)
    assert main(["doctor"]) == 1
    assert re.search(r"^missing +NVRTC 12\.4 \(/old\) is too old: it; ", capsys.readouterr().out, re.MULTILINE)


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
    [*PLAN, "--group", "3", "--route", "clustered"],
    [*PLAN, "--group", "4"],
    [*PLAN, "--group", "4", "--route", "filtered"],
    [*PLAN, "--route", "clustered", "--waits", "never"],
    [*PLAN, "--route", "clustered", "--device", "a100"],
    ["compile", "--arch", "sm_80", "--route", "clustered"],
    ["compile", "--arch", "sm_90a", "--route", "clustered", "--group", "3"],
    ["compile", "--arch", "sm_80", "--pdl"],
    ["export", "--arch", "sm_90a"],
    ["export", "--out", "folder"],
    ["export", "--arch", "sm_12", "--out", "folder"],
    ["export", "--arch", "hopper", "--out", "folder"],
    ["export", "--arch", "sm_90a", "--out", "good.npy"],
    ["export", "--arch", "sm_90a", "--k", "0", "--out", "folder"],
    ["export", "--arch", "sm_80", "--pdl", "--out", "folder"],
    ["export", "--arch", "sm_80", "--route", "clustered", "--out", "folder"],
    ["export", "--arch", "sm_80", "--arch", "sm_90a", "--route", "clustered", "--out", "folder"],
    ["export", "--arch", "sm_90a", "--vec-size", "8", "--out", "folder"],
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
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--dtype", "bfloat16"],
    ["topk", "{words}", "--k", "8", "--out", "o.npy"],
    ["topk", "{words}", "--k", "8", "--out", "o.npy", "--dtype", "float16"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--dtype", "float64"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--order", "sorted"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--tie-break", "first"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--nan", "ignored"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--index-dtype", "uint32"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--row-starts", "{short}"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--row-starts", "{f64}"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--row-starts", "missing.npy"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-size", "4"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-table", "{pages}", "--page-size", "0"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-table", "{pages}"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-table", "{short}"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-table", "{f64}"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--page-table", "{tables}", "--page-size", "9"],
    [
        "topk",
        "{good}",
        "--k",
        "8",
        "--out",
        "o.npy",
        "--page-table",
        "{far}",
        "--page-size",
        "9",
        "--index-dtype",
        "int64",
    ],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--values-out", "folder"],
    ["topk", "{good}", "--k", "8", "--out", "o.npy", "--values-out", "./o.npy"],
    ["compile", "--arch", "sm_90a", "--vec-size", "8"],
    ["compile", "--arch", "sm_90a", "--dtype", "float64"],
    [*PLAN, "--order", "sorted"],
    [*PLAN, "--dtype", "int8"],
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
    np.save("words.npy", np.zeros((3, 9), np.uint16))
    np.save("pages.npy", np.zeros((3, 2), np.int32))
    np.save("tables.npy", np.zeros((2, 1), np.int32))
    np.save("far.npy", np.full((3, 1), 2**31))
    Path("cut.npy").write_bytes(Path("good.npy").read_bytes()[:150])
    Path("zip.npy").write_bytes(b"PK\3\4 and no more of the archive")
    with Path("huge.npy").open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**9, 10**9)}
        np.lib.format.write_array_header_1_0(file, header)
    Path("folder").mkdir()
    names = ("bad", "f64", "good", "short", "flat", "cut", "zip", "huge", "words", "pages", "tables", "far")
    filled = [a.format(**{name: f"{name}.npy" for name in names}) for a in argv]
    assert main(filled) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("drvtopk: error: ") and shown.err.count("\n") == 1
    assert not Path("o.npy").exists()


def test_a_failure_that_is_not_the_callers_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CompileError("persistent<512,1>", ("-std=c++17",), "line 1\nline 2")

    monkeypatch.setattr("drvtopk.compiler.compile_variant", refuse)
    export = ["export", "--arch", "sm_90a", "--out", str(tmp_path)]
    for argv in (
        ["compile", "--arch", "sm_90a"],
        ["compile", "--arch", "sm_90a", "--json"],
        export,
        [*export, "--json"],
    ):
        assert main(argv) == 1
        shown = capsys.readouterr()
        assert shown.out == "" and shown.err.count("\n") == 1 and "line 1 line 2" in shown.err


def test_a_cache_that_cannot_be_written_is_one_line_beside_the_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("DRVTOPK_CACHE", str(tmp_path / "file" / "folder"))
    monkeypatch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
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


@needs_nvrtc
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
