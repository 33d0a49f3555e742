"""What is made of results: comparisons with the peers and between runs, README's tables, the picture."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from tools import baselines, compare, lines, picture, provenance, results_table

ROOT = Path(__file__).resolve().parents[2]

CELL: dict[str, Any] = {
    "kind": "cell",
    "k": 1024,
    "rows": 1,
    "len": 4096,
    "stride": 4096,
    "offset": 0,
    "dtype": "float32",
    "input": "normal",
    "lengths": "full",
    "route": "filtered",
    "group": 1,
    "planned": True,
    "pdl": False,
    "us": 3.0,
    "spread_us": 0.01,
    "floor_us": 1.5,
    "control_us": 1.4,
    "gpu": "NVIDIA H200",
    "driver": "1.2",
    "nvrtc": "12.9",
    "date": "2026-01-02",
    "drvtopk": "0.1.0",
    "command": "python tools/bench.py",
}


def cell(**changes: Any) -> dict[str, Any]:
    made = {**CELL, **changes}
    if "stride" not in changes:
        made["stride"] = made["len"]
    return made


# The baselines


def test_the_best_peer_does_the_same_work() -> None:
    found = baselines.at(cell())
    assert found is not None and found.exact is not None
    assert (found.best.name, found.exact.name) == ("sgl_v2", "vllm033_coop")
    pdl = baselines.at(cell(), pdl=True)
    assert pdl is not None and pdl.exact == found.exact
    assert pdl.best.name == "sgl_v2_pdl" and pdl.best.us < found.best.us, "beside our own PDL only"
    half = baselines.at(cell(dtype="bfloat16"))
    assert half is not None and half.best.name == "ds_bf16"
    assert baselines.at(cell(dtype="float16")) is None


@pytest.mark.parametrize("change", [{"stride": 4097}, {"offset": 1}, {"lengths": "uniform"}, {"len": 5000}, {"k": 7}])
def test_peers_are_not_held_against_cells_that_they_were_not_given(change: dict[str, Any]) -> None:
    assert baselines.at(cell(**change)) is None
    assert baselines.at(cell(input="uniform")) is None


def test_who_was_ever_wrong_is_never_the_best_exact_one() -> None:
    wrong = set(baselines.data()["wrong_for_some_input"])
    assert wrong
    seen = set()
    for k, rows, length, *_ in baselines.data()["cells"]:
        found = baselines.at(cell(k=k, rows=rows, len=length), pdl=True)
        assert found is not None and found.exact is not None
        assert found.exact.name not in wrong and found.best.us <= found.exact.us
        seen.add(found.best.name)
    assert seen & wrong, "or this shows nothing"


def test_adversarial_inputs_have_times_of_their_own() -> None:
    plain = baselines.times_of(cell(k=2048, rows=256, len=65536))
    ties = baselines.times_of(cell(k=2048, rows=256, len=65536, input="all_equal"))
    assert plain["vllm033_pers"] < ties["vllm033_pers"]
    columns = baselines.data()["adversarial_columns"]
    assert columns[:5] == ["input", "k", "rows", "len", "wrong"]
    assert set(baselines.SAME_INPUT.values()) <= {entry[0] for entry in baselines.data()["adversarial"]}


def test_the_data_are_whole() -> None:
    data = baselines.data()
    peers = set(data["peers"])
    assert set(data["columns"][3:]) == set(data["adversarial_columns"][5:]) == peers
    assert set(data["wrong_for_some_input"]) < peers
    assert {"gpu", "driver", "date", "method"} <= data.keys()
    full = [(k, rows, length) for k, rows, length, *_ in data["cells"] if rows <= 256]
    assert len(full) == len(set(full)) == 228
    floors = {int(size): us for size, us in data["read_floor_us_by_bytes"].items()}
    means = {}
    for k in (512, 1024, 2048):
        shapes = [(rows, length) for kk, rows, length in full if kk == k]
        yards = [(baselines.at(cell(k=k, rows=r, len=n)), floors[4 * r * n]) for r, n in shapes]
        means[k] = baselines.geometric_mean([yard.best.us / floor for yard, floor in yards if yard is not None])
    assert {k: round(mean, 1) for k, mean in means.items()} == {512: 3.2, 1024: 3.3, 2048: 3.5}


def test_means_are_geometric_and_the_worst_come_first() -> None:
    yards = {n: baselines.at(cell(len=n)) for n in (4096, 8192, 16384)}
    made = []
    for (n, yard), speed in zip(yards.items(), (4.0, 0.5, 0.5), strict=True):
        assert yard is not None
        made.append(cell(len=n, us=yard.best.us / speed, floor_us=yard.best.us / speed / 2))
    made.append(cell(len=5000, us=8.0, floor_us=1.0))
    found = baselines.summary(made)
    assert found is not None
    assert (found.cells, found.compared, found.slower) == (4, 3, 2)
    assert found.over_best == pytest.approx(1.0) and found.over_floor == pytest.approx((2 * 2 * 2 * 8) ** 0.25)
    assert [round(speed, 6) for speed, _, _ in found.worst] == [0.5, 0.5, 4.0]
    assert found.over_exact > found.over_best
    alone = baselines.summary([cell(len=5000)])
    assert alone is not None and math.isnan(alone.over_best) and baselines.summary([]) is None


# Two runs


def written(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_only_what_exceeds_the_noise_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [4096, 8192, 16384, 32768]
    old = written(tmp_path / "old", *[cell(len=n, us=10.0, spread_us=0.05) for n in names])
    times = (10.25, 10.35, 9.65, 5.0)
    new = written(
        tmp_path / "new",
        *[cell(len=n, us=us, spread_us=0.05, route="clustered", group=8) for n, us in zip(names, times, strict=True)],
        cell(rows=7),
        {"kind": "host", "rows": 1, "len": 4096},
    )
    assert compare.main([str(old), str(new)]) == 0
    shown = capsys.readouterr().out.splitlines()
    marks = {line.split()[2].rstrip(","): line.split()[-1] for line in shown[1:5]}
    assert marks == {"4096": "0.30", "8192": "SLOWER", "16384": "faster", "32768": "faster"}
    assert all("filtered -> clustered:8" in line for line in shown[1:5])
    mean = (10.0**4 / math.prod(times)) ** 0.25
    assert shown[5] == f"4 cells, geometric mean of old/new {mean:.3f}: 2 faster, 1 slower, 1 within noise"
    assert shown[6:] == ["only in the new run: 1 cells"]


def test_routes_that_were_asked_for_are_compared_with_themselves_only(tmp_path: Path) -> None:
    old = compare.cells(written(tmp_path / "old", cell(planned=False, route="clustered", group=8), cell(pdl=True)))
    new = compare.cells(written(tmp_path / "new", cell(planned=False, route="clustered", group=4), cell()))
    assert compare.compared(old, new) == ["no cell is in both"]
    again = compare.cells(written(tmp_path / "again", cell(planned=False, route="clustered", group=8, us=9.0)))
    assert "SLOWER" in compare.compared(old, again)[1]


def test_other_machines_are_said(tmp_path: Path) -> None:
    old = compare.cells(written(tmp_path / "old", cell()))
    new = compare.cells(written(tmp_path / "new", cell(gpu="NVIDIA L20", control_us=1.8)))
    said = compare.compared(old, new)
    assert "another gpu: NVIDIA H200 and NVIDIA L20" in said and said[-1].startswith("NOT COMPARABLE: the control read")
    assert not any("another" in line or "NOT" in line for line in compare.compared(old, old))


# README's tables


def test_times_stand_with_their_speed_up_over_the_best_peer() -> None:
    yard = baselines.at(cell())
    assert yard is not None
    shown = results_table.table(
        [cell(us=yard.best.us / 2), cell(rows=4, len=1 << 20, us=20.0), cell(rows=16, len=1 << 20)]
    )
    assert f"| 1 | {yard.best.us / 2:.1f} (2.00x) |  |" in shown and "Command: `python tools/bench.py`" in shown
    assert shown.splitlines()[-1] == "| 16 |  | 3.0 |", "no peer has that cell"
    assert "(2.00x)" not in results_table.table([cell(gpu="NVIDIA L20", us=yard.best.us / 2)])
    assert results_table.table([cell(planned=False)]) == "not measured yet"
    others = [cell(us=77.0, **change) for change in ({"pdl": True}, {"k": 512}, {"input": "uniform"}, {"kind": "peer"})]
    assert "77" not in results_table.table([cell(), *others])
    assert "control read took 1.40 us in some" in results_table.table([cell(), cell(len=8192, control_us=1.8)])


def test_each_kind_of_cell_has_a_line_of_means() -> None:
    yard = baselines.at(cell())
    assert yard is not None and yard.exact is not None
    rows = [
        cell(us=yard.best.us / 2, floor_us=yard.best.us / 4),
        cell(len=5000),
        cell(stride=4100),
        cell(lengths="uniform"),
        cell(rows=512, k=2048),
        cell(dtype="bfloat16"),
        cell(pdl=True),
        cell(input="all_equal"),
        cell(planned=False, us=100.0),
        {"kind": "host"},
        {"kind": "peer"},
    ]
    shown = results_table.summary_table(rows).splitlines()[6:]
    exact = yard.exact.us / yard.best.us * 2
    assert shown[0] == f"| k 1024 | 1 | 2.00x | {exact:.2f}x | 2.00x | 0 of 1 |"
    assert shown[1] == "| k 1024, other lengths and alignments | 2 |  |  | 2.00x |  |"
    assert [line.split(" |")[0] for line in shown[2:]] == [
        "| k 2048, more than 256 rows",
        "| k 1024, rows of different lengths",
        "| k 1024, bfloat16",
        "| k 1024, programmatic dependent launch",
    ]
    assert results_table.summary_table([]) == ""


def test_adversarial_inputs_stand_beside_normal_ones() -> None:
    rows = [cell(us=2.0), cell(us=4.0, input="all_equal"), cell(us=1.0, input="uniform"), cell(len=8192)]
    shown = results_table.adversarial_table(rows)
    assert shown.splitlines()[5:] == ["| 1 x 4,096, k 1024 | 2.0 | 2 | 1.00x | all_equal: 4.0 (2.00x) |"]
    assert results_table.adversarial_table([cell(), cell(len=8192)]) == ""


def test_host_costs_stand_beside_the_bare_call() -> None:
    cost = {"kind": "host", "rows": 8, "len": 131072, "route": "clustered", "group": 8, "pdl": False}
    cost |= {"us": 2.5, "bare_us": 1.25}
    assert results_table.host_table([cost]).splitlines()[-1] == "| 8 x 131,072, clustered:8 | 2.50 | 1.25 |"
    shown = results_table.host_table([{**cost, "torch_us": 9.0, "torch": "9.9"}, cost]).splitlines()
    assert "torch 9.9 topk" in shown[3] and shown[-2].endswith("| 9.00 |") and shown[-1].endswith("| 1.25 | |")
    assert {line.count("|") for line in shown[3:]} == {5}
    shown = results_table.host_table([{**cost, "bound_us": 1.5, "torch_us": 9.0, "torch": "9.9"}]).splitlines()
    assert shown[3].startswith("| | prepared call | bound | the driver call in it |")
    assert shown[-1] == "| 8 x 131,072, clustered:8 | 2.50 | 1.50 | 1.25 | 9.00 |"
    assert {line.count("|") for line in shown[3:]} == {6}
    assert results_table.host_table([cell()]) == ""


def test_commands_name_no_folder_of_the_machine_that_ran_them() -> None:
    given = ["--out", "/x/y/cells.jsonl", "--grid=full,bf16", "--out=/x/z.jsonl", "tools/results/a.jsonl", "-v"]
    expected = "--out cells.jsonl --grid=full,bf16 --out=z.jsonl tools/results/a.jsonl -v"
    assert provenance.command("tools/bench.py", given) == f"python tools/bench.py {expected}"
    files = sorted((ROOT / "tools" / "results").glob("*.jsonl"))
    published = [json.loads(line)["command"] for file in files for line in file.read_text().splitlines()]
    for device in json.loads((ROOT / "drvtopk" / "measured.json").read_text())["devices"]:
        published.append(device["provenance"]["command"])
    assert len(published) > 500
    assert {c for c in published if re.search(r"(^|[\s=])/", c)} == set()


# The picture


def test_curves_are_sorted_and_end_where_nothing_was_measured() -> None:
    measured = [cell(len=n, us=n / 1000) for n in (8192, 4096, 1 << 20)]
    found = picture.curves([*measured, cell(rows=16, len=1 << 20)], 1)
    assert found["drvtopk"] == [(4096, 4.096), (8192, 8.192), (1 << 20, 1048.576)]
    assert [n for n, _ in found["best peer"]] == [4096, 8192, 1 << 20]
    assert picture.curves([cell(rows=16, len=1 << 20)], 16)["best peer"] == []
    usual = [
        cell(),
        cell(k=512),
        cell(pdl=True),
        cell(planned=False),
        cell(input="uniform"),
        {**cell(), "kind": "peer"},
    ]
    assert picture.shown(usual) == [cell()]


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed (extra: plot)")
def test_the_same_data_give_the_same_picture(tmp_path: Path) -> None:
    source = written(tmp_path / "in", *[cell(rows=r, len=n, us=n / 1000) for r in (1, 2, 4, 8) for n in (4096, 8192)])
    outs = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for out in outs:
        assert picture.main(["--results", str(source), "--out", str(out)]) == 0
    first, second = (out.read_text() for out in outs)
    assert first == second and "<dc:date>" not in first
    assert all(f">{text}<" in first for text in ("1 row", "8 rows", "drvtopk", "best exact peer"))
    with pytest.raises(SystemExit, match="no planned cell"):
        picture.main(["--results", str(written(tmp_path / "none", cell(k=512))), "--out", str(outs[0])])


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("tools.picture.importlib.import_module", missing)
    with pytest.raises(SystemExit, match=r"pip install 'drvtopk\[plot\]'"):
        picture.draw([cell()], tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_a_cell_in_a_few_words() -> None:
    assert lines.shape(cell()) == "1 x 4096, k 1024"
    odd = cell(stride=4100, offset=2, lengths="uniform", input="uniform", dtype="bfloat16")
    assert lines.shape(odd) == "1 x 4096, stride 4100, offset 2, lengths uniform, k 1024, uniform, bfloat16"
