"""The benchmark's check of thousands of outputs says what the oracle says of each, whatever is wrong and wherever."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drvtopk.spec import Options
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors, narrowed, select, widened
from tools import checking
from tools.checking import Expected

Array = npt.NDArray[Any]

WIDTH = 500
RAGGED = np.array([500, 3, 0, 77], np.int32)
SHAPES = [
    pytest.param(name, dtype, lengths, k, id=f"{name}-{dtype}-{'ragged' if lengths is not None else 'full'}-{k}")
    for name, dtype, lengths, k in [
        ("normal", "float32", None, 64),
        ("normal", "float32", None, 700),
        ("normal", "float32", RAGGED, 64),
        ("all_equal", "float32", None, 64),
        ("two_values", "float32", RAGGED, 64),
        ("specials", "float32", None, 33),
        ("bfloat16", "bfloat16", None, 64),
        ("any_float16", "float16", RAGGED, 64),
        ("any_bits", "float32", RAGGED, 500),
    ]
]


def _duplicate(row: Array, n: int, m: int) -> None:
    row[m - 1] = row[0]


def _hole(row: Array, n: int, m: int) -> None:
    row[m // 2] = -1


def _past_the_end(row: Array, n: int, m: int) -> None:
    row[0] = n


def _before_the_start(row: Array, n: int, m: int) -> None:
    row[0] = -7


def _other_member(row: Array, n: int, m: int) -> None:
    others = np.setdiff1d(np.arange(n), row[:m])
    row[0] = others[0] if len(others) else row[0]


def _stale_tail(row: Array, n: int, m: int) -> None:
    row[-1] = 0


def _tail_first(row: Array, n: int, m: int) -> None:
    row[:] = row[::-1].copy()


def _reordered(row: Array, n: int, m: int) -> None:
    row[:m] = row[:m][::-1].copy()


SPOILS: list[Callable[[Array, int, int], None]] = [
    _duplicate,
    _hole,
    _past_the_end,
    _before_the_start,
    _other_member,
    _stale_tail,
    _tail_first,
    _reordered,
]


@pytest.fixture(scope="module")
def threads() -> Any:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.mark.parametrize("spoil", SPOILS, ids=lambda f: f.__name__[1:])
@pytest.mark.parametrize(("name", "dtype", "lengths", "k"), SHAPES)
def test_it_says_what_the_oracle_says(
    name: str,
    dtype: str,
    lengths: Array | None,
    k: int,
    spoil: Callable[[Array, int, int], None],
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = narrowed(make(name, 4, WIDTH), dtype)
    rows = 4 if lengths is not None else 6  # beyond the fourth the same ones again
    again = np.arange(rows) % 4
    options = Options(dtype=dtype)
    one = select(x[again], k, lengths, options=options).indices.astype(np.int32)
    expected = Expected(x, dtype, lengths, max(k, 600))
    monkeypatch.setattr(checking, "BLOCK", 2 * rows * k)
    assert expected.wrong(k, np.stack([one] * 5), threads) == []
    decided = set()
    for launch in (0, 1, 4):
        for row in range(rows):
            n = WIDTH if lengths is None else int(lengths[row])
            m = min(n, k)
            if m < 2:
                continue
            bad = np.stack([one] * 5)
            spoil(bad[launch, row], n, m)
            said = expected.wrong(k, bad, threads)
            asked = find_errors(widened(x[again], dtype), k, lengths, bad[launch])
            assert bool(said) == bool(asked), (said, asked)
            assert not said or said[0].startswith(f"launch {launch}, row {row} ")
            decided.add(bool(said))
    if spoil in (_duplicate, _hole, _past_the_end, _before_the_start):
        assert decided == {True}


def test_of_equal_values_each_launch_may_take_others(threads: ThreadPoolExecutor) -> None:
    x = make("all_equal", 2, WIDTH)
    random = np.random.default_rng(0)
    outs = np.stack([[random.permutation(WIDTH)[:64] for _ in range(2)] for _ in range(9)]).astype(np.int32)
    assert Expected(x, "float32", None, 64).wrong(64, outs, threads) == []


def test_every_k_is_answered_by_one_look_at_the_rows(threads: ThreadPoolExecutor) -> None:
    x = make("bfloat16", 3, 3000)
    expected = Expected(x, "float32", None, 2048)
    for k in (1, 512, 1024, 2048):
        good = select(x, k).indices[None]
        assert expected.wrong(k, good, threads) == []
        spoiled = good.copy()
        spoiled[0, 1, 0] = np.argmin(x[1])
        assert expected.wrong(k, spoiled, threads) != []


def test_rows_without_any_element(threads: ThreadPoolExecutor) -> None:
    expected = Expected(np.empty((2, 0), np.float32), "float32", None, 8)
    nothing = np.full((3, 2, 8), -1, np.int32)
    assert expected.wrong(8, nothing, threads) == []
    nothing[2, 1, 7] = 0
    assert expected.wrong(8, nothing, threads)[0].startswith("launch 2, row 1 (length 0)")
