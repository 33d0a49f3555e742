"""Exactness on every route and all nine instantiations each: lengths, ties, narrow bands, infinities, NaN, layouts."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drvtopk.plan import Problem
from drvtopk.spec import DEFAULT_TUNING, PLAIN, ROUTES, Options, Tuning
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import narrowed
from tests.gpu.support import INSTANTIATIONS, Floats, Gpu, layout

SMALL = Tuning(short_max=1024, radix_threshold=2048, cluster_threshold=2048, min_chunk=256, max_candidates=512)
CLUSTERS_SMALL = dataclasses.replace(SMALL, max_candidates=2048, samples=1024)  # no less than k, and room for guesses
ANY_K = (1, 7, 500, 511, 513, 1000, 2051, 3000, 4096)
WIDTHS = (513, 2049, 4100, 8192, 8193, 16384, 32768, 32769, 70_001)


def paths_of(k: int) -> Tuning:
    """Thresholds for which rows of a few times k elements take every path."""
    return Tuning(
        short_max=2 * k, radix_threshold=4 * k, cluster_threshold=4 * k, min_chunk=256, max_candidates=k, samples=k
    )


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
    for width in WIDTHS if route != "clustered" else (513, 8193, 16384, 32769, 70_001):  # up to 8192 by a block alone
        gpu.check(make(name, 2, width), k, route=route, vec=vec)


@everywhere
def test_scale_mixes(gpu: Gpu, route: str, k: int, vec: int) -> None:
    """Log-probabilities with forced tokens, masks and sinks, in groups about as large as k."""
    for width in (4100, 16_384, 33_000, 131_072):
        gpu.check(make("scale_mixes", 12, width, seed=k + vec, k=k), k, route=route, vec=vec)


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
def test_minus_infinity_comes_before_nan(gpu: Gpu, route: str, k: int, vec: int) -> None:
    """Exactly k values are numbers, most of them -inf: each is in, and no NaN of either sign is."""
    for n in (k + 1, 5000, 20_000, 50_000):
        random = np.random.default_rng(n)
        x = np.where(random.random((2, n)) < 0.5, np.float32(np.nan), -np.float32(np.nan)).astype(np.float32)
        for row in x:
            numbers = random.choice(n, k, replace=False)
            row[numbers] = -np.inf
            row[numbers[:100]] = random.standard_normal(100)
        found = gpu.check(x, k, route=route, vec=vec)
        assert not np.any(np.isnan(np.take_along_axis(x, found.astype(np.int64), 1)))


@everywhere
def test_degenerate_shapes(gpu: Gpu, route: str, k: int, vec: int) -> None:
    for rows, width in ((0, 100), (0, 0), (3, 0), (3, 1), (2, k - 1), (2, k), (2, k + 1)):
        gpu.check(make("normal", rows, width), k, route=route, vec=vec if rows else None)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("k", ANY_K)
def test_any_k(gpu: Gpu, route: str, k: int) -> None:
    for width in (k, k + 1, 8000, 33_333):
        gpu.check(make("normal", 2, width), k, route=route)


@everywhere
@pytest.mark.parametrize("groups", [1, 3])
def test_rows_of_every_path_in_all_orders(gpu: Gpu, route: str, k: int, vec: int, groups: int) -> None:
    """One group of blocks takes them all, or three in turn, so what a row leaves behind meets every other kind."""
    width = 6 * k
    kinds = (0, k, 2 * k - 1, 3 * k, 5 * k, width)  # empty, trivial, short, streamed, shared by the group (twice)
    lengths = np.array(list(itertools.permutations(kinds))[:: 1 if k == 512 else 9], np.int32).reshape(-1)
    offset, stride = layout(width, vec)
    problem = Problem(rows=len(lengths), width=width, k=k, stride=stride, offset=offset)
    chunk = k + k // 4  # five blocks share a row, the last of them the smallest part
    plan = gpu.engine.plan(problem, route=route, tuning=paths_of(k), chunk=chunk if route == "persistent" else None)
    if route == "persistent":
        assert plan.cooperative and plan.group == 5 and plan.candidates >= k
        state = plan.workspace_bytes // plan.groups
        plan = dataclasses.replace(plan, groups=groups, grid=groups * plan.group, workspace_bytes=groups * state)
    if route == "clustered":
        assert plan.group > 1 and plan.candidates == k
        plan = dataclasses.replace(plan, groups=groups, grid=groups * plan.group)
    x = make("narrow_1.03", 40, width, seed=groups)[np.arange(len(lengths)) % 40]
    gpu.check(x, k, lengths, vec=vec, prepared=gpu.engine.prepare(problem, plan=plan))


@pytest.mark.parametrize("vec", [1, 2, 4])
@pytest.mark.parametrize("k", [512, 1024, 2048])
def test_more_rows_than_the_device_has_sms(gpu: Gpu, k: int, vec: int) -> None:
    """Two blocks an SM, and long rows in one reading each."""
    rows = 2 * gpu.engine.device.sms + 3
    for width in (3000, 9000, 20_000):
        kinds = ("normal", "bfloat16", "low_10_bits", "relu_tail", "nan_payloads", "one_outlier", "ascending")
        x = np.concatenate([make(name, 1, width) for name in kinds])[np.arange(rows) % len(kinds)]
        lengths = np.random.default_rng(width).integers(width // 2, width + 1, rows).astype(np.int32)
        problem = Problem(rows=rows, width=width, k=k, stride=layout(width, vec)[1], offset=layout(width, vec)[0])
        for route in ("filtered", "auto"):
            prepared = gpu.engine.prepare(problem, route=route)
            assert prepared.plan.residency == 2 and route in ("auto", prepared.plan.route)
            gpu.check(x, k, lengths, vec=vec, prepared=prepared)


@everywhere
def test_a_wrong_hint_on_every_path(gpu: Gpu, route: str, k: int, vec: int) -> None:
    lengths = np.array([0, k, k + 1, 2 * k, 2 * k + 1, 4 * k, 4 * k + 1, 6 * k], np.int32)
    x = make("normal", len(lengths), 6 * k)
    for hint in (0, 2 * k, 4 * k, 4 * k + 1):
        gpu.check(x, k, lengths, route=route, vec=vec, max_seq_len=hint, tuning=paths_of(k))


@everywhere
def test_members_at_the_seams(gpu: Gpu, route: str, k: int, vec: int) -> None:
    """The largest values stand where one block's, one step's or the row's part ends and the next begins."""
    width, chunk = 70_000, 5000
    lengths = np.array([width, width - 1, 65_537, 32_769, 32_768, 20_001, 8193, 8192, 5001], np.int32)
    x = make("normal", len(lengths), width)
    for row, n in enumerate(lengths):
        seams = np.concatenate([[1, n], *(np.arange(step, n, step) for step in (chunk, 1024 * vec))])
        where = np.unique(np.concatenate([seams - 1, seams[seams < n]]).astype(np.int64))
        x[row, where] = 10 + np.arange(len(where), dtype=np.float32)
    found = gpu.check(x, k, lengths, route=route, vec=vec, chunk=chunk if route == "persistent" else None)
    assert all({0, n - 1} <= set(members.tolist()) for n, members in zip(lengths.tolist(), found, strict=True))


