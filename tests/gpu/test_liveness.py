"""Nothing hangs: the ancestor's configuration, real oversubscription, graphs, streams, assumed and real limits."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest

import drvtopk
from drvtopk.errors import PlanError, WorkspaceTooSmall
from drvtopk.plan import Problem, calculated_occupancy
from drvtopk.reasons import Kind, Reason
from drvtopk.spec import KNOWN_DEVICES, ROUTES, TOP_KS, VEC_SIZES, DeviceInfo, Tuning, Variant
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import POISON, Gpu, layout

ODD = DeviceInfo(
    name="20 SMs, 48 KB",
    arch="sm_90a",
    sms=20,
    smem_optin=48 * 1024,
    smem_per_sm=64 * 1024,
    max_threads_per_sm=1024,
    max_blocks_per_sm=16,
)


@pytest.mark.real
def test_the_calculator_agrees_with_the_driver(gpu: Gpu) -> None:
    engine = gpu.engine
    variants = [Variant(route=r, k=k, vec_size=v) for r in ROUTES[:2] for k in (*TOP_KS, 1, 4096) for v in VEC_SIZES]
    variants += [dataclasses.replace(v, residency=1) for v in variants if v.route == "filtered" and v.k in TOP_KS]
    if "clustered" in gpu.routes:
        variants += [Variant(route="clustered", k=k, vec_size=4, cluster=16, residency=1) for k in (*TOP_KS, 1, 4096)]
        variants += [Variant(route="clustered", k=k, vec_size=4, cluster=16) for k in TOP_KS]
    for variant in variants:
        info = engine.kernel_info(variant)
        top = engine.device.smem_optin
        for smem in (0, variant.fixed_smem_bytes, 46432, 49152, 49153, 100_000, top // 2, top, top + 1):
            answer = engine.occupancy(variant, smem)
            assert answer == calculated_occupancy(info, engine.device, smem, variant.threads), (variant, smem)
        assert engine.occupancy(variant, variant.fixed_smem_bytes) >= 1


def test_the_known_device_has_this_devices_limits(gpu: Gpu) -> None:
    """What the planner assumes of a GPU by name is what the driver says of it; some boards have fewer SMs."""
    device = gpu.engine.device
    for short, known in KNOWN_DEVICES.items():
        if short in re.split("[^a-z0-9]", device.name.lower()):
            assert device.sms <= known.sms
            assert dataclasses.replace(device, name=short, sms=known.sms) == known


@pytest.mark.alone
@pytest.mark.parametrize("vec", VEC_SIZES)
def test_the_ancestors_deadlock_configuration_ends_and_is_exact(gpu: Gpu, vec: int) -> None:
    """TopK 1024, group sizes up to the resident cap and one past it, where the ancestor waited for ever."""
    variant = Variant(route="persistent", k=1024, vec_size=vec)
    cap = gpu.engine.device.sms * gpu.engine.occupancy(variant, variant.fixed_smem_bytes + 4 * 8472)
    assert cap >= gpu.engine.device.sms
    for group in (2, 5, 93, cap // 2, cap - 1, cap, cap + 1):
        chunk = 8472 if group > 4 else 20_000  # long enough that the group has to wait
        width = group * chunk - 3
        lengths = np.array([width, 40_000], np.int32)
        offset, stride = layout(width, vec)
        problem = Problem(rows=2, width=width, k=1024, stride=stride, offset=offset)
        prepared = gpu.engine.prepare(problem, chunk=chunk)
        plan = prepared.plan
        if group <= cap:
            assert plan.route == "persistent" and plan.cooperative and plan.group == group
            assert plan.grid <= plan.resident_cap == cap
            assert plan.headroom_kept == (cap - plan.headroom >= group)
        else:
            assert plan.reason.kind is Kind.DOES_NOT_FIT and plan.rejected is not None
            assert (plan.route, plan.rejected.group, plan.rejected.resident_cap) == ("filtered", group, cap)
        gpu.check(make("normal", 2, width), 1024, lengths, vec=vec, prepared=prepared)


@pytest.mark.alone
@pytest.mark.parametrize("vec", VEC_SIZES)
def test_the_driver_refuses_real_oversubscription_and_the_fallback_answers(gpu: Gpu, vec: int) -> None:
    x = make("normal", 400, 33_000)
    offset, stride = layout(33_000, vec)
    problem = Problem(rows=400, width=33_000, k=1024, stride=stride, offset=offset)
    planned = gpu.engine.plan(problem, chunk=16_500)
    groups = planned.resident_cap // planned.group + 1
    size = planned.workspace_bytes // planned.groups
    oversubscribed = dataclasses.replace(
        planned, groups=groups, grid=groups * planned.group, workspace_bytes=groups * size
    )
    prepared = gpu.engine.prepare(problem, plan=oversubscribed)
    gpu.check(x, 1024, vec=vec, prepared=prepared)
    assert prepared.plan.route == "filtered"
    assert prepared.plan.reason == Reason(kind=Kind.REFUSED, grid=oversubscribed.grid, error=720)
    gpu.check(x, 1024, vec=vec, prepared=prepared)


@pytest.mark.parametrize("rows", [1, 20, 133, 300, 5000])
@pytest.mark.parametrize("name", ["l20", "gb10", "rtxpro6000", "odd"])
def test_plans_of_smaller_devices_run_here(gpu: Gpu, name: str, rows: int) -> None:
    assumed = ODD if name == "odd" else KNOWN_DEVICES[name]
    width = 60_000 if rows <= 300 else 5000
    lengths = np.random.default_rng(rows).integers(0, width + 1, rows).astype(np.int32)
    x = make("normal", 1, rows + width)[0]
    x = np.lib.stride_tricks.sliding_window_view(x, width)[:rows]
    for k, route in itertools.product((512, 2048, 4096), ("auto", "persistent")):
        problem = Problem(rows=rows, width=width, k=k)
        try:
            prepared = gpu.engine.prepare(problem, assume=assumed, route=route)
        except PlanError:
            assert route == "persistent"
            continue
        assert prepared.plan.smem_bytes <= assumed.smem_optin
        assert prepared.plan.resident_cap <= min(assumed.sms, gpu.engine.device.sms) * 2
        gpu.check(x, k, lengths, prepared=prepared)


def test_a_row_wider_than_an_assumed_device_holds_takes_the_fallback_and_is_exact(gpu: Gpu) -> None:
    for width, route in ((406_656, "persistent"), (406_657, "filtered")):
        problem = Problem(rows=2, width=width, k=1024)
        prepared = gpu.engine.prepare(problem, assume=KNOWN_DEVICES["gb10"], chunk=8472)
        assert prepared.plan.route == route
        gpu.check(make("normal", 2, width), 1024, prepared=prepared)


@pytest.mark.alone
@pytest.mark.parametrize("route", ROUTES)
def test_a_captured_graph_is_right_for_any_later_lengths(gpu: Gpu, route: str) -> None:
    driver, rows, width, k = gpu.driver, 4, 70_000, 1024
    x = make("normal", rows, width)
    prepared = gpu.engine.prepare(Problem(rows=rows, width=width, k=k), route=route)
    cycle = (0, k, k + 1, 8192, 8193, 32_768, 32_769, width, -1)
    stream = driver.stream_create()
    with gpu.memory(x.nbytes, 4 * rows, 4 * rows * k, prepared.workspace_bytes) as held:
        values, counts, out, workspace = held
        driver.copy_to_device(values, x)
        driver.copy_to_device(counts, np.full(rows, 600, np.int32))
        driver.synchronize()
        driver.begin_capture(stream)
        prepared.launch(values, counts, out, workspace, stream)
        graph = driver.end_capture(stream)
        executable = driver.graph_instantiate(graph)
        for replay in range(1000):
            lengths = np.array([cycle[(replay + i) % len(cycle)] for i in range(rows)], np.int32)
            driver.copy_to_device(counts, lengths)
            driver.memset(out, POISON, 4 * rows * k)
            driver.synchronize()
            driver.graph_launch(executable, stream)
            driver.stream_synchronize(stream)
            if replay < 40 or replay % 50 == 0:
                found = np.empty((rows, k), np.int32)
                driver.copy_to_host(found, out)
                assert find_errors(x, k, lengths, found) == [], (replay, lengths)
        driver.graph_exec_destroy(executable)
        driver.graph_destroy(graph)
    driver.stream_destroy(stream)


@pytest.mark.alone
@pytest.mark.parametrize("route", ["persistent", "clustered"])
@pytest.mark.parametrize("streams", [2, 4])
def test_the_same_problem_on_several_streams_at_once(gpu: Gpu, streams: int, route: str) -> None:
    driver, rows, width, k = gpu.driver, 32, 262_144, 1024
    x = make("normal", rows, width)
    prepared = gpu.engine.prepare(Problem(rows=rows, width=width, k=k), route=route)
    assert prepared.plan.cooperative is (route == "persistent") and prepared.plan.group > 1
    handles = [driver.stream_create() for _ in range(streams)]
    bytes_out = 4 * rows * k
    with gpu.memory(x.nbytes, *[bytes_out] * streams, *[prepared.workspace_bytes] * streams) as held:
        values, outs, workspaces = held[0], held[1 : 1 + streams], held[1 + streams :]
        driver.copy_to_device(values, x)
        for out in outs:
            driver.memset(out, POISON, bytes_out)
        driver.synchronize()
        for _ in range(500):
            for handle, out, workspace in zip(handles, outs, workspaces, strict=True):
                prepared.launch(values, 0, out, workspace, handle)
        driver.synchronize()
        for out in outs:
            found = np.empty((rows, k), np.int32)
            driver.copy_to_host(found, out)
            assert find_errors(x, k, None, found) == []
    for handle in handles:
        driver.stream_destroy(handle)


@pytest.mark.alone
def test_a_workspace_left_by_another_problem_is_as_good_as_a_fresh_one(gpu: Gpu) -> None:
    """Groups of other sizes put their words elsewhere, so each launch meets the leftovers of all the others."""
    tuning = Tuning(short_max=1024, radix_threshold=2048, min_chunk=256, max_candidates=512)
    driver = gpu.driver
    prepared = [
        gpu.engine.prepare(Problem(rows=rows, width=9000, k=512), tuning=tuning, chunk=chunk)
        for rows, chunk in ((1, 4500), (7, 1000), (3, 100), (40, 257), (2, 2300))
    ]
    x = make("low_21_bits", 40, 9000)
    with gpu.memory(x.nbytes, 4 * 40 * 512, max(p.workspace_bytes for p in prepared)) as held:
        values, out, workspace = held
        driver.copy_to_device(values, x)
        order = np.random.default_rng(3).integers(0, len(prepared), 2000)
        for turn, which in enumerate(order):
            each = prepared[which]
            rows = each.problem.rows
            driver.memset(out, POISON, 4 * rows * 512)
            each.launch(values, 0, out, workspace)
            if turn % 10 == 0:
                found = np.empty((rows, 512), np.int32)
                driver.copy_to_host(found, out)
                assert find_errors(x[:rows], 512, None, found) == []


def test_rows_beyond_two_and_four_gigabytes(gpu: Gpu) -> None:
    rows, width, k = 4200, 1_048_576, 1024
    if gpu.driver.mem_info()[0] < 4 * rows * width + (1 << 30):
        pytest.skip("needs 18.6 GB of free device memory")
    watched = (0, 2047, 2048, 4095, 4096, 4199)
    x = make("normal", len(watched), width)
    driver = gpu.driver
    for route in gpu.routes:
        prepared = gpu.engine.prepare(Problem(rows=rows, width=width, k=k), route=route)
        with gpu.memory(4 * rows * width, 4 * rows, 4 * rows * k, prepared.workspace_bytes) as held:
            values, counts, out, workspace = held
            driver.memset32(values, 0x3F000000, rows * width)
            lengths = np.full(rows, 100, np.int32)
            for row, content in zip(watched, x, strict=True):
                driver.copy_to_device(values + 4 * row * width, content)
                lengths[row] = width
            driver.copy_to_device(counts, lengths)
            driver.memset(out, POISON, 4 * rows * k)
            prepared.launch(values, counts, out, workspace)
            found = np.empty((rows, k), np.int32)
            driver.copy_to_host(found, out)
        assert find_errors(x, k, None, found[list(watched)]) == []
        others = np.delete(found, watched, axis=0)
        assert np.all(others[:, :100] == np.arange(100)) and np.all(others[:, 100:] == -1)


def test_device_arrays_in_and_out(gpu: Gpu) -> None:
    x = make("normal", 5, 50_000)

    class Array:
        def __init__(self, address: int, shape: tuple[int, ...], typestr: str) -> None:
            self.__cuda_array_interface__ = {
                "shape": shape,
                "typestr": typestr,
                "data": (address, False),
                "version": 3,
            }

    lengths = np.array([50_000, 0, 40_000, 9, 20_000], np.int32)
    with gpu.memory(x.nbytes, 20, 5 * 1024 * 4, 1000) as held:
        values, counts, out, small = held
        gpu.driver.copy_to_device(values, x)
        gpu.driver.copy_to_device(counts, lengths)
        logits, given = Array(values, x.shape, "<f4"), Array(counts, (5,), "<i4")
        made = drvtopk.topk(logits, 1024, given)
        assert find_errors(x, 1024, lengths, made.numpy()) == []
        named = Array(out, (5, 1024), "<i4")
        assert drvtopk.topk(logits, 1024, given, out=named) is named
        found = np.empty((5, 1024), np.int32)
        gpu.driver.copy_to_host(found, out)
        assert find_errors(x, 1024, lengths, found) == []
        with pytest.raises(WorkspaceTooSmall):
            small_one = Array(small, (1000,), "|u1")
            drvtopk.topk(logits, 1024, given, out=named, workspace=small_one, route="persistent")
