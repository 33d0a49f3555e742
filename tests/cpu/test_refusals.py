"""Launches that the driver refuses since what waits together can never be resident: the fallback, made before."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest

from drvtopk import driver, engine, explain
from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import DriverError, PlanError
from drvtopk.plan import Problem
from drvtopk.reasons import Kind, Reason
from tests import emulated
from tests.fake_driver import FakeDriver

LONG = Problem(rows=4, width=1_000_000, k=1024)
ADDRESSES = (1 << 20, 2 << 20, 3 << 20, 4 << 20)  # logits, lengths, out, workspace
LOADING = ("cuModule", "cuFunc", "cuOccupancy", "cuMem")


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "compile_variant", emulated._compile)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))


def make(fake: FakeDriver) -> Engine:
    here = Driver(fake)
    return Engine(here, here.context_device(0x77), cache=Cache(None))


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


def refuse_clusters(fake: FakeDriver, code: int) -> None:
    """Launches of more blocks than there are rows get `code`: of clusters, and not of their fallback."""
    fake.replace["cuLaunchKernel"] = lambda function, grid, *_: (code if grid > LONG.rows else 0,)
    fake.replace["cuLaunchKernelEx"] = lambda config, *_: (code if config.gridDimX > LONG.rows else 0,)


def test_the_codes_are_the_drivers() -> None:
    api = pytest.importorskip("cuda.bindings.driver")
    assert driver.COOPERATIVE_LAUNCH_TOO_LARGE == api.CUresult.CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE
    assert driver.INVALID_CLUSTER_SIZE == api.CUresult.CUDA_ERROR_INVALID_CLUSTER_SIZE
    assert driver.COOPERATIVE_REFUSALS[1] == api.CUresult.CUDA_ERROR_NOT_SUPPORTED
    for code in driver.CLUSTER_REFUSALS:
        assert api.CUresult(code) in driver.CLUSTER_REFUSALS, "the bindings' own objects are compared"


@pytest.mark.parametrize("code", [912, 720])
@pytest.mark.parametrize("pdl", [False, True])
@pytest.mark.parametrize("binding", [False, True])
def test_refused_clusters_become_the_fallback_and_the_plan_says_so(
    fake: FakeDriver, caplog: pytest.LogCaptureFixture, code: int, pdl: bool, binding: bool
) -> None:
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=pdl), route="clustered")
    first = prepared.plan
    launch: Any = prepared.bind(prepared.args(*ADDRESSES)) if binding else lambda: prepared.launch(*ADDRESSES)
    refuse_clusters(fake, code)
    fake.calls.clear()
    launch()
    call = "cuLaunchKernelEx" if pdl else "cuLaunchKernel"
    assert fake.names == [call, call], "nothing is loaded or asked about any more"
    made = prepared.plan
    assert (made.route, made.grid, made.pdl, made.cooperative) == ("filtered", LONG.rows, pdl, False)
    assert made.reason == Reason(kind=Kind.REFUSED, grid=first.grid, error=code) and made.rejected is not None
    assert f"clusters of 16 blocks ({code}, " in made.why
    assert (made.rejected.route, made.rejected.group, made.rejected.smem_bytes) == ("clustered", 16, first.smem_bytes)
    launch()
    assert fake.names == [call] * 3, "what was refused once is not tried again"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] and made.why in caplog.text


def test_a_device_that_launches_nothing_cooperatively_is_planned_the_fallback(
    fake: FakeDriver, caplog: pytest.LogCaptureFixture
) -> None:
    fake.attributes["COOPERATIVE_LAUNCH"] = 0
    here = make(fake)
    prepared = here.prepare(LONG, chunk=8192)
    made = prepared.plan
    assert (made.route, made.reason.kind) == ("filtered", Kind.REFUSED)
    assert made.rejected is not None and made.rejected.route == "persistent"
    assert made.why == "fallback: this device launches no grid cooperatively (its attribute COOPERATIVE_LAUNCH is 0)"
    assert made.why in caplog.text and here.plan(LONG, chunk=8192) == made
    with pytest.raises(PlanError, match=r"persistent.*COOPERATIVE_LAUNCH is 0"):
        here.prepare(LONG, route="persistent")
    prepared.launch(*ADDRESSES)
    assert fake.names[-1] == "cuLaunchKernel" and "cuLaunchCooperativeKernel" not in fake.names


@pytest.mark.parametrize(
    ("route", "call"), [("filtered", "cuLaunchKernel"), ("persistent", "cuLaunchCooperativeKernel")]
)
def test_what_is_no_cluster_is_not_refused_as_one(fake: FakeDriver, route: str, call: str) -> None:
    prepared = make(fake).prepare(LONG, route=route)
    fake.fail[call] = 912
    with pytest.raises(DriverError, match=f"{call} returned 912"):
        prepared.launch(*ADDRESSES)
    assert prepared.plan.route == route


@pytest.mark.parametrize("code", [1, 700, 701])
@pytest.mark.parametrize("pdl", [False, True])
def test_other_errors_of_a_launch_in_clusters_are_errors(fake: FakeDriver, code: int, pdl: bool) -> None:
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=pdl), route="clustered")
    refuse_clusters(fake, code)
    with pytest.raises(DriverError, match=f"returned {code} .*grid {prepared.plan.grid}"):
        prepared.launch(*ADDRESSES)
    assert prepared.plan.route == "clustered"


def test_a_cluster_size_that_the_driver_knows_nothing_of_is_none(fake: FakeDriver) -> None:
    here = make(fake)
    fake.replace["cuOccupancyMaxActiveClusters"] = lambda _, config: (912,) if config.gridDimX > 4 else (0, 9)
    assert here.plan(LONG, route="clustered").group == 4
    with pytest.raises(PlanError, match="no cluster of 8 blocks"):
        here.plan(LONG, route="clustered", group=8)
    fake.replace.clear()
    fake.fail["cuOccupancyMaxActiveClusters"] = 912
    assert here.plan(LONG).route in ("filtered", "persistent")
    fake.fail["cuOccupancyMaxActiveClusters"] = 719
    with pytest.raises(DriverError, match="719"):
        here.plan(LONG)


def test_what_was_refused_is_explained(fake: FakeDriver) -> None:
    prepared = make(fake).prepare(LONG, route="clustered", group=8)
    refuse_clusters(fake, 912)
    prepared.launch(*ADDRESSES)
    lines = explain(prepared).splitlines()
    (rejected,) = [line for line in lines if line.startswith("Rejected: ")]
    assert "clustered, 8 blocks" in rejected and rejected.endswith("the driver refused such clusters.")
    assert any(line.startswith("Hint: ") and "stream" in line for line in lines)
