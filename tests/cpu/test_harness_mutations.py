"""Take out any one barrier, fence, reset or step of the meeting, and some schedule of the simulated kernels notices."""

from __future__ import annotations

import pytest

from tests.harness.mutations import Mutation, caught, misfits, mutations
from tests.needs import needs_cpp

LISTED = [
    pytest.param(
        mutation, id=mutation.name, marks=pytest.mark.exhaustive("mutations", file=f"cuda_src/{mutation.file}")
    )
    for mutation in mutations()
]


def test_the_list_fits_the_sources() -> None:
    assert misfits() == []
    assert len(LISTED) > 50


@needs_cpp
@pytest.mark.parametrize("mutation", LISTED)
def test_every_mutation_is_caught(mutation: Mutation) -> None:
    assert caught(mutation), "no schedule notices it"
