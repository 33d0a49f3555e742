"""What the compiling tests share: one folder of compiled kernels for each test session."""

from __future__ import annotations

import pytest

from drvtopk.cache import Cache


@pytest.fixture(scope="session")
def compiled_before(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache that starts empty with the session, so that nothing compiled by older code can answer."""
    return Cache(tmp_path_factory.mktemp("kernels"))
