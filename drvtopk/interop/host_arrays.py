"""Checks of numpy arrays: what `topk` and the reference accept beside a device's arrays. They raise InvalidArgument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.checks import integer, one_of
from drvtopk.errors import InvalidArgument
from drvtopk.problem import Problem
from drvtopk.spec import DTYPES

Array = npt.NDArray[Any]
Ints = Array


def plain_array(given: object) -> bool:
    """Whether it is a numpy array whose elements are all there is to it: no mask, no algebra of its own."""
    return isinstance(given, np.ndarray) and not isinstance(given, (np.ma.MaskedArray, np.matrix))


def host_logits(logits: Any, dtype: str | None) -> tuple[Array, str]:
    """(rows, width) as a plain array, and what its elements are. Raises InvalidArgument."""
    if not plain_array(logits):
        raise InvalidArgument("logits", type(logits).__name__, "a numpy array, and neither a masked one nor a matrix")
    if logits.ndim != 2:
        raise InvalidArgument("logits", f"{logits.dtype} of shape {logits.shape}", "two dimensions: (rows, width)")
    return np.asarray(logits), logits_dtype(logits, dtype)


def problem_of(shape: tuple[int, int], k: int, **asked: Any) -> Problem:
    """The problem of these logits. Raises InvalidArgument, of the logits for rows, a width or a stride out of range."""
    try:
        return Problem(rows=shape[0], width=shape[1], k=k, **asked)
    except InvalidArgument as error:
        if error.argument not in ("rows", "width", "stride"):
            raise
        raise InvalidArgument("logits", f"{error.argument} {error.value}", error.allowed) from error


def host_integers(name: str, given: Any) -> Ints:
    """A plain array of integers. Raises InvalidArgument."""
    if not plain_array(given) or given.dtype.kind not in "iu":
        what = f"dtype {given.dtype}" if plain_array(given) else type(given).__name__
        raise InvalidArgument(name, what, "a numpy array of integers, as the logits are numpy")
    return np.asarray(given)


def logits_dtype(logits: Array, dtype: str | None = None) -> str:
    """ "float32", "bfloat16" or "float16": of the array, or `dtype` for 2-byte words that numpy has no name for."""
    kind = logits.dtype
    if dtype is not None:
        dtype = one_of("dtype", dtype, DTYPES)
    own = str(kind.name) if kind.name in DTYPES and kind.isnative else None  # ml_dtypes' bfloat16 has that name
    if own is None and kind.isnative and kind.itemsize == 2 and kind.kind in "uV" and dtype == "bfloat16":
        own = dtype
    if own is None or dtype not in (None, own):
        allowed = (
            f"an array of {dtype}" if dtype else "float32, float16 or bfloat16 (2-byte words with dtype='bfloat16')"
        )
        raise InvalidArgument("logits", f"dtype {kind}", allowed)
    return own


def row_lengths(rows: int, width: int, lengths: Ints | None) -> npt.NDArray[np.int64]:
    """Each row's length, clamped to [0, width]; the width where no lengths are given."""
    return _clamped("lengths", lengths, rows, width, width)


def row_starts_of(rows: int, width: int, row_starts: Ints | None) -> npt.NDArray[np.int64]:
    """Where each row's window begins, clamped to [0, width]; 0 where no starts are given."""
    return _clamped("row_starts", row_starts, rows, width, 0)


def _clamped(name: str, given: Ints | None, rows: int, width: int, otherwise: int) -> npt.NDArray[np.int64]:
    if given is None:
        return np.full(rows, otherwise, dtype=np.int64)
    flat = host_integers(name, given).reshape(-1)
    if flat.size != rows:
        raise InvalidArgument(name, f"shape {given.shape}", f"one value for each of the {rows} rows")
    if flat.dtype == np.uint64:  # past 2^63 a cast to int64 would turn negative
        flat = np.minimum(flat, np.uint64(width))
    return np.clip(flat.astype(np.int64), 0, width)


def check_page_size(page_size: object, *, paged: bool) -> int:
    """`page_size` as an int, or InvalidArgument: another than 1 makes sense only beside a page table."""
    size = integer("page_size", page_size, 1, 2**31 - 1)
    if size != 1 and not paged:
        raise InvalidArgument("page_size", size, "a size only with page_table")
    return size


def host_pages(logits: tuple[int, ...], page_table: Any, page_size: int) -> tuple[Ints, int]:
    """The page table as a plain array, and the rows that share one of its rows. Raises InvalidArgument."""
    table = host_integers("page_table", page_table)
    per_table = check_pages(logits, table.shape, page_size)
    used = table[:, : -(-logits[1] // page_size)]
    if used.size and not -(2**31) <= int(used.min()) <= int(used.max()) < 2**31:
        raise InvalidArgument("page_table", f"pages {used.min()}..{used.max()}", "pages that fit into int32")
    return table, per_table


def check_pages(logits: tuple[int, ...], table: tuple[int, ...], page_size: int) -> int:
    """Rows that share a row of the page table, or InvalidArgument: it has to reach as far as the logits."""
    rows, width = logits
    if len(table) != 2:
        raise InvalidArgument("page_table", f"shape {table}", "two dimensions: (rows, pages)")
    if rows and (table[0] < 1 or rows % table[0]):
        raise InvalidArgument("page_table", f"{table[0]} rows", f"{rows}, as the logits, or a divisor of it")
    if table[1] * page_size < width and rows:
        needed = -(-width // page_size)
        raise InvalidArgument(
            "page_table",
            f"{table[1]} pages of {page_size}",
            f"at least {needed} for {width} columns; or give fewer columns: logits[:, :{table[1] * page_size}]",
        )
    return rows // table[0] if rows else 1


def host_result(name: str, given: Any, shape: tuple[int, int], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if given is None:
        return np.empty(shape, dtype=dtype)
    if not plain_array(given) or given.dtype != dtype or given.shape != shape:
        what = f"dtype {given.dtype} of shape {given.shape}" if plain_array(given) else type(given).__name__
        raise InvalidArgument(name, what, f"a numpy array, {dtype} of shape {shape}, as the logits are numpy")
    if not given.flags.writeable:
        raise InvalidArgument(name, "a read-only array", "a writable array")
    made: npt.NDArray[Any] = given
    return made


def check_overlaps(given: Mapping[str, Any], results: Mapping[str, Any]) -> None:
    for name, result in results.items():
        for other, array in given.items():
            if other != name and isinstance(array, np.ndarray) and np.may_share_memory(result, array):
                raise InvalidArgument(name, f"memory that {other} lies in", "memory of its own")
