"""Exactness on both kernels and all nine instantiations each: lengths, ties, narrow bands, infinities, NaN, layouts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvtopk.spec import Tuning
from tests.gpu.support import INSTANTIATIONS, Gpu
from tests.inputs import INPUTS, make

SMALL = Tuning(short_max=1024, radix_threshold=2048, min_chunk=256, max_candidates=512)
WIDTHS = (513, 2049, 4100, 8192, 8193, 16384, 32768, 32769, 70_001)
everywhere = pytest.mark.parametrize(("route", "k", "vec"), INSTANTIATIONS)


@everywhere
def test_negative_and_zero_lengths_are_empty_rows(gpu: Gpu, route: str, k: int, vec: int) -> None:
    lengths = np.array([16384, 9000, 8193, 2049, 600, 512, -1, 0], np.int32)
    found = gpu.check(make("normal", 8, 16384), k, lengths, route=route, vec=vec)
    assert np.all(found[6:] == -1)


@everywhere
def test_lengths_are_clamped_and_nothing_past_the_width_is_selected(gpu: Gpu, route: str, k: int, vec: int) -> None:
    for width in (5000, 40_000):
        around = [k - 1, k, k + 1, width - 1, width, width + 1, width + 4]
        lengths = np.array([-(2**31), -1, 0, 1, *around, 2**31 - 1], np.int32)
        gpu.check(make("normal", len(lengths), width), k, lengths, route=route, vec=vec)


@everywhere
def test_a_wrong_hint_costs_time_only(gpu: Gpu, route: str, k: int, vec: int) -> None:
    lengths = np.array([40_000, 100, 32_769, 65_536], np.int32)
    x = make("normal", 4, 65_536)
    for hint in (0, 100, 32_768, 32_769, 2**31 - 1):
        gpu.check(x, k, lengths, route=route, vec=vec, max_seq_len=hint)


@everywhere
@pytest.mark.parametrize("name", INPUTS)
def test_named_inputs_at_every_path(gpu: Gpu, name: str, route: str, k: int, vec: int) -> None:
    for width in WIDTHS:
        gpu.check(make(name, 2, width), k, route=route, vec=vec)


@everywhere
def test_ties_fill_the_prefix(gpu: Gpu, route: str, k: int, vec: int) -> None:
    gpu.check(make("winners_over_zeros", 3, 8320), k, route=route, vec=vec)
    gpu.check(make("relu_tail", 3, 8320), k, route=route, vec=vec)


@everywhere
def test_few_finite_values(gpu: Gpu, route: str, k: int, vec: int) -> None:
    lengths = np.array([k + 1, 2049, 2050, 2051, 4097, 8191, 33_000], np.int32)
    x = make("mostly_minus_infinity", len(lengths), 33_000)
    found = gpu.check(x, k, lengths, route=route, vec=vec)
    for row, n in enumerate(lengths):
        finite = np.flatnonzero(np.isfinite(x[row, :n]))
        assert np.all(np.isin(finite, found[row]))


@everywhere
def test_exactly_enough_nans_that_one_must_be_taken(gpu: Gpu, route: str, k: int, vec: int) -> None:
    for n in (5000, 20_000, 50_000):
        x = make("normal", 2, n)
        x[0, np.random.default_rng(1).choice(n, n - k + 1, replace=False)] = np.nan
        x[1, : n - k + 1] = -np.float32(np.nan)
        found = gpu.check(x, k, route=route, vec=vec)
        assert np.count_nonzero(np.isnan(np.take_along_axis(x, found.astype(np.int64), 1)), axis=1).tolist() == [1, 1]


@everywhere
def test_degenerate_shapes(gpu: Gpu, route: str, k: int, vec: int) -> None:
    for rows, width in ((0, 100), (0, 0), (3, 0), (3, 1), (2, k - 1), (2, k), (2, k + 1)):
        gpu.check(make("normal", rows, width), k, route=route, vec=vec if rows else None)


@pytest.mark.parametrize("route", ["persistent", "filtered"])
@pytest.mark.parametrize("k", [1, 7, 500, 511, 513, 1000, 2051, 3000, 4096])
def test_any_k(gpu: Gpu, route: str, k: int) -> None:
    for width in (k, k + 1, 8000, 33_333):
        gpu.check(make("normal", 2, width), k, route=route)


@everywhere
def test_rows_of_every_path_in_all_orders(gpu: Gpu, route: str, k: int, vec: int) -> None:
    """One group takes them all, so what one row leaves behind meets every other kind."""
    kinds = (0, k, 1000, 1900, 5000, 6000)  # empty, trivial, short, streamed, shared by the group (twice)
    orders = list(itertools.permutations(kinds))[:: 1 if k == 512 else 9]
    for start in range(0, len(orders), 120):
        lengths = np.array(orders[start : start + 120], np.int32).reshape(-1)
        x = make("narrow_1.03", len(lengths), 6000, seed=start)
        gpu.check(x, k, lengths, route=route, vec=vec, tuning=SMALL)


@pytest.mark.parametrize("route", ["persistent", "filtered"])
@pytest.mark.parametrize("offset", range(4))
@pytest.mark.parametrize("modulus", range(4))
def test_layouts(gpu: Gpu, route: str, offset: int, modulus: int) -> None:
    for width in (3001, 9000, 40_002):
        x = make("normal", 3, width)
        stride = width + (modulus - width) % 4 + 4
        gpu.check(x, 512, offset=offset, stride=stride, route=route, out_stride=700)
        same = np.broadcast_to(x[:1], x.shape)
        gpu.check(np.array(same), 512, offset=offset, stride=0, route=route)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_shapes_of_lengths(gpu: Gpu, shape: tuple[int, ...]) -> None:
    import drvtopk

    lengths = np.array([9, 5000, 0, 40_000, 33_000, 700], np.int32)
    x = make("normal", 6, 40_000)
    found = drvtopk.topk(x, 512, lengths.reshape(shape))
    from drvtopk.reference import faults

    assert faults(x, 512, lengths, found) == []


_lengths = st.one_of(st.integers(-3, 9000), st.sampled_from([-(2**31), 2**31 - 1, 512, 1024, 1025, 2048, 2049]))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_anything(gpu: Gpu, data: st.DataObject) -> None:
    width = data.draw(st.integers(0, 9000), label="width")
    lengths = data.draw(st.lists(_lengths, min_size=1, max_size=40), label="lengths")
    k = data.draw(st.sampled_from([1, 3, 512, 1024]), label="k")
    vec = data.draw(st.sampled_from([1, 2, 4]), label="vec")
    route = data.draw(st.sampled_from(["persistent", "filtered"]), label="route")
    name = data.draw(st.sampled_from(sorted(INPUTS)), label="input")
    chunk = data.draw(st.sampled_from([None, 256, 1000, 4096]), label="chunk") if route == "persistent" else None
    hint = data.draw(st.sampled_from([None, 0, 2048, 2049]), label="hint")
    x = make(name, len(lengths), width, seed=len(lengths))
    gpu.check(x, k, np.array(lengths, np.int32), vec=vec, route=route, tuning=SMALL, chunk=chunk, max_seq_len=hint)
