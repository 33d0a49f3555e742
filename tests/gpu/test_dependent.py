"""Programmatic dependent launch: chains in which each launch reads what the one before it wrote."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

import drvtopk
from drvtopk.compiler import compile_source
from drvtopk.launch import Prepared
from drvtopk.plan import Problem
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import POISON, Gpu

WIDTH = 24_000
CHAIN = 10_000

ROUTES = ["filtered", "clustered"]  # the cooperative one goes out as ever


@pytest.fixture(autouse=True)
def needed(gpu: Gpu) -> None:
    if not gpu.engine.device.has_pdl:
        pytest.skip("no dependent launch here: compute capability 9.0 has it")


def prepared_chain(gpu: Gpu, route: str) -> Prepared:
    prepared = gpu.engine.prepare(Problem(rows=1, width=WIDTH, k=1, pdl=True), route=route)
    assert prepared.plan.pdl and prepared.workspace_bytes == 0
    return prepared


@pytest.mark.alone
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_ten_thousand_launches_each_read_the_one_before(gpu: Gpu, mode: str, route: str) -> None:
    """The row ascends, so the largest of the first n is the one at n - 1: which is the next launch's length."""
    driver, prepared = gpu.driver, prepared_chain(gpu, route)
    launches = CHAIN if mode == "eager" else 1000
    stream = driver.stream_create()
    with gpu.memory(4 * WIDTH, 4 * (launches + 1)) as (values, chain):
        driver.copy_to_device(values, np.arange(WIDTH, dtype=np.float32))
        driver.memset(chain, POISON, 4 * (launches + 1))  # a length that was not written yet is the whole row
        driver.copy_to_device(chain, np.array([WIDTH - 1], np.int32))
        driver.synchronize()
        if mode == "graph":
            driver.begin_capture(stream)
        for number in range(launches):
            prepared.launch(values, chain + 4 * number, chain + 4 * number + 4, 0, stream)
        if mode == "graph":
            graph = driver.end_capture(stream)
            executable = driver.graph_instantiate(graph)
            driver.graph_launch(executable, stream)
        driver.stream_synchronize(stream)
        found = np.empty(launches + 1, np.int32)
        driver.copy_to_host(found, chain)
        if mode == "graph":
            driver.graph_exec_destroy(executable)
            driver.graph_destroy(graph)
    driver.stream_destroy(stream)
    assert np.array_equal(found, WIDTH - 1 - np.arange(launches + 1))


@pytest.mark.alone
@pytest.mark.parametrize("route", ROUTES)
def test_outputs_are_not_written_before_the_predecessor_has_read(gpu: Gpu, route: str) -> None:
    """Two launches hand their lengths to and fro: each overwrites what the one before it read."""
    driver, prepared = gpu.driver, prepared_chain(gpu, route)
    stream = driver.stream_create()
    with gpu.memory(4 * WIDTH, 8) as (values, lengths):
        driver.copy_to_device(values, np.arange(WIDTH, dtype=np.float32))
        driver.copy_to_device(lengths, np.array([WIDTH - 1, WIDTH], np.int32))
        driver.synchronize()
        for number in range(CHAIN):
            prepared.launch(values, lengths + 4 * (number % 2), lengths + 4 * ((number + 1) % 2), 0, stream)
        driver.stream_synchronize(stream)
        found = np.empty(2, np.int32)
        driver.copy_to_host(found, lengths)
    driver.stream_destroy(stream)
    assert found.tolist() == [WIDTH - 1 - CHAIN, WIDTH - CHAIN]


@pytest.mark.alone
@pytest.mark.parametrize("route", ROUTES)
def test_a_kernel_before_it_writes_the_logits(gpu: Gpu, route: str) -> None:
    """The producer lets its successor begin first, and writes a millisecond later."""
    driver, prepared = gpu.driver, prepared_chain(gpu, route)
    arch = gpu.engine.device.arch
    source = (Path(__file__).parent / "producer.cu").read_bytes()
    options = (f"--gpu-architecture={arch}", "-std=c++17")
    cubin = compile_source("producer", source, "producer.cu", {}, arch, options).cubin
    function = driver.load_function(cubin, "producer")
    stream = driver.stream_create()
    with gpu.memory(4 * WIDTH, 4) as (values, out):
        for _ in range(5):
            driver.memset(values, 0, 4 * WIDTH)
            driver.memset(out, POISON, 4)
            driver.synchronize()
            words = (ctypes.c_uint64 * 3)(values, WIDTH, 10**6)
            start = ctypes.addressof(words)
            pointers = (ctypes.c_void_p * 3)(start, start + 8, start + 16)
            driver.launcher(function, 1, 0, ctypes.addressof(pointers), "producer")(stream)
            prepared.launch(values, 0, out, 0, stream)
            driver.stream_synchronize(stream)
            found = np.empty(1, np.int32)
            driver.copy_to_host(found, out)
            assert found[0] == WIDTH - 1, "it read before the logits were there"
    driver.stream_destroy(stream)


@pytest.mark.parametrize("route", ["auto", *ROUTES, "persistent"])
def test_results_are_those_of_launches_without_it(gpu: Gpu, route: str) -> None:
    gpu.needs(route)
    lengths = np.array([60_000, 9000, 8193, 40_000, 600, 0, 513, 33_000], np.int32)
    for rows in (8, 300):
        x = make("normal", 8, 60_000)[np.arange(rows) % 8]
        counts = np.resize(lengths, rows)
        for pdl in (False, True):
            prepared = gpu.engine.prepare(Problem(rows=rows, width=60_000, k=512, pdl=pdl), route=route)
            assert prepared.plan.pdl == (pdl and prepared.plan.route != "persistent")
            gpu.check(x, 512, counts, prepared=prepared)


def test_the_interface_takes_it(gpu: Gpu) -> None:
    x = make("normal", 4, 40_000)
    assert find_errors(x, 512, None, drvtopk.topk(x, 512, pdl=True)) == []
    prepared = drvtopk.prepare(rows=4, width=40_000, k=512, route="filtered", pdl=True)
    assert prepared.plan.pdl and prepared.problem.pdl
