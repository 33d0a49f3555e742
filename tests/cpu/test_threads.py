"""Threads that share what is prepared, on a fake driver that can be stopped inside a call: nothing is pulled away."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import logging
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import drvtopk
from drvtopk import engine, events, launch
from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import InvalidArgument, WorkspaceTooSmall
from drvtopk.export import prebuilt
from drvtopk.interop.arrays import from_address
from drvtopk.launch import PARAMS_BYTES
from drvtopk.plan import Problem
from tests import emulated
from tests.fake_driver import FakeDriver
from tests.interrupted import everywhere

LONG = Problem(rows=4, width=1_000_000, k=1024)
ADDRESSES = (1 << 20, 2 << 20, 3 << 20, 4 << 20)  # logits, lengths, out, workspace
COOPERATIVE = "cuLaunchCooperativeKernel"
SECONDS = 20


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "compile_variant", emulated._compile)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))


def make(fake: FakeDriver) -> Engine:
    driver = Driver(fake)
    return Engine(driver, driver.context_device(0x77), cache=Cache(None))


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def array_at(address: int) -> weakref.ref[Any]:
    """The ctypes array that owns the memory at an address."""
    arrays = [one for one in gc.get_objects() if isinstance(one, ctypes.Array) and ctypes.addressof(one) == address]
    owners = [one for one in arrays if one._b_needsfree_]
    assert len(owners) == 1, f"{len(owners)} arrays own {address:#x}"
    return weakref.ref(owners[0])


class Stopped:
    """A launch that waits inside the driver the first time, and tells whether it still has what it was given."""

    def __init__(self, code: int) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.code = code
        self.calls = 0

    def __call__(self, *args: Any) -> tuple[int]:
        pointers = args[2] if len(args) == 4 else args[9]  # cuLaunchKernelEx has its numbers in a configuration
        self.calls += 1
        if self.calls > 1:
            return (self.code,)
        block = int(ctypes.c_uint64.from_address(pointers).value)
        owners = array_at(pointers), array_at(block)
        before = ctypes.string_at(block, PARAMS_BYTES)
        self.inside.set()
        assert self.go_on.wait(SECONDS)
        gc.collect()
        self.kept = all(owner() is not None for owner in owners)
        self.same = self.kept and ctypes.string_at(block, PARAMS_BYTES) == before
        return (0,)


def test_a_bound_launch_under_way_keeps_its_parameters_while_another_falls_back(
    fake: FakeDriver, pool: ThreadPoolExecutor
) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    bound = prepared.bind(prepared.args(*ADDRESSES))
    stopped = fake.replace[COOPERATIVE] = Stopped(720)
    first = pool.submit(bound, 5)
    assert stopped.inside.wait(SECONDS)
    pool.submit(bound, 6).result(SECONDS)
    stopped.go_on.set()
    first.result(SECONDS)
    assert stopped.kept and stopped.same
    assert fake.names[-2:] == [COOPERATIVE, "cuLaunchKernel"]


@pytest.mark.parametrize("route", ["persistent", "filtered", "clustered"])
@pytest.mark.parametrize("pdl", [False, True])
def test_a_launch_owns_what_the_driver_reads(fake: FakeDriver, pool: ThreadPoolExecutor, route: str, pdl: bool) -> None:
    """Whoever holds the launch alone holds the parameters with it."""
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=pdl), route=route)
    held: list[Any] = [prepared._active.bound(prepared.args(*ADDRESSES))]
    stopped = Stopped(0)
    for call in (COOPERATIVE, "cuLaunchKernel", "cuLaunchKernelEx"):
        fake.replace[call] = stopped
    first = pool.submit(lambda: held.pop()(5))
    assert stopped.inside.wait(SECONDS)
    stopped.go_on.set()
    first.result(SECONDS)
    assert stopped.kept and stopped.same


def test_a_launch_under_way_keeps_its_parameters_while_another_falls_back(
    fake: FakeDriver, pool: ThreadPoolExecutor
) -> None:
    """`Prepared.launch`: the second waits for the first, since they share one parameter block."""
    prepared = make(fake).prepare(LONG, route="persistent")
    stopped = fake.replace[COOPERATIVE] = Stopped(720)
    first = pool.submit(prepared.launch, *ADDRESSES)
    assert stopped.inside.wait(SECONDS)
    second = pool.submit(prepared.launch, 16 << 20, *ADDRESSES[1:])
    stopped.go_on.set()
    first.result(SECONDS)
    second.result(SECONDS)
    assert stopped.kept and stopped.same


def test_configurations_may_be_dropped_while_one_is_in_use(fake: FakeDriver, pool: ThreadPoolExecutor) -> None:
    class Config(SimpleNamespace):
        """One to which there may be weak references."""

    fake.CUlaunchConfig = Config
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=True), route="filtered")
    bound = prepared.bind(prepared.args(*ADDRESSES[:3]))
    stopped = fake.replace["cuLaunchKernelEx"] = Stopped(0)
    first = pool.submit(bound, 5)
    assert stopped.inside.wait(SECONDS)
    config = weakref.ref(fake.calls[-1][1][0])
    for stream in range(100, 400):
        bound(stream)
    fake.calls.clear()
    gc.collect()
    assert config() is not None and config().hStream == 5  # type: ignore[union-attr]
    stopped.go_on.set()
    first.result(SECONDS)


def test_launches_that_are_refused_at_once_warn_once(
    fake: FakeDriver, pool: ThreadPoolExecutor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is refused while the first is about to say so."""
    prepared = make(fake).prepare(LONG, route="persistent")
    first, second = (prepared.bind(prepared.args(*ADDRESSES)) for _ in range(2))
    log_event = events.log_event
    others: list[Any] = [second]

    def telling(*how: Any) -> None:
        while others:
            pool.submit(others.pop(), 6).result(SECONDS)
        log_event(*how)

    monkeypatch.setattr(launch, "log_event", telling)
    fake.fail[COOPERATIVE] = 720
    first(5)
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert fake.names.count("cuLaunchKernel") == 2 and not others


