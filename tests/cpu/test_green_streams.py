"""Streams of green contexts while another context is current: plans keep within the SMs that the stream may use."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import api, engine
from drvtopk import driver as drv
from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import NotPrepared, PlanError
from drvtopk.interop.arrays import from_address
from drvtopk.plan import Plan, Problem
from drvtopk.reasons import Kind
from drvtopk.spec import KNOWN_DEVICES, DeviceInfo
from drvtopk.words import Route
from tests import emulated
from tests.fake_driver import FakeDriver

PLAIN, SMALL, BESIDE, LARGE, OTHER = 5, 6, 7, 8, 9  # streams: of none, of two of 16 SMs, of 64, and SMALL's second
ROWS, WIDTH, K = 4, 400_000, 1024
PROBLEM = Problem(rows=ROWS, width=WIDTH, k=K)
LAUNCHES = ("cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel")


@pytest.fixture
def fake() -> FakeDriver:
    found = FakeDriver()
    found.green = {SMALL: (0xA000, 16), OTHER: (0xA000, 16), BESIDE: (0xB000, 16), LARGE: (0xC000, 64)}
    return found


@pytest.fixture
def host(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The API on the fake driver, in the primary context."""
    monkeypatch.setattr(engine, "compile_variant", emulated._compile)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))
    driver = Driver(fake)
    here = Engine(driver, driver.context_device(0x77), cache=Cache(None))
    monkeypatch.setattr(drv, "_loaded", driver)
    monkeypatch.setattr(engine, "_engines", {0x77: here})
    yield here


def topk(stream: Any, route: Route = "auto", rows: int = ROWS) -> None:
    logits = from_address(1 << 30, (rows, WIDTH), "float32", device=0)
    out = from_address(2 << 40, (rows, K), "int32", device=0)
    workspace = from_address(3 << 40, (1 << 24,), "uint8", device=0)
    api.topk(logits, K, out=out, workspace=workspace, stream=stream, route=route)


def grid(fake: FakeDriver, stream: int) -> int:
    """Blocks of the last launch, which went to this stream."""
    _, args = next(call for call in reversed(fake.calls) if call[0] in LAUNCHES)
    assert args[8] == stream
    return int(args[1])


def prepare(stream: Any = None, **how: Any) -> Plan:
    return drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, stream=stream, **how).plan


def assuming(here: Engine, stream: int, device: DeviceInfo) -> Plan:
    return here.prepare(PROBLEM, route="persistent", assume=device, share=here.share_of(stream)).plan


def test_a_stream_tells_its_green_context_and_sms(fake: FakeDriver) -> None:
    driver = Driver(fake)
    assert driver.green_context(SMALL) == driver.green_context(OTHER) == (0xA000, 16)
    assert driver.green_context(LARGE) == (0xC000, 64)
    assert driver.green_context(PLAIN) is None


@pytest.mark.parametrize("call", ["cuStreamGetGreenCtx", "cuGreenCtxGetDevResource"])
@pytest.mark.parametrize("lack", [801, RuntimeError("Function is not found"), AttributeError("no such function")])
def test_drivers_and_bindings_without_green_contexts_plan_as_before(
    host: Engine, fake: FakeDriver, call: str, lack: Any
) -> None:
    before = prepare()

    def missing(*_: Any) -> tuple[int]:
        if isinstance(lack, Exception):
            raise lack
        return (lack,)

    fake.replace[call] = missing
    assert host.driver.green_context(SMALL) is None
    assert prepare(SMALL) == before
    topk(SMALL)
    assert grid(fake, SMALL) == before.grid


@pytest.mark.parametrize("lack", [RuntimeError("Function is not found"), AttributeError("no such function")])
def test_contexts_that_cannot_be_asked_own_their_device(fake: FakeDriver, lack: Exception) -> None:
    def missing(*_: Any) -> tuple[int]:
        raise lack

    fake.replace["cuCtxGetDevResource"] = missing
    assert Driver(fake).context_device(0x77).sms == 132


@pytest.mark.parametrize(("stream", "sms"), [(SMALL, 16), (LARGE, 64)])
def test_a_cooperative_grid_keeps_within_the_green_context(
    host: Engine, fake: FakeDriver, stream: int, sms: int
) -> None:
    topk(stream, "persistent")
    assert fake.names.count("cuLaunchCooperativeKernel") == 1 and "cuLaunchKernel" not in fake.names
    assert grid(fake, stream) <= 2 * sms
    made = prepare(stream, route="persistent")
    assert (made.sms, made.resident_cap, made.cooperative) == (sms, 2 * sms, True) and made.grid <= 2 * sms
    topk(PLAIN, "persistent")
    assert grid(fake, PLAIN) > 2 * sms
    assert prepare(route="persistent").sms == prepare(PLAIN, route="persistent").sms == 132


@pytest.mark.parametrize("bound", [False, True])
def test_a_cooperative_grid_that_such_a_stream_never_holds_is_not_launched(
    host: Engine, fake: FakeDriver, bound: bool
) -> None:
    """In a capture the driver would not refuse it, and the graph's replay would never end."""
    prepared = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, route="persistent")
    addresses = 1 << 30, 0, 2 << 40, 3 << 40
    launch = prepared.launch if not bound else None
    again = None if launch else prepared._inner.bind(prepared._inner.args(*addresses))

    def run(stream: int) -> None:
        if launch:
            launch(*addresses, stream)
        elif again:
            again(stream)

    assert prepared.plan.grid > 2 * 64
    run(PLAIN)
    assert fake.names[-1] == "cuLaunchCooperativeKernel"
    fake.calls.clear()
    run(LARGE)
    assert "cuLaunchCooperativeKernel" not in fake.names and fake.names[-1] == "cuLaunchKernel"
    assert prepared.plan.route == "filtered" and prepared.plan.reason.kind is Kind.REFUSED


