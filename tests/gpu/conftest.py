"""GPU tests skip without a device, or fail if DRVTOPK_REQUIRE_GPU=1; each has a limit that ends a hung process.

A test marked `alone` runs in a process of its own: one that hangs is killed and fails, and the others still run.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

import drvtopk
from drvtopk.engine import current_engine
from drvtopk.plan import Problem, plan
from drvtopk.spec import DEFAULT_TUNING, DeviceInfo, Tuning, Variant
from tests.gpu.support import INSTANTIATIONS, MEANT, Gpu, compile_ahead, emulated, layout

SECONDS = 120
ALONE_SECONDS = 60
CHILD = "DRVTOPK_TEST_CHILD"  # set by this file, for this file
REQUIRED = os.environ.get("DRVTOPK_REQUIRE_GPU") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: might hang on the device, so it runs in a process of its own")
    config.addinivalue_line("markers", "real: says nothing on an emulated device, and is skipped there")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker("gpu")
            # "thread" ends the whole process: a kernel that hangs never returns to Python.
            item.add_marker(pytest.mark.timeout(SECONDS, method="thread"))


@pytest.fixture(scope="session")
def gpu() -> Iterator[Gpu]:
    if not drvtopk.devices():
        if REQUIRED:
            pytest.fail("DRVTOPK_REQUIRE_GPU=1 and there is no GPU")
        pytest.skip("no GPU: nothing ran on a device")
    with drvtopk.primary_context():
        found = Gpu(current_engine())
        if CHILD not in os.environ:
            compile_ahead(expected(found), found.engine.device.arch)
        yield found


def expected(gpu: Gpu) -> list[Variant]:
    """The kernels that most tests ask for. They would be compiled on demand, but one after the other."""
    from tests.gpu.test_exact import ANY_K, CLUSTERS_SMALL, paths_of

    device: DeviceInfo = gpu.engine.device
    wanted: dict[Variant, None] = {}

    def want(route: str, k: int, vec: int, tuning: Tuning, *, rows: tuple[int, ...]) -> None:
        """For so many rows: fewer than an SM each, or more, which for clusters are few already."""
        offset, stride = layout(40_000, vec)
        for count in rows if route in gpu.routes else ():
            problem = Problem(rows=count, width=40_000, k=k, offset=offset, stride=stride)
            made = plan(problem, device, lambda variant, smem: variant.residency, route=route, tuning=tuning)
            wanted[made.variant] = None

    for route, k, vec in INSTANTIATIONS:
        for tuning in (DEFAULT_TUNING, paths_of(k)):
            want(route, k, vec, tuning, rows=(2, 10, device.sms + 1))
    for k in ANY_K:
        for vec in (1, 4):
            want("clustered", k, vec, DEFAULT_TUNING, rows=(2,))
    for k in (1, 3, 512, 1024):
        for vec in (1, 2, 4):
            want("clustered", k, vec, CLUSTERS_SMALL, rows=(2, 10))
    return list(wanted)


@pytest.fixture(autouse=True)
def _only_routes_that_there_are(request: pytest.FixtureRequest) -> None:
    """A test of one route is skipped where the device lacks it, which is no failure anywhere."""
    if request.node.get_closest_marker("real") is not None and emulated():
        pytest.skip("the device is only emulated")
    spec = getattr(request.node, "callspec", None)
    if spec is not None and "gpu" in request.fixturenames and spec.params.get("route") == "clustered":
        request.getfixturevalue("gpu").needs("clustered")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("alone") is None or CHILD in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", pyfuncitem.nodeid]
    root = pyfuncitem.config.rootpath
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env={**os.environ, CHILD: "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=ALONE_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        shown = error.stdout.decode() if isinstance(error.stdout, bytes) else error.stdout or ""
        pytest.fail(f"still running after {ALONE_SECONDS} s, killed\n{shown}", pytrace=False)
    for reason in MEANT:
        if done.returncode == 0 and "1 skipped" in done.stdout and reason in done.stdout:
            pytest.skip(reason)
    if done.returncode != 0 or "1 passed" not in done.stdout:
        pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}", pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    meant = any(reason in str(report.longrepr) for reason in MEANT)
    if REQUIRED and report.skipped and not meant and "tests/gpu" in item.path.as_posix():
        report.outcome = "failed"
        report.longrepr = f"DRVTOPK_REQUIRE_GPU=1 and this was skipped: {report.longrepr}"
    return report  # type: ignore[return-value]
