"""A host in C without Python or NVRTC, on the real driver: the plans that Python makes here, and exact selections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drvtopk.cache import Cache, default_folder
from drvtopk.export import export_kernels
from drvtopk.plan import Clusters, Occupancy, Plan, Problem, after_refusal, plan
from drvtopk.spec import PLAIN, Options, Variant
from drvtopk.testing.inputs import INPUTS
from drvtopk.testing.oracle import find_errors, ordered_keys
from tests.c_host.running import CC, Host, as_printed, build
from tests.gpu.support import NOT_INSTALLED, Floats, Gpu, compile_ahead, emulated

pytestmark = pytest.mark.real

K = 1024
DETERMINISTIC = PLAIN.made_deterministic()
NUMBERED: dict[str, Any] = {"order": 1, "tie_break": 1}  # the same as DRVTOPK_ORDER_INDEX, DRVTOPK_TIE_BREAK_SMALLEST
WINDOWS = Options(values=True, row_starts=True)
CASES: list[tuple[str, tuple[int, int], dict[str, Any]]] = [
    ("persistent", (2, 200_000), {}),
    ("persistent", (9, 100_000), {"chunk": 12_288, "stride": 100_008}),
    ("persistent", (2, 200_000), {"max_seq_len": 4000}),
    ("filtered", (5, 5000), {}),
    ("filtered", (5, 5000), {"stride": 5001, "offset": 1}),
    ("filtered", (300, 2000), {"sm_budget": 20}),
    ("filtered", (5, 5000), {"pdl": True, "repeat": 4}),
    ("clustered", (3, 100_000), {}),
    ("clustered", (3, 100_000), {"group": 8, "stride": 100_001, "offset": 3}),
    ("clustered", (3, 100_000), {"pdl": True, "repeat": 4}),
    ("auto", (4, 131_072), {}),
    ("auto", (1, 1 << 20), {"waits": "never"}),
    ("auto", (64, 60_000), {}),
    ("auto", (3, 700), {}),
]


def problem_of(shape: tuple[int, int], given: dict[str, Any], options: Options) -> Problem:
    named = {
        name: given[name] for name in ("stride", "offset", "max_seq_len", "sm_budget", "waits", "pdl") if name in given
    }
    return Problem(rows=shape[0], width=shape[1], k=K, options=options, **named)


def how_of(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("chunk", "group") if name in given}


def asked_about(gpu: Gpu, answer: Occupancy, clusters: Clusters | None) -> list[Variant]:
    """The kernels that planning the cases asks about, given such answers."""
    asked: dict[Variant, None] = {}

    def occupancy(variant: Variant, smem_bytes: int) -> int:
        asked[variant] = None
        return answer(variant, smem_bytes)

    device = gpu.engine.device
    for route, shape, given in CASES:
        for options in (PLAIN, DETERMINISTIC, WINDOWS) if route in (*gpu.routes, "auto") else ():
            problem = problem_of(shape, given, options)
            made = plan(problem, device, occupancy, clusters=clusters, route=route, **how_of(given))
            if made.cooperative:
                after_refusal(made, problem, device, occupancy)
    return list(asked)


@pytest.fixture(scope="module")
def host(gpu: Gpu, tmp_path_factory: pytest.TempPathFactory) -> Host:
    """With every kernel that the cases may be planned with here."""
    if emulated():
        pytest.skip("the device is only emulated")
    if CC is None:
        pytest.skip(f"{NOT_INSTALLED} a C compiler")
    engine = gpu.engine
    compile_ahead(asked_about(gpu, lambda variant, smem_bytes: variant.residency, None), engine.device.arch)
    folder = tmp_path_factory.mktemp("export")
    wanted = asked_about(gpu, engine.occupancy, engine.clusters)
    export_kernels(folder, {engine.device.arch: wanted}, cache=Cache(default_folder()))
    build(folder, folder / "host")
    return Host(folder, folder / "host")


def values(shape: tuple[int, int]) -> Floats:
    """Every other row has many equal values."""
    random = np.random.default_rng(shape[0] + shape[1])
    makes = (INPUTS["normal"], INPUTS["steps_up"])
    return np.stack([makes[row % 2](random, shape[1]) for row in range(shape[0])])


def some_lengths(shape: tuple[int, int]) -> Any:
    random = np.random.default_rng(shape[1])
    choices = np.array([0, 1, K, K + 1, shape[1] // 2, shape[1], -5, 2**31 - 1])
    return random.choice(choices, shape[0]).astype(np.int32)


def words(given: dict[str, Any]) -> dict[str, Any]:
    """In the program's: waits as a number."""
    said = {name: int(value) if isinstance(value, bool) else value for name, value in given.items() if name != "waits"}
    return {**said, "waits_never": 1} if given.get("waits") == "never" else said


