"""GPU tests skip without a device, or fail if DRVTOPK_REQUIRE_GPU=1; each has a limit that ends a hung process."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import drvtopk
from drvtopk.engine import current_engine
from tests.gpu.support import Gpu

SECONDS = 120


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/gpu" in item.path.as_posix():
            item.add_marker("gpu")
            # "thread" ends the whole process: a kernel that hangs never returns to Python.
            item.add_marker(pytest.mark.timeout(SECONDS, method="thread"))


@pytest.fixture(scope="session")
def gpu() -> Iterator[Gpu]:
    if not drvtopk.devices():
        if os.environ.get("DRVTOPK_REQUIRE_GPU") == "1":
            pytest.fail("DRVTOPK_REQUIRE_GPU=1 and there is no GPU")
        pytest.skip("no GPU: nothing ran on a device")
    with drvtopk.primary_context():
        yield Gpu(current_engine())
