"""torch.topk timed by the benchmark's own method: a graph of calls on slices of the same pool, on the same stream."""

from __future__ import annotations

import importlib
from typing import Any

from tools.cells import Cell
from tools.timing import Clock

TYPES = {"float32": "<f4", "bfloat16": "<i2"}  # bfloat16 by its words, which a view then names


class TorchTopk:
    """Imports torch when it is made. Its graph has memory of its own, as torch's capture arranges it."""

    def __init__(self) -> None:
        try:
            torch: Any = importlib.import_module("torch")
        except ImportError as error:
            raise SystemExit(f"--peers torch: torch cannot be imported ({error})") from error
        self._torch = torch
        self.version = str(torch.__version__)

    def time(self, clock: Clock, cell: Cell, address: int, step: int, launches: int) -> tuple[float, float]:
        """Microseconds a call, and the spread, of slices that are `step` bytes apart from `address` on."""
        torch = self._torch
        k = min(cell.k, cell.len)
        slices = [self._tensor(cell, address + which * step) for which in range(launches)]
        stream = torch.cuda.ExternalStream(clock.stream)
        with torch.cuda.stream(stream):
            torch.topk(slices[0], k, sorted=False)  # loads outside the capture
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                for part in slices:
                    torch.topk(part, k, sorted=False)
            found = clock.replay(graph.replay, launches, cell.replays)
            stream.synchronize()
        return found

    def _tensor(self, cell: Cell, address: int) -> Any:
        """A tensor over device memory that is not torch's."""
        described = {
            "shape": (cell.rows, cell.len),
            "strides": (cell.stride * cell.item, cell.item),
            "typestr": TYPES[cell.dtype],
            "data": (address, False),
            "version": 3,
        }
        holder = type("Slice", (), {"__cuda_array_interface__": described})()
        tensor = self._torch.as_tensor(holder, device="cuda")
        return tensor.view(self._torch.bfloat16) if cell.dtype == "bfloat16" else tensor
