"""Streams of a green context while the primary context is current: their kernels get a part of the SMs only.

Hosts divide a GPU that way, between prefill and decode or beside communication, and hand the streams on. Of the
current context nothing of it can be told. These tests decide that a launch is planned for the SMs that its stream
has, that one planned for more ends all the same, and that everybody else's plans stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk.errors import PlanError
from drvtopk.plan import Problem, plan
from drvtopk.spec import ROUTES, Variant
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from drvtopk.words import Route
from tests.gpu.green import Green, green_stream
from tests.gpu.kernels import within
from tests.gpu.support import POISON, Floats, Gpu, Ints, compile_ahead

pytestmark = [pytest.mark.alone, pytest.mark.real]
K = 1024
SIZES = (8, 16)  # SMs of a part; a cluster of 16 blocks with an SM each fits one of them at best
SHAPES = ((1, 131_072), (1, 1_048_576), (4, 262_144), (40, 131_072), (300, 20_000))
WIDTH = 200_000  # of one row, for which any part has room
ASKED: dict[str, dict[str, Any]] = {
    **{route: {"route": route} for route in ROUTES},
    **{f"cluster_{n}": {"route": "clustered", "group": n} for n in (8, 16)},
}


@pytest.fixture(params=SIZES, ids=lambda sms: f"{sms}_sms")
def green(gpu: Gpu, request: pytest.FixtureRequest) -> Iterator[Green]:
    with green_stream(gpu, request.param) as made:
        yield made


@pytest.fixture(scope="module", autouse=True)
def compiled(gpu: Gpu) -> None:
    """The kernels of the tests here, planned for the whole device and for parts of it."""
    wanted: dict[Variant, None] = {}
    asked: list[dict[str, Any]] = [{}, *ASKED.values()]
    for sms in (gpu.engine.device.sms, *SIZES):
        device = gpu.engine.device.with_limits(sms=sms)
        for rows, width in (*SHAPES, (1, WIDTH)):
            for how in asked:
                if how.get("route", "filtered") not in gpu.routes:
                    continue
                try:
                    made = plan(Problem(rows=rows, width=width, k=K), device, lambda v, smem: v.residency, **how)
                except PlanError:
                    continue
                wanted[made.variant] = None
    compile_ahead(wanted, gpu.engine.device.arch)


def launched(gpu: Gpu, x: Floats, prepared: drvtopk.Prepared, *streams: int, times: int = 1) -> list[Ints]:
    """What launches on these streams at once select, `times` of them on each."""
    driver, rows = gpu.driver, len(x)
    size, count = 4 * rows * K, len(streams)
    with gpu.memory(x.nbytes, *[size] * count, *[max(prepared.workspace_bytes, 1)] * count) as held:
        logits, outs, workspaces = held[0], held[1 : 1 + count], held[1 + count :]
        driver.copy_to_device(logits, x)
        for out in outs:
            driver.memset(out, POISON, size)
        driver.synchronize()
        for _ in range(times):
            for stream, out, workspace in zip(streams, outs, workspaces, strict=True):
                prepared.launch(logits, 0, out, workspace, stream)
        for stream in streams:
            driver.stream_synchronize(stream)
        found = [np.empty((rows, K), np.int32) for _ in streams]
        for array, out in zip(found, outs, strict=True):
            driver.copy_to_host(array, out)
    return found


@within(40)
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_topk_ends_and_is_exact(gpu: Gpu, green: Green, route: Route) -> None:
    """A named route either runs within the part, or is refused before anything is launched."""
    ran = 0
    for rows, width in SHAPES:
        x = make("normal", rows, width)
        lengths = np.random.default_rng(rows).integers(width // 2, width + 1, rows).astype(np.int32)
        try:
            found = drvtopk.topk(x, K, lengths, stream=green.stream, route=route)
        except PlanError:
            assert route in ("persistent", "clustered"), "the others always fit"
            continue
        assert find_errors(x, K, lengths, found) == []
        ran += 1
    assert ran == len(SHAPES) or route in ("persistent", "clustered")
    assert ran > 0


@within(40)
def test_topk_of_device_arrays_ends_and_is_exact(gpu: Gpu, green: Green) -> None:
    """The stream is given, or named by the logits; and beside it, the same problem on the whole device."""
    for rows, width in SHAPES[:4]:
        x = make("normal", rows, width)
        with gpu.memory(x.nbytes) as (address,):
            gpu.driver.copy_to_device(address, x)
            gpu.driver.synchronize()
            named = drvtopk.from_address(address, x.shape, "float32", stream=green.stream)
            plain = drvtopk.from_address(address, x.shape, "float32")
            found = [
                drvtopk.topk(named, K),
                drvtopk.topk(plain, K, stream=green.stream),
                drvtopk.topk(plain, K),
                drvtopk.topk(plain, K, stream=green.stream),
            ]
            gpu.driver.synchronize()
            assert [find_errors(x, K, None, each.numpy()) for each in found] == [[]] * 4


@within(40)
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_it_is_planned_for_the_sms_of_the_stream(gpu: Gpu, green: Green, route: Route) -> None:
    prepared = drvtopk.prepare(rows=1, width=WIDTH, k=K, route=route, stream=green.stream)
    made = prepared.plan
    assert made.sms == green.sms < gpu.engine.device.sms
    assert made.resident_cap == green.sms * made.occupancy
    assert not made.cooperative or made.grid <= made.resident_cap
    x = make("normal", 1, WIDTH)
    (found,) = launched(gpu, x, prepared, green.stream, times=20)
    assert find_errors(x, K, None, found) == []
    assert prepared.plan == made, "what was planned is what ran"


@within(40)
def test_preparations_for_other_streams_keep_their_plans(gpu: Gpu, green: Green) -> None:
    driver, x = gpu.driver, make("normal", 1, WIDTH)
    problem: dict[str, Any] = {"rows": 1, "width": WIDTH, "k": K}
    routes: tuple[Any, ...] = ("auto", *gpu.routes)
    for route in routes:
        before = drvtopk.prepare(**problem, route=route)
        made = before.plan
        assert made.sms == gpu.engine.device.sms
        within = drvtopk.prepare(**problem, route=route, stream=green.stream)
        stream = driver.stream_create()
        for given in (None, 0, stream):
            assert drvtopk.prepare(**problem, route=route, stream=given).plan == made
        for prepared, where in ((within, green.stream), (before, stream), (within, green.stream)):
            (found,) = launched(gpu, x, prepared, where, times=5)
            assert find_errors(x, K, None, found) == []
        driver.stream_destroy(stream)
        assert before.plan == made and within.plan.sms == green.sms


@within(40)
@pytest.mark.parametrize("name", ASKED)
def test_a_launch_planned_for_the_whole_device_ends_and_is_exact(gpu: Gpu, green: Green, name: str) -> None:
    """A preparation that did not know of the stream: it runs, or the driver refuses it and its fallback runs."""
    gpu.needs(ASKED[name]["route"])
    for rows in (1, 4, 40):
        x = make("normal", rows, WIDTH)
        prepared = drvtopk.prepare(rows=rows, width=WIDTH, k=K, **ASKED[name])
        made = prepared.plan
        for _ in range(2):
            (found,) = launched(gpu, x, prepared, green.stream, times=5)
            assert find_errors(x, K, None, found) == []
        assert prepared.plan == made or prepared.plan.route == "filtered"


@within(40)
@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_launches_in_both_parts_at_once(gpu: Gpu, green: Green, route: Route) -> None:
    """On the part and on all SMs, which hold its blocks as well."""
    stream, x = gpu.driver.stream_create(), make("normal", 1, WIDTH)
    prepared = drvtopk.prepare(rows=1, width=WIDTH, k=K, route=route, stream=green.stream)
    for found in launched(gpu, x, prepared, green.stream, stream, times=200):
        assert find_errors(x, K, None, found) == []
    gpu.driver.stream_destroy(stream)


@within(40)
@pytest.mark.parametrize(
    ("route", "told"), [*((route, True) for route in ("auto", *ROUTES)), ("filtered", False), ("persistent", False)]
)
def test_a_graph_captured_on_it(gpu: Gpu, green: Green, route: Route, told: bool) -> None:
    """Also of a preparation that was not told of the stream: in a capture the driver refuses no cooperative grid."""
    driver, x = gpu.driver, make("normal", 1, WIDTH)
    prepared = drvtopk.prepare(rows=1, width=WIDTH, k=K, route=route, stream=green.stream if told else None)
    with gpu.memory(x.nbytes, 4 * K, max(prepared.workspace_bytes, 1)) as (logits, out, workspace):
        driver.copy_to_device(logits, x)
        driver.synchronize()
        driver.begin_capture(green.stream)
        prepared.launch(logits, 0, out, workspace, green.stream)
        graph = driver.end_capture(green.stream)
        executable = driver.graph_instantiate(graph)
        driver.memset(out, POISON, 4 * K)
        driver.synchronize()
        for _ in range(20):
            driver.graph_launch(executable, green.stream)
        driver.stream_synchronize(green.stream)
        found = np.empty((1, K), np.int32)
        driver.copy_to_host(found, out)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
    assert find_errors(x, K, None, found) == []
