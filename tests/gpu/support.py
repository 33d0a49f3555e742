"""One way to run a problem on the device: strange layouts, poisoned output, dirty workspace, exact check."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drvtopk import compiler, engine
from drvtopk.cache import Cache, default_folder
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.launch import Prepared
from drvtopk.plan import Problem
from drvtopk.spec import PLAIN, ROUTES, Options, Selected, Variant, align
from drvtopk.testing.inputs import canaries, surround
from drvtopk.testing.oracle import find_errors, narrowed

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]

POISON = 0x7B
GUARD = 256  # bytes behind a workspace and an output
INSTANTIATIONS = [(route, k, vec) for route in ROUTES for k in (512, 1024, 2048) for vec in (1, 2, 4)]
NO_CLUSTERS = "no clusters here: compute capability 9.0 and 10.x have them"
NOT_INSTALLED = "not installed here:"
ONE_DEVICE = "one GPU: nothing to see of several"
MEANT = (NO_CLUSTERS, NOT_INSTALLED, ONE_DEVICE)  # reasons to skip that are no failure anywhere
# vec_size: base offset and extra stride, in elements. A single row has no stride: there the offset decides.
_LAYOUTS = {8: (0, 0), 4: (4, 4), 2: (2, 2), 1: (1, 0)}


def layout(width: int, vec: int) -> tuple[int, int]:
    """(offset, stride) in elements for which exactly `vec` is the widest load, with canaries behind each row."""
    offset, extra = _LAYOUTS[vec]
    return offset, align(width, 8) + 8 + extra


def emulated() -> bool:
    """Whether the device is that of tests/emulated.py."""
    return vars(engine)["compile_variant"] is not compiler.compile_variant


class _Miss(Exception):
    """A kernel is not in the cache."""


class _Lookup(Cache):
    """Answers with what there is, and has nothing compiled."""

    def get(self, name: str) -> bytes:
        found = super().get(name)
        if found is None:
            raise _Miss(name)
        return found


def compile_ahead(variants: Iterable[Variant], arch: str) -> None:
    """Puts these into the cache, side by side: in processes, since NVRTC compiles one at a time in each.

    Of several test processes that begin together (pytest-xdist), one compiles and the others find it done.
    """
    if emulated():
        return
    with (Path(tempfile.gettempdir()) / f"drvtopk-tests-{os.getuid()}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [variant for variant in variants if not _is_cached(variant, arch)]
        if missing:
            with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
                list(pool.map(partial(_compile, arch=arch), missing))


def _is_cached(variant: Variant, arch: str) -> bool:
    try:
        compiler.compile_variant(variant, arch, cache=_Lookup(default_folder()))
    except _Miss:
        return False
    return True


def _compile(variant: Variant, arch: str) -> None:
    compiler.compile_variant(variant, arch, cache=Cache(default_folder()))


class Gpu:
    """An engine, and memory that is given back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.driver = engine.driver
        self.dirt = 0
        self.leftovers = True

    @property
    def routes(self) -> tuple[str, ...]:
        """Those that this device has."""
        return ROUTES if self.engine.device.max_cluster > 1 else tuple(r for r in ROUTES if r != "clustered")

    def needs(self, route: str) -> None:
        """Skips a test of a route that this device does not have."""
        if route not in (*self.routes, "auto"):
            pytest.skip(NO_CLUSTERS)

    @contextlib.contextmanager
    def memory(self, *sizes: int) -> Iterator[list[int]]:
        """Device memory of these sizes, bytes."""
        held: list[int] = []
        try:
            for size in sizes:
                held.append(self.driver.mem_alloc(size))
            yield held
        finally:
            for address in held:
                self.driver.mem_free(address)

    def soil(self, address: int, size: int) -> None:
        """Fills a workspace with the next kind of dirt: zeros, ones, random words, words of 0 to 2, or leftovers."""
        self.dirt += 1
        random = np.random.default_rng(self.dirt)
        kind = self.dirt % 5
        if kind == 0 and self.leftovers:
            return  # the leftovers of whatever ran here
        if kind <= 2:
            self.driver.memset(address, 0xFF if kind == 2 else 0x00, size)
            return
        self.driver.copy_to_device(address, random.integers(0, 2**32 if kind == 3 else 3, size // 4, dtype=np.uint32))

    def run(
        self,
        x: Array,
        k: int,
        lengths: Ints | None = None,
        *,
        options: Options = PLAIN,
        row_starts: Ints | None = None,
        page_table: Ints | None = None,
        page_size: int = 1,
        vec: int | None = None,
        offset: int = 0,
        stride: int | None = None,
        out_stride: int | None = None,
        values_stride: int | None = None,
        prepared: Prepared | None = None,
        max_seq_len: int | None = None,
        waits: str = "allowed",
        sm_budget: int | None = None,
        pdl: bool = False,
        mode: str = "eager",
        **how: Any,
    ) -> Selected:
        """Indices (rows, k) and, where the options ask for them, values. Checks that nothing beside them was written.

        `mode` is "eager", "graph" (captured, and launched twice) or "streams" (two launches at once on streams of their
        own, which have to agree bit for bit where the options leave no choice; the second one is returned).
        """
        rows, width = x.shape
        if vec is not None:
            offset, stride = layout(width, vec)
        step = width if stride is None else stride
        flat = narrowed(canaries(offset + max(rows - 1, 0) * step + width + 8), options.dtype)
        if step >= width:
            x = surround(x, k, lengths, row_starts, options.dtype, seed=rows)
        for row in range(rows):
            flat[offset + row * step : offset + row * step + width] = x[row].view(flat.dtype)
        if prepared is None:
            problem = Problem(
                rows=rows,
                width=width,
                k=k,
                stride=step,
                offset=offset % 8,
                max_seq_len=max_seq_len,
                waits=waits,
                sm_budget=sm_budget,
                options=options,
                pdl=pdl,
            )
            prepared = self.engine.prepare(problem, **how)
        if vec is not None:
            assert prepared.plan.vec_size == vec
        outputs = [Output(rows, k, out_stride, np.dtype(options.index_dtype))]
        if options.values:
            outputs.append(Output(rows, k, values_stride, flat.dtype))
        launches = 2 if mode == "streams" else 1
        size = prepared.workspace_bytes
        table = None if page_table is None else np.ascontiguousarray(page_table, np.int32)
        integers = [a if a is None else np.ascontiguousarray(a.reshape(-1), np.int32) for a in (lengths, row_starts)]
        inputs = [flat, *integers, table]
        sizes = [0 if a is None else max(a.nbytes, 4) for a in inputs]
        with self.memory(*sizes, *[o.size for o in outputs] * launches, *[size + GUARD] * launches) as held:
            for array, address in zip(inputs, held, strict=False):
                if array is not None:
                    self.driver.copy_to_device(address, array)
            values, counts, starts, pages = (
                0 if a is None else address for a, address in zip(inputs, held, strict=False)
            )
            results, workspaces = held[4:-launches], held[-launches:]
            for address, output in zip(results, outputs * launches, strict=True):
                self.driver.memset(address, POISON, output.size)
            for workspace in workspaces:
                self.soil(workspace, size // 4 * 4)
                self.driver.memset(workspace + size, POISON, GUARD)
            self.driver.synchronize()
            more: dict[str, int] = {}
            if table is not None:
                more |= {"page_table": pages, "page_table_stride": table.shape[1], "page_size": page_size}
                more["rows_per_table"] = max(rows // max(len(table), 1), 1)
            if row_starts is not None:
                more["row_starts"] = starts

            def launch(which: int, stream: int) -> None:
                at = results[which * len(outputs) : (which + 1) * len(outputs)]
                if options.values:
                    more.update(values=at[1], values_stride=outputs[1].stride)
                assert prepared is not None
                prepared.launch(
                    values + flat.itemsize * offset,
                    counts,
                    at[0],
                    workspaces[which],
                    stream,
                    out_stride=outputs[0].stride,
                    **more,
                )

            self._launched(launch, mode)
            found = [o.fetched(self.driver, at) for o, at in zip(outputs * launches, results, strict=True)]
            for workspace in workspaces:
                behind = np.empty(GUARD, np.uint8)
                self.driver.copy_to_host(behind, workspace + size)
                assert np.all(behind == POISON), "memory behind the workspace was written"
        if launches == 2 and options.tie_break != "any" and options.order != "none":
            pairs = zip(found[: len(outputs)], found[len(outputs) :], strict=True)
            assert all(a.tobytes() == b.tobytes() for a, b in pairs)
        last = found[-len(outputs) :]
        return Selected(last[0], last[1] if options.values else None)

    def _launched(self, launch: Callable[[int, int], None], mode: str) -> None:
        driver = self.driver
        if mode == "eager":
            launch(0, 0)
            driver.synchronize()
            return
        streams = [driver.stream_create() for _ in range(2 if mode == "streams" else 1)]
        if mode == "streams":
            for which, stream in enumerate(streams):
                launch(which, stream)
        else:
            driver.begin_capture(streams[0])
            launch(0, streams[0])
            graph = driver.end_capture(streams[0])
            executable = driver.graph_instantiate(graph)
            for _ in range(2):
                driver.graph_launch(executable, streams[0])
        for stream in streams:
            driver.stream_synchronize(stream)
        if mode == "graph":
            driver.graph_exec_destroy(executable)
            driver.graph_destroy(graph)
        for stream in streams:
            driver.stream_destroy(stream)

    def check(self, x: Array, k: int, lengths: Ints | None = None, **how: Any) -> Ints:
        """Runs and holds the result against the oracle; the indices."""
        found = self.run(x, k, lengths, **how)
        asked = {name: how[name] for name in ("options", "row_starts", "page_table", "page_size") if name in how}
        assert find_errors(x, k, lengths, found.indices, values=found.values, **asked) == []
        indices: Ints = found.indices
        return indices


class Output:
    """Device memory for (rows, k) results in rows that may be wider, poisoned before."""

    def __init__(self, rows: int, k: int, stride: int | None, dtype: np.dtype[Any]) -> None:
        self.rows, self.k, self.dtype = rows, k, dtype
        self.stride = k if stride is None else stride
        self.size = rows * self.stride * dtype.itemsize + GUARD

    def fetched(self, driver: Driver, address: int) -> Array:
        """The results; nothing beside or behind them may have been written."""
        written = np.empty(self.size, np.uint8)
        driver.copy_to_host(written, address)
        assert np.all(written[-GUARD:] == POISON), "memory behind the output was written"
        whole = written[:-GUARD].view(self.dtype).reshape(self.rows, self.stride)
        poison = np.frombuffer(bytes([POISON]) * self.dtype.itemsize, self.dtype)[0]
        assert np.all(whole[:, self.k :] == poison), "columns beside the output were written"
        return whole[:, : self.k]
