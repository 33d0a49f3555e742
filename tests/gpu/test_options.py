"""Every option on the device: alone, in pairs, all at once, on every path; the same bits wherever a row stands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk.plan import Problem, plan
from drvtopk.spec import DEFAULT_TUNING, DTYPES, NANS, PLAIN, ROUTES, Options, Tuning, Variant
from drvtopk.testing.cases import SMALL, every_pair, layouts
from drvtopk.testing.inputs import INPUTS, make
from drvtopk.testing.oracle import find_errors, narrowed, select
from tests.gpu.support import Array, Gpu, compile_ahead, layout

SINGLE = {
    "bfloat16": Options(dtype="bfloat16"),
    "float16": Options(dtype="float16"),
    "int64": Options(index_dtype="int64"),
    "values": Options(values=True),
    "row_starts": Options(row_starts=True),
    "by_index": Options(order="index"),
    "by_value": Options(order="value"),
    "smallest": Options(tie_break="smallest"),
    "largest": Options(tie_break="largest"),
    "nan_highest": Options(nan="highest"),
    "page_table": Options(page_table=True),
}
ALL = Options(
    index_dtype="int64",
    values=True,
    row_starts=True,
    order="value",
    tie_break="largest",
    nan="highest",
    page_table=True,
)
DETERMINISTIC = PLAIN.made_deterministic()
SAMPLER = Options(dtype="bfloat16", values=True, order="value", nan="highest")
TOGETHER = {
    "deterministic": DETERMINISTIC,
    "sampler": SAMPLER,
    "indexer": Options(row_starts=True, page_table=True, tie_break="smallest"),
    "value_largest": Options(order="value", tie_break="largest", values=True),
    "all": ALL,
    "all_bfloat16": replace(ALL, dtype="bfloat16", tie_break="smallest"),
    "all_float16": replace(ALL, dtype="float16", order="index"),
}
PAIRS = {f"pairs{number}": options for number, options in enumerate(every_pair())}
COMBINED = {**SINGLE, **TOGETHER, **PAIRS}
TIES = (
    *("all_equal", "two_values", "low_10_bits", "signed_zeros", "specials", "all_nan", "bfloat16", "nan_payloads"),
    *("steps_up", "steps_down", "ties_at_both_ends", "zeros_at_the_threshold", "any_float16"),
)
K = 100
KS = (1, 7, 100, 500, 511, 512, 513, 1000, 1024, 2028, 2048, 2051, 3000, 4096)
EVERYTHING = {"by_value": ALL, "by_index": TOGETHER["all_float16"]}
LOADS = [(dtype, vec) for dtype in DTYPES for vec in Options(dtype=dtype).vec_sizes]
WINDOWS = [("float32", 1), ("float32", 2), ("float32", 4), ("float16", 2), ("bfloat16", 8)]
PAGED = Options(page_table=True, index_dtype="int64", tie_break="smallest", order="index")
SHAPED = Options(values=True, index_dtype="int64", row_starts=True, page_table=True, nan="highest")
WORDS = Options(dtype="bfloat16", values=True, order="value")
LENGTHS = np.array([1500, 1499, 601, 600, 301, 300, K + 1, K, K - 1, 1, 0, -1, 2**31 - 1], np.int32)

everywhere = pytest.mark.parametrize("route", ROUTES)


def windows(dtype: str) -> Options:
    return Options(dtype=dtype, row_starts=True, order="index")


@pytest.fixture(scope="module", autouse=True)
def compiled(gpu: Gpu) -> None:
    """The kernels of the tests here, compiled side by side before the first of them runs."""
    device = gpu.engine.device
    wanted: dict[Variant, None] = {}

    def want(options: Options, k: int, vec: int = 4, tuning: Tuning = DEFAULT_TUNING, *, rows: int = 2) -> None:
        """For so many rows: few of them make more blocks than SMs already where a cluster shares each."""
        offset, stride = layout(40_000, vec)
        problem = Problem(rows=rows, width=40_000, k=k, offset=offset, stride=stride, options=options)
        for route in gpu.routes:
            made = plan(problem, device, lambda variant, smem: variant.residency, route=route, tuning=tuning)
            wanted[made.variant] = None

    for options in COMBINED.values():
        want(options, K, options.vec_sizes[-1], SMALL, rows=len(LENGTHS))
    for dtype, vec in LOADS:
        want(Options(dtype=dtype, values=True), K, vec, SMALL)
        want(Options(dtype=dtype, values=True), 512, vec)
        want(Options(dtype=dtype, values=True, order="value"), 512, 8 if dtype != "float32" else 4)
    for dtype, vec in WINDOWS:
        want(windows(dtype), 512, vec, rows=16)
    for k in KS:
        for options in EVERYTHING.values():
            want(options, k)
    for tie_break in ("smallest", "largest"):
        want(Options(tie_break=tie_break), 512)
        want(Options(tie_break=tie_break, dtype="bfloat16"), 512, 8)
    for nan in NANS:
        want(Options(nan=nan, values=True), 512)
    for options in (PLAIN, PAGED, DETERMINISTIC, Options(tie_break="smallest", order="value")):
        want(options, 512)
    want(PLAIN, 2048)
    want(SHAPED, 512)
    want(replace(WORDS, index_dtype="int64"), 512, 8)
    want(replace(WORDS, order="none").made_deterministic(), 512, 8)
    for options in (DETERMINISTIC, SAMPLER.made_deterministic()):
        for rows in (1, 64, device.sms + 1):  # blocks that have an SM to themselves, and such as share one
            want(options, 512, options.vec_sizes[-1], rows=rows)
    compile_ahead(wanted, device.arch)


def beside(options: Options, rows: int, width: int, *, page_size: int = 7, seed: int = 0) -> dict[str, Any]:
    """What the options ask for beside the logits."""
    random = np.random.default_rng(seed)
    given: dict[str, Any] = {"options": options}
    if options.row_starts:
        starts = [0, 1, 2, 3, 5, 8, 700, width - 1, width, width + 1, -1, -(2**31), 2**31 - 1]
        given["row_starts"] = np.resize(np.array(starts), rows).astype(np.int32)
    if options.page_table:
        pages = -(-width // page_size)
        table = np.stack([random.permutation(2 * pages)[:pages] for _ in range(rows)])
        given |= {"page_table": table.astype(np.int32), "page_size": page_size}
    return given


@everywhere
@pytest.mark.parametrize("name", COMBINED)
def test_every_option_on_every_path(gpu: Gpu, name: str, route: str) -> None:
    options = COMBINED[name]
    chunk = 304 if route == "persistent" else None
    for number, kind in enumerate((*TIES, "normal", "few_specials", "ascending")):
        x = narrowed(make(kind, len(LENGTHS), 1500, seed=number), options.dtype)
        given = beside(options, len(LENGTHS), 1500, seed=number)
        mode = ("eager", "graph", "streams")[number % 3]
        gpu.check(x, K, LENGTHS, route=route, tuning=SMALL, chunk=chunk, vec=options.vec_sizes[-1], mode=mode, **given)


@everywhere
@pytest.mark.parametrize("name", EVERYTHING)
@pytest.mark.parametrize("k", KS)
def test_any_k_with_everything_asked_for(gpu: Gpu, k: int, name: str, route: str) -> None:
    options = EVERYTHING[name]
    for width in (max(k - 1, 1), k, k + 1, 9000, 40_000):  # k > width included
        x = narrowed(make("few_specials", 2, width, seed=k), options.dtype)
        given = beside(options, 2, width)
        gpu.check(x, k, route=route, vec=4, out_stride=k + 3, values_stride=k + 5, **given)


@everywhere
@pytest.mark.parametrize(("dtype", "vec"), LOADS)
def test_every_load_of_every_dtype(gpu: Gpu, dtype: str, vec: int, route: str) -> None:
    options = Options(dtype=dtype, values=True)
    for kind in INPUTS:
        x = narrowed(make(kind, 3, 1500), dtype)
        lengths = np.array([1500, 1201, 299], np.int32)
        gpu.check(x, K, lengths, options=options, route=route, vec=vec, tuning=SMALL)
    for width in (20_000, 70_001):
        gpu.check(narrowed(make("normal", 2, width), dtype), 512, options=options, route=route, vec=vec)


@everywhere
@pytest.mark.parametrize(("dtype", "vec"), LOADS)
def test_rows_lie_anywhere(gpu: Gpu, dtype: str, vec: int, route: str) -> None:
    """Every base alignment and row stride that this load may meet."""
    options = Options(dtype=dtype, values=True)
    x = narrowed(make("normal", 4, 1203), dtype)
    lengths = np.array([1203, 1203, 599, 250], np.int32)
    for offset, stride in layouts(4, 1203, vec, options.vec_sizes[-1]):
        problem = Problem(rows=4, width=1203, k=K, offset=offset, stride=stride, options=options)
        prepared = gpu.engine.prepare(problem, route=route, tuning=SMALL)
        assert prepared.plan.vec_size == vec
        gpu.check(x, K, lengths, options=options, offset=offset, stride=stride, prepared=prepared)


@everywhere
@pytest.mark.parametrize(("dtype", "vec"), WINDOWS)
def test_windows_begin_anywhere(gpu: Gpu, dtype: str, vec: int, route: str) -> None:
    options = windows(dtype)
    starts = np.arange(16, dtype=np.int32)
    for width in (700, 9000, 33_000, 50_000):
        x = narrowed(make("normal", 16, width), dtype)
        lengths = (width - np.arange(16) * 37).astype(np.int32)
        gpu.check(x, 512, lengths, options=options, row_starts=starts, route=route, vec=vec)
        late = (width - starts * 50).astype(np.int32)
        gpu.check(x, 512, None, options=options, row_starts=late, route=route, vec=vec)


@everywhere
@pytest.mark.parametrize("page_size", [1, 3, 64, 4096])
def test_page_tables(gpu: Gpu, page_size: int, route: str) -> None:
    """Shared by consecutive rows, with pages that are not there, and products beyond 31 bits."""
    options = PAGED
    rows, width, k = 6, 9000, 512
    pages = -(-width // page_size)
    random = np.random.default_rng(page_size)
    x = make("normal", rows, width)
    lengths = np.array([9000, 8500, 300, 0, 512, 513], np.int32)
    for tables in (6, 3, 2, 1):
        table = np.stack([2**31 - 1 - random.permutation(2 * pages)[:pages] for _ in range(tables)]).astype(np.int32)
        given: dict[str, Any] = {"page_table": table, "page_size": page_size}
        found = gpu.check(x, k, lengths, options=options, route=route, **given)
        assert np.all(found[3] == -1) and (page_size == 1 or found.max() >= 2**31)
        table[:, random.random(pages) < 0.3] = -1  # a page that is not there has no place to name
        wanted = select(x, k, lengths, options=options, **given).indices
        assert np.array_equal(gpu.run(x, k, lengths, options=options, route=route, **given).indices, wanted)


@everywhere
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_values_of_short_rows_are_filled_with_minus_infinity(gpu: Gpu, dtype: str, route: str) -> None:
    options = Options(dtype=dtype, values=True, order="value")
    x = narrowed(make("normal", 4, 904), dtype)
    found = gpu.run(x, 512, np.array([0, 1, 511, -5], np.int32), options=options, route=route)
    kind = np.dtype(np.uint16 if dtype == "bfloat16" else dtype)
    fill = narrowed(np.array([-np.inf], np.float32), dtype)[0]
    assert found.values is not None and found.values.dtype == kind
    assert np.all(found.values[[0, 3]] == fill) and np.all(found.values[1, 1:] == fill)
    assert np.count_nonzero(found.values[2] == fill) == 1


@everywhere
@pytest.mark.parametrize("tie_break", ["smallest", "largest"])
def test_ties_are_broken_by_index_in_long_rows(gpu: Gpu, tie_break: str, route: str) -> None:
    for name in (*TIES, "relu_tail", "winners_over_zeros"):
        for width in (3000, 20_000, 70_000):
            x = make(name, 2, width)
            gpu.check(x, 512, options=Options(tie_break=tie_break), route=route)
            half = Options(tie_break=tie_break, dtype="bfloat16")
            gpu.check(narrowed(x, "bfloat16"), 512, options=half, route=route)


@everywhere
def test_signed_zeros_are_one_value(gpu: Gpu, route: str) -> None:
    """Told apart, -0.0 would lose to +0.0; they are equal, so the index decides."""
    for width in (3000, 40_000):
        x = np.full((2, width), -1, np.float32)
        x[:, ::2] = 0.0
        x[:, 0:1024:4] = -0.0
        found = gpu.check(x, 512, options=Options(tie_break="smallest", order="index"), route=route)
        assert np.array_equal(found[0], np.arange(0, 1024, 2))
        by_value = gpu.check(x, 512, options=Options(tie_break="smallest", order="value"), route=route)
        assert np.array_equal(by_value, found)


@everywhere
@pytest.mark.parametrize("nan", NANS)
def test_nan_of_either_sign_is_lowest_or_highest(gpu: Gpu, nan: str, route: str) -> None:
    for width in (700, 3000, 40_000):
        x = make("nan_payloads", 3, width)
        x[1] = np.where(np.arange(width) % 50 == 0, -np.float32(np.nan), np.float32(np.inf))
        gpu.check(x, 512, options=Options(nan=nan, values=True), route=route)


@everywhere
def test_a_pivot_that_ties_with_many_still_finds_what_lies_just_above(gpu: Gpu, route: str) -> None:
    """More of one value than places come first in the row; the next larger float and the one after it come last."""
    for k in (512, 2048):
        x = np.full((3, 120_000), 1.0, np.float32)
        above = np.nextafter(np.float32(1), np.float32(2))
        x[:, -300:] = above
        x[1, -100:] = np.nextafter(above, np.float32(2))
        x[2, :50_000] = 0.5
        gpu.check(x, k, route=route)


@pytest.mark.parametrize("asked", [PLAIN, SAMPLER], ids=["plain", "sampler"])
@pytest.mark.parametrize("length", [700, 5000, 20_000, 40_000])
def test_the_same_bits_wherever_a_row_stands(gpu: Gpu, length: int, asked: Options) -> None:
    """Every route, batch sizes of 1 to 2048, any position, eager, graphs and streams at once."""
    options = asked.made_deterministic()
    kinds = ("normal", "two_values", "low_10_bits", "nan_payloads")
    rows = narrowed(np.concatenate([make(name, 1, length) for name in kinds]), options.dtype)
    wanted = select(rows, 512, options=options)
    for route in (*gpu.routes, "auto"):
        for batch in (1, 2, 7, 64, 200) if length > 5000 else (1, 2, 7, 64, 200, 2048):
            which = np.random.default_rng(batch).integers(0, 4, batch)
            for mode in ("eager", "graph", "streams") if batch <= 200 else ("eager",):
                found = gpu.run(rows[which], 512, options=options, route=route, mode=mode)
                assert np.array_equal(found.indices, wanted.indices[which]), (route, batch, mode)
                if options.values:
                    assert found.values.tobytes() == wanted.values[which].tobytes(), (route, batch, mode)


@everywhere
def test_a_hundred_repetitions_are_one_array(gpu: Gpu, route: str) -> None:
    options = DETERMINISTIC
    x = np.stack([make("bfloat16", 1, 40_000)[0], make("two_values", 1, 40_000)[0]])
    prepared = gpu.engine.prepare(Problem(rows=2, width=40_000, k=512, options=options), route=route)
    first = gpu.run(x, 512, options=options, prepared=prepared).indices
    assert find_errors(x, 512, None, first, options=options) == []
    for _ in range(100):
        assert np.array_equal(gpu.run(x, 512, options=options, prepared=prepared).indices, first)


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2)])
def test_lengths_and_starts_of_every_shape(gpu: Gpu, shape: tuple[int, ...]) -> None:
    lengths = np.array([9, 5000, 0, 40_000, 33_000, 700], np.int32).reshape(shape)
    starts = np.array([0, 35_000, 7, 3, 6999, 39_999], np.int32).reshape(shape)
    x = make("normal", 6, 40_000)
    table = np.random.default_rng(0).permutation(90_000)[: 3 * 10_000].reshape(3, 10_000).astype(np.int32)
    asked: dict[str, Any] = {"row_starts": starts, "page_table": table, "page_size": 4}
    found = drvtopk.topk(x, 512, lengths, values=True, index_dtype="int64", nan="highest", **asked)
    options = SHAPED
    assert find_errors(x, 512, lengths, found.indices, options=options, values=found.values, **asked) == []


class OnDevice:
    """A device array of somebody's."""

    def __init__(self, gpu: Gpu, array: Array, typestr: str | None = None) -> None:
        self.gpu, self.array = gpu, array
        self.address = gpu.driver.mem_alloc(max(array.nbytes, 1))
        gpu.driver.copy_to_device(self.address, np.ascontiguousarray(array))
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": typestr or array.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }

    def numpy(self) -> Array:
        host = np.empty_like(self.array)
        self.gpu.driver.synchronize()
        self.gpu.driver.copy_to_host(host, self.address)
        return host


