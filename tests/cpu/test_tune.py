"""The planner's measured times are what was measured, and nothing that is not comparable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from drvtopk.choice import Choice
from drvtopk.spec import KNOWN_DEVICES
from tests.cpu.test_results import cell, written
from tools import tune


def line(spelled: str, rows: int, length: int, us: float, **changes: Any) -> dict[str, Any]:
    choice = Choice.parse(spelled)
    made = cell(route=choice.route, group=choice.cluster, rows=rows, len=length, us=us, planned=False, sms=132)
    return {**made, **changes}


ROUTES = [
    line("filtered", 64, 65536, 20.0),
    line("filtered", 8, 131072, 11.0),
    line("filtered", 8, 65536, 9.0),
    line("clustered:16", 8, 65536, 6.0),
    line("clustered:2", 8, 65536, 8.0),
    line("clustered:4", 64, 65536, 30.0),
    line("persistent", 1, 262144, 12.0, group=64),
]


def test_times_are_by_route_rows_and_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "measured.json"
    assert tune.main([str(written(tmp_path / "in", *ROUTES)), "--out", str(out)]) == 0
    (device,) = json.loads(out.read_text())["devices"]
    assert device["names"] == ["NVIDIA H200", "h200"] and device["sms"] == 132
    assert device["provenance"]["command"] == "python tools/bench.py" and device["provenance"]["gpu"] == "NVIDIA H200"
    assert {"date", "driver", "drvtopk", "nvrtc"} <= device["provenance"].keys()
    assert device["times"] == {
        "clustered:2": {"8": {"65536": 8.0}},
        "clustered:4": {"64": {"65536": 30.0}},
        "clustered:16": {"8": {"65536": 6.0}},
        "filtered": {"8": {"65536": 9.0, "131072": 11.0}, "64": {"65536": 20.0}},
        "persistent": {"1": {"262144": 12.0}},
    }
    shown = capsys.readouterr().out
    assert shown.startswith("NVIDIA H200, 2026-01-02\n") and "clustered:16 -25%" in shown and "NOT" not in shown


def test_what_the_model_would_lose_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: at 8 x 65536 it takes two blocks a row (no room for 16 at once), which need 8 of the fastest's 6."""
    tune.main([str(written(tmp_path / "in", *ROUTES)), "--out", str(tmp_path / "measured.json")])
    said = capsys.readouterr().out
    assert "not measured, its plans would take up to 1.33x the fastest (8 x 65536: clustered:2)" in said
    found = tune.modelled(KNOWN_DEVICES["h200"], tune.times(ROUTES))
    two, filtered = Choice("clustered", 2), Choice("filtered")
    assert [loss[1:] for loss in found] == [(8, 65536, two), (64, 65536, filtered), (8, 131072, filtered)]
    assert found[1][0] == found[2][0] == 1.0


def test_the_file_is_sorted_and_a_changed_time_is_one_changed_line(tmp_path: Path) -> None:
    out = tmp_path / "measured.json"
    texts = []
    for rows in (ROUTES, ROUTES[::-1], [*ROUTES[:-1], line("persistent", 1, 262144, 12.5, group=64)]):
        tune.main([str(written(tmp_path / "in", *rows)), "--out", str(out)])
        texts.append(out.read_text().splitlines())
    assert texts[0] == texts[1]
    different = [(a, b) for a, b in zip(texts[0], texts[2], strict=True) if a != b]
    assert different == [('    "1": {"262144": 12.0}', '    "1": {"262144": 12.5}')]
    order = [entry.split('"')[1] for entry in texts[0] if entry.startswith('   "')]
    assert order == ["clustered:2", "clustered:4", "clustered:16", "filtered", "persistent"]
    assert all(len(entry) < 300 for entry in texts[0])


@pytest.mark.parametrize(
    "change",
    [
        {"k": 512},
        {"input": "uniform"},
        {"dtype": "bfloat16"},
        {"pdl": True},
        {"lengths": "uniform"},
        {"stride": 65540},
        {"offset": 1},
        {"kind": "peer"},
    ],
)
def test_what_is_not_comparable_is_left_out(tmp_path: Path, change: dict[str, Any]) -> None:
    other = line("filtered", 8, 65536, 1.0, **change)
    assert not tune.wanted(other) and tune.wanted(ROUTES[0])
    source, out = written(tmp_path / "in", other, ROUTES[1]), tmp_path / "out"
    tune.main([str(source), "--out", str(out)])
    assert json.loads(out.read_text())["devices"][0]["times"] == {"filtered": {"8": {"131072": 11.0}}}


def test_of_several_times_the_median_counts_also_of_planned_ones(tmp_path: Path) -> None:
    times = [(9, False), (10, True), (90, False)]
    files = [written(tmp_path / str(us), line("filtered", 8, 65536, us, planned=auto)) for us, auto in times]
    out = tmp_path / "out"
    tune.main([*map(str, files), "--out", str(out)])
    assert json.loads(out.read_text())["devices"][0]["times"]["filtered"]["8"]["65536"] == 10


def test_each_gpu_has_an_entry_and_several_dates_are_all_said(tmp_path: Path) -> None:
    rows = [
        *ROUTES[:1],
        line("filtered", 8, 65536, 9.0, date="2026-01-03"),
        line("filtered", 8, 65536, 7.0, gpu="Other"),
    ]
    out = tmp_path / "out"
    tune.main([str(written(tmp_path / "in", *rows)), "--out", str(out)])
    h200, other = json.loads(out.read_text())["devices"]
    assert h200["provenance"]["date"] == "2026-01-02; 2026-01-03" and other["names"] == ["Other"]


def test_parts_of_a_gpu_are_not_mixed_with_the_whole(tmp_path: Path) -> None:
    source = written(tmp_path / "in", ROUTES[0], {**ROUTES[1], "sms": 66})
    with pytest.raises(ValueError, match=r"\[66, 132\]"):
        tune.main([str(source), "--out", str(tmp_path / "out")])


def test_a_file_without_such_cells_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "in", line("filtered", 8, 65536, 1.0, k=512))
    with pytest.raises(SystemExit) as caught:
        tune.main([str(source), "--out", str(tmp_path / "out")])
    assert caught.value.code == 2 and "is of k 1024 and plain" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_run_on_an_unsteady_machine_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(tmp_path / "in", ROUTES[0], {**ROUTES[1], "control_us": 1.8})
    tune.main([str(source), "--out", str(tmp_path / "out")])
    assert "NOT COMPARABLE" in capsys.readouterr().out
