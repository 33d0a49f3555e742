"""Old drivers and bindings, old devices, contexts that end, and calls that fail half-way."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import driver as drv
from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import DriverError, DriverUnavailable
from drvtopk.plan import Problem
from drvtopk.staging import Staging
from drvtopk.testing.oracle import find_errors
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.fake_driver import Answer, FakeDriver
from tests.producers import CupyArray, frameworks

K = 16
OPTIONAL = {"cuFuncLoad", "cuCtxGetDevResource", "cuStreamGetGreenCtx", "cuGreenCtxGetDevResource"}
"""Functions of CUDA 12.4 and later, which the oldest driver that is allowed lacks."""


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(0).standard_normal((3, 5000), dtype=np.float32)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    return emulated.use(monkeypatch, EmulatedDriver())


def engine(fake: FakeDriver) -> Engine:
    driver = Driver(fake)
    return Engine(driver, driver.context_device(0x77), context=0x77, context_id=0x77, cache=Cache(None))


def everything(api: EmulatedDriver, x: Any) -> None:
    """Selects numpy's rows by every route, into arrays of the caller's and into its own."""
    drv._loaded = None
    driver = Driver(api)
    driver.init()
    drv._loaded = driver
    assert driver.devices()
    for route in ("filtered", "persistent", "clustered"):
        assert find_errors(x, K, None, drvtopk.topk(x, K, route=route)) == []
    made = drvtopk.prepare(rows=3, width=50_000, k=K, route="persistent", stream=7)
    assert made.plan.route == "persistent"


@pytest.fixture(scope="module")
def called() -> list[str]:
    """Every function of libcuda that `everything` calls, without those that launch: each driver of CUDA 12 has them."""
    with pytest.MonkeyPatch.context() as patch:
        api = emulated.use(patch, EmulatedDriver())
        everything(api, np.ones((3, 5000), np.float32))
        found = sorted(
            {name for name in api.names if name.startswith("cu") and not name.startswith("cuLaunch")}
            | OPTIONAL
            | {"cuFuncLoad"}
        )
    assert len(found) > 20
    return found


def lacks(*names: str, words: str = 'Function "{}" not found') -> Callable[[EmulatedDriver], None]:
    def missing(name: str) -> Callable[..., Answer]:
        def call(*_: Any) -> Answer:
            raise RuntimeError(words.format(name))

        return call

    def change(api: EmulatedDriver) -> None:
        api.replace.update({name: missing(name) for name in names})

    return change


def test_each_function_that_a_driver_lacks_is_named_or_not_needed(
    called: list[str], monkeypatch: pytest.MonkeyPatch, x: Any
) -> None:
    survived = set()
    for name in called:
        api = emulated.use(monkeypatch, EmulatedDriver())
        lacks(name)(api)
        try:
            everything(api, x)
        except DriverUnavailable as error:
            assert f"has no {name}: install a newer one" in str(error), error
            assert name == "cuDriverGetVersion" or "(CUDA 13.0)" in str(error)
        else:
            survived.add(name)
    assert survived == OPTIONAL | {"cuGetErrorName", "cuGetErrorString"}, "an error has its number at least"


WORDS = ('Function "{}" not found', "function {} is not found", "Function {} not found", "Failed to get __{}")


@pytest.mark.parametrize("words", WORDS)
def test_the_oldest_driver_selects(api: EmulatedDriver, x: Any, words: str) -> None:
    lacks(*OPTIONAL, words=words)(api)
    api.version = 12000
    everything(api, x)


def test_bindings_without_a_function_are_named(api: EmulatedDriver, x: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = FakeDriver.__getattr__

    def without(fake: FakeDriver, name: str) -> Any:
        if name == "cuCtxGetId":
            raise AttributeError(name)
        return found(fake, name)

    monkeypatch.setattr(FakeDriver, "__getattr__", without)
    with pytest.raises(DriverUnavailable, match=r"^these cuda\.bindings have no cuCtxGetId; pip install"):
        everything(api, x)


def test_a_driver_that_is_too_old_is_refused_by_its_version() -> None:
    with pytest.raises(DriverUnavailable, match=r"this NVIDIA driver runs CUDA 11\.8; drvtopk needs 12\.0 or newer"):
        Driver(FakeDriver(version=11080)).init()


def test_without_libcuda_that_is_said() -> None:
    fake = FakeDriver()

    def call(*_: Any) -> Answer:
        raise RuntimeError("no libcuda.so\nand more")

    fake.replace["cuInit"] = call
    with pytest.raises(DriverUnavailable, match=r"libcuda could not be loaded; .* \(no libcuda\.so\)$"):
        Driver(fake).init()


@pytest.mark.parametrize(("major", "minor"), [(7, 5), (6, 0)])
def test_a_device_that_is_too_old_is_named(api: EmulatedDriver, x: Any, major: int, minor: int) -> None:
    api.attributes |= {"COMPUTE_CAPABILITY_MAJOR": major, "COMPUTE_CAPABILITY_MINOR": minor}
    said = rf"^Fake H200 has compute capability {major}\.{minor}; drvtopk needs 8\.0 or newer$"
    for call in (lambda: drvtopk.topk(x, K), lambda: drvtopk.prepare(rows=3, width=100, k=K)):
        with pytest.raises(DriverUnavailable, match=said):
            call()
    assert drvtopk.devices(), "it is listed all the same"


@pytest.mark.parametrize("call", ["cuModuleGetFunction", "cuFuncLoad"])
def test_a_module_that_does_not_load_is_unloaded(call: str) -> None:
    fake = FakeDriver()
    fake.fail[call] = 2
    with pytest.raises(DriverError, match="returned 2"):
        Driver(fake).load_function(b"", "drvtopk_it")
    (asked,) = [args for name, args in fake.calls if name == "cuModuleGetFunction"]
    assert [args for name, args in fake.calls if name == "cuModuleUnload"] == [(asked[0],)]


@pytest.mark.parametrize("call", ["cuEventCreate", "cuMemHostAlloc"])
def test_a_buffer_that_is_not_whole_is_given_back(call: str) -> None:
    fake = FakeDriver()
    fake.fail[call] = 2
    staging = Staging(Driver(fake))
    for _ in range(3):
        with pytest.raises(DriverError):
            staging.to_device(1 << 20, np.ones(9, np.float32), 0)
    made, gone = fake.names.count("cuEventCreate"), fake.names.count("cuEventDestroy")
    assert fake.pinned == [] and (made == gone or call == "cuEventCreate")
    fake.fail.clear()
    staging.to_device(1 << 20, np.ones(9, np.float32), 0)
    assert len(fake.pinned) == 2


def test_a_primary_context_that_was_reset_is_retained_anew() -> None:
    fake = FakeDriver()
    driver = Driver(fake)
    for _ in range(2):
        with driver.primary_context():
            pass
    assert fake.names.count("cuDevicePrimaryCtxRetain") == 1
    for answer in ((709,), (0, 99)):  # destroyed; and another one at its address
        fake.replace["cuCtxGetId"] = lambda context, answer=answer: answer
        before = fake.names.count("cuDevicePrimaryCtxRetain")
        if len(answer) == 1:  # for good, in this fake
            with pytest.raises(DriverError), driver.primary_context():
                pass
        else:
            with driver.primary_context():
                pass
        assert fake.names.count("cuDevicePrimaryCtxRetain") == before + 1
    with driver.primary_context():
        pass
    assert fake.names.count("cuDevicePrimaryCtxRetain") == 3


class Interface:
    """A device array of nobody's library."""

    def __init__(self, api: EmulatedDriver, array: Any) -> None:
        driver = Driver(api)
        self.address = driver.mem_alloc(array.nbytes)
        driver.copy_to_device(self.address, array)
        self.__cuda_array_interface__ = {
            "shape": array.shape,
            "typestr": "<f4",
            "data": (self.address, False),
            "strides": None,
            "version": 3,
        }


