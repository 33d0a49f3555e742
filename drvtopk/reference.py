"""The same operation in numpy: the answer of a machine without a GPU, and the oracle that results are held against."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.errors import InvalidArgument
from drvtopk.spec import check_k

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]


def ordered_keys(values: Floats) -> npt.NDArray[np.uint32]:
    """Unsigned keys that order as the values do: NaN lowest whatever its sign, then -inf .. +inf; -0.0 equals +0.0."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    bits = np.where(bits == np.uint32(0x80000000), np.uint32(0), bits)  # -0.0 counts as +0.0
    negative = (bits >> np.uint32(31)) != 0
    keys = np.where(negative, ~bits, bits | np.uint32(0x80000000))
    return np.where(np.isnan(values), np.uint32(0), keys).astype(np.uint32)


def row_lengths(rows: int, width: int, lengths: Ints | None) -> npt.NDArray[np.int64]:
    """Each row's length, clamped to [0, width]; the width where no lengths are given."""
    if lengths is None:
        return np.full(rows, width, dtype=np.int64)
    flat = np.asarray(lengths).reshape(-1)
    if flat.size != rows:
        raise InvalidArgument("lengths", f"{flat.size} values", f"one for each of the {rows} rows")
    if flat.dtype == np.uint64:  # past 2^63 a cast to int64 would turn negative
        flat = np.minimum(flat, np.uint64(width))
    return np.clip(flat.astype(np.int64), 0, width)


def topk_reference(logits: Floats, k: int, lengths: Ints | None = None) -> npt.NDArray[np.int32]:
    """Indices of the k largest of each row, int32 (rows, k), in no particular order; -1 past min(length, k).

    `logits` is float32 (rows, width), `lengths` integers with one value a row. Raises InvalidArgument.
    """
    check_k(k)
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise InvalidArgument("logits", f"{logits.dtype} {logits.shape}", "float32 of shape (rows, width)")
    rows, width = logits.shape
    out = np.full((rows, k), -1, dtype=np.int32)
    for row, n in enumerate(row_lengths(rows, width, lengths)):
        if n <= k:
            out[row, :n] = np.arange(n, dtype=np.int32)
        else:
            keys = ordered_keys(logits[row, :n])
            out[row] = np.argpartition(keys, n - k)[n - k :].astype(np.int32)
    return out


def faults(logits: Floats, k: int, lengths: Ints | None, out: Ints, *, limit: int = 8) -> list[str]:
    """What is wrong with `out`, a sentence a row (at most `limit`); an empty list means exactly right.

    Per row, with n the clamped length: the first min(n, k) entries are distinct, in [0, n), and their ordered keys
    are, as a multiset and bit for bit, the k largest; every later entry is -1.
    """
    rows, width = logits.shape
    if out.shape != (rows, k):
        return [f"the result has shape {out.shape}, not {(rows, k)}"]
    found: list[str] = []
    for row, length in enumerate(row_lengths(rows, width, lengths)):
        n = int(length)
        m = min(n, k)
        head, tail = np.asarray(out[row, :m], dtype=np.int64), out[row, m:]
        what = ""
        if np.any(tail != -1):
            what = f"{int(np.count_nonzero(tail != -1))} entries past the first {m} are not -1"
        elif m and (int(head.min()) < 0 or int(head.max()) >= n):
            what = f"an index lies outside [0, {n}): {int(head.min())} or {int(head.max())}"
        elif np.unique(head).size != m:
            what = f"{m - int(np.unique(head).size)} indices stand twice"
        elif m < n:
            keys = ordered_keys(logits[row, :n])
            best = np.sort(np.partition(keys, n - k)[n - k :])
            wrong = int(np.count_nonzero(np.sort(keys[head]) != best))
            if wrong:
                what = f"{wrong} of {m} keys differ from the {m} largest"
        if what:
            found.append(f"row {row} (length {n}): {what}")
            if len(found) == limit:
                break
    return found
