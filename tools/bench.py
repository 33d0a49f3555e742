"""Times cells (rows x length x k x input) on this machine's GPU, beside the time to just read the same bytes and beside
what other libraries took (tools/results/peers.json).

    python tools/bench.py --out tools/results/h200.jsonl
    python tools/bench.py --grid quick                # a few cells, some ten seconds
    python tools/bench.py --grid between,adversarial,ragged,prefill,bf16 --host
    python tools/bench.py --grid tune --out tools/results/routes.jsonl     # then: python tools/tune.py
    python tools/bench.py --rows 1,64 --len 4096,131072 --k 1024 --route auto,filtered,clustered:8

Method: a CUDA graph of N launches, each on its own slice of a pool larger than L2 and with its own output and
workspace; L2 flushed by reading before each replay; replay time / N; the median of 51 replays. Every timed output is
checked exactly afterwards; a wrong one ends the run with exit code 1. The floor, a kernel that reads the bytes that the
lengths name, is timed by the same method, once for each size. `control_us` is one fixed small read, timed for every
shape: where it differs between cells, so did the machine, and the cells cannot be compared. All work goes out on one
stream: in a process that has run kernels on a second one, each launch of a graph takes 0.37 us longer from then on
(seen on an H200), whatever is launched.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import numpy.typing as npt

import drvtopk
from drvtopk.engine import Engine, current_engine
from drvtopk.errors import PlanError
from drvtopk.launch import Prepared
from drvtopk.plan import Problem, calculated_occupancy, plan
from drvtopk.spec import DeviceInfo, KernelInfo, Variant, align
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import narrowed
from tests.gpu.support import compile_ahead
from tools import baselines, timing
from tools.cells import BASE_ROWS, GRIDS, Asked, Cell, cells_of, known_routes, split_route
from tools.checking import Expected
from tools.host_cost import host_costs
from tools.lines import label, shape, spelled
from tools.provenance import provenance
from tools.timing import DRIFT, MOST_LAUNCHES, Clock, drift
from tools.torch_peer import TorchTopk

LARGEST_SLICE = 2 << 30
OUTPUT_BYTES = 512 << 20  # of all launches of a graph; fewer launches where they would take more
AHEAD_BYTES = 4 << 30  # of inputs that are drawn before the first timing, side by side
CANARY = np.float32(3e38)  # between the rows of a strided input: a kernel that looks there selects it
POISON = 0x7B

Row = dict[str, Any]


class Input:
    """The rows of one input as the host holds them, and what is right for them."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        one = cells[0]
        rows = min(BASE_ROWS, max(cell.rows for cell in cells))
        self.x = narrowed(make(one.input, rows, one.len), one.dtype)
        self.lengths = one.row_lengths
        self.expected = Expected(self.x, one.dtype, self.lengths, max(cell.k for cell in cells))

    @staticmethod
    def key(cell: Cell) -> tuple[str, int, str, str]:
        """Cells of the same key share an input."""
        return cell.dtype, cell.len, cell.input, cell.lengths

    def laid_out(self, cell: Cell) -> npt.NDArray[Any]:
        """The rows that differ, `stride` elements apart, with canaries between."""
        rows = self.x[: cell.rows]
        if cell.stride == cell.len:
            return rows
        flat = narrowed(np.full((len(rows), cell.stride), CANARY, np.float32), cell.dtype)
        flat[:, : cell.len] = rows
        return flat