def test_a_result_is_read_in_its_own_context(api: EmulatedDriver, x: Any) -> None:
    found = drvtopk.topk(Interface(api, x), K)
    api.calls.clear()
    assert find_errors(x, K, None, found.numpy()) == []
    assert api.calls[:2] == [("cuCtxGetId", (0x77,)), ("cuCtxPushCurrent", (0x77,))]
    assert api.names[-1] == "cuCtxPopCurrent"
    for current, ordinal, inside in ((0x88, 0, False), (0x88, 1, True), (0, 0, True)):
        api.replace |= {"cuCtxGetCurrent": lambda at=current: (0, at), "cuCtxGetDevice": lambda at=ordinal: (0, at)}
        for consumer in (1, 2, 9):
            api.calls.clear()
            found.__dlpack__(stream=consumer)
            names = [name for name in api.names if name.startswith(("cuCtxP", "cuEventR", "cuStreamW"))]
            recorded = ["cuCtxPushCurrent", "cuEventRecord", "cuCtxPopCurrent", "cuStreamWaitEvent"]
            outer = ["cuCtxPushCurrent", *recorded, "cuCtxPopCurrent"]
            assert names == ([] if consumer == 1 else outer if inside else recorded), "its own stream is 1"


@pytest.mark.parametrize("answer", [(0, 5), (709,), (201,)], ids=["another", "destroyed", "invalid"])
def test_a_result_that_outlives_its_context_frees_nothing(api: EmulatedDriver, x: Any, answer: Answer) -> None:
    found = drvtopk.topk(Interface(api, x), K)
    api.replace["cuCtxGetId"] = lambda context: answer
    api.calls.clear()
    with pytest.raises(DriverUnavailable, match="the context of this result was destroyed"):
        found.numpy()
    with pytest.raises(DriverUnavailable, match="the context of this result was destroyed"):
        found.__dlpack__(stream=9)
    api.calls.clear()
    del found
    gc.collect()
    assert [name for name in api.names if not name.startswith("cuGetError")] == ["cuCtxGetId"]


