"""The same operation in numpy: the answer of a machine without a GPU, and the oracle that results are held against."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

from drvtopk.checks import flag
from drvtopk.errors import InvalidArgument
from drvtopk.interop.host_arrays import (
    check_page_size,
    host_logits,
    host_pages,
    problem_of,
    row_lengths,
    row_starts_of,
)
from drvtopk.spec import PLAIN, Options, Selected, check_k
from drvtopk.words import Dtype, IndexDtype, Nan, Order, TieBreak

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]
Ints = Array


def widened(logits: Array, dtype: str) -> Floats:
    """The same values as float32, exactly: payloads of NaN aside, order and equality do not change."""
    if dtype == "bfloat16":
        words = np.ascontiguousarray(logits).view(np.uint16).astype(np.uint32) << np.uint32(16)
        wide: Floats = words.view(np.float32)
        return wide
    given = np.ascontiguousarray(logits)
    if dtype == "float16":
        given = given.view(np.float16)  # also of its words
    with np.errstate(invalid="ignore"):
        return given.astype(np.float32, copy=False)


def narrowed(values: Floats, dtype: str) -> Array:
    """float32 as `dtype` (bfloat16 as its uint16 words, cut off; a NaN stays one): how test inputs are made."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        with np.errstate(over="ignore", invalid="ignore"):
            return values.astype(np.float16)
    words = np.ascontiguousarray(values).view(np.uint32) >> np.uint32(16)
    cut: Array = (words | (np.isnan(values).astype(np.uint32) << np.uint32(6))).astype(np.uint16)
    return cut


def ordered_keys(values: Floats, nan: str = "lowest") -> npt.NDArray[np.uint32]:
    """Unsigned keys that order as the values do: -inf .. +inf; -0.0 equals +0.0; NaN, whatever its sign, is lowest or
    highest."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    bits = np.where(bits == np.uint32(0x80000000), np.uint32(0), bits)  # -0.0 counts as +0.0
    negative = (bits >> np.uint32(31)) != 0
    keys = np.where(negative, ~bits, bits | np.uint32(0x80000000))
    return np.where(np.isnan(values), np.uint32(0xFFFFFFFF if nan == "highest" else 0), keys).astype(np.uint32)


def row_windows(rows: int, width: int, lengths: Ints | None, row_starts: Ints | None) -> list[tuple[int, int]]:
    """(first element, elements) of each row's window: the start clamped to [0, width], the length to what follows."""
    starts = row_starts_of(rows, width, row_starts)
    counts = row_lengths(rows, width, lengths)
    return [(int(s), int(min(n, width - s))) for s, n in zip(starts, counts, strict=True)]


def best_first(keys: npt.NDArray[np.uint32], tie_break: str) -> npt.NDArray[np.int64]:
    """Indices by descending key; equal ones by descending index for "largest", else by ascending index."""
    n = len(keys)
    if tie_break == "largest":
        return n - 1 - np.argsort(~keys[::-1], kind="stable")
    return np.argsort(~keys, kind="stable")


