"""The oracle itself: it must be right, and it must see every kind of wrong."""

from __future__ import annotations

import numpy as np
import pytest

from drvtopk.errors import InvalidArgument
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import find_errors, ordered_keys, topk_reference


def test_keys_order_as_values_do() -> None:
    values = np.array([np.nan, -np.inf, -1e30, -1.0, -1e-45, 0.0, 1e-45, 1.0, 3e38, np.inf], np.float32)
    keys = ordered_keys(values).astype(np.int64)
    assert np.all(np.diff(keys) > 0)
    assert ordered_keys(np.array([-0.0], np.float32)) == ordered_keys(np.array([0.0], np.float32))
    nans = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32).view(np.float32)
    assert np.all(ordered_keys(nans) == 0)


@pytest.mark.parametrize("name", INPUTS)
def test_the_reference_is_exact_by_sorting(name: str) -> None:
    x = make(name, 3, 700)
    lengths = np.array([700, 300, 20])
    found = topk_reference(x, 100, lengths)
    assert find_errors(x, 100, lengths, found) == []
    for row, n in enumerate(lengths):
        best = np.sort(ordered_keys(x[row, :n]))[::-1][:100]
        picked = found[row][found[row] >= 0]
        assert np.array_equal(np.sort(ordered_keys(x[row, picked]))[::-1], best)
        assert picked.size == min(n, 100)


def broken(change: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = make("normal", 2, 500)
    lengths = np.array([500, 30])
    out = topk_reference(x, 64, lengths)
    order = np.argsort(ordered_keys(x[0]))
    if change == "dropped":
        out[0, 5] = order[0]
    elif change == "next best":
        out[0, np.flatnonzero(out[0] == order[-64])[0]] = order[-65]
    elif change == "twice":
        out[0, 5] = out[0, 6]
    elif change == "past the length":
        out[1, 3] = 31
    elif change == "hole":
        out[0, 63] = -1
    elif change == "poison":
        out[1, 30] = 0x7B7B7B7B
    elif change == "tail index":
        out[1, 40] = 7
    return x, lengths, out


@pytest.mark.parametrize("change", ["dropped", "next best", "twice", "past the length", "hole", "poison", "tail index"])
def test_every_kind_of_fault_is_seen(change: str) -> None:
    x, lengths, out = broken(change)
    assert len(find_errors(x, 64, lengths, out)) == 1
    assert find_errors(x, 64, lengths, broken("nothing")[2]) == []


def test_any_of_equal_values_will_do_and_a_shape_will_not() -> None:
    x = make("all_equal", 1, 100)
    assert find_errors(x, 10, None, np.arange(50, 60, dtype=np.int32)[None]) == []
    assert "shape" in find_errors(x, 10, None, np.zeros((1, 9), np.int32))[0]


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidArgument, match="k: "):
        topk_reference(np.zeros((1, 2), np.float32), 0)
    with pytest.raises(InvalidArgument, match="logits: "):
        topk_reference(np.zeros((1, 2)), 1)
    with pytest.raises(InvalidArgument, match="lengths: "):
        topk_reference(np.zeros((1, 2), np.float32), 1, np.zeros(2, np.int32))


@pytest.mark.parametrize(
    ("length", "place", "index", "said"),
    [
        (100, 3, 9, "stand twice"),  # any member of equal values will do, but not one of them again
        (6, 3, 4, "stand twice"),  # a row that fits as a whole is a list of members all the same
        (100, 0, -3, "outside"),  # which numpy would take for the third from the end
        (6, 5, -1, "outside"),
        (100, 9, 100, "outside"),
        (6, 9, 7, "past the first 6"),
    ],
)
def test_what_equal_values_would_hide_is_seen(length: int, place: int, index: int, said: str) -> None:
    x = make("all_equal", 1, 200)
    lengths = np.array([length])
    out = np.arange(10, dtype=np.int32)[None].copy()
    out[0, length:] = -1
    assert find_errors(x, 10, lengths, out) == []
    out[0, place] = index
    (found,) = find_errors(x, 10, lengths, out)
    assert said in found and found.startswith(f"row 0 (length {length}): ")


def test_one_element_more_than_places_is_looked_at() -> None:
    x = np.arange(11, dtype=np.float32)[None]
    assert find_errors(x, 10, None, np.arange(1, 11, dtype=np.int32)[None]) == []
    assert "keys differ" in find_errors(x, 10, None, np.arange(10, dtype=np.int32)[None])[0]


def test_lengths_are_clamped_to_what_exists() -> None:
    x = make("normal", 4, 50)
    lengths = np.array([2**31 - 1, -(2**31), 51, -1], np.int64)
    found = topk_reference(x, 60, lengths)
    assert [int(np.count_nonzero(row >= 0)) for row in found] == [50, 0, 50, 0]
    assert find_errors(x, 60, lengths, found) == []
    assert np.array_equal(found[[0, 2]], topk_reference(x, 60)[[0, 2]])


def test_unsigned_lengths_do_not_wrap() -> None:
    x = make("normal", 3, 50)
    found = topk_reference(x, 60, np.array([2**63, 2**64 - 1, 7], np.uint64))
    assert [int(np.count_nonzero(row >= 0)) for row in found] == [50, 50, 7]


@pytest.mark.parametrize("swapped", [">f4", ">f2"])
def test_bytes_in_another_order_are_refused_not_misread(swapped: str) -> None:
    with pytest.raises(InvalidArgument, match="logits: "):
        topk_reference(np.zeros((2, 9), swapped), 3)


def test_as_many_rows_are_reported_as_asked_for() -> None:
    x = make("normal", 12, 30)
    wrong = np.full((12, 5), -1, np.int32)
    assert [len(find_errors(x, 5, None, wrong)), len(find_errors(x, 5, None, wrong, limit=3))] == [8, 3]
    assert find_errors(x, 5, None, wrong, limit=3)[2].startswith("row 2 ")
