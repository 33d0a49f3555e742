"""Holds thousands of outputs of the same rows against the oracle: exactly, each of them, and quickly.

The oracle sees each row once: its largest keys, sorted, answer for every k. The first launch's output is held against
them. Where there is one right answer, every other output is the same set of indices, so it only has to be sorted and
compared; where equal values leave a choice, its keys are looked at too.
"""

from __future__ import annotations

from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.testing.oracle import find_errors, ordered_keys, widened

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

BLOCK = 1 << 20  # entries that one thread looks at together: temporary arrays stay in its cache


class Expected:
    """What is right for each row of `x` (float32, or 2-byte words of `dtype`), for every k up to `most_k`."""

    def __init__(self, x: Array, dtype: str, lengths: Ints | None, most_k: int) -> None:
        self.x, self.dtype, self.lengths = x, dtype, lengths
        rows, width = x.shape
        self.n = np.full(rows, width, np.int64) if lengths is None else lengths.astype(np.int64)
        self._top = [self._largest(x[row, : self.n[row]], most_k) for row in range(rows)]

    def _largest(self, row: Array, most_k: int) -> npt.NDArray[np.uint32]:
        keys = ordered_keys(widened(row, self.dtype))
        if len(keys) > most_k:
            keys = np.partition(keys, len(keys) - most_k)[len(keys) - most_k :]
        return np.sort(keys)

    def wrong(self, k: int, outs: Ints, threads: Executor) -> list[str]:
        """Faults of (launches, rows, k) outputs. From the last row of `x` on the rows are the same ones again."""
        launches, rows, _ = outs.shape
        which = np.arange(rows) % len(self.x)
        members = np.minimum(self.n, k)[which]
        alike = len(self.x[:rows])
        first = self._right(k, outs[0, :alike], which[:alike])
        if not np.all(first):
            return self._said(k, outs, 0, int(np.argmin(first)))
        known = np.sort(outs[0, :alike], axis=1)[which]
        behind = np.arange(k) >= members[:, None] if np.any(members < k) else None

        def look(begin: int, end: int) -> tuple[int, int] | None:
            some = outs[begin:end]
            same = np.all(np.sort(some, axis=2) == known, axis=2)
            if behind is not None:
                same &= np.all((some == -1) | ~behind, axis=2)
            launch, row = np.nonzero(~same)
            if len(launch):
                right = self._right(k, some[launch, row], which[row])
                if not np.all(right):
                    at = int(np.argmin(right))
                    return begin + int(launch[at]), int(row[at])
            return None

        step = max(1, BLOCK // (rows * k))
        begins = range(0, launches, step)
        for found in threads.map(look, begins, [min(b + step, launches) for b in begins]):
            if found is not None:
                return self._said(k, outs, *found)
        return []

    def _right(self, k: int, out: Ints, which: npt.NDArray[np.int64]) -> Bools:
        """Whether each row of `out`, which belongs to row `which` of `x`, is exactly right."""
        n = self.n[which][:, None]
        m = np.minimum(n, k)
        head = np.arange(k) < m
        fits = np.where(head, (out >= 0) & (out < n), out == -1)
        ordered = np.sort(out, axis=1)
        distinct = (np.diff(ordered, axis=1) > 0) | (ordered[:, :-1] == -1)
        inside = np.where(fits & head, out, 0)
        if self.x.shape[1]:
            keys = ordered_keys(widened(self.x[which[:, None], inside], self.dtype))
        else:
            keys = np.zeros(out.shape, np.uint32)
        least, above = (bound[which][:, None] for bound in self._bounds(k))
        reach = (keys >= least) | ~head
        larger = np.count_nonzero((keys > least) & head, axis=1) == above[:, 0]
        right: Bools = np.all(fits & reach, axis=1) & np.all(distinct, axis=1) & larger
        return right

    def _bounds(self, k: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
        """Of each row of `x` the smallest key among the k largest, and how many are larger than that."""
        least, above = np.zeros(len(self.x), np.uint32), np.zeros(len(self.x), np.int64)
        for row, top in enumerate(self._top):
            best = top[max(len(top) - k, 0) :]
            if len(best):
                least[row], above[row] = best[0], np.count_nonzero(best > best[0])
        return least, above

    def _said(self, k: int, outs: Ints, launch: int, row: int) -> list[str]:
        """The oracle's own words on the output that this check found wrong."""
        base = row % len(self.x)
        lengths = self.n[base : base + 1]
        words = find_errors(widened(self.x[base : base + 1], self.dtype), k, lengths, outs[launch, row : row + 1])
        said = words[0].partition(": ")[2] if words else "the oracle finds no fault: the check itself is wrong"
        return [f"launch {launch}, row {row} (length {lengths[0]}): {said}"]