def test_clusters_are_those_that_the_streams_sms_hold(host: Engine, fake: FakeDriver) -> None:
    """The driver is asked of the stream: a green context of enough SMs may have no room for a cluster of 16."""
    assert prepare(route="clustered").group == prepare(PLAIN, route="clustered").group == 16
    for stream in (SMALL, LARGE):
        assert prepare(stream, route="clustered").group == 8
        with pytest.raises(PlanError, match="no cluster of 16 blocks"):
            host.prepare(PROBLEM, route="clustered", group=16, share=host.share_of(stream))
    asked = [args[1] for name, args in fake.calls if name == "cuOccupancyMaxActiveClusters"]
    assert {getattr(config, "hStream", 0) for config in asked} == {0, SMALL, LARGE}


def test_each_green_context_has_a_preparation_of_its_own(host: Engine, fake: FakeDriver) -> None:
    """What the driver refuses in one leaves the others as they are; streams of one context share theirs."""
    first = {}
    for stream in (PLAIN, SMALL, BESIDE, LARGE):
        topk(stream, "persistent")
        first[stream] = grid(fake, stream)
    fake.replace["cuLaunchCooperativeKernel"] = lambda *args: (720 if args[8] in (SMALL, OTHER) else 0,)
    for stream in (PLAIN, SMALL, BESIDE, LARGE):
        topk(stream, "persistent")
    assert grid(fake, LARGE) == first[LARGE]
    fake.calls.clear()
    for stream in (PLAIN, BESIDE, LARGE):
        topk(stream, "persistent")
        assert grid(fake, stream) == first[stream]
    assert [name for name in fake.names if name in LAUNCHES] == ["cuLaunchCooperativeKernel"] * 3
    fake.calls.clear()
    topk(OTHER, "persistent")
    assert [name for name in fake.names if name in LAUNCHES] == ["cuLaunchKernel"], (
        "what was refused in its context is not tried again"
    )


@pytest.mark.parametrize("stream", [PLAIN, SMALL])
def test_a_call_asks_its_stream_once_and_a_prepared_one_never(host: Engine, fake: FakeDriver, stream: int) -> None:
    topk(stream)
    fake.calls.clear()
    topk(stream)
    assert fake.names.count("cuStreamGetGreenCtx") == 1
    assert fake.names.count("cuGreenCtxGetDevResource") == (stream != PLAIN)
    assert not [name for name in fake.names if name.startswith(("cuOccupancy", "cuModule", "cuFunc"))]
    ready = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, stream=stream)
    fake.calls.clear()
    ready.launch(1 << 20, 0, 3 << 20, 4 << 20, stream)
    assert len(fake.calls) == 1


def test_the_default_stream_is_asked_nothing(host: Engine, fake: FakeDriver) -> None:
    for stream in (None, 0, 1, 2):
        topk(stream)
    api.topk(np.zeros((2, 5000), np.float32), 16)
    assert "cuStreamGetGreenCtx" not in fake.names


def test_a_cooperative_launch_asks_the_default_streams_too(host: Engine, fake: FakeDriver) -> None:
    """Another context may be current now than where it was prepared."""
    prepared = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, route="persistent")
    fake.green[2] = (0xD000, 16)
    prepared.launch(1 << 30, 0, 2 << 40, 3 << 40, 2)
    assert "cuLaunchCooperativeKernel" not in fake.names and prepared.plan.route == "filtered"


def test_numpy_arrays_on_such_a_stream_keep_within_it_too(host: Engine, fake: FakeDriver) -> None:
    api.topk(np.zeros((2, 200_000), np.float32), 16, stream=SMALL, route="persistent")
    assert grid(fake, SMALL) <= 32


def test_a_capture_needs_what_was_prepared_for_its_stream(host: Engine, fake: FakeDriver) -> None:
    """Inside a capture the driver refuses nothing, and the graph could not be instantiated."""
    topk(PLAIN)
    fake.capturing = True
    topk(PLAIN)
    with pytest.raises(NotPrepared):
        topk(SMALL)
    fake.capturing = False
    topk(SMALL)
    small = grid(fake, SMALL)
    fake.capturing = True
    topk(OTHER)
    assert grid(fake, OTHER) == small


def test_an_assumed_device_and_a_stream_both_limit(host: Engine) -> None:
    few = KNOWN_DEVICES["h200"].with_limits(sms=24)
    assert assuming(host, SMALL, few).sms == 16
    assert assuming(host, LARGE, few).sms == 24
    assert assuming(host, PLAIN, few).sms == 24


def test_a_green_context_that_is_current_needs_no_share(fake: FakeDriver) -> None:
    driver = Driver(fake)
    fake.resource_sms = 16
    inside = Engine(driver, driver.context_device(0xA000), cache=Cache(None))
    assert inside.device.sms == 16
    assert inside.share_of(SMALL) is None and inside.share_of(LARGE) is None