def test_what_was_checked_before_a_fallback_is_checked_for_it_too(fake: FakeDriver) -> None:
    """A narrow chunk takes narrow loads, the fallback wide ones: their addresses are not checked alike."""
    prepared = make(fake).prepare(LONG, route="persistent", chunk=8191)
    assert (prepared.plan.vec_size, prepared._fallback and prepared._fallback.plan.vec_size) == (1, 4)
    args, odd = prepared.args(*ADDRESSES), prepared.args((1 << 20) + 4, *ADDRESSES[1:])
    bound = prepared.bind(odd)
    prepared._fall_back(args, 720)
    bound(5)
    assert fake.names[-1] == COOPERATIVE
    for use in (prepared.bind, lambda args: prepared.launch_args(args, 5)):
        with pytest.raises(InvalidArgument, match=r"logits.*aligned to 16"):
            use(odd)
        use(args)
    assert fake.names[-2:] == [COOPERATIVE, "cuLaunchKernel"]


def test_what_was_checked_for_another_preparation_is_refused(fake: FakeDriver) -> None:
    """Its rows would overlap, or its arrays be those of an earlier launch."""
    here = make(fake)
    prepared, other = here.prepare(LONG), here.prepare(dataclasses.replace(LONG, k=64))
    args = other.args(*ADDRESSES)
    fake.calls.clear()
    for use in (prepared.bind, lambda args: prepared.launch_args(args, 5)):
        with pytest.raises(InvalidArgument, match=r"^args: .*what this preparation checked"):
            use(args)
    assert fake.names == []


@pytest.mark.parametrize("binding", [False, True])
def test_an_address_that_the_fallback_cannot_load_from_is_refused_before_it_is_launched(
    fake: FakeDriver, binding: bool
) -> None:
    prepared = make(fake).prepare(LONG, route="persistent", chunk=8191)
    fake.fail[COOPERATIVE] = 720
    odd = ((1 << 20) + 4, *ADDRESSES[1:])  # not the offset that was prepared for
    bound: Any = prepared.bind(prepared.args(*odd)) if binding else lambda stream: prepared.launch(*odd, stream)
    with pytest.raises(InvalidArgument, match=r"logits.*aligned to 16"):
        bound(5)
    assert "cuLaunchKernel" not in fake.names
    prepared.launch(*ADDRESSES)
    assert fake.names[-1] == "cuLaunchKernel"


def test_the_folders_of_the_environment_are_those_that_were_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread looks at another value of the variable in between."""
    monkeypatch.setattr(prebuilt, "_named", None)

    def other() -> None:
        monkeypatch.setenv(prebuilt.CUBINS_VARIABLE, "/theirs")
        assert prebuilt.current().folders == (Path("/theirs"),)
        monkeypatch.setenv(prebuilt.CUBINS_VARIABLE, "/ours")

    def check(where: str) -> None:
        assert prebuilt.current().folders == (Path("/ours"),), where

    monkeypatch.setenv(prebuilt.CUBINS_VARIABLE, "/ours")
    assert everywhere(prebuilt.current, other, check) > 10


def test_threads_that_meet_the_same_fault_warn_once(tmp_path: Path) -> None:
    folders: list[prebuilt.Prebuilt] = []

    def other() -> None:
        if folders:
            folders[-1]._warn("it cannot be read")

    def check(where: str) -> None:
        folders.append(prebuilt.Prebuilt([tmp_path]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            folders[-1]._warn("it cannot be read")
        assert len(caught) == 1, where

    assert everywhere(prebuilt.Prebuilt._warn, other, check) > 10


def test_what_a_workspace_lacks_is_told_from_one_look_at_the_plan(
    fake: FakeDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread falls back in between, to a plan that needs none."""
    here = make(fake)
    prepared = here.prepare(LONG, route="persistent")
    needed = iter((prepared.workspace_bytes,))
    monkeypatch.setattr(launch.Prepared, "workspace_bytes", property(lambda self: next(needed, 0)))
    arrays = [from_address(at, (4, n), kind) for at, n, kind in ((1 << 20, 10**6, "float32"), (1 << 30, 1024, "int32"))]
    with pytest.raises(WorkspaceTooSmall, match=r"at least [1-9]\d+ bytes"):
        drvtopk.Prepared(here, prepared)(arrays[0], out=arrays[1], stream=0)
