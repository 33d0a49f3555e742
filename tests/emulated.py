"""The GPU tests against a device that is not there: `python -m pytest -p tests.emulated tests/gpu`.

Memory is the host's, a launch is the numpy reference on what the parameter block says, and `EMULATED_FAULT` names one
way of being wrong. It says nothing of the kernels; it shows that the GPU tests run, and that they can fail.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pytest

from drvtopk import driver as drv
from drvtopk import engine
from drvtopk.driver import Driver
from drvtopk.launch import EXTRAS_BYTES, PARAMS_BYTES
from drvtopk.spec import PLAIN, KernelInfo, Options, Variant
from drvtopk.testing.oracle import narrowed, ordered_keys, select
from tests.fake_driver import Answer, FakeDriver

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Ranking = Callable[[Floats], npt.NDArray[Any]]  # a row's values to keys that order as they do


def _wide_bin_dropped(row: Floats) -> npt.NDArray[Any]:
    """A candidate buffer that overflows: of a crowded bin only the first 4096 are seen."""
    keys = ordered_keys(row)
    digits = keys >> 21
    crowded = np.flatnonzero(np.bincount(digits, minlength=2048) > 4096)
    for digit in crowded:
        keys[np.flatnonzero(digits == digit)[4096:]] = 0
    return keys


def _missed(row: Floats, where: Any) -> npt.NDArray[Any]:
    keys = ordered_keys(row)
    keys[where] = 0
    return keys


RANKINGS: dict[str, Ranking] = {
    "coarse_keys": lambda row: ordered_keys(row) >> 4,
    "first_missed": lambda row: _missed(row, 0),
    "last_missed": lambda row: _missed(row, -1),
    "seams_missed": lambda row: _missed(row, slice(5000, None, 5000)),
    "infinity_is_nan": lambda row: _missed(row, np.isposinf(row)),
    "nan_is_minus_infinity": lambda row: ordered_keys(np.where(np.isnan(row), np.float32(-np.inf), row)),
    "denormals_flushed": lambda row: ordered_keys(np.where(np.abs(row) < 1.2e-38, np.float32(0), row)),
    "saturated": lambda row: ordered_keys(np.clip(row, -65504, 65504)),
    "raw_nan_order": lambda row: np.where(
        row.view(np.uint32) >> 31 != 0, ~row.view(np.uint32), row.view(np.uint32) | np.uint32(1 << 31)
    ),
    "wide_bin_dropped": _wide_bin_dropped,
}
FAULTS = (
    *RANKINGS,
    "duplicate",
    "hole",
    "stale_tail",
    "unsigned_lengths",
    "unclamped_lengths",
    "lengths_ignored",
    "hint_believed",
    "writes_beside",
    "writes_behind_workspace",
    "reads_workspace",
    "rows_shifted_in_groups",
    "graph_keeps_lengths",
    "oversubscription_accepted",
    "tie_break_ignored",
    "order_ignored",
    "row_starts_ignored",
    "nan_policy_ignored",
    "values_of_empty_places",
    "pages_of_minus_one",
    "high_words_left",
    "last_part_missed",
    "successor_early",
    "hangs",
)


class EmulatedDriver(FakeDriver):
    """A FakeDriver with memory, streams that run at once, graphs, and launches that compute."""

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.held: dict[int, tuple[npt.NDArray[np.uint8], int]] = {}
        self.variants: dict[int, str] = {}
        self.entries: dict[int, str] = {}
        self.recording: dict[int, list[Callable[[], None]]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.events: dict[int, list[Callable[[], None]] | None] = {}
        self.contexts = [0x77]
        self.copying = itertools.count()
        self.copies = 0
        self.last_out = 0
        self.latest: tuple[object, Ints] = (None, np.empty((0, 0), np.int32))

    # Memory

    def _inside(self, address: int, size: int) -> int:
        for start, (_, length) in self.held.items():
            if start <= address and address + size <= start + length:
                return address
        raise AssertionError(f"{size} bytes at {address:#x} are not inside one allocation")

    def _array(self, address: int, shape: tuple[int, int], step: int, kind: Any) -> npt.NDArray[Any]:
        if 0 in shape:
            return np.empty(shape, kind)
        item = np.dtype(kind).itemsize
        size = ((shape[0] - 1) * step + shape[1]) * item
        buffer: Any = (ctypes.c_uint8 * size).from_address(self._inside(address, size))
        return np.lib.stride_tricks.as_strided(np.frombuffer(buffer, kind), shape, (item * step, item))

    def _cuMemAlloc(self, size: int) -> int:
        block = np.full(size + 512, 0xCD, np.uint8)
        address = (block.ctypes.data + 255) // 256 * 256
        self.held[address] = block, size
        return address

    def _cuMemAllocAsync(self, size: int, stream: int) -> int:
        return self._cuMemAlloc(size)

    def _cuMemFree(self, address: int) -> Answer:
        del self.held[address]
        return (0,)

    def _cuMemFreeAsync(self, address: int, stream: int) -> Answer:
        return self._cuMemFree(address)

    def _cuMemGetInfo(self) -> Answer:
        return 0, 4 << 30, 4 << 30

    def _cuMemcpyHtoD(self, to: int, host: int, size: int) -> Answer:
        self.copies = next(self.copying)
        ctypes.memmove(self._inside(to, size), host, size)
        return (0,)

    def _cuMemcpyDtoH(self, host: int, address: int, size: int) -> Answer:
        ctypes.memmove(host, self._inside(address, size), size)
        return (0,)

    def _cuMemcpyDtoHAsync(self, host: int, address: int, size: int, stream: int) -> Answer:
        return self._cuMemcpyDtoH(host, address, size)

    def _cuMemcpyAsync(self, to: int, source: int, size: int, stream: int) -> Answer:
        self.copies = next(self.copying)
        pinned = [(ctypes.addressof(buffer), len(buffer)) for buffer in self.pinned]
        for address in (to, source):
            if not any(start <= address and address + size <= start + length for start, length in pinned):
                self._inside(address, size)
        ctypes.memmove(to, source, size)
        return (0,)

    def _cuMemsetD8Async(self, address: int, byte: int, size: int, stream: int) -> Answer:
        ctypes.memset(self._inside(address, size), byte, size)
        return (0,)

    # Kernels

    def _cuModuleLoadData(self, cubin: bytes) -> int:
        handle = self._handle()
        self.variants[handle] = "" if cubin.startswith(b"\x7fELF") else cubin.decode()  # a real kernel does nothing
        return handle

    def _cuModuleGetFunction(self, module: int, name: bytes) -> int:
        handle = self._handle()
        self.variants[handle] = self.variants[module]
        self.entries[handle] = name.decode()
        return handle

    def _checked(self, function: int, grid: int, threads: int, smem: int) -> None:
        """What the device refuses: another block or grid than the kernel was compiled for, memory beyond its limit."""
        if self.variants[function]:
            variant = _compiled[int(self.variants[function])]
            assert threads == variant.threads, f"{variant} launched with {threads} threads"
            assert grid % variant.cluster == 0, f"{variant} launched with {grid} blocks"
            assert smem <= self.limits.get(function, 48 * 1024), f"{variant} launched with {smem} bytes"
            assert variant.cluster <= 8 or function in self.large_clusters, f"{variant} without leave"

    def _cuLaunchKernel(self, function: int, grid: int, *rest: Any) -> Answer:
        self._checked(function, grid, rest[2], rest[5])
        if self.entries[function] in ("blocker", "producer"):
            getattr(self, f"_{self.entries[function]}")(grid, rest[7])
        return self._launch(function, rest[6], rest[7])

    def _arguments(self, pointers: int, count: int) -> list[int]:
        """Those of a kernel that takes 64-bit words."""
        at = (ctypes.c_void_p * count).from_address(pointers)
        return [int(ctypes.c_uint64.from_address(address or 0).value) for address in at]

    def _blocker(self, grid: int, pointers: int) -> None:
        """It has started, and is no more in the way than that."""
        self._array(self._arguments(pointers, 3)[1], (1, 1), 1, np.uint32)[:] = grid

    def _producer(self, grid: int, pointers: int) -> None:
        row, count, _ = self._arguments(pointers, 3)
        self._array(row, (1, count), count, np.float32)[0] = np.arange(count, dtype=np.float32)

    def _cuLaunchKernelEx(self, config: Any, function: int, pointers: int, extra: int) -> Answer:
        (overlap,) = config.attrs[: config.numAttrs]
        assert overlap.id == "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
        assert overlap.value.programmaticStreamSerializationAllowed == 1
        assert not self.variants[function] or _compiled[int(self.variants[function])].pdl, "it waits for nobody"
        self._checked(function, config.gridDimX, config.blockDimX, config.sharedMemBytes)
        return self._launch(function, config.hStream, pointers, early=self.fault == "successor_early")

    def _cuLaunchCooperativeKernel(self, function: int, grid: int, *rest: Any) -> Answer:
        self._checked(function, grid, rest[2], rest[5])
        cap = self.sms * self.blocks(rest[5])
        if grid > cap and self.fault != "oversubscription_accepted":
            return (720,)
        if self.fault == "hangs":
            time.sleep(1000)
        return self._launch(function, rest[6], rest[7])

    def _launch(self, function: int, stream: int, pointers: int, *, early: bool = False) -> Answer:
        if not self.variants[function]:
            return (0,)
        (block,) = (ctypes.c_void_p * 1).from_address(pointers)
        assert block is not None
        variant = _compiled[int(self.variants[function])]
        # Copied during the call, as the driver does.
        params = ctypes.string_at(block, PARAMS_BYTES + EXTRAS_BYTES * variant.options.extras)
        counts = None
        if self.fault == "graph_keeps_lengths" and stream in self.recording:
            lengths, rows = int(np.frombuffer(params, np.uint64, 2)[1]), int(np.frombuffer(params, np.uint32, 13)[12])
            counts = self._array(lengths, (1, rows), rows, np.int32)[0].copy()
        _, lengths, out = np.frombuffer(params, np.uint64, 3).tolist()
        if early and lengths == self.last_out:  # it began before its predecessor had written
            counts = np.full(int(np.frombuffer(params, np.uint32, 13)[12]), 0x7B7B7B7B, np.int32)
        self.last_out = out

        def work() -> None:
            if variant.options == PLAIN:
                self._select(variant, params, counts)
            else:
                self._select_with(variant.options, variant.k, params)

        if stream in self.recording:
            self.recording[stream].append(work)
        else:
            work()
        return (0,)

    def _select(self, variant: Variant, params: bytes, counts: Ints | None) -> None:
        route, k = variant.route, variant.k
        logits, lengths, out, workspace, stride, out_stride = np.frombuffer(params, np.uint64, 6).tolist()
        rows, width, group, groups, _, _, cooperative, _ = np.frombuffer(params, np.uint32, 8, 48).tolist()
        fault = self.fault
        past = 1 if fault == "unclamped_lengths" and rows and width else 0
        x = self._array(logits, (rows, width + past), stride, np.float32)
        given = self._array(lengths, (1, rows), rows, np.int32)[0] if lengths else np.full(rows, width, np.int32)
        given = given if counts is None else counts
        beside = 1 if fault == "writes_beside" and out_stride > k else 0
        to = self._array(out, (rows, k + beside), out_stride, np.int32)
        if cooperative:
            words = groups * (128 + 3 * 2080 * 4 + 8 * group) // 4
            state = self._array(workspace, (1, words), words, np.uint32)[0]
            if fault == "reads_workspace" and state[0] not in (0, 0xCDCDCDCD):
                return
            state[:] = 7
            if fault == "writes_behind_workspace":
                ctypes.memset(workspace + groups * ((128 + 3 * 2080 * 4 + 8 * group + 127) // 128 * 128), 1, 4)
        question = (self.copies, logits, lengths, params[32:], k)
        latest, found = self.latest
        if question == latest:  # the same launch again, on what nobody has changed since
            to[...] = found
            return
        rank = RANKINGS.get(fault, ordered_keys)
        for row in range(rows):
            n = int(given[row])
            if fault == "unsigned_lengths" and n < 0:
                n = width
            n = width if fault == "lengths_ignored" else min(max(n, 0), width + past)
            if fault == "hint_believed" and not cooperative and route == "persistent":
                n = min(n, 32768)
            m = min(n, k)
            from_row = (row + groups) % rows if fault == "rows_shifted_in_groups" and row >= groups else row
            keys = rank(np.ascontiguousarray(x[from_row, :n])) if n else np.empty(0)
            if fault == "last_part_missed" and route == "clustered" and n > variant.tuning.cluster_threshold:
                keys[-(-n // (32 * group)) * 32 * (group - 1) :] = 0
            best = np.argpartition(keys, n - m)[n - m :] if n > m else np.arange(n)
            to[row, :m] = best
            if fault != "stale_tail":
                to[row, m:] = -1
            if fault == "duplicate" and m > 1:
                to[row, m - 1] = to[row, 0]
            if fault == "hole" and m == k:
                to[row, m - 1] = -1
        self.latest = question, to.copy()

    def _select_with(self, options: Options, k: int, params: bytes) -> None:
        """The reference on what the parameter block says, or one option forgotten."""
        logits, lengths, out, _, stride, out_stride = np.frombuffer(params, np.uint64, 6).tolist()
        rows, width = np.frombuffer(params, np.uint32, 2, 48).tolist()
        values, starts, table, values_stride, table_stride = (
            np.frombuffer(params, np.uint64, 5, PARAMS_BYTES).tolist() if options.extras else (0,) * 5
        )
        page_size, per_table = np.frombuffer(params, np.uint32, 2, 120).tolist() if options.extras else (1, 1)
        words = np.uint32 if options.item_bytes == 4 else np.uint16
        x = self._array(logits, (rows, width), stride, words)
        if options.item_bytes == 4:
            x = x.view(np.float32)

        def one_a_row(address: int) -> Ints | None:
            return self._array(address, (1, rows), rows, np.int32)[0] if address else None

        pages = -(-width // page_size)
        fault, asked = self.fault, options
        for name, plain in (("tie_break", "any"), ("order", "none"), ("nan", "lowest")):
            if fault in (f"{name}_ignored", f"{name}_policy_ignored"):
                asked = dataclasses.replace(asked, **{name: plain})  # type: ignore[arg-type]
        found = select(
            x,
            k,
            one_a_row(lengths),
            options=asked,
            row_starts=None if fault == "row_starts_ignored" else one_a_row(starts),
            page_table=self._array(table, (rows // per_table, pages), table_stride, np.int32) if table else None,
            page_size=page_size,
        )
        to = self._array(out, (rows, k), out_stride, np.dtype(options.index_dtype))
        if fault == "high_words_left" and options.index_dtype == "int64":
            to[...] = to & ~np.int64(0xFFFFFFFF) | found.indices & np.int64(0xFFFFFFFF)
        elif fault == "pages_of_minus_one" and table:
            to[...] = np.where(found.indices < 0, page_size - 1, found.indices)
        else:
            to[...] = found.indices
        if values:
            fill = narrowed(np.array([-np.inf], np.float32), options.dtype).view(words)[0]
            beside = self._array(values, (rows, k), values_stride, words)
            given = found.values.view(words)
            kept = given != fill if fault == "values_of_empty_places" else np.ones_like(given, bool)
            beside[kept] = given[kept]

    # Contexts

    def _cuCtxCreate(self, *_: Any) -> int:
        self.contexts.append(self._handle())
        return self.contexts[-1]

    def _cuCtxDestroy(self, context: int) -> Answer:
        self.contexts.remove(context)
        return (0,)

    def _cuCtxGetCurrent(self) -> int:
        return self.contexts[-1]

    # Graphs

    def _cuEventRecord(self, event: int, stream: int) -> Answer:
        self.events[event] = self.recording.get(stream)
        return (0,)

    def _cuStreamWaitEvent(self, stream: int, event: int, flags: int) -> Answer:
        recorded = self.events.get(event)
        if recorded is not None:  # a stream that waits for one that is captured is captured with it
            self.recording[stream] = recorded
        return (0,)

    def _cuStreamBeginCapture(self, stream: int, mode: Any) -> Answer:
        self.recording[stream] = []
        return (0,)

    def _cuStreamEndCapture(self, stream: int) -> int:
        handle = self._handle()
        ended = self.graphs[handle] = self.recording[stream]
        self.recording = {other: recorded for other, recorded in self.recording.items() if recorded is not ended}
        return handle

    def _cuGraphInstantiate(self, graph: int, flags: int) -> int:
        return graph

    def _cuGraphLaunch(self, graph: int, stream: int) -> Answer:
        for work in self.graphs[graph]:
            work()
        return (0,)

    def _cuEventElapsedTime(self, start: Any, stop: Any) -> float:
        return 0.001


_compiled: list[Variant] = []  # a "cubin" is a place in it


def _compile(variant: Variant, arch: str, *, cache: object = None) -> object:
    info = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
    _compiled.append(variant)
    return SimpleNamespace(cubin=str(len(_compiled) - 1).encode(), info=info)


T = TypeVar("T", bound=EmulatedDriver)


def use(monkeypatch: pytest.MonkeyPatch, device: T, compiler: Any = _compile) -> T:
    """Makes `device` this process's only one, for one test."""
    monkeypatch.setattr(drv, "_loaded", Driver(device))
    monkeypatch.setattr(engine, "_engines", {})
    monkeypatch.setattr(engine, "compile_variant", compiler)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))
    return device


def install(fault: str = "") -> None:
    """Makes the emulated device this process's only one."""
    drv._loaded = Driver(EmulatedDriver(fault))
    engine._engines.clear()
    vars(engine).update(compile_variant=_compile, nvrtc_version=lambda: (12, 9))


def pytest_configure() -> None:
    fault = os.environ.get("EMULATED_FAULT", "")
    assert fault in ("", *FAULTS)
    install(fault)
    os.environ["PYTEST_ADDOPTS"] = "-p tests.emulated"  # for the tests that run in a process of their own