@pytest.mark.usefixtures("no_compiler")
def test_zero_is_the_legacy_stream_whatever_the_bindings_take_it_for(monkeypatch: pytest.MonkeyPatch, x: Any) -> None:
    for said, stream in (("", 0), ("0", 1), ("1", 1)):
        monkeypatch.setenv("CUDA_PYTHON_CUDA_PER_THREAD_DEFAULT_STREAM", said)
        fake = FakeDriver()
        here = engine(fake)
        addresses = 1 << 20, 2 << 20, 3 << 20, 4 << 20
        for route in ("persistent", "filtered"):
            here.prepare(Problem(rows=4, width=1_000_000, k=1024), route=route).launch(*addresses)
        here.prepare(Problem(rows=4, width=1_000_000, k=1024, pdl=True)).launch(*addresses)
        launches = [args for name, args in fake.calls if name.startswith("cuLaunch")]
        assert [args[8] for args in launches[:2]] == [stream] * 2 and launches[2][0].hStream == stream
        here.staging.to_device(1 << 20, np.ones(9, np.float32), 0)
        assert [args[-1] for name, args in fake.calls if name == "cuMemcpyAsync"] == [stream]


@pytest.mark.parametrize("given", [False, True])
def test_a_result_keeps_the_stream_that_its_exports_name(
    monkeypatch: pytest.MonkeyPatch, api: EmulatedDriver, x: Any, given: bool
) -> None:
    """CuPy destroys a stream with the last reference to it: `with cupy.cuda.Stream():`."""

    class Stream:
        ptr = 5

    frameworks(monkeypatch, 5)
    stream = Stream()
    alive = weakref.ref(stream)
    monkeypatch.setattr(sys.modules["cupy"].cuda, "get_current_stream", lambda: alive())
    array = CupyArray(drv.load(), x)
    made = drvtopk.topk(array, 8, stream=stream if given else None)
    del stream
    gc.collect()
    assert alive() is not None and made.__cuda_array_interface__["stream"] == 5
    if not given:
        both = drvtopk.topk(array, 8, values=True)
        made = drvtopk.topk(both.values, 4)
        del both
        gc.collect()
        assert alive() is not None and made.__cuda_array_interface__["stream"] == 5, "a result of a result names it too"
    del made
    gc.collect()
    assert alive() is None
