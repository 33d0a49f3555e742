"""One way to run a problem on the device: strange layouts, poisoned output, dirty workspace, exact check."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.engine import Engine, Prepared
from drvtopk.plan import Problem
from drvtopk.reference import faults
from drvtopk.spec import align

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]

CANARY = np.float32(3e38)  # behind every row: a kernel that looks there selects it
POISON = 0x7B
INSTANTIATIONS = [
    (route, k, vec) for route in ("persistent", "filtered") for k in (512, 1024, 2048) for vec in (1, 2, 4)
]
_LAYOUTS = {4: (0, 0), 2: (0, 2), 1: (1, 0)}  # vec_size: base offset and extra stride, in elements


def layout(width: int, vec: int) -> tuple[int, int]:
    """(offset, stride) in elements for which exactly `vec` is the widest load, with canaries behind each row."""
    offset, extra = _LAYOUTS[vec]
    return offset, align(width, 4) + 4 + extra


class Gpu:
    """An engine, and memory that is given back."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.driver = engine.driver
        self._dirt = 0
        self.leftovers = True

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

    def dirty(self, address: int, size: int) -> None:
        """Fills a workspace with the next kind of dirt: zeros, ones, random words, words of 0 to 2, or leftovers."""
        self._dirt += 1
        random = np.random.default_rng(self._dirt)
        kind = self._dirt % 5
        if kind == 0 and self.leftovers:
            return  # the leftovers of whatever ran here
        if kind <= 2:
            self.driver.memset(address, 0xFF if kind == 2 else 0x00, size)
            return
        self.driver.copy_to_device(address, random.integers(0, 2**32 if kind == 3 else 3, size // 4, dtype=np.uint32))

    def run(
        self,
        x: Floats,
        k: int,
        lengths: Ints | None = None,
        *,
        vec: int | None = None,
        offset: int = 0,
        stride: int | None = None,
        out_stride: int | None = None,
        prepared: Prepared | None = None,
        max_seq_len: int | None = None,
        **how: Any,
    ) -> Ints:
        """The indices, int32 (rows, k). Also checks that nothing beside them was written."""
        rows, width = x.shape
        if vec is not None:
            offset, stride = layout(width, vec)
        step = width if stride is None else stride
        flat = np.full(offset + max(rows - 1, 0) * step + width + 8, CANARY, np.float32)
        for row in range(rows):
            flat[offset + row * step : offset + row * step + width] = x[row]
        if prepared is None:
            problem = Problem(rows=rows, width=width, k=k, stride=step, offset=offset % 4, max_seq_len=max_seq_len)
            prepared = self.engine.prepare(problem, **how)
        if vec is not None:
            assert prepared.plan.vec_size == vec
        out_step = k if out_stride is None else out_stride
        size = prepared.workspace_bytes
        guard = 256
        with self.memory(flat.nbytes, 4 * max(rows, 1), 4 * rows * out_step, size + guard) as held:
            values, counts, out, workspace = held
            self.driver.copy_to_device(values, flat)
            if lengths is not None:
                self.driver.copy_to_device(counts, np.ascontiguousarray(lengths.reshape(-1), np.int32))
            self.driver.memset(out, POISON, 4 * rows * out_step)
            self.dirty(workspace, size // 4 * 4)
            self.driver.memset(workspace + size, POISON, guard)
            prepared.launch(
                values + 4 * offset, counts if lengths is not None else 0, out, workspace, out_stride=out_step
            )
            whole = np.empty((rows, out_step), np.int32)
            self.driver.copy_to_host(whole, out)
            behind = np.empty(guard, np.uint8)
            self.driver.copy_to_host(behind, workspace + size)
        assert np.all(whole[:, k:] == np.int32(POISON * 0x01010101)), "columns beside the output were written"
        assert np.all(behind == POISON), "memory behind the workspace was written"
        return whole[:, :k]

    def check(self, x: Floats, k: int, lengths: Ints | None = None, **how: Any) -> Ints:
        """Runs and holds the result against the oracle."""
        found = self.run(x, k, lengths, **how)
        assert faults(x, k, lengths, found) == []
        return found