def test_device_arrays_in_and_out(gpu: Gpu) -> None:
    """bfloat16 as its words, an output of int64, values made for the caller, and a call that fills what it is given."""
    x = narrowed(make("normal", 4, 3000), "bfloat16")
    logits = OnDevice(gpu, x, "<V2")
    out = OnDevice(gpu, np.full((4, 512), 7, np.int64))
    found = drvtopk.topk(logits, 512, out=out, values=True, order="value", tie_break="smallest")
    options = replace(WORDS, index_dtype="int64", tie_break="smallest")
    assert found.indices is out
    assert find_errors(x, 512, None, out.numpy(), options=options, values=found.values.numpy()) == []
    words = OnDevice(gpu, x)
    again = drvtopk.topk(
        words, 512, index_dtype="int64", dtype="bfloat16", order="value", tie_break="smallest", values=True
    )
    assert np.array_equal(again.indices.numpy(), out.numpy())
    prepared = drvtopk.prepare(rows=4, width=3000, k=512, dtype="bfloat16", values=True, deterministic=True)
    indices, values = OnDevice(gpu, np.zeros((4, 512), np.int32)), OnDevice(gpu, np.zeros((4, 512), np.uint16))
    prepared(logits, out=indices, values=values)
    wanted = replace(WORDS, order="none").made_deterministic()
    assert find_errors(x, 512, None, indices.numpy(), options=wanted, values=values.numpy()) == []
