"""The benchmark without a GPU: what it refuses, what it notices, what it writes. The times are an emulated device's."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from drvtopk import engine
from drvtopk.choice import Choice
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import PlanError
from drvtopk.launch import Prepared
from drvtopk.plan import Problem
from drvtopk.planned import FIGURES
from drvtopk.spec import KNOWN_DEVICES
from drvtopk.testing import inputs
from drvtopk.testing.inputs import INPUTS
from tests import emulated
from tools import baselines, bench, cells, host_cost, lines, timing, torch_peer
from tools.checking import Expected


class Device(emulated.EmulatedDriver):
    """An emulated device that copies pageable memory too, and that answers to the peers' GPU's name."""

    def _cuMemcpyAsync(self, to: int, source: int, size: int, stream: int) -> tuple[int]:
        self.copies = next(self.copying)
        ctypes.memmove(to, source, size)
        return (0,)

    def _cuDeviceGetName(self, length: int, device: Any) -> bytes:
        return b"NVIDIA H200\0"


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that is not there, and little memory for it."""
    fake = emulated.use(monkeypatch, Device())
    small = {
        "POOL_BYTES": 16 << 20,
        "FLUSH_BYTES": 1 << 20,
        "WARM_UP_READS": 1,
        "START_SECONDS": 0,
        "REPLAYS": 3,
        "MOST_LAUNCHES": 5,
    }
    for name, value in small.items():
        monkeypatch.setattr(timing, name, value)
    monkeypatch.setattr(bench, "MOST_LAUNCHES", 5)
    return fake


def run(command: str, out: Path) -> list[dict[str, Any]]:
    """The lines that a command wrote."""
    assert bench.main([*command.split(), "--replays", "3", "--out", str(out)]) == 0
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_each_cell_is_written_with_what_repeats_it(device: Device, tmp_path: Path) -> None:
    out = tmp_path / "new" / "cells.jsonl"
    command = "--rows 1,3 --len 600,40000 --k 512 --input normal,all_equal --route auto,filtered"
    found = run(command, out)
    assert len(found) == 2 * 2 * 2 * 2
    assert {(c["rows"], c["len"], c["stride"], c["offset"], c["k"], c["dtype"], c["lengths"]) for c in found} == {
        (rows, length, length, 0, 512, "float32", "full") for rows in (1, 3) for length in (600, 40000)
    }
    planned = {c["len"]: c["route"] for c in found if c["planned"]}
    assert planned[600] == "filtered" and planned.keys() == {600, 40000}
    assert {c["route"] for c in found if not c["planned"]} == {"filtered"}
    assert all(c["us"] > 0 and c["floor_us"] > 0 and c["control_us"] > 0 for c in found)
    said = {
        "kind",
        "gpu",
        "driver",
        "date",
        "input",
        "pdl",
        "spread_us",
        "launches",
        "grid",
        "chunk",
        "vec_size",
        "sms",
    }
    assert all(command in c["command"] and said <= c.keys() for c in found)
    assert not device.held or all(size >= 1 << 20 for _, size in device.held.values()), "only pool and flush are left"


def test_more_lines_may_be_appended(device: Device, tmp_path: Path) -> None:
    out = tmp_path / "cells.jsonl"
    assert [c["len"] for c in run("--rows 1 --len 600 --k 8", out)] == [600]
    assert [c["len"] for c in run("--rows 1 --len 700 --k 8 --append", out)] == [600, 700]
    assert [c["len"] for c in run("--rows 1 --len 800 --k 8", out)] == [800]


