"""What the tests here share: a folder of compiled kernels for each session, and plans that no measurement decides."""

from __future__ import annotations

import pytest

from drvtopk import measured
from drvtopk.cache import Cache


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are those of the model: `measured.json` changes with every measurement. Tests of it bring their own."""
    monkeypatch.setattr(measured, "table", dict)


@pytest.fixture(scope="session")
def compiled_before(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """A cache that starts empty with the session, so that nothing compiled by older code can answer."""
    return Cache(tmp_path_factory.mktemp("kernels"))
