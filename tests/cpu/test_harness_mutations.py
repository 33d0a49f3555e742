"""Take out any one barrier, fence, reset or step of the meeting, and some schedule of the simulated kernels notices."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.harness.mutations import caught, mutations
from tests.harness.runner import COMPILER

pytestmark = pytest.mark.skipif(shutil.which(COMPILER) is None, reason=f"needs a host C++ compiler, {COMPILER}")


@pytest.mark.timeout(2400)
def test_every_mutation_is_caught() -> None:
    listed = list(mutations())
    assert len(listed) > 50
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(caught, listed))
    assert [mutation.name for mutation, answer in zip(listed, answers, strict=True) if not answer] == []
