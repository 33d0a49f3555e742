"""Choice: what exists, how it is spelled, how it sorts."""

from __future__ import annotations

from typing import Any

import pytest

from drvtopk.choice import CHOICES, Choice
from drvtopk.errors import InvalidArgument
from drvtopk.spec import CLUSTERS


def test_every_choice_is_read_as_it_is_spelled() -> None:
    spelled = ["filtered", "persistent", *(f"clustered:{n}" for n in CLUSTERS)]
    assert sorted(map(str, CHOICES)) == sorted(spelled) and len(set(CHOICES)) == len(CHOICES)
    for text in spelled:
        assert str(Choice.parse(text)) == f"{Choice.parse(text)}" == text
    assert Choice.parse("clustered:8") == Choice("clustered", 8) and Choice.parse("filtered") == Choice("filtered", 1)


BAD_SPELLINGS: list[Any] = [
    "",
    "auto",
    "best",
    "clustered",
    "clustered:",
    "clustered:1",
    "clustered:3",
    "clustered:32",
    "clustered:08",
]
BAD_SPELLINGS += ["clustered: 8", " filtered", "Filtered", "filtered:1", "persistent:2", "clustered:8:8", "8", None, 8]


@pytest.mark.parametrize("text", BAD_SPELLINGS)
def test_another_spelling_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument, match="clustered:16") as caught:
        Choice.parse(text)
    assert caught.value.argument == "route" and repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "route", "cluster"),
    [
        ("route", "auto", 1),
        ("route", "clustered:8", 1),
        ("cluster", "clustered", 1),
        ("cluster", "clustered", 3),
        ("cluster", "clustered", True),
        ("cluster", "filtered", 2),
        ("cluster", "persistent", 16),
    ],
)
def test_what_does_not_exist_is_refused(argument: str, route: str, cluster: int) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Choice(route, cluster)
    assert caught.value.argument == argument


def test_choices_sort_by_route_and_then_by_the_size_as_a_number() -> None:
    order = ["clustered:2", "clustered:4", "clustered:8", "clustered:16", "filtered", "persistent"]
    assert list(map(str, sorted(CHOICES))) == order
