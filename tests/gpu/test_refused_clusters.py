"""A cluster launch that the driver refuses: the launch in which no block waits takes its place, and says so once.

What is refused here is refused by a stand-in for the driver's call, since which real launch is refused depends on the
device: 720 (COOPERATIVE_LAUNCH_TOO_LARGE) or 912 (INVALID_CLUSTER_SIZE) where the SMs that a stream has hold no
cluster of that size.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from drvtopk.errors import DriverError
from drvtopk.launch import Prepared
from drvtopk.plan import Problem
from drvtopk.reasons import Kind
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import POISON, Gpu

ROWS, WIDTH, K, GROUP = 3, 70_000, 1024, 8
REFUSALS = (720, 912)


class Refusing:
    """Stands in for both launch calls, and answers `code` to grids of clusters."""

    def __init__(self, gpu: Gpu, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        self.asked = 0
        api = gpu.driver.api
        plain, extended = api.cuLaunchKernel, api.cuLaunchKernelEx

        def refuses(grid: int) -> bool:
            self.asked += grid == ROWS * GROUP
            return grid == ROWS * GROUP

        def launch(function: Any, grid: int, *rest: Any) -> Any:
            return (api.CUresult(code),) if refuses(grid) else plain(function, grid, *rest)

        def launch_extended(config: Any, *rest: Any) -> Any:
            return (api.CUresult(code),) if refuses(config.gridDimX) else extended(config, *rest)

        monkeypatch.setattr(api, "cuLaunchKernel", launch)
        monkeypatch.setattr(api, "cuLaunchKernelEx", launch_extended)


@pytest.fixture(params=[False, True], ids=["plain", "pdl"])
def pdl(gpu: Gpu, request: pytest.FixtureRequest) -> bool:
    gpu.needs("clustered")
    return bool(request.param)


def prepared_clusters(gpu: Gpu, *, pdl: bool) -> Prepared:
    """To be called when the calls are replaced: a preparation looks them up."""
    problem = Problem(rows=ROWS, width=WIDTH, k=K, pdl=pdl)
    prepared = gpu.engine.prepare(problem, route="clustered", group=GROUP)
    assert prepared.plan.grid == ROWS * GROUP and prepared.plan.pdl == pdl
    return prepared


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.__dict__.get("event") == "fallback"]


@pytest.mark.parametrize("code", REFUSALS)
def test_its_fallback_answers_and_it_warns_once(
    gpu: Gpu, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int, pdl: bool
) -> None:
    refusing = Refusing(gpu, monkeypatch, code)
    prepared = prepared_clusters(gpu, pdl=pdl)
    lengths = np.array([WIDTH, 40_000, 9], np.int32)
    with caplog.at_level(logging.WARNING, logger="drvtopk"):
        for _ in range(3):
            gpu.check(make("normal", ROWS, WIDTH), K, lengths, prepared=prepared)
    assert prepared.plan.route == "filtered" and prepared.plan.pdl == pdl and prepared.workspace_bytes == 0
    assert prepared.plan.reason.kind is Kind.REFUSED
    assert refusing.asked == 1, "what was refused once is not asked for again"
    assert warnings(caplog) == [prepared.plan.why]


@pytest.mark.parametrize("code", REFUSALS)
def test_a_bound_launch_falls_back_too(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, code: int, pdl: bool) -> None:
    refusing = Refusing(gpu, monkeypatch, code)
    driver, prepared, x = gpu.driver, prepared_clusters(gpu, pdl=pdl), make("normal", ROWS, WIDTH)
    stream = driver.stream_create()
    with gpu.memory(x.nbytes, 4 * ROWS * K) as (logits, out):
        driver.copy_to_device(logits, x)
        bound = prepared.bind(prepared.args(logits, 0, out))
        for _ in range(2):
            driver.memset(out, POISON, 4 * ROWS * K)
            driver.synchronize()
            bound(stream)
            driver.stream_synchronize(stream)
            found = np.empty((ROWS, K), np.int32)
            driver.copy_to_host(found, out)
            assert find_errors(x, K, None, found) == []
    driver.stream_destroy(stream)
    assert prepared.plan.route == "filtered" and refusing.asked == 1


def test_any_other_error_is_raised(gpu: Gpu, monkeypatch: pytest.MonkeyPatch, pdl: bool) -> None:
    """Of what a fallback would not be rid, or what a caller has to hear of."""
    Refusing(gpu, monkeypatch, 1)  # INVALID_VALUE
    prepared = prepared_clusters(gpu, pdl=pdl)
    for _ in range(2):
        with pytest.raises(DriverError) as raised:
            gpu.check(make("normal", ROWS, WIDTH), K, prepared=prepared)
        assert raised.value.code == 1
    assert prepared.plan.route == "clustered"