class Bench:
    """Device memory, clock and threads of one run."""

    def __init__(self, engine: Engine, pool: int, flush: int, threads: Executor) -> None:
        self.engine, self.driver, self.threads = engine, engine.driver, threads
        self.pool = pool
        self.clock = Clock(engine, pool, flush)
        self.torch: TorchTopk | None = None
        self.skipped: list[str] = []
        self._filled: object = None
        self._control = 0.0
        self._host = np.empty(0, np.int32)

    @staticmethod
    def slice_bytes(cell: Cell) -> int:
        return align((cell.offset + cell.rows * cell.stride) * cell.item, 512)

    def fill(self, cell: Cell, given: Input) -> int:
        """Puts the cell's rows into every slice, and times the control read; returns the number of slices."""
        driver, step = self.driver, self.slice_bytes(cell)
        slices = max(1, min(MOST_LAUNCHES, timing.POOL_BYTES // step))
        layout = given, cell.rows, cell.stride, cell.offset
        if self._filled == layout:
            return slices
        rows = given.laid_out(cell)
        source = driver.mem_alloc(rows.nbytes)
        self._upload(source, rows)
        first, total = self.pool + cell.offset * cell.item, cell.rows * cell.stride * cell.item
        for at in range(0, total, max(rows.nbytes, 1)):
            self._copy(first + at, source, min(rows.nbytes, total - at))
        done = 1
        while done < slices:
            more = min(done, slices - done)
            self._copy(self.pool + done * step, self.pool, more * step)
            done += more
        driver.stream_synchronize(self.clock.stream)
        driver.mem_free(source)
        self._filled, self._control = layout, self.clock.control()
        return slices

    def _copy(self, to: int, source: int, size: int) -> None:
        self.driver.copy_async(to, source, size, self.clock.stream)

    def _upload(self, address: int, array: npt.NDArray[Any]) -> None:
        """Returns when it is there."""
        given = np.ascontiguousarray(array)
        self._copy(address, given.ctypes.data, given.nbytes)
        self.driver.stream_synchronize(self.clock.stream)

    def measure(self, cell: Cell, given: Input, *, pdl: bool) -> Iterator[Row]:
        """Times one cell by each of its routes; what is yielded was found exactly right."""
        slices = self.fill(cell, given)
        floor = self.clock.floor(cell.named_bytes, self.slice_bytes(cell), slices, self._control)
        common = {"floor_us": round(floor, 3), "control_us": round(self._control, 3)}
        problem = cell.problem(pdl=pdl)
        for route in cell.routes:
            name, group = split_route(route)
            try:
                prepared = self.engine.prepare(problem, route=name, group=group)
            except PlanError as error:
                self.skipped.append(f"{cell}, {route}: {error}")
                continue
            launches = max(1, min(slices, OUTPUT_BYTES // (4 * cell.rows * cell.k)))
            microseconds, spread, outs = self._timed(cell, given, prepared, launches)
            wrong = given.expected.wrong(cell.k, outs, self.threads)
            if wrong:
                raise SystemExit(f"WRONG: {cell}, {route}: {wrong[0]}")
            made = prepared.plan
            yield {
                "kind": "cell",
                **_identity(cell),
                "route": made.route,
                "group": made.group,
                "planned": route == "auto",
                "pdl": pdl,
                "us": round(microseconds, 3),
                "spread_us": round(spread, 3),
                **common,
                "launches": launches,
                "replays": cell.replays,
                "grid": made.grid,
                "chunk": made.chunk,
                "vec_size": made.vec_size,
                "sms": self.engine.device.sms,
            }
        if self.torch is not None and given.lengths is None:
            address = self.pool + cell.offset * cell.item
            microseconds, spread = self.torch.time(self.clock, cell, address, self.slice_bytes(cell), slices)
            yield {
                "kind": "peer",
                "peer": "torch_topk",
                **_identity(cell),
                "us": round(microseconds, 3),
                "spread_us": round(spread, 3),
                **common,
                "launches": slices,
                "replays": cell.replays,
                "version": self.torch.version,
            }

    def _timed(
        self, cell: Cell, given: Input, prepared: Prepared, launches: int
    ) -> tuple[float, float, npt.NDArray[np.int32]]:
        """(microseconds, spread, outputs of every launch)."""
        driver, slice_bytes = self.driver, self.slice_bytes(cell)
        out_bytes, step = 4 * cell.rows * cell.k, align(prepared.workspace_bytes, 512)
        first = self.pool + cell.offset * cell.item
        with contextlib.ExitStack() as stack:

            def memory(size: int) -> int:
                address = driver.mem_alloc(size)
                stack.callback(driver.mem_free, address)
                return address

            outs, workspaces = memory(out_bytes * launches), memory(step * launches)
            lengths = 0
            if given.lengths is not None:
                lengths = memory(given.lengths.nbytes)
                self._upload(lengths, given.lengths)
            driver.memset(outs, POISON, out_bytes * launches, self.clock.stream)

            def launch(which: int, stream: int) -> None:
                prepared.launch(
                    first + which * slice_bytes, lengths, outs + which * out_bytes, workspaces + which * step, stream
                )

            microseconds, spread = self.clock.time(launch, launches, cell.replays)
            entries = launches * cell.rows * cell.k
            if entries > self._host.size:  # kept: the pages of a new array cost more than the copy
                self._host = np.empty(entries, np.int32)
            host = self._host[:entries].reshape(launches, cell.rows, cell.k)
            self._copy(host.ctypes.data, outs, out_bytes * launches)
            driver.stream_synchronize(self.clock.stream)
        return microseconds, spread, host


def _identity(cell: Cell) -> Row:
    """What a line of results is about."""
    names = ("k", "rows", "len", "stride", "offset", "dtype", "input", "lengths")
    return {name: getattr(cell, name) for name in names}


def variants(cells: Iterable[Cell], device: DeviceInfo, *, pdl: bool) -> list[Variant]:
    """The instantiations that these cells will want, as far as that is known before any is compiled."""
    found: dict[Variant, None] = {}

    def occupancy(variant: Variant, smem_bytes: int) -> int:
        found.setdefault(variant)
        guess = KernelInfo(
            registers=64 // variant.residency, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1
        )
        return calculated_occupancy(guess, device, smem_bytes, variant.threads)

    for cell in cells:
        for route in cell.routes:
            name, group = split_route(route)
            problem = cell.problem(pdl=pdl)
            with contextlib.suppress(PlanError):  # said when it is timed
                made = plan(problem, device, occupancy, route=name, group=group)
                if made.cooperative:  # its fallback
                    plan(problem, device, occupancy, route="filtered")
    return list(found)


class Inputs:
    """Inputs by cell: as far as memory goes drawn side by side before the first timing, the others when due."""

    def __init__(self, cells: Sequence[Cell], threads: Executor) -> None:
        self._cells: dict[object, list[Cell]] = {}
        for cell in cells:
            self._cells.setdefault(Input.key(cell), []).append(cell)
        self._ahead: dict[object, Future[Input]] = {}
        self._latest: tuple[object, Input | None] = None, None
        size = 0
        for key, alike in self._cells.items():
            size += alike[0].item * alike[0].len * min(BASE_ROWS, max(cell.rows for cell in alike))
            if size <= AHEAD_BYTES:
                self._ahead[key] = threads.submit(Input, alike)

    def of(self, cell: Cell) -> Input:
        key = Input.key(cell)
        if self._latest[0] != key or self._latest[1] is None:
            self._latest = None, None  # one at a time: the longest rows take some hundred megabytes
            ahead = self._ahead.pop(key, None)
            self._latest = key, Input(self._cells[key]) if ahead is None else ahead.result()
        assert self._latest[1] is not None  # a type fact
        return self._latest[1]

    def wait(self) -> None:
        """Until what is drawn ahead is there: the threads shall not disturb a timing."""
        for future in self._ahead.values():
            future.result()


class Budget:
    """Seconds for a whole run. A cell is begun only if the longest so far would still end in time."""

    def __init__(self, seconds: float) -> None:
        self.until = time.monotonic() + seconds
        self.longest = 0.0

    def allows(self) -> bool:
        return time.monotonic() + self.longest <= self.until

    @contextlib.contextmanager
    def spend(self) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.longest = max(self.longest, time.monotonic() - begun)


HEAD = (
    f"{'k':>5} {'rows':>5} {'len':>8} {'input':<22} {'route':<13} {'us':>9} {'+-':>6} {'floor':>8} {'ratio':>6}"
    f"  {'best peer':<31} {'best exact peer':<31}"
)


def line(row: Row, *, peers: bool) -> str:
    """One measured row for the terminal."""
    ran = row["peer"] if row["kind"] == "peer" else spelled(row)
    shown = (
        f"{row['k']:>5} {row['rows']:>5} {row['len']:>8} {row['input']:<22} {ran:<13} {row['us']:>9.2f} "
        f"{row['spread_us']:>6.2f} {row['floor_us']:>8.2f} {row['us'] / row['floor_us']:>6.2f}"
    )
    yard = baselines.at(row, pdl=row["pdl"]) if peers and row["kind"] == "cell" else None
    for peer in yard or ():
        said = f"{peer.name} {peer.us:.2f} ({peer.us / row['us']:.2f}x)" if peer is not None else "none"
        shown += f"  {said:<31}"
    notes = [
        f"{name} {row[name]}"
        for name, plain in (("stride", row["len"]), ("offset", 0), ("dtype", "float32"), ("lengths", "full"))
        if row[name] != plain
    ]
    return (shown + "  " + ", ".join(notes)).rstrip()


def report(rows: Sequence[Row], *, peers: bool) -> list[str]:
    """Geometric means of the rows of each route, and the ten worst cells."""
    said = []
    for route in dict.fromkeys(map(label, rows)):
        found = baselines.summary([row for row in rows if label(row) == route])
        assert found is not None  # a type fact: each label has a row
        said.append(f"{route}: {found.cells} cells, all exact; geometric mean {found.over_floor:.2f}x the floor")
        if not peers or not found.compared:
            continue
        said.append(
            f"  {found.compared} cells that peers have: {found.over_best:.3f}x as fast as the best of them, "
            f"{found.over_exact:.3f}x as the best exact one; slower than the best in {found.slower}"
        )
        said.append("  the worst: ")
        for speed, row, yard in found.worst:
            said.append(f"    {speed:.2f}x  {shape(row)}: {row['us']:.2f}, {yard.best.name} {yard.best.us:.2f}")
    return said


def numbers(text: str) -> list[int]:
    """Comma-separated positive integers."""
    found = [int(part) for part in text.split(",")]
    if min(found) < 1:
        raise ValueError(text)
    return found


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", default="full", help=f"comma-separated: {', '.join(GRIDS)} (default: full)")
    parser.add_argument("--rows", type=numbers, help="comma-separated; instead of the set's, or of its cells these")
    parser.add_argument("--len", type=numbers, dest="lengths", help="comma-separated; likewise")
    parser.add_argument("--k", type=numbers, help="comma-separated; instead of the set's")
    parser.add_argument("--input", help=f"comma-separated, or 'all': {', '.join(INPUTS)} (default: the set's)")
    parser.add_argument("--route", help=f"comma-separated: {', '.join(known_routes())} (default: the set's, auto)")
    parser.add_argument("--pdl", action="store_true", help="with programmatic dependent launch")
    parser.add_argument("--peers", choices=("torch",), help="time torch.topk too, by the same method")
    parser.add_argument("--host", action="store_true", help="what a prepared call costs the host, too")
    parser.add_argument("--replays", type=int, help="instead of the set's")
    parser.add_argument("--out", type=Path, help="JSON lines, each written when measured (default: not at all)")
    parser.add_argument("--append", action="store_true", help="to what --out has already")
    parser.add_argument(
        "--time-budget", type=float, default=500, help="seconds; cells that would end later are named and left out"
    )
    asked = parser.parse_args(argv)
    asked.grids = asked.grid.split(",")
    asked.inputs = list(INPUTS) if asked.input == "all" else asked.input and asked.input.split(",")
    asked.routes = tuple(asked.route.split(",")) if asked.route else None
    for option, given, known in (
        ("--grid", asked.grids, GRIDS),
        ("--input", asked.inputs or (), INPUTS),
        ("--route", asked.routes or (), known_routes()),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            parser.error(f"{option}: got {','.join(unknown)}, allowed is {', '.join(known)}")
    if asked.pdl and "pdl" not in {field.name for field in dataclasses.fields(Problem)}:
        parser.error("--pdl: this version plans no programmatic dependent launch (Problem has no field pdl)")
    if asked.replays is not None and asked.replays < 1:
        parser.error("--replays: at least 1")
    chosen = Asked(rows=asked.rows, lengths=asked.lengths, ks=asked.k, inputs=asked.inputs or None, routes=asked.routes)
    asked.cells = cells_of(asked.grids, chosen)
    if asked.replays is not None:
        asked.cells = [dataclasses.replace(cell, replays=asked.replays) for cell in asked.cells]
    if not asked.cells:
        parser.error(f"--rows, --len: {asked.grid} has no such cells")
    return asked


def run(asked: argparse.Namespace, argv: Sequence[str] | None, stack: contextlib.ExitStack) -> None:
    budget = Budget(asked.time_budget)
    stack.enter_context(drvtopk.primary_context())
    out = None
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        out = stack.enter_context(asked.out.open("a" if asked.append else "w"))
    engine = current_engine()
    driver = engine.driver
    about = provenance(engine, "tools/bench.py", argv)
    peers = baselines.comparable(about["gpu"])
    print(f"{about['gpu']}, driver {about['driver']}, NVRTC {about['nvrtc']}, {about['date']}")
    if not peers:
        print(f"no comparison with the peers, which were measured on {baselines.data()['gpu']}")
    threads = stack.enter_context(ThreadPoolExecutor(len(os.sched_getaffinity(0))))
    cells = [cell for cell in asked.cells if Bench.slice_bytes(cell) <= LARGEST_SLICE]
    left_out = [f"{cell} (over {LARGEST_SLICE >> 20} MiB)" for cell in asked.cells if cell not in set(cells)]
    inputs = Inputs(cells, threads)
    compile_ahead(variants(cells, engine.device, pdl=asked.pdl), engine.device.arch)
    inputs.wait()
    pool, flush = driver.mem_alloc(timing.POOL_BYTES), driver.mem_alloc(timing.FLUSH_BYTES)
    bench = Bench(engine, pool, flush, threads)
    driver.memset(flush, 0, timing.FLUSH_BYTES, bench.clock.stream)
    bench.clock.start()
    if asked.peers == "torch":
        bench.torch = TorchTopk()
    results: list[Row] = []

    def keep(row: Row) -> None:
        results.append({**row, **about})
        if out is not None:
            out.write(json.dumps(results[-1]) + "\n")
            out.flush()

    print(HEAD)
    for cell in cells:
        if not budget.allows():
            left_out.append(f"{cell} (time budget)")
            continue
        with budget.spend():
            for row in bench.measure(cell, inputs.of(cell), pdl=asked.pdl):
                keep(row)
                print(line(row, peers=peers), flush=True)
    if asked.host:
        for row in host_costs(engine, asked.routes or ("auto",), pdl=asked.pdl):
            keep(row)
            print(", ".join(f"{name} {value}" for name, value in row.items()))
    measured = [row for row in results if row["kind"] == "cell"]
    print(*report(measured, peers=peers), sep="\n")
    if measured and drift([row["control_us"] for row in measured]) > DRIFT:
        apart = drift([row["control_us"] for row in measured])
        print(f"NOT COMPARABLE: the control read took {apart:.0%} longer in some cells than in others")
    for what, names in (("left out", left_out), ("no plan", bench.skipped)):
        if names:
            print(f"{what}: {len(names)}", *(f"  {name}" for name in names[:12]), sep="\n")


def main(argv: Sequence[str] | None = None) -> int:
    asked = arguments(argv)
    if not drvtopk.devices():
        print("no GPU: nothing was measured", file=sys.stderr)
        return 1
    with contextlib.ExitStack() as stack:
        run(asked, argv, stack)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
