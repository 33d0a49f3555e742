"""Named inputs: friendly ones and every kind that broke a kernel of this family. Tests and benchmark share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.testing.oracle import narrowed, ordered_keys, row_windows, widened

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[Any]
Make = Callable[[np.random.Generator, int], Floats]


def _winners_over_zeros(random: np.random.Generator, n: int) -> Floats:
    row = np.zeros(n, np.float32)
    row[random.choice(n, min(n, 100), replace=False)] = random.uniform(1, 2, min(n, 100))
    return row


def _bits(random: np.random.Generator, n: int, base: int, bits: int) -> Floats:
    """Floats that differ in their lowest bits only."""
    words: npt.NDArray[np.uint32] = np.uint32(base) + random.integers(0, 1 << bits, n, dtype=np.uint32)
    return words.view(np.float32)


def _nan_payloads(random: np.random.Generator, n: int) -> Floats:
    row = random.standard_normal(n).astype(np.float32)
    spoiled = random.random(n) < 0.83
    payload = random.integers(1, 1 << 22, n, dtype=np.uint32) | np.uint32(0x7F800000)
    payload |= random.integers(0, 2, n, dtype=np.uint32) << np.uint32(31)
    row[spoiled] = payload.view(np.float32)[spoiled]
    return row


def _mostly_minus_infinity(random: np.random.Generator, n: int) -> Floats:
    row = np.full(n, -np.inf, np.float32)
    row[random.choice(n, min(n, 100), replace=False)] = random.standard_normal(min(n, 100))
    return row


def _signed_zeros(random: np.random.Generator, n: int) -> Floats:
    row = np.zeros(n, np.float32)
    row[random.random(n) < 0.5] = -0.0
    return row


def _outlier(random: np.random.Generator, n: int) -> Floats:
    row = random.standard_normal(n).astype(np.float32)
    row[random.integers(n)] = 1e30
    return row


_SPECIALS = np.array([np.nan, np.inf, 3.4e38, 1.0, 1e-38, 1e-45, 0.0], np.float32)


def _specials(random: np.random.Generator, n: int) -> Floats:
    """NaN, infinities, the largest, denormals and zeros of both signs, all in one row."""
    signs = random.choice(np.array([1, -1], np.float32), n)
    row: Floats = random.choice(_SPECIALS, n) * signs
    return row


def _few_specials(random: np.random.Generator, n: int) -> Floats:
    """Friendly values with so few special ones that the k largest are always of both kinds."""
    row = random.standard_normal(n).astype(np.float32)
    where = random.choice(n, min(n, 120), replace=False)
    row[where] = _specials(random, len(where))
    return row


def _bfloat16(random: np.random.Generator, n: int) -> Floats:
    """What an indexer with bf16 output gives: the lower 16 bits are zero, so near the threshold many values tie."""
    bits = random.standard_normal(n).astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    row: Floats = bits.view(np.float32)
    return row


def _any_float16(random: np.random.Generator, n: int) -> Floats:
    """Any bits of a half: denormals, infinities, NaNs and many equal values, also where the logits are halves."""
    halves = random.integers(0, 1 << 16, n, dtype=np.uint16).view(np.float16)
    with np.errstate(invalid="ignore"):
        return halves.astype(np.float32)


def _ties_at_both_ends(random: np.random.Generator, n: int) -> Floats:
    """The value at the threshold stands in the first and the last quarter of the row, few larger ones between."""
    row = random.uniform(-1, 0.5, n).astype(np.float32)
    row[: n // 4 + 1] = row[n - n // 4 - 1 :] = 1
    where = n // 4 + random.choice(n, min(n, 30), replace=False) // 2
    row[np.minimum(where, n - 1)] = 2
    return row


def _zeros_at_the_threshold(random: np.random.Generator, n: int) -> Floats:
    """Few positive values, then zeros of both signs, which are one value, then the largest negative ones there are."""
    row = _signed_zeros(random, n)
    row[random.random(n) < 0.3] = -1e-45
    where = random.choice(n, min(n, 40), replace=False)
    row[where] = random.choice(np.array([1e-45, 1e-38, 1], np.float32), len(where))
    return row


_SCALES = np.array([np.inf, 3.4028235e38, 1.7e38, 8.6e37, 1e30, 1, 1e-38, 3e-42, 1e-45, 0, np.nan], np.float32)


def scale_mix(random: np.random.Generator, n: int, k: int) -> Floats:
    """A base of one sign and scale, and one to four groups of 1 to 2k + 2 elements of any other: log-probabilities with
    forced tokens, masks, attention sinks. The k largest end within a group, between two, or in the base."""
    spread, away = ((0, 1), (1, 0), (1, 4), (3, 10), (1e-3, 1))[random.integers(5)]
    scale = random.choice(np.array([1e37, 1e30, 1, 1, 1, 1e-3, 1e-39, 0]))
    base = (np.abs(random.standard_normal(n)) * spread + away) * scale * random.choice([-1, 1])
    row: Floats = base.astype(np.float32)
    for _ in range(random.integers(1, 5)):
        count = int(random.choice(np.array([1, 2, k - 1, k, k + 1, random.integers(1, 2 * k + 3)])))
        where = random.choice(n, min(max(count, 1), n), replace=False)
        row[where] = random.choice(_SCALES) * random.choice(np.array([-1, 1], np.float32))
        if random.random() < 0.3:  # not quite equal
            row.view(np.uint32)[where] ^= random.integers(0, 4, len(where), dtype=np.uint32)
    return row


INPUTS: dict[str, Make] = {
    "normal": lambda r, n: r.standard_normal(n).astype(np.float32),
    "uniform": lambda r, n: r.random(n, np.float32),
    "relu_tail": lambda r, n: np.maximum(r.standard_normal(n) - 1.28, 0).astype(np.float32),
    "all_equal": lambda r, n: np.full(n, 1.5, np.float32),
    "winners_over_zeros": _winners_over_zeros,
    "signed_zeros": _signed_zeros,
    "narrow_1.245": lambda r, n: r.uniform(1.0, 1.245, n).astype(np.float32),
    "narrow_1.03": lambda r, n: r.uniform(1.0, 1.03, n).astype(np.float32),
    "saturates_fp16": lambda r, n: (np.arange(n) + 70000).astype(np.float32),
    "tiny": lambda r, n: ((np.arange(n) + 70000) * 1e-9).astype(np.float32),
    "bit_ramp": lambda r, n: (np.uint32(0x3F800000) + np.arange(n, dtype=np.uint32)).view(np.float32),
    "low_10_bits": lambda r, n: _bits(r, n, 0x3F800000, 10),
    "low_21_bits": lambda r, n: _bits(r, n, 0xBF800000, 21),
    "ascending": lambda r, n: np.linspace(-1, 1, n, dtype=np.float32),
    "descending": lambda r, n: np.linspace(1, -1, n, dtype=np.float32),
    "two_values": lambda r, n: r.integers(0, 2, n).astype(np.float32),
    "denormals": lambda r, n: _bits(r, n, 0, 20),
    "one_outlier": _outlier,
    "all_minus_infinity": lambda r, n: np.full(n, -np.inf, np.float32),
    "all_plus_infinity": lambda r, n: np.full(n, np.inf, np.float32),
    "mostly_minus_infinity": _mostly_minus_infinity,
    "all_nan": lambda r, n: np.full(n, np.nan, np.float32),
    "nan_payloads": _nan_payloads,
    "specials": _specials,
    "few_specials": _few_specials,
    "bfloat16": _bfloat16,
    "any_float16": _any_float16,
    "ties_at_both_ends": _ties_at_both_ends,
    "zeros_at_the_threshold": _zeros_at_the_threshold,
    "steps_up": lambda r, n: np.sort(r.integers(0, 12, n)).astype(np.float32),
    "steps_down": lambda r, n: -np.sort(r.integers(0, 12, n)).astype(np.float32),
    "scale_mixes": lambda r, n: scale_mix(r, n, int(2 ** r.uniform(0, 11))),
    "any_bits": lambda r, n: r.integers(0, 2**32, n, dtype=np.uint32).view(np.float32),
}


def make(name: str, rows: int, width: int, *, seed: int = 0, k: int | None = None) -> Floats:
    """float32 (rows, width) of one kind, the same for the same seed; scale mixes for this `k` where it is given."""
    random = np.random.default_rng([seed, *name.encode()])
    if name == "scale_mixes" and k is not None and rows and width:
        return np.stack([scale_mix(random, width, k) for _ in range(rows)])
    with np.errstate(invalid="ignore"):
        return (
            np.stack([INPUTS[name](random, width) for _ in range(rows)])
            if rows and width
            else np.empty((rows, width), np.float32)
        )


def canaries(n: int) -> Floats:
    """What no kernel may look at, such that one that does selects it: +inf, and NaN where that is the highest."""
    return np.resize(np.array([np.inf, np.nan], np.float32), n)


def surround(x: Array, k: int, lengths: Ints | None, row_starts: Ints | None, dtype: str, *, seed: int = 0) -> Array:
    """Rows of `dtype` with the same windows, and telling elements just before and behind each: +inf, NaN, or the
    window's own values about its k-th largest."""
    if lengths is None and row_starts is None:
        return x
    random = np.random.default_rng(seed)
    x = x.copy()
    special = narrowed(np.array([np.inf, np.nan, -np.nan], np.float32), dtype).view(x.dtype)
    for row, (first, n) in zip(x, row_windows(x.shape[0], x.shape[1], lengths, row_starts), strict=True):
        window = row[first : first + n]
        keys = ordered_keys(widened(window, dtype))
        best = window[np.argpartition(keys, max(n - k, 0))[max(n - k, 0) :][:1]] if n else window
        telling = np.concatenate([best, special])
        for beside in (row[max(first - 8, 0) : first], row[first + n : first + n + 8]):
            beside[:] = random.choice(telling) if random.random() < 0.5 else random.choice(telling, len(beside))
    return x
