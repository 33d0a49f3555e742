"""Options from the call to the launch: plans, parameter blocks and refusals, without a GPU."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import Any

import numpy as np
import pytest

from drvtopk.engine import Engine
from drvtopk.errors import InvalidArgument
from drvtopk.launch import EXTRAS_BYTES, PARAMS_BYTES, Prepared
from drvtopk.plan import Plan, Problem, plan
from drvtopk.spec import KNOWN_DEVICES, PLAIN, ROUTES, Options, Variant
from tests.cpu.test_transcripts import make
from tests.fake_driver import FakeDriver

pytestmark = pytest.mark.usefixtures("no_compiler")

H200 = KNOWN_DEVICES["h200"]
EVERYTHING = Options(values=True, row_starts=True, page_table=True, index_dtype="int64")
ADDRESSES = (0x10000, 0x20000, 0x30000, 0x40000)
EXTRAS = {"values": 0x50000, "row_starts": 0x60000, "page_table": 0x70000}


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


def planned(route: str = "auto", **asked: Any) -> Plan:
    return plan(Problem(**{"rows": 4, "width": 200_000, "k": 1000, **asked}), H200, lambda *_: 2, route=route)


@pytest.mark.parametrize("name", ["dtype", "index_dtype", "order", "tie_break", "nan"])
def test_an_unknown_choice_is_named(name: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{name}: .*'sorted'"):
        Options(**{name: "sorted"})  # type: ignore[arg-type]


def test_deterministic_decides_only_what_was_left_open() -> None:
    assert PLAIN.made_deterministic() == Options(order="index", tie_break="smallest")
    given = Options(order="value", tie_break="largest", dtype="float16")
    assert given.made_deterministic() == given


def test_every_option_is_seen_in_the_plan_and_in_the_kernels_name() -> None:
    names = set()
    for field in dataclasses.fields(Options):
        other = {
            "dtype": "bfloat16",
            "index_dtype": "int64",
            "order": "index",
            "tie_break": "largest",
            "nan": "highest",
        }.get(field.name, True)
        options = Options(**{field.name: other})  # type: ignore[arg-type]
        made = planned(options=options)
        assert made.options == made.variant.options == options
        names.add(made.variant.entry)
    assert len(names) == len(dataclasses.fields(Options))
    assert {planned(route).variant.entry for route in ROUTES} == {f"drvtopk_{route}" for route in ROUTES}


@pytest.mark.parametrize(("offset", "vec"), [(0, 8), (8, 8), (4, 4), (2, 2), (6, 2), (1, 1), (7, 1)])
def test_elements_of_two_bytes_go_by_eight(offset: int, vec: int) -> None:
    half = Options(dtype="float16")
    for route in ROUTES:
        assert planned(route, options=half, offset=offset).vec_size == vec
        assert planned(route, offset=offset).vec_size == min(vec, 4)
    made = planned("persistent", options=half)
    assert made.chunk % 8 == 0 and made.group > 1


def test_windows_that_begin_anywhere_do_not_cost_the_wide_loads() -> None:
    assert planned("persistent", options=Options(row_starts=True)).vec_size == 4
    made = plan(Problem(rows=4, width=200_000, k=8, options=Options(row_starts=True)), H200, lambda *_: 2, chunk=30_001)
    assert made.vec_size == 4


def test_a_sort_asks_for_the_room_it_needs() -> None:
    def fixed(k: int, order: str) -> int:
        return Variant(route="filtered", k=k, vec_size=4, options=Options(order=order)).fixed_smem_bytes

    assert fixed(1000, "none") == 8192 + 512 + 4000
    assert fixed(1000, "index") == fixed(1000, "value") == 8192 + 512 + 4096  # the keys lie where the bins were
    assert fixed(4096, "value") == 2 * 16384 + 512
    assert fixed(1, "index") == 8192 + 512 + 4 * 64
    plain, ordered = planned("persistent"), planned("persistent", options=Options(order="index"))
    more = ordered.workspace_bytes // ordered.groups - plain.workspace_bytes // plain.groups
    assert abs(more - 4000) < 128
    plain, ordered = (planned("clustered", options=Options(order=order), k=33) for order in ("none", "index"))
    assert plain.variant.fixed_smem_bytes == 8192 + 512 + 144 and ordered.variant.fixed_smem_bytes == 8192 + 512 + 256


def launched(fake: FakeDriver, prepared: Prepared, **extras: int) -> bytes:
    seen: list[bytes] = []

    def launch(*args: Any) -> tuple[int]:
        pointer = ctypes.cast(args[9], ctypes.POINTER(ctypes.c_void_p))[0]
        assert pointer is not None
        seen.append(ctypes.string_at(pointer, PARAMS_BYTES + EXTRAS_BYTES * prepared.plan.options.extras))
        return (0,)

    fake.replace.update(cuLaunchCooperativeKernel=launch, cuLaunchKernel=launch)
    prepared.launch(*ADDRESSES, **extras)
    (block,) = seen
    return block


@pytest.mark.parametrize("route", ROUTES)
def test_the_parameter_block_carries_what_was_asked_for(fake: FakeDriver, route: str) -> None:
    problem = Problem(rows=6, width=100_000, k=600, options=EVERYTHING)
    prepared = make(fake).prepare(problem, route=route)
    block = launched(fake, prepared, **EXTRAS, values_stride=700, page_table_stride=900, page_size=64, rows_per_table=3)
    assert len(block) == 128
    assert list(np.frombuffer(block, np.uint64, 5, 80)) == [*EXTRAS.values(), 700, 900]
    assert list(np.frombuffer(block, np.uint32, 2, 120)) == [64, 3]


def test_a_plain_launch_is_told_nothing_more(fake: FakeDriver) -> None:
    for route in ROUTES:
        prepared = make(fake).prepare(Problem(rows=6, width=100_000, k=600), route=route)
        assert len(launched(fake, prepared)) == 80


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("values", {"values": 0}),
        ("values", {"values": 0x50002}),
        ("row_starts", {"row_starts": 0}),
        ("row_starts", {"row_starts": 0x60002}),
        ("page_table", {"page_table": 0}),
        ("page_size", {"page_size": 0}),
        ("page_size", {"page_size": 2**31}),
        ("rows_per_table", {"rows_per_table": 0}),
        ("rows_per_table", {"rows_per_table": 7}),
        ("values_stride", {"values_stride": 599}),
        ("page_table_stride", {"page_table_stride": -1}),
    ],
)
def test_bad_extras_are_refused_before_anything_is_launched(
    fake: FakeDriver, argument: str, change: dict[str, int]
) -> None:
    prepared = make(fake).prepare(Problem(rows=6, width=100_000, k=600, options=EVERYTHING))
    fake.calls.clear()
    with pytest.raises(InvalidArgument, match=f"^{argument}: "):
        prepared.launch(*ADDRESSES, **{**EXTRAS, **change})
    assert fake.calls == []


@pytest.mark.parametrize("name", EXTRAS)
def test_an_array_that_was_not_prepared_for_is_refused(fake: FakeDriver, name: str) -> None:
    prepared = make(fake).prepare(Problem(rows=6, width=100_000, k=600))
    with pytest.raises(InvalidArgument, match=rf"^{name}: .*prepared without"):
        prepared.launch(*ADDRESSES, **{name: EXTRAS[name]})


def test_an_output_of_wide_indices_is_aligned_like_them(fake: FakeDriver) -> None:
    engine: Engine = make(fake)
    prepared = engine.prepare(Problem(rows=2, width=100, k=6, options=Options(index_dtype="int64")))
    with pytest.raises(InvalidArgument, match=r"^out: .*8 bytes"):
        prepared.launch(0x10000, 0, 0x30004)
    half = engine.prepare(Problem(rows=2, width=104, k=6, options=Options(dtype="bfloat16")))
    assert half.plan.vec_size == 8
    with pytest.raises(InvalidArgument, match=r"^logits: .*16 bytes"):
        half.launch(0x10008, 0, 0x30000)


@pytest.mark.parametrize(
    ("name", "value"),
    [("logits", -16), ("logits", 2**64), ("out", 2.0**70), ("lengths", 4.0), ("out", 8.0), ("out_stride", 2**63)],
)
@pytest.mark.parametrize("binding", [False, True])
def test_what_the_parameters_have_no_room_for_is_named(fake: FakeDriver, name: str, value: Any, binding: bool) -> None:
    prepared = make(fake).prepare(Problem(rows=2, width=100, k=6, stride=128))
    given: dict[str, Any] = {"logits": 0x10000, "lengths": 0, "out": 0x30000, name: value}
    fake.calls.clear()
    with pytest.raises(InvalidArgument, match=f"^{name}: .*an integer in"):
        if binding:
            prepared.bind(prepared.args(**given))
        else:
            prepared.launch(**given)
    assert fake.names == []
    prepared.launch(0x10000, 0, 0x30000)
    assert fake.names == ["cuLaunchKernel"]
