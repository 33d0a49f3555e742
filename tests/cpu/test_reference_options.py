"""What options ask for: the reference against another way to write it, and the oracle's eye for each kind of wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from drvtopk.errors import InvalidArgument
from drvtopk.spec import DTYPES, NANS, Options, Selected
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors, narrowed, ordered_keys, row_windows, select, topk_reference, widened
from drvtopk.words import Dtype

Array = npt.NDArray[Any]


def brute(row: Array, k: int, options: Options) -> list[int]:
    """The one answer of a selection without choices, by sorting Python numbers: slow, and written another way."""
    wide = [float(v) for v in widened(row[None], options.dtype)[0]]
    top = math.inf if options.nan == "highest" else -math.inf

    def rank(i: int) -> tuple[float, float]:
        nan = math.isnan(wide[i])
        return (top if nan else wide[i]), (1.0 if nan else 0.0) * (1 if options.nan == "highest" else -1)

    sign = -1 if options.tie_break == "largest" else 1
    best = sorted(range(len(wide)), key=lambda i: (*(-part for part in rank(i)), sign * i))[:k]
    return sorted(best, key=(lambda i: (*(-part for part in rank(i)), i)) if options.order == "value" else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("nan", NANS)
@pytest.mark.parametrize("tie_break", ["smallest", "largest"])
@pytest.mark.parametrize("order", ["index", "value"])
def test_a_selection_without_choices_is_what_sorting_numbers_gives(
    dtype: str, nan: str, tie_break: str, order: str
) -> None:
    options = Options(dtype=dtype, nan=nan, tie_break=tie_break, order=order, values=True)
    for name in ("specials", "signed_zeros", "two_values", "nan_payloads", "few_specials"):
        x = narrowed(make(name, 3, 90), dtype)
        found = select(x, 40, np.array([90, 41, 12]), options=options)
        for row, n in enumerate((90, 41, 12)):
            wanted = brute(x[row, :n], 40, options)
            assert found.indices[row].tolist() == wanted + [-1] * (40 - len(wanted))
            assert found.values[row, : len(wanted)].tobytes() == x[row, wanted].tobytes()
        assert find_errors(x, 40, np.array([90, 41, 12]), found.indices, options=options, values=found.values) == []


def test_16_bit_values_order_as_their_float32_do() -> None:
    words = np.arange(1 << 16, dtype=np.uint16)
    for dtype, given in (("bfloat16", words), ("float16", words.view(np.float16))):
        wide = widened(given[None], dtype)[0]
        keys = ordered_keys(wide)
        with np.errstate(invalid="ignore"):
            back = narrowed(wide, dtype).view(np.uint16)
        assert np.array_equal(back[~np.isnan(wide)], words[~np.isnan(wide)]), "nothing is lost on the way"
        assert np.all(np.isnan(widened(narrowed(wide, dtype)[None], dtype)[0]) == np.isnan(wide))
        real = ~np.isnan(wide)
        assert len(np.unique(keys[real])) == np.count_nonzero(real) - 1, "only the two zeros are equal"
        assert np.all(np.diff(wide[real][np.argsort(keys[real], kind="stable")]) >= 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrowed_keeps_infinities_and_nans(dtype: str) -> None:
    given = np.array([np.inf, -np.inf, np.nan, 1.0, -0.0], np.float32)
    given = np.append(given, np.array([0x7F800001, 0xFF800001], np.uint32).view(np.float32))
    back = widened(narrowed(given, dtype)[None], dtype)[0]
    assert np.array_equal(back[[0, 1, 3, 4]], given[[0, 1, 3, 4]]) and np.signbit(back[4])
    assert np.all(np.isnan(back[[2, 5, 6]]))


def test_windows_begin_where_they_are_told_and_end_with_the_row() -> None:
    x = make("normal", 8, 100)
    starts = np.array([0, 30, 99, 100, 101, -5, 2**31 - 1, 30])
    lengths = np.array([100, 100, 5, 5, 5, 20, 5, 10])
    assert row_windows(8, 100, lengths, starts) == [
        (0, 100), (30, 70), (99, 1), (100, 0), (100, 0), (0, 20), (100, 0), (30, 10),
    ]  # fmt: skip
    assert row_windows(2, 100, None, np.array([0, 70])) == [(0, 100), (70, 30)]
    options = Options(row_starts=True, order="value", values=True)
    found, values = select(x, 12, lengths, options=options, row_starts=starts)
    for row, (start, n) in enumerate(row_windows(8, 100, lengths, starts)):
        alone = select(x[row : row + 1, start : start + n], 12, options=Options(order="value"))
        assert np.array_equal(found[row], alone.indices[0]), "a window is a row of its own"
        assert np.array_equal(values[row], alone.values[0])
    assert find_errors(x, 12, lengths, found, options=options, row_starts=starts, values=values) == []


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_lengths_and_starts_of_every_shape(shape: tuple[int, ...]) -> None:
    x, lengths, starts = make("normal", 6, 100), np.array([100, 0, 7, 60, -1, 99]), np.array([0, 9, 95, 60, 3, 100])
    found = topk_reference(x, 30, lengths.reshape(shape), row_starts=starts.reshape(shape), deterministic=True)
    assert np.array_equal(found, topk_reference(x, 30, lengths, row_starts=starts, deterministic=True))
    assert [int(np.count_nonzero(row >= 0)) for row in found] == [30, 0, 5, 30, 0, 0]


@pytest.mark.parametrize("page_size", [1, 3, 64, 200])
@pytest.mark.parametrize("tables", [1, 2, 6])
def test_pages_lead_each_index_through_its_rows_table(page_size: int, tables: int) -> None:
    x, lengths = make("normal", 6, 150), np.array([150, 20, 0, 149, 3, 70])
    pages = -(-150 // page_size)
    table = np.stack([np.random.default_rng(row).permutation(500)[:pages] for row in range(tables)]).astype(np.int32)
    options = Options(page_table=True, tie_break="smallest", order="index")
    plain = select(x, 30, lengths, options=replace(options, page_table=False)).indices
    found = select(x, 30, lengths, options=options, page_table=table, page_size=page_size).indices
    for row in range(6):
        for index, place in zip(plain[row].tolist(), found[row].tolist(), strict=True):
            page = table[row // (6 // tables), index // page_size]
            assert place == (-1 if index < 0 else page * page_size + index % page_size)
    assert find_errors(x, 30, lengths, found, options=options, page_table=table, page_size=page_size) == []


def test_a_page_that_is_not_there_gives_minus_one() -> None:
    x = np.arange(8, dtype=np.float32)[None]
    table = np.array([[5, -1, 7, -3]], np.int32)
    found = topk_reference(x, 6, order="value", page_table=table, page_size=2)
    assert found.tolist() == [[-1, -1, 15, 14, -1, -1]]


def test_wide_places_are_exact_in_int64() -> None:
    table = np.array([[2**31 - 1, 0]], np.int32)
    x = np.array([[3, 1, 2, 0]], np.float32)
    found = topk_reference(x, 3, order="value", index_dtype="int64", page_table=table, page_size=2**20)
    assert found.dtype == np.int64
    assert found.tolist() == [[(2**31 - 1) * 2**20 + i for i in (0, 2, 1)]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_values_are_the_members_bit_for_bit_and_minus_infinity_elsewhere(dtype: Dtype) -> None:
    x = narrowed(make("nan_payloads", 2, 300), dtype)
    found = topk_reference(x, 200, np.array([300, 50]), values=True, nan="highest", dtype=dtype)
    assert isinstance(found, Selected) and found.values.dtype == x.dtype
    for row, m in ((0, 200), (1, 50)):
        assert found.values[row, :m].tobytes() == x[row, found.indices[row, :m]].tobytes()
        assert np.all(widened(found.values[row : row + 1, m:], dtype) == -np.inf)
        assert np.all(found.indices[row, m:] == -1)


def test_bfloat16_is_told_by_the_argument_or_by_its_name() -> None:
    x = make("normal", 2, 100)
    words = narrowed(x, "bfloat16")
    found = topk_reference(words, 9, dtype="bfloat16", order="value")
    wide = topk_reference(widened(words, "bfloat16"), 9, order="value")
    assert np.array_equal(found, wide)
    assert np.array_equal(topk_reference(words.view("V2"), 9, dtype="bfloat16", order="value"), wide)
    wrong: list[Any] = [(words, None), (words, "float16"), (x, "bfloat16"), (x, "int8"), (x.astype(np.float64), None)]
    for given, dtype in wrong:
        with pytest.raises(InvalidArgument, match=r"^(logits|dtype): "):
            topk_reference(given, 9, dtype=dtype)


def test_deterministic_is_the_smallest_index_in_ascending_order() -> None:
    x = make("two_values", 2, 300)
    found = topk_reference(x, 100, deterministic=True)
    assert np.array_equal(found, topk_reference(x, 100, tie_break="smallest", order="index"))
    assert not np.array_equal(found, topk_reference(x, 100)), "else this input shows nothing"
    largest = topk_reference(x, 100, tie_break="largest", deterministic=True)
    assert np.array_equal(largest, topk_reference(x, 100, tie_break="largest", order="index"))


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("row_starts", {"row_starts": np.zeros(3, np.int32)}),
        ("page_size", {"page_size": 0}),
        ("page_size", {"page_size": True}),
        ("page_size", {"page_size": 2**31}),
        ("page_table", {"page_table": np.zeros(2, np.int32)}),
        ("page_table", {"page_table": np.zeros((3, 50), np.int32)}),
        ("page_table", {"page_table": np.zeros((0, 50), np.int32)}),
        ("page_table", {"page_table": np.zeros((2, 24), np.int32)}),
        ("order", {"order": "sorted"}),
        ("tie_break", {"tie_break": "first"}),
        ("nan", {"nan": "ignored"}),
        ("index_dtype", {"index_dtype": "uint32"}),
    ],
)
def test_bad_options_are_named(argument: str, change: dict[str, Any]) -> None:
    given: dict[str, Any] = {"page_table": np.zeros((2, 25), np.int32), "page_size": 4}
    topk_reference(np.zeros((2, 100), np.float32), 5, **given)
    with pytest.raises(InvalidArgument, match=f"^{argument}: "):
        topk_reference(np.zeros((2, 100), np.float32), 5, **{**given, **change})


@dataclass(kw_only=True)
class Question:
    """A selection with few distinct values, so that every option matters, and its right answer."""

    options: Options
    x: Array
    lengths: Array = field(default_factory=lambda: np.array([200, 150, 10]))
    row_starts: Array | None = None
    page_table: Array | None = None

    def answer(self) -> Selected:
        found = select(self.x, 60, self.lengths, options=self.options, **self.arrays())
        return Selected(found.indices.copy(), found.values.copy())

    def arrays(self) -> dict[str, Any]:
        return {"row_starts": self.row_starts, "page_table": self.page_table, "page_size": 8}

    def wrong(self, found: Selected) -> list[str]:
        values = found.values if self.options.values else None
        return find_errors(
            self.x, 60, self.lengths, found.indices, options=self.options, values=values, **self.arrays()
        )


def question(**options: Any) -> Question:
    asked = Options(**options)
    x = make("few_specials", 3, 200) if asked.nan == "highest" else np.round(make("normal", 3, 200) * 2)
    return Question(
        options=asked,
        x=narrowed(x, asked.dtype),
        row_starts=np.array([3, 50, 190]) if asked.row_starts else None,
        page_table=np.stack([np.random.default_rng(r).permutation(99)[:25] for r in range(3)]).astype(np.int32)
        if asked.page_table
        else None,
    )


def as_if(asked: Question, **other: Any) -> Selected:
    """What a selection that forgot, or mistook, an option would give."""
    return replace(asked, options=replace(asked.options, **other)).answer()


def shifted(asked: Question) -> Selected:
    """Indices that count from the row's first element instead of the window's."""
    found, starts = asked.answer(), asked.row_starts
    assert starts is not None
    return Selected(np.where(found.indices >= 0, found.indices + starts[:, None].astype(np.int32), -1), found.values)


def swapped(asked: Question, what: str) -> Selected:
    """The first and the last member of a row exchanged in what is named."""
    found = asked.answer()
    for name in what.split():
        getattr(found, name)[0, [0, 59]] = getattr(found, name)[0, [59, 0]]
    return found


def changed(asked: Question, what: str, at: tuple[int, int], to: float) -> Selected:
    found = asked.answer()
    getattr(found, what)[at] = to
    return found


# What is asked for, the wrong answer, and a word of what is said about it.
WRONG: dict[str, tuple[Question, Callable[[Question], Selected], str]] = {
    "ties by the largest": (
        question(tie_break="smallest"), lambda q: as_if(q, tie_break="largest"), "equal keys not the"
    ),
    "ties by the smallest": (
        question(tie_break="largest"), lambda q: as_if(q, tie_break="smallest"), "equal keys not the"
    ),
    "by value for by index": (question(order="index"), lambda q: as_if(q, order="value"), "not in order by index"),
    "by index for by value": (question(order="value"), lambda q: as_if(q, order="index"), "not in order by value"),
    "two members exchanged": (question(order="index"), lambda q: swapped(q, "indices values"), "not in order"),
    "nan below": (question(nan="highest"), lambda q: as_if(q, nan="lowest"), "differ from"),
    "starts forgotten": (
        question(row_starts=True), lambda q: replace(q, row_starts=np.zeros(3, np.int64)).answer(), ""
    ),
    "counted from the row": (question(row_starts=True), shifted, ""),
    "values exchanged": (question(values=True, order="value"), lambda q: swapped(q, "values"), ""),
    "sign of a zero": (
        Question(options=Options(values=True), x=np.zeros((3, 200), np.float32)),
        lambda q: changed(q, "values", (0, 0), -0.0),
        "values are not",
    ),
    "a value beside -1": (question(values=True), lambda q: changed(q, "values", (2, 30), 0.0), "values are not"),
    "a value beside -1, 16 bits": (
        question(values=True, dtype="float16"), lambda q: changed(q, "values", (2, 30), np.nan), "values are not"
    ),
    "pages forgotten": (question(page_table=True), lambda q: replace(q, page_table=None).answer(), ""),
    "another row's pages": (
        question(page_table=True),
        lambda q: replace(q, page_table=None if q.page_table is None else q.page_table[::-1]).answer(),
        "",
    ),
    "pages of -1": (question(page_table=True), lambda q: changed(q, "indices", (2, 30), 7), "are not -1"),
    "-1 for a member": (question(page_table=True), lambda q: changed(q, "indices", (0, 30), -1), "outside"),
    "32 bits for 64": (question(index_dtype="int64"), lambda q: as_if(q, index_dtype="int32"), "the result is int32"),
    "high words left": (
        question(index_dtype="int64"), lambda q: changed(q, "indices", (0, 5), 1 << 32), "outside"
    ),
    "float32 of 16 bits": (
        question(values=True, dtype="bfloat16"),
        lambda q: Selected(q.answer().indices, widened(q.answer().values, "bfloat16")),
        "the values are float32",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_every_kind_of_wrong_answer_to_an_option_is_seen(name: str) -> None:
    asked, mistake, said = WRONG[name]
    assert asked.wrong(asked.answer()) == []
    found = asked.wrong(mistake(asked))
    assert found and said in " ".join(found)


def test_missing_values_are_seen() -> None:
    asked = question(values=True)
    assert find_errors(asked.x, 60, asked.lengths, asked.answer().indices, options=asked.options) == [
        "the values are missing"
    ]


def test_what_is_left_open_is_not_held_against_an_answer() -> None:
    asked = question()
    for name, value in (("tie_break", "smallest"), ("tie_break", "largest"), ("order", "index"), ("order", "value")):
        assert asked.wrong(as_if(asked, **{name: value})) == []
    zeros = Question(options=Options(tie_break="smallest"), x=np.array([[0.0, -0.0] * 100] * 3, np.float32))
    assert zeros.answer().indices[0].tolist() == list(range(60)), "-0.0 ties with +0.0"
    assert zeros.wrong(zeros.answer()) == []
