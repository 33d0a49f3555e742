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
from drvtopk.spec import DEFAULT_TUNING, Variant
from tests.gpu.support import INSTANTIATIONS, Gpu, compile_ahead

SECONDS = 120
ALONE_SECONDS = 60
CHILD = "DRVTOPK_TEST_CHILD"  # set by this file, for this file
REQUIRED = os.environ.get("DRVTOPK_REQUIRE_GPU") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "alone: might hang on the device, so it runs in a process of its own")


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
            compile_ahead(expected(), found.engine.device.arch)
        yield found


def expected() -> list[Variant]:
    """The kernels that most tests ask for. They would be compiled on demand, but one after the other."""
    from tests.gpu.test_exact import paths_of

    return [
        Variant(route=route, k=k, vec_size=vec, tuning=tuning, residency=residency)
        for route, k, vec in INSTANTIATIONS
        for residency in ((1, 2) if route == "filtered" else (2,))
        for tuning in (DEFAULT_TUNING, paths_of(k))
    ]


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if pyfuncitem.get_closest_marker("alone") is None or CHILD in os.environ:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid]
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
    if done.returncode != 0 or "1 passed" not in done.stdout:
        pytest.fail(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}", pytrace=False)
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    if REQUIRED and report.skipped and "tests/gpu" in item.path.as_posix():
        report.outcome = "failed"
        report.longrepr = f"DRVTOPK_REQUIRE_GPU=1 and this was skipped: {report.longrepr}"
    return report  # type: ignore[return-value]