def planned(gpu: Gpu, route: str, problem: Problem, given: dict[str, Any]) -> Plan:
    return gpu.engine.plan(problem, route=route, **how_of(given))


@pytest.mark.parametrize("varied", [False, True], ids=["whole", "lengths"])
@pytest.mark.parametrize(("route", "shape", "given"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_a_host_in_c_plans_as_python_does_here_and_selects_exactly(
    gpu: Gpu, host: Host, tmp_path: Path, route: str, shape: tuple[int, int], given: dict[str, Any], varied: bool
) -> None:
    x, lengths = values(shape), some_lengths(shape) if varied else None
    problem = problem_of(shape, given, PLAIN)
    made = planned(gpu, route, problem, given)
    ran = host.run(x, tmp_path, k=K, lengths=lengths, route=route, **words(given))
    assert {**ran.plan, **as_printed(made)} == ran.plan
    assert find_errors(x, K, lengths, ran.indices) == []
    ours = gpu.run(
        x, K, lengths, offset=problem.offset, stride=problem.stride, prepared=gpu.engine.prepare(problem, plan=made)
    )
    for row, (one, other) in enumerate(zip(ran.indices, ours.indices, strict=True)):
        keys = ordered_keys(x[row])
        assert np.array_equal(np.sort(keys[one[one >= 0]]), np.sort(keys[other[other >= 0]]))
        assert np.count_nonzero(one < 0) == np.count_nonzero(other < 0)


@pytest.mark.parametrize(("route", "shape", "given"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_what_is_deterministic_is_the_same_array_from_c(
    gpu: Gpu, host: Host, tmp_path: Path, route: str, shape: tuple[int, int], given: dict[str, Any]
) -> None:
    x, lengths = values(shape), some_lengths(shape)
    problem = problem_of(shape, given, DETERMINISTIC)
    made = planned(gpu, route, problem, given)
    ran = host.run(x, tmp_path, k=K, lengths=lengths, route=route, **NUMBERED, **words(given))
    assert {**ran.plan, **as_printed(made)} == ran.plan
    prepared = gpu.engine.prepare(problem, plan=made)
    ours = gpu.run(
        x, K, lengths, options=DETERMINISTIC, offset=problem.offset, stride=problem.stride, prepared=prepared
    )
    assert np.array_equal(ran.indices, ours.indices)


@pytest.mark.parametrize(("route", "shape", "given"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_the_longer_parameter_block_from_c(
    gpu: Gpu, host: Host, tmp_path: Path, route: str, shape: tuple[int, int], given: dict[str, Any]
) -> None:
    x, lengths = values(shape), some_lengths(shape)
    starts = np.random.default_rng(7).integers(-2, shape[1] + 2, shape[0]).astype(np.int32)
    made = planned(gpu, route, problem_of(shape, given, WINDOWS), given)
    ran = host.run(x, tmp_path, k=K, lengths=lengths, row_starts=starts, values=True, route=route, **words(given))
    assert {**ran.plan, **as_printed(made)} == ran.plan
    assert find_errors(x, K, lengths, ran.indices, options=WINDOWS, row_starts=starts, values=ran.values) == []


def test_what_cannot_be_is_said_without_a_launch(gpu: Gpu, host: Host, tmp_path: Path) -> None:
    ran = host.run(values((2, 3000)), tmp_path, k=K + 1)
    assert ran.code == 3 and "no kernel is exported with this k" in ran.said
    assert not (tmp_path / "out").exists()