@pytest.mark.parametrize("grid", ["between", "ragged", "bf16", "adversarial", "tune"])
def test_every_set_is_measured_and_found_right(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grid: str
) -> None:
    monkeypatch.setattr(cells, "BETWEEN_ROWS", (3,))
    monkeypatch.setattr(cells, "BETWEEN_LENGTHS", (500,))
    monkeypatch.setattr(cells, "BETWEEN_LAYOUTS", ((2, 400, 401, 0), (70, 400, 400, 1), (2, 400, 450, 2)))
    drawn = {name: (rows // 8, 900, draw) for name, (rows, _, draw) in cells.RAGGED.items() if name != "2000_to_4000"}
    monkeypatch.setattr(cells, "RAGGED", drawn)
    monkeypatch.setattr(cells, "BF16_ROWS", (1, 4))
    monkeypatch.setattr(cells, "BF16_LENGTHS", (4096,))
    monkeypatch.setattr(cells, "ADVERSARIAL_SHAPES", ((3, 300), (1, 9000)))
    monkeypatch.setattr(cells, "FULL_ROWS", (1, 2))
    monkeypatch.setattr(cells, "TUNE_LENGTHS", (2000,))
    monkeypatch.setattr(cells, "TUNE_CHOICES", (Choice("filtered"),))
    ks = "--k 1024" if grid == "bf16" else "--k 64"
    found = run(f"--grid {grid} {ks}", tmp_path / "cells.jsonl")
    layouts = {(c["rows"], c["stride"], c["offset"], c["vec_size"]) for c in found}
    if grid == "between":
        assert layouts == {(3, 500, 0, 4), (2, 401, 0, 1), (70, 400, 1, 1), (2, 450, 2, 2)}
    if grid == "ragged":
        assert sorted(c["lengths"] for c in found) == ["log_uniform", "uniform"]
    if grid == "bf16":
        assert {c["dtype"] for c in found} == {"bfloat16"} and {c["vec_size"] for c in found} == {8}
    if grid == "adversarial":
        assert [c["input"] for c in found if c["len"] == 300] == sorted(INPUTS)
    if grid == "tune":
        assert [(c["rows"], c["route"], c["planned"]) for c in found] == [
            (1, "filtered", False),
            (2, "filtered", False),
        ]


@pytest.mark.parametrize(
    ("command", "fault", "where"),
    [
        ("--rows 1 --len 100,4096 --k 512", "hole", r"WRONG: 1 x 4096, k 512, normal, auto.*launch 0, row 0"),
        ("--grid ragged --k 64", "lengths_ignored", r"WRONG: .*lengths \w+, auto: launch 0, row \d"),
        ("--grid between --k 64", "last_missed", "WRONG: .*launch 0, row"),
        ("--grid bf16 --rows 1 --len 4096", "wrong stride", "WRONG: 1 x 4096, k 1024, normal, bfloat16"),
    ],
)
def test_a_wrong_output_ends_the_run_and_keeps_what_was_right(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, fault: str, where: str
) -> None:
    monkeypatch.setattr(cells, "RAGGED", {"short": (8, 900, cells.RAGGED["uniform"][2])})
    monkeypatch.setattr(cells, "BETWEEN_ROWS", (3,))
    monkeypatch.setattr(cells, "BETWEEN_LENGTHS", ())
    monkeypatch.setattr(cells, "BETWEEN_LAYOUTS", ((3, 65, 66, 1),))
    if fault == "wrong stride":
        monkeypatch.setattr(bench.Input, "laid_out", lambda self, cell: self.x[: cell.rows, ::-1].copy())
    device.fault = fault
    out = tmp_path / "cells.jsonl"
    with pytest.raises(SystemExit, match=where) as caught:
        bench.main([*command.split(), "--out", str(out)])
    assert isinstance(caught.value.code, str), "said, and exit code 1"
    kept = [json.loads(line)["len"] for line in out.read_text().splitlines()]
    assert kept == ([100] if fault == "hole" else []), "shorter than k: no hole there"


def test_a_launch_that_reads_beside_its_slice_is_caught(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slices hold what the host thinks they hold: each starts where its launch reads."""
    launch = Prepared.launch

    def off_by_one_row(self: Prepared, logits: int, *rest: Any, **more: Any) -> None:
        launch(self, logits + 4 * 401, *rest, **more)

    monkeypatch.setattr(cells, "BETWEEN_ROWS", ())
    monkeypatch.setattr(cells, "BETWEEN_LAYOUTS", ((66, 400, 401, 0),))
    command = ["--grid", "between", "--k", "64", "--replays", "1"]
    assert bench.main(command) == 0
    monkeypatch.setattr(Prepared, "launch", off_by_one_row)
    with pytest.raises(SystemExit, match="WRONG"):
        bench.main(command)


def test_all_k_of_a_shape_share_its_data_its_floor_and_its_control_read(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[str, int, int]] = []

    def make(name: str, rows: int, width: int) -> Any:
        made.append((name, rows, width))
        return inputs.make(name, rows, width)

    monkeypatch.setattr(bench, "make", make)
    timed: list[int] = []

    def time(self: timing.Clock, launch: Any, launches: int, replays: int | None = None) -> tuple[float, float]:
        timed.append(launches)
        return 1.0, 0.0

    monkeypatch.setattr(timing.Clock, "time", time)
    monkeypatch.setattr(Expected, "wrong", lambda *_: [])
    uploads: list[int] = []
    upload = bench.Bench._upload

    def counted(self: bench.Bench, address: int, array: Any) -> None:
        uploads.append(array.nbytes)
        upload(self, address, array)

    monkeypatch.setattr(bench.Bench, "_upload", counted)
    found = run("--rows 1,2,4 --len 4096,8192 --k 8,16", tmp_path / "cells.jsonl")
    assert sorted(made) == [("normal", 4, 4096), ("normal", 4, 8192)]
    assert len(uploads) == 6, "one upload a shape"
    sizes = {rows * length for rows in (1, 2, 4) for length in (4096, 8192)}
    assert len(found) == 12 and len(timed) == 12 + 6 + len(sizes), "cells, control reads, floors"


def test_all_work_goes_out_on_one_stream(device: Device, tmp_path: Path) -> None:
    """Kernels on a second stream make every launch of a graph slower from then on."""
    run("--rows 1,2 --len 4096 --k 8", tmp_path / "cells.jsonl")
    ordered = {"cuMemsetD8Async", "cuMemcpyAsync", "cuGraphLaunch", "cuEventRecord", "cuStreamSynchronize"}
    streams = {args[-1] for name, args in device.calls if name in ordered}
    assert len(streams) == 1 and 0 not in streams
    assert not {"cuMemcpyHtoD", "cuMemcpyDtoH", "cuMemcpyDtoD", "cuMemsetD8"} & set(device.names)


def test_the_floor_is_timed_again_where_the_machine_has_changed(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(device)
    clock = timing.Clock(engine.current_engine(), driver.mem_alloc(1 << 20), driver.mem_alloc(1 << 20))
    answers = iter([10.0, 11.0, 12.0])
    monkeypatch.setattr(timing.Clock, "time", lambda *_: (next(answers), 0.0))
    assert [clock.floor(4096, 4096, 2, control) for control in (1.0, 1.04, 1.07, 1.05)] == [10.0, 10.0, 11.0, 11.0]
    assert clock.floor(8192, 8192, 2, 1.0) == 12.0


def test_every_replay_is_flushed_and_waits_for_nothing(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver(device)
    clock = timing.Clock(engine.current_engine(), driver.mem_alloc(1 << 20), driver.mem_alloc(1 << 20))
    times = itertools.chain([5.0, 1.0, 3.0, 2.0, 4.0])
    monkeypatch.setattr(device, "replace", {"cuEventElapsedTime": lambda *_: (0, next(times))})
    monkeypatch.setattr(timing, "WARM_UP_READS", 2)
    device.calls.clear()
    middle, spread = clock.time(lambda which, stream: clock.read(clock.pool, 4096, stream), 4, 5)
    assert (middle, spread) == (3000 / 4, 1000 / 4), "the median, and half the distance between the quartiles"
    names = device.names
    replays = names[names.index("cuGraphInstantiate") + 1 : names.index("cuEventElapsedTime") - 1]
    one = ["cuLaunchKernel", "cuEventRecord", "cuGraphLaunch", "cuEventRecord"]
    assert [n for n in replays if n != "cuEventCreate"] == ["cuStreamSynchronize", *["cuLaunchKernel"] * 2, *one * 5]
    flushes = [args for name, args in device.calls if name == "cuLaunchKernel"]
    assert len(flushes) == 1 + 4 + 2 + 5, "outside the capture, in it, warming up, before each replay"


def _with_clusters() -> Any:
    """Engine.prepare for a machine whose clusters hold at most 8 blocks, and that only pretends to have them."""
    prepare = Engine.prepare

    def stub(self: Engine, problem: Problem, *, route: str = "auto", group: int | None = None, **how: Any) -> Any:
        if route != "clustered":
            return prepare(self, problem, route=route, **how)
        if group == 16:
            raise PlanError("clustered", "no cluster of 16 blocks fits")
        ready = prepare(self, problem, route="filtered")
        made = SimpleNamespace(**{name: getattr(ready.plan, name) for name in FIGURES})
        made.route, made.group = "clustered", group
        return SimpleNamespace(plan=made, workspace_bytes=0, launch=ready.launch)

    return stub


def test_routes_have_groups_and_one_that_does_not_serve_a_cell_is_skipped_and_named(
    device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Engine, "prepare", _with_clusters())
    found = run("--rows 2 --len 20000 --k 64 --route filtered,clustered:8,clustered:16", tmp_path / "cells.jsonl")
    assert [(c["route"], c["group"], c["planned"]) for c in found] == [("filtered", 1, False), ("clustered", 8, False)]
    shown = capsys.readouterr().out
    assert "no plan: 1\n  2 x 20000, k 64, normal, clustered:16:" in shown and "16 blocks" in shown
    assert "clustered:8: 1 cells, all exact" in shown and "filtered: 1 cells, all exact" in shown


def test_a_machine_that_changed_during_the_run_is_noticed(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for controls, noticed in (((1.38, 1.40), False), ((1.39, 1.80), True)):
        answers = iter(controls)
        monkeypatch.setattr(timing.Clock, "control", lambda self, answers=answers: next(answers))
        assert bench.main(["--rows", "1", "--len", "600,700", "--k", "8"]) == 0
        assert ("NOT COMPARABLE" in capsys.readouterr().out) == noticed


def test_peers_stand_beside_each_cell_and_in_the_means(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {512: 2.0, 1024: 0.5, 2048: 1.0}
    yards = {k: yard.best.us for k in speeds if (yard := baselines.at(_fields(k))) is not None}

    def time(self: timing.Clock, launch: Any, launches: int, replays: int | None = None) -> tuple[float, float]:
        return (current[0], 0.01) if replays else (1.0, 0.0)

    current = [0.0]
    measure = bench.Bench.measure

    def measured(self: bench.Bench, cell: cells.Cell, given: bench.Input, *, pdl: bool) -> Any:
        current[0] = yards[cell.k] / speeds[cell.k]
        return measure(self, cell, given, pdl=pdl)

    monkeypatch.setattr(timing.Clock, "time", time)
    monkeypatch.setattr(bench.Bench, "measure", measured)
    monkeypatch.setattr(Expected, "wrong", lambda *_: [])
    assert bench.main(["--rows", "1", "--len", "4096", "--k", "512,1024,2048"]) == 0
    shown = capsys.readouterr().out
    assert "sgl_v2 3.17 (2.00x)" in shown and "vllm033_coop 3.27 (2.06x)" in shown, "best, and best exact"
    assert "3 cells that peers have: 1.000x as fast as the best" in shown and "slower than the best in 1" in shown
    worst = shown.split("the worst:")[1].split("\n")[1]
    assert "0.50x  1 x 4096, k 1024: 6.36, sgl_v2 3.18" in worst


def _fields(k: int) -> dict[str, Any]:
    cell = cells.Cell(k=k, rows=1, len=4096, stride=4096)
    return bench._identity(cell)


def test_on_another_gpu_there_is_no_comparison(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Device, "_cuDeviceGetName", lambda *_: b"NVIDIA L20\0")
    assert bench.main(["--rows", "1", "--len", "4096", "--k", "512", "--replays", "1"]) == 0
    shown = capsys.readouterr().out
    assert "no comparison with the peers, which were measured on NVIDIA H200" in shown and "sgl_v2" not in shown


def test_cells_that_would_end_too_late_are_named_and_left_out(
    device: Device, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(["--grid", "quick", "--rows", "1", "--len", "600", "--time-budget", "0"]) == 0
    shown = capsys.readouterr().out
    assert "left out: 1\n  1 x 600, k 1024, normal (time budget)" in shown and "all exact" not in shown


def test_cells_over_the_limit_of_a_slice_are_named_and_left_out(
    device: Device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "LARGEST_SLICE", 1 << 20)
    assert bench.main(["--rows", "1,300", "--len", "1000", "--k", "8", "--replays", "1"]) == 0
    shown = capsys.readouterr().out
    assert "left out: 1\n  300 x 1000, k 8, normal (over 1 MiB)" in shown and "auto: 1 cells, all exact" in shown


def test_the_time_budget_learns_from_slow_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("tools.bench.time.monotonic", lambda: now[0])
    budget = bench.Budget(10)
    assert budget.allows()
    with budget.spend():
        now[0] += 6
    assert not budget.allows(), "one more like that would end too late"


def test_what_is_compiled_ahead_is_what_is_wanted(device: Device, tmp_path: Path) -> None:
    """Instantiations guessed from the device's limits alone, against those that the run compiles."""
    h200 = KNOWN_DEVICES["h200"]
    chosen = cells.Asked(rows=(1, 8, 200), lengths=(4096, 100000), ks=(64,), routes=("auto", "filtered", "persistent"))
    guessed = bench.variants(cells.cells_of(["full"], chosen), h200, pdl=False)
    before = len(emulated._compiled)
    wanted = [
        Engine(Driver(Device()), h200).prepare(cell.problem(), route=route).plan.variant
        for cell in cells.cells_of(["full"], chosen)
        for route in ("auto", "filtered")
    ]
    assert set(wanted) <= set(guessed) and len(guessed) < 12
    assert set(emulated._compiled[before:]) <= set(guessed)
    (waiting,) = cells.cells_of(["full"], cells.Asked(rows=(1,), lengths=(100000,), ks=(64,), routes=("persistent",)))
    assert {v.route for v in bench.variants([waiting], h200, pdl=False)} == {"persistent", "filtered"}, (
        "and its fallback"
    )


@pytest.mark.parametrize("route", ["auto", "filtered"])
def test_host_costs_are_taken_beside_the_very_same_driver_call(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, route: str
) -> None:
    monkeypatch.setattr(host_cost, "SHAPES", ((1, 2048), (2, 40000)))
    monkeypatch.setattr(host_cost, "CALLS", 3)
    monkeypatch.setattr(host_cost, "BATCHES", 2)
    found = run(f"--rows 1 --len 600 --k 8 --host --route {route}", tmp_path / "cells.jsonl")
    costs = [line for line in found if line["kind"] == "host"]
    assert [(c["rows"], c["len"], c["planned"]) for c in costs] == [
        (1, 2048, route == "auto"),
        (2, 40000, route == "auto"),
    ]
    assert all(
        c["us"] > 0 and c["bound_us"] > 0 and c["bare_us"] > 0 and c["bare_call"].startswith("cuLaunch") for c in costs
    )
    assert all("gpu" in c and "torch_us" not in c for c in costs), "there is no torch here"
    assert not device.held or all(size >= 1 << 20 for _, size in device.held.values())


def test_a_bare_call_launches_what_the_prepared_one_does(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_cost, "medians", lambda given, wait: [call() for call in given.values()] and {})
    monkeypatch.setattr(host_cost, "SHAPES", ((1, 2048),))
    monkeypatch.setattr(device, "calls", [])
    ours: list[Prepared] = []
    launch = Prepared.launch

    def counted(self: Prepared, *args: Any) -> None:
        ours.append(self)
        launch(self, *args)

    monkeypatch.setattr(Prepared, "launch", counted)
    list(host_cost.host_costs(engine.current_engine(), ("filtered",), pdl=False))
    launches = [(name, args) for name, args in device.calls if name.startswith("cuLaunch")]
    assert len(launches) == 4 and len({name for name, _ in launches}) == 1, "recorded, prepared, bound, bare"
    assert launches[3][1] == launches[0][1] not in (launches[1][1], launches[2][1]), "the bare one is the recorded one"
    assert len(ours) == 2 and ours[0] is not ours[1], "and goes round us"


def test_medians_are_over_batches_that_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    costs = {"a": iter([9.0] + [1.0] * 6 + [7.0] * 2 + [3.0] * 2), "b": itertools.repeat(2.0)}
    order: list[str] = []

    def call(name: str) -> Any:
        def one() -> None:
            order.append(name)
            now[0] += next(costs[name]) * 1e-6

        return one

    monkeypatch.setattr("tools.host_cost.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(host_cost, "CALLS", 2)
    monkeypatch.setattr(host_cost, "BATCHES", 5)
    assert host_cost.medians({name: call(name) for name in costs}, lambda: None) == {"a": 1.0, "b": 2.0}
    assert order == ["a", "b", *["a", "a", "b", "b"] * 5], "the first call is not counted"


class Torch:
    """As much of torch as the benchmark uses; what it is asked for is written down."""

    __version__ = "9.9"
    bfloat16 = "bfloat16"

    def __init__(self, clock_stream: Any = None) -> None:
        self.calls: list[Any] = []
        self.streams: list[Any] = []
        outer = self

        class Graph:
            def replay(self) -> None:
                outer.calls.append(("replay", outer.streams[-1]))

        class Stream:
            def __init__(self, handle: Any) -> None:
                self.handle = handle

            def synchronize(self) -> None: ...

        class On:
            def __init__(self, what: Any, stream: Any = None) -> None:
                self.stream = what if stream is None else stream

            def __enter__(self) -> None:
                outer.streams.append(self.stream.handle)

            def __exit__(self, *_: Any) -> None:
                outer.streams.pop()

        self.cuda = SimpleNamespace(
            ExternalStream=Stream, CUDAGraph=Graph, stream=On, graph=On, is_available=lambda: True
        )

    def as_tensor(self, holder: Any, device: str) -> Any:
        described = holder.__cuda_array_interface__
        return SimpleNamespace(**described, view=lambda kind: SimpleNamespace(**described, viewed=kind))

    def zeros(self, shape: tuple[int, int], device: str) -> Any:
        return SimpleNamespace(shape=shape)

    def topk(self, x: Any, k: int, sorted: bool = True, out: Any = None) -> tuple[str, str]:
        self.calls.append(("topk", x, k, self.streams[-1:]))
        return "values", "indices"


def test_torch_is_timed_on_the_same_slices_and_stream(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = Torch()
    monkeypatch.setattr("tools.torch_peer.importlib.import_module", lambda name: torch)
    found = run("--rows 3 --len 4096 --k 64 --peers torch", tmp_path / "cells.jsonl")
    ours, peer = found
    assert (ours["kind"], peer["kind"], peer["peer"], peer["version"]) == ("cell", "peer", "torch_topk", "9.9")
    assert {n: ours[n] for n in ("k", "rows", "len", "floor_us")} == {
        n: peer[n] for n in ("k", "rows", "len", "floor_us")
    }
    timed = [x for kind, x, *_ in torch.calls if kind == "topk"][1:]
    assert len(timed) == peer["launches"] == 5 and all(x.shape == (3, 4096) and x.typestr == "<f4" for x in timed)
    assert len({x.data[0] for x in timed}) == 5 and timed[1].data[0] - timed[0].data[0] == 3 * 4096 * 4
    used = {call[-1] if call[0] == "replay" else next(iter(call[-1])) for call in torch.calls}
    assert len(used) == 1 and sum(call[0] == "replay" for call in torch.calls) == 3


def test_torch_gets_bfloat16_and_strides_as_they_are(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = Torch()
    monkeypatch.setattr("tools.torch_peer.importlib.import_module", lambda name: torch)
    cell = cells.Cell(k=8, rows=2, len=10, stride=16, dtype="bfloat16")
    tensor = torch_peer.TorchTopk()._tensor(cell, 4096)
    assert (tensor.viewed, tensor.strides, tensor.typestr, tensor.data) == ("bfloat16", (32, 2), "<i2", (4096, False))


def test_without_torch_asking_for_it_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError("No module named 'torch'")

    monkeypatch.setattr("tools.torch_peer.importlib.import_module", missing)
    with pytest.raises(SystemExit, match="torch cannot be imported"):
        torch_peer.TorchTopk()


def test_sets_are_what_they_say() -> None:
    nothing = cells.Asked()
    full = cells.cells_of(["full"], nothing)
    assert len(full) == 243 and len({(c.rows, c.len) for c in full}) == 81 and {c.replays for c in full} == {51}
    assert all(bench.Bench.slice_bytes(c) <= bench.LARGEST_SLICE for c in full)
    assert len(cells.cells_of(["full", "quick", "full"], nothing)) == 243, "each cell once"
    tune = cells.cells_of(["tune"], nothing)
    routes = {(c.rows, c.len): c.routes for c in tune}
    assert routes[256, 16384] == ("filtered", "clustered:2") and "persistent" in routes[4, 262144]
    assert "persistent" not in routes[8, 1 << 20] and "persistent" not in routes[1, 131072]
    assert "clustered:16" in routes[32, 65536] and "clustered:16" not in routes[64, 65536]
    assert {c.replays for c in tune} == {15}
    prefill = cells.cells_of(["prefill"], nothing)
    assert max(bench.Bench.slice_bytes(c) for c in prefill) == bench.LARGEST_SLICE
    adversarial = cells.cells_of(["adversarial"], nothing)
    assert {c.input for c in adversarial} == set(INPUTS) and len(adversarial) == 3 * len(INPUTS)
    beside = cells.cells_of(["adversarial_peers"], nothing)
    assert {c.input for c in beside} == set(baselines.SAME_INPUT) and {c.k for c in beside} == {512, 2048}
    assert all(baselines.at(dataclasses.asdict(c)) is not None for c in beside), "each has peers"
    assert cells.cells_of(["adversarial_peers"], dataclasses.replace(nothing, ks=[1024])) == []
    asked = cells.Asked(rows=(64,), ks=(7,), inputs=("uniform",), routes=("filtered",))
    (one, two) = cells.cells_of(["ragged"], asked)
    assert {one.lengths, two.lengths} == {"uniform", "2000_to_4000"} and one.k == 7 and one.routes == ("filtered",)


def test_ragged_lengths_are_the_same_each_time_and_name_the_floor() -> None:
    for cell in cells.cells_of(["ragged"], cells.Asked()):
        lengths = cell.row_lengths
        assert lengths is not None and lengths.tolist() == cell.row_lengths.tolist()  # type: ignore[union-attr]
        assert lengths.min() >= 1 and lengths.max() <= cell.len and len(set(lengths.tolist())) > 10
        assert cell.named_bytes == 4 * sum(lengths.tolist()) < 4 * cell.rows * cell.len
    plain = cells.Cell(k=8, rows=16, len=1001, stride=1004, dtype="bfloat16")
    assert plain.named_bytes == 2 * 16 * 1001, "not the gaps between rows"


def test_programmatic_dependent_launch_is_refused_where_there_is_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tools.bench.dataclasses.fields", lambda of: [SimpleNamespace(name="rows")])
    with pytest.raises(SystemExit) as caught:
        bench.main(["--pdl", "--rows", "1", "--len", "600"])
    assert caught.value.code == 2
    assert "no field pdl" in capsys.readouterr().err.splitlines()[-1]


def test_programmatic_dependent_launch_is_a_property_of_the_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "Problem", lambda **given: given)
    cell: Any = cells.Cell(k=8, rows=1, len=600, stride=604, offset=9)
    assert cell.problem(pdl=True)["pdl"] and "pdl" not in cell.problem()
    assert (cell.problem()["stride"], cell.problem()["offset"]) == (604, 1), "modulo the widest load"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--input", "abnormal"),
        ("--route", "best"),
        ("--route", "clustered:3"),
        ("--grid", "huge"),
        ("--rows", "0"),
        ("--len", "many"),
        ("--k", ""),
        ("--replays", "0"),
    ],
)
def test_bad_options_are_one_clear_line(option: str, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main([option, value])
    assert caught.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]


def test_a_set_without_such_cells_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        bench.main(["--grid", "ragged", "--rows", "17"])
    assert caught.value.code == 2 and "ragged has no such cells" in capsys.readouterr().err


def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("drvtopk.devices", list)
    out = tmp_path / "cells.jsonl"
    assert bench.main(["--out", str(out)]) == 1
    assert "nothing was measured" in capsys.readouterr().err and not out.exists()


def test_what_older_lines_do_not_say_was_the_only_case_then(tmp_path: Path) -> None:
    file = tmp_path / "old.jsonl"
    file.write_text('{"k": 8, "rows": 1, "len": 600, "route": "filtered", "planned": true, "us": 2.0}\n')
    (line,) = lines.read(file)
    assert (line["kind"], line["stride"], line["lengths"], line["pdl"]) == ("cell", 600, "full", False)
    assert lines.label(line) == "auto" and lines.spelled({**line, "route": "clustered", "group": 4}) == "clustered:4"