def crowded(n: int, k: int, tied: int, level: int) -> Floats:
    """A row whose k-th largest is in the middle of `tied` keys that only digit `level` + 1 tells apart."""
    random = np.random.default_rng([n, k, tied, level])
    shift = 21 if level == 0 else 10  # bits of a float that the digits up to `level` leave open
    bin_of = np.uint32(0x3F800000 >> shift)
    above, need = k - k // 2, k // 2
    assert need < tied <= n - above
    below = n - above - tied
    tops = np.repeat(np.array([bin_of + 1, bin_of, bin_of - 1], np.uint32), (above, tied, below))
    if level == 1:  # all in one opening bin: the second digit is 1 for `tied` and 0 and 2 for the others
        tops = np.repeat(np.array([bin_of + 2, bin_of + 1, bin_of], np.uint32), (above, tied, below))
    bits = random.permutation((tops << np.uint32(shift)) | random.integers(0, 1 << shift, n, dtype=np.uint32))
    last = np.flatnonzero(bits >> np.uint32(shift) == tops[above])[-1]  # the likeliest to find no room: a member
    bits[last] |= np.uint32((1 << shift) - 1)
    return bits.view(np.float32)


@everywhere
@pytest.mark.parametrize("level", [0, 1])
def test_a_threshold_bin_with_as_many_keys_as_a_block_keeps(gpu: Gpu, route: str, k: int, vec: int, level: int) -> None:
    """One fewer, just as many, one more and many more: where candidate buffers of other kernels dropped members."""
    width = 20_000
    offset, stride = layout(width, vec)
    excess = (-1, 0, 1, 2, 64, 1024)
    problem = Problem(rows=len(excess), width=width, k=k, stride=stride, offset=offset)
    prepared = gpu.engine.prepare(problem, route=route)
    keeps = prepared.plan.candidates
    assert k < keeps - 1 and keeps + max(excess) < width - k, "else these rows test nothing"
    x = np.stack([crowded(width, k, keeps + more, level) for more in excess])
    gpu.check(x, k, vec=vec, prepared=prepared)