def paged(indices: Ints, page_table: Ints, page_size: int) -> Ints:
    """What the table makes of (rows, k) indices: page_table[row][i // page_size] * page_size + i % page_size.

    -1 stays -1, and an index whose page is negative becomes -1. `page_table` is (rows or a divisor of it, pages); row r
    looks in its row r // (rows / tables).
    """
    rows = indices.shape[0]
    table = np.asarray(page_table, np.int64)
    if not table.size:
        return indices  # no columns, so no members either
    per = rows // max(table.shape[0], 1)
    at = np.maximum(indices, 0).astype(np.int64)
    which = np.arange(rows)[:, None] // max(per, 1)
    pages = table[which, at // page_size] if indices.size else at
    return np.where((indices < 0) | (pages < 0), -1, pages * page_size + at % page_size).astype(indices.dtype)


def select(
    logits: Array,
    k: int,
    lengths: Ints | None = None,
    *,
    options: Options = PLAIN,
    row_starts: Ints | None = None,
    page_table: Ints | None = None,
    page_size: int = 1,
) -> Selected:
    """What `options` ask for, for (rows, width) of `options.dtype` (bfloat16: 2-byte words): indices and values."""
    rows, width = logits.shape
    out = np.full((rows, k), -1, dtype=options.index_dtype)
    words = logits.view(np.uint16) if options.item_bytes == 2 else logits
    values = np.full((rows, k), narrowed(np.array([-np.inf], np.float32), options.dtype)[0].view(words.dtype))
    for row, (start, n) in enumerate(row_windows(rows, width, lengths, row_starts)):
        m = min(n, k)
        keys = ordered_keys(widened(logits[row, start : start + n], options.dtype), options.nan)
        if options.order == "none" and options.tie_break == "any":
            best = np.argpartition(keys, n - k)[n - k :] if n > k else np.arange(n)
        else:
            best = best_first(keys, options.tie_break)[:m]
        if options.order != "none":
            best = np.sort(best)
        if options.order == "value":
            best = best[np.argsort(~keys[best], kind="stable")]
        out[row, :m] = best
        values[row, :m] = words[row, start : start + n][best]
    if page_table is not None:
        out = paged(out, page_table, page_size)
    return Selected(out, values.view(logits.dtype))


def topk_reference(
    logits: Array,
    k: SupportsIndex,
    lengths: Ints | None = None,
    *,
    row_starts: Ints | None = None,
    values: bool | None = False,
    index_dtype: IndexDtype | None = None,
    order: Order = "none",
    tie_break: TieBreak = "any",
    deterministic: bool = False,
    nan: Nan = "lowest",
    page_table: Ints | None = None,
    page_size: SupportsIndex = 1,
    dtype: Dtype | None = None,
) -> Any:
    """Indices of the k largest of each row, (rows, k); -1 past min(length, k). With `values`: Selected.

    `logits` is float32, float16 or bfloat16 (rows, width), `lengths` and `row_starts` integers with one value a row;
    all are numpy arrays, neither masked nor matrices. The other arguments are those of `topk`. Raises InvalidArgument.
    """
    k = check_k(k)
    page_size = check_page_size(page_size, paged=page_table is not None)
    logits, kind = host_logits(logits, dtype)
    options = Options(
        dtype=kind,
        index_dtype="int32" if index_dtype is None else index_dtype,
        values=False if values is None else values,
        row_starts=row_starts is not None,
        order=order,
        tie_break=tie_break,
        nan=nan,
        page_table=page_table is not None,
    )
    problem_of(logits.shape, k, options=options)
    if page_table is not None:
        page_table, _ = host_pages(logits.shape, page_table, page_size)
    found = select(
        logits,
        k,
        lengths,
        options=options.made_deterministic() if flag("deterministic", deterministic) else options,
        row_starts=row_starts,
        page_table=page_table,
        page_size=page_size,
    )
    return found if options.values else found.indices


def _unpaged(out: Ints, page_table: Ints, page_size: int, width: int) -> Ints:
    """The indices that `paged` would make `out` of; -2 where there is none. Pages of a row must differ."""
    rows = out.shape[0]
    table = np.asarray(page_table, np.int64)
    found = np.full(out.shape, -2, np.int64)
    for row in range(rows):
        pages = table[row * table.shape[0] // rows]
        if not len(pages):
            continue
        order = np.argsort(pages, kind="stable")
        if len(pages) > 1 and np.any(np.diff(pages[order]) == 0):
            raise InvalidArgument("page_table", f"row {row} with a page twice", "different pages in a row")
        wanted = out[row].astype(np.int64) // page_size
        at = np.minimum(np.searchsorted(pages[order], wanted), len(pages) - 1)
        hit = (pages[order][at] == wanted) & (out[row] >= 0)
        found[row, hit] = order[at[hit]] * page_size + out[row][hit] % page_size
    found[out == -1] = -1
    return found


def find_errors(
    logits: Array,
    k: int,
    lengths: Ints | None,
    out: Ints,
    *,
    options: Options = PLAIN,
    row_starts: Ints | None = None,
    values: Array | None = None,
    page_table: Ints | None = None,
    page_size: int = 1,
    limit: int = 8,
) -> list[str]:
    """What is wrong with `out`, a sentence a row (at most `limit`); an empty list means exactly right.

    Per row, with n the clamped length: the first min(n, k) entries are distinct, in [0, n), and their ordered keys
    are, as a multiset and bit for bit, the k largest; every later entry is -1. What `options` ask for beyond that is
    checked too: the tie-break, the order, and `values` bit for bit. The pages of a row of `page_table` must differ.
    """
    rows, width = logits.shape
    if out.shape != (rows, k) or out.dtype != np.dtype(options.index_dtype):
        return [f"the result is {out.dtype} of shape {out.shape}, not {options.index_dtype} {(rows, k)}"]
    if options.values and (values is None or values.shape != (rows, k) or values.dtype.itemsize != options.item_bytes):
        return [f"the values are {values.dtype} {values.shape}" if values is not None else "the values are missing"]
    indices = np.asarray(out, np.int64)
    if page_table is not None:
        indices = _unpaged(out, page_table, page_size, width)
    word = np.uint32 if options.item_bytes == 4 else np.uint16
    fill = narrowed(np.array([-np.inf], np.float32), options.dtype).view(word)[0]
    found: list[str] = []
    for row, (start, n) in enumerate(row_windows(rows, width, lengths, row_starts)):
        m = min(n, k)
        head, tail = indices[row, :m], indices[row, m:]
        window = np.ascontiguousarray(logits[row, start : start + n])
        what = ""
        if np.any(tail != -1):
            what = f"{int(np.count_nonzero(tail != -1))} entries past the first {m} are not -1"
        elif m and (int(head.min()) < 0 or int(head.max()) >= n):
            what = f"an index lies outside [0, {n}): {int(head.min())} or {int(head.max())}"
        elif np.unique(head).size != m:
            what = f"{m - int(np.unique(head).size)} indices stand twice"
        elif m:
            keys = ordered_keys(widened(window, options.dtype), options.nan)
            what = _wrong_members(keys, head, m, options) or _wrong_order(keys, head, options)
        if not what and options.values and values is not None:
            bits = np.ascontiguousarray(values[row]).view(word)
            wrong = int(np.count_nonzero(bits[:m] != window.view(word)[head]))
            if wrong or np.any(bits[m:] != fill):
                what = f"{wrong} of {m} values are not those of their indices, or the rest is not -inf"
        if what:
            found.append(f"row {row} (length {n}): {what}")
            if len(found) == limit:
                break
    return found


def _wrong_members(keys: npt.NDArray[np.uint32], head: Ints, m: int, options: Options) -> str:
    n = len(keys)
    if m == n:
        return ""
    best = np.sort(np.partition(keys, n - m)[n - m :])
    have = np.sort(keys[head])
    if not np.array_equal(have, best):
        missing = m - _common(have, best)
        return f"{missing} of {m} keys differ from the {m} largest"
    if options.tie_break != "any":
        tied = np.flatnonzero(keys == best[0])
        need = int(np.count_nonzero(best == best[0]))
        wanted = tied[:need] if options.tie_break == "smallest" else tied[len(tied) - need :]
        if not np.array_equal(np.sort(head[keys[head] == best[0]]), wanted):
            return f"of {len(tied)} equal keys not the {need} with the {options.tie_break} index"
    return ""


def _common(a: npt.NDArray[np.uint32], b: npt.NDArray[np.uint32]) -> int:
    """How many entries two multisets share."""
    x, xs = np.unique(a, return_counts=True)
    y, ys = np.unique(b, return_counts=True)
    both, i, j = np.intersect1d(x, y, assume_unique=True, return_indices=True)
    return int(np.minimum(xs[i], ys[j]).sum()) if both.size else 0


def _wrong_order(keys: npt.NDArray[np.uint32], head: Ints, options: Options) -> str:
    if options.order == "none":
        return ""
    wanted = np.sort(head)
    if options.order == "value":
        wanted = wanted[np.argsort(~keys[wanted], kind="stable")]
    wrong = int(np.count_nonzero(wanted != head))
    return f"{wrong} of {len(head)} entries are not in order by {options.order}" if wrong else ""
