"""Two GPUs in one process: each context its own engine, and an array of the other device is refused.

With one GPU there is nothing to see, which is no failure.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk.engine import current_engine
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import ONE_DEVICE, Gpu

pytestmark = [pytest.mark.alone, pytest.mark.real]
SHAPES = [(2, 3000, 16), (4, 200_000, 1024), (200, 20_000, 512)]


@pytest.fixture(autouse=True)
def _two_devices(gpu: Gpu) -> None:
    if gpu.driver.device_count() < 2:
        pytest.skip(ONE_DEVICE)


def on_device(ordinal: int, work: Any) -> Any:
    """Calls `work` on a thread of its own, whose current context is the device's."""

    def inside() -> Any:
        with drvtopk.primary_context(ordinal):
            return work()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(inside).result()


def selections(seed: int) -> list[str]:
    """Numpy, device arrays and a graph; what was wrong."""
    complaints = []
    driver = current_engine().driver
    stream = driver.stream_create()
    for turn, (rows, width, k) in enumerate(SHAPES):
        x = np.random.default_rng(10 * seed + turn).standard_normal((rows, width), dtype=np.float32)
        complaints += find_errors(x, k, None, drvtopk.topk(x, k))
        ready = drvtopk.prepare(rows=rows, width=width, k=k)
        sizes = x.nbytes, rows * k * 4, max(ready.workspace_bytes, 1)
        logits, out, workspace = (driver.mem_alloc(size) for size in sizes)
        current_engine().staging.to_device(logits, x, stream)
        driver.begin_capture(stream)
        ready.launch(logits, 0, out, workspace, stream)
        graph = driver.end_capture(stream)
        executable = driver.graph_instantiate(graph)
        for _ in range(20):
            driver.graph_launch(executable, stream)
        found = np.empty((rows, k), np.int32)
        current_engine().staging.to_host(found, out, stream)
        complaints += find_errors(x, k, None, found)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
        for address in (logits, out, workspace):
            driver.mem_free(address)
    driver.stream_destroy(stream)
    return complaints


def test_both_devices_at_once_from_two_threads(gpu: Gpu) -> None:
    count = gpu.driver.device_count()
    with ThreadPoolExecutor(count) as pool:
        running = [pool.submit(on_device, ordinal, lambda o=ordinal: selections(o)) for ordinal in range(count)]
        assert [c for work in running for c in work.result()] == []


def test_each_device_has_an_engine_that_knows_its_ordinal(gpu: Gpu) -> None:
    found = [on_device(ordinal, current_engine) for ordinal in range(2)]
    assert [engine.ordinal for engine in found] == [0, 1] and found[0] is not found[1]
    assert current_engine() is found[0], "this thread's context is as it was"


def test_an_array_of_the_other_device_is_refused(gpu: Gpu) -> None:
    """By the device that it names, and where it names none, by what the driver knows of its address."""
    x = np.random.default_rng(0).standard_normal((2, 5000), dtype=np.float32)

    def there() -> drvtopk.DeviceView:
        engine = current_engine()
        address = engine.driver.mem_alloc(x.nbytes)
        engine.driver.copy_to_device(address, x)
        assert (
            find_errors(x, 64, None, drvtopk.topk(drvtopk.from_address(address, x.shape, "float32"), 64).numpy()) == []
        )
        return drvtopk.from_address(address, x.shape, "float32")

    logits = on_device(1, there)
    for device in (None, 1):
        named = drvtopk.from_address(logits.address, x.shape, "float32", device=device)
        with pytest.raises(drvtopk.InvalidArgument, match="on device 1, allowed is device 0"):
            drvtopk.topk(named, 64)
    on_device(1, lambda: current_engine().driver.mem_free(logits.address))


def test_a_result_is_freed_on_its_own_device(gpu: Gpu) -> None:
    """By whichever thread lets go of it last, with whatever context."""
    x = np.zeros((8, 1_000_000), np.float32)

    def made() -> Any:
        engine = current_engine()
        with engine.driver.temporary(x.nbytes, 0) as address:
            engine.staging.to_device(address, x, 0)
            return drvtopk.topk(drvtopk.from_address(address, x.shape, "float32"), 4096, values=True)

    def free() -> int:
        driver = current_engine().driver
        driver.synchronize()
        return driver.mem_info()[0]

    on_device(1, made)
    before = on_device(1, free)
    for _ in range(200):  # 51 MB if nothing were freed
        found = on_device(1, made)
        del found
    assert on_device(1, free) > before - (20 << 20)