@pytest.mark.parametrize("route", ROUTES)
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
    from drvtopk.testing.oracle import find_errors

    assert find_errors(x, 512, lengths, found) == []


@pytest.mark.parametrize(
    "options", [PLAIN, Options(dtype="bfloat16"), Options(row_starts=True)], ids=["plain", "bfloat16", "starts"]
)
@pytest.mark.parametrize("route", ["filtered", "clustered"])
def test_rows_on_every_sm_that_no_cache_keeps(gpu: Gpu, route: str, options: Options) -> None:
    """Then a block alone, and the blocks of a cluster, take what reaches the pivot out of registers."""
    tuning = dataclasses.replace(DEFAULT_TUNING, cached_bytes=1 << 16)
    sms = gpu.engine.device.sms
    rows, width = (sms, 20_000) if route == "filtered" else (sms // 2, 120_000)
    how: dict[str, Any] = {"group": 2} if route == "clustered" else {}
    names = ["normal", "specials", "signed_zeros", "narrow_1.03", "steps_up", "two_values"]
    base = np.concatenate([make(name, 1, width, seed=number) for number, name in enumerate(names)])
    x = narrowed(base[np.arange(rows) % len(base)], options.dtype)
    starts = np.arange(rows, dtype=np.int32) if options.row_starts else None
    for vec in (1, None):
        gpu.check(x, 512, route=route, tuning=tuning, options=options, row_starts=starts, vec=vec, **how)


_lengths = st.one_of(st.integers(-3, 9000), st.sampled_from([-(2**31), 2**31 - 1, 512, 1024, 1025, 2048, 2049]))


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_anything(gpu: Gpu, data: st.DataObject) -> None:
    width = data.draw(st.integers(0, 9000), label="width")
    lengths = data.draw(st.lists(_lengths, min_size=1, max_size=40), label="lengths")
    k = data.draw(st.sampled_from([1, 3, 512, 1024]), label="k")
    vec = data.draw(st.sampled_from([1, 2, 4]), label="vec")
    route = data.draw(st.sampled_from(gpu.routes), label="route")
    name = data.draw(st.sampled_from(sorted(INPUTS)), label="input")
    chunk = data.draw(st.sampled_from([None, 256, 1000, 4096]), label="chunk") if route == "persistent" else None
    hint = data.draw(st.sampled_from([None, 0, 2048, 2049]), label="hint")
    x = make(name, len(lengths), width, seed=len(lengths))
    tuning = CLUSTERS_SMALL if route == "clustered" else SMALL
    gpu.check(x, k, np.array(lengths, np.int32), vec=vec, route=route, tuning=tuning, chunk=chunk, max_seq_len=hint)
