"""Times N launches as one CUDA graph, L2 cold, and the floor: the time to just read the same bytes."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from drvtopk.cache import Cache, default_folder
from drvtopk.compiler import compile_source
from drvtopk.engine import Engine

REPLAYS = 51
MOST_LAUNCHES = 100  # a replay's own cost, some microseconds, is shared by so many
POOL_BYTES = 4 << 30
FLUSH_BYTES = 256 << 20  # at least twice any L2
CONTROL_BYTES = 16 << 10
DRIFT = 0.05  # of the control read, beyond which the cells of a run cannot be compared
# Reads of FLUSH_BYTES before the first replay, some 10 ms: a GPU that has just idled runs at another clock. By their
# end the host has enqueued every replay, so that nothing it does meanwhile shows in the times.
WARM_UP_READS = 160
START_SECONDS = 0.5  # of reads before the first timing of all: from a long idling the clock rises more slowly

Launch = Callable[[int, int], None]  # (which slice, stream)


class Clock:
    """Times on a stream of its own; `pool` holds the slices, `flush` what is read to flush L2."""

    def __init__(self, engine: Engine, pool: int, flush: int) -> None:
        self.driver = engine.driver
        self.sms = engine.device.sms
        source = (Path(__file__).parent / "read_floor.cu").read_bytes()
        options = (f"--gpu-architecture={engine.device.arch}", "-std=c++17")
        made = compile_source(
            "read_floor", source, "read_floor.cu", {}, engine.device.arch, options, cache=Cache(default_folder())
        )
        self.function = self.driver.load_function(made.cubin, "read_floor")
        self.stream = self.driver.stream_create()
        self.pool, self.flush = pool, flush
        self._events: list[tuple[Any, Any]] = []
        self._floors: dict[tuple[int, int, int], tuple[float, float]] = {}

    def start(self) -> None:
        """Wakes the GPU: called once, before the first timing."""
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            self.read(self.flush, FLUSH_BYTES, self.stream)
            self.driver.stream_synchronize(self.stream)

    def read(self, address: int, size: int, stream: int, *, per_sm: int = 2) -> None:
        """Launches the kernel that reads `size` bytes once, with `per_sm` blocks for each SM at most."""
        values = (ctypes.c_uint64 * 3)(address, size // 16, self.flush)
        start = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * 3)(start, start + 8, start + 16)
        blocks = max(1, min(per_sm * self.sms, size // 16 // 1024))
        self.driver.launcher(self.function, blocks, 0, ctypes.addressof(pointers), "read_floor")(stream)

    def floor(self, size: int, step: int, launches: int, control: float) -> float:
        """Microseconds to read `size` bytes once, from slices that are `step` bytes apart.

        Timed once, and again where the control read has drifted since.
        """
        key = size, step, launches
        if key not in self._floors or drift([self._floors[key][1], control]) > DRIFT:
            found, _ = self.time(lambda which, stream: self.read(self.pool + which * step, size, stream), launches)
            self._floors[key] = found, control
        return self._floors[key][0]

    def control(self) -> float:
        """The same small read for every shape: it differs only where the machine does."""

        def launch(which: int, stream: int) -> None:
            self.read(self.pool + which * CONTROL_BYTES, CONTROL_BYTES, stream)

        return self.time(launch, MOST_LAUNCHES)[0]

    def time(self, launch: Launch, launches: int, replays: int | None = None) -> tuple[float, float]:
        """Microseconds a launch: the median over the replays, and half the spread of the middle half."""
        driver, stream = self.driver, self.stream
        launch(0, stream)  # loads outside the capture
        driver.begin_capture(stream)
        for which in range(launches):
            launch(which, stream)
        graph = driver.end_capture(stream)
        executable = driver.graph_instantiate(graph)
        found = self.replay(lambda: driver.graph_launch(executable, stream), launches, replays)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
        return found

    def replay(self, run: Callable[[], None], launches: int, replays: int | None = None) -> tuple[float, float]:
        """The same for whatever `run` enqueues on this clock's stream, `launches` launches at a time."""
        driver, stream = self.driver, self.stream
        count = REPLAYS if replays is None else replays
        while len(self._events) < count:
            self._events.append((driver.event_create(), driver.event_create()))
        driver.stream_synchronize(stream)
        for _ in range(WARM_UP_READS):
            self.read(self.flush, FLUSH_BYTES, stream)
        for start, stop in self._events[:count]:
            self.read(self.flush, FLUSH_BYTES, stream)
            driver.event_record(start, stream)
            run()
            driver.event_record(stop, stream)
        times = [driver.event_elapsed_ms(*pair) * 1000 / launches for pair in self._events[:count]]
        low, middle, high = np.percentile(times, [25, 50, 75])
        return float(middle), float(high - low) / 2


def drift(controls: list[float]) -> float:
    """How far apart control reads are: 0.1 is ten per cent."""
    return max(controls) / min(controls) - 1
