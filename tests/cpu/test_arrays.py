"""Anybody's arrays and streams, on an emulated device: what is read of them, what waits for what, what is refused."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import driver as drv
from drvtopk.errors import DriverError, InvalidArgument
from drvtopk.interop import dlpack
from drvtopk.interop.arrays import DeviceView, from_address, stream_handle, view
from drvtopk.staging import Staging
from drvtopk.testing.oracle import find_errors, narrowed
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.producers import CupyArray, Interface, Legacy, Memory, Tensor, Versioned, frameworks

KINDS = (Interface, Versioned, Legacy, Tensor, CupyArray)
THEIRS = 0x5150  # the stream that is current in torch and CuPy
LAUNCHES = ("cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel")
ROWS, WIDTH, K = 3, 5000, 64


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    """The process's only device, for one test."""
    frameworks(monkeypatch, THEIRS)
    return emulated.use(monkeypatch, EmulatedDriver())


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)


def streams_launched_on(api: EmulatedDriver) -> list[int]:
    return [args[8] for name, args in api.calls if name == "cuLaunchKernel"]


def made(kind: type[Memory], content: Any, **how: Any) -> Any:
    driver = drv.load()
    return kind(driver, content, **how)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepared", [False, True])
def test_every_protocol_serves_every_argument(api: EmulatedDriver, x: Any, kind: type[Memory], prepared: bool) -> None:
    lengths = np.array([WIDTH, 100, 0], np.int32)
    starts = np.array([0, 7, 0], np.int32)
    table = np.arange(ROWS * 80, dtype=np.int32).reshape(ROWS, 80)
    out, values = np.full((ROWS, K), 77, np.int64), np.full((ROWS, K), 77, np.float32)
    given = {
        name: made(kind, array)
        for name, array in {"lengths": lengths, "out": out, "values": values, "row_starts": starts}.items()
    }
    given["page_table"] = made(kind, table)
    if prepared:
        call = drvtopk.prepare(
            rows=ROWS, width=WIDTH, k=K, index_dtype="int64", values=True, row_starts=True, page_table=True
        )
        call(made(kind, x), page_size=64, **given)
    else:
        found = drvtopk.topk(made(kind, x), K, page_size=64, **given)
        assert found.indices is given["out"] and found.values is given["values"]
    options = drvtopk.Options(index_dtype="int64", values=True, row_starts=True, page_table=True)
    indices, beside = given["out"].fetched(), given["values"].fetched()
    how: dict[str, Any] = {"options": options, "row_starts": starts, "page_table": table, "page_size": 64}
    assert find_errors(x, K, lengths, indices, values=beside, **how) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_logits_by_every_protocol(api: EmulatedDriver, x: Any, kind: type[Memory], dtype: str) -> None:
    narrow = narrowed(x, dtype)
    if kind is CupyArray and dtype == "bfloat16":
        narrow = narrow.view("V2")
    found = drvtopk.topk(made(kind, narrow, dtype=dtype), K)
    assert find_errors(narrow, K, None, found.numpy(), options=drvtopk.Options(dtype=dtype)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_wider_array(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    whole = made(kind, x)
    part = made(kind, x[:, :4000], address=whole.at + 4 * 8, strides=(WIDTH, 1))
    assert find_errors(x[:, 8:4008], K, None, drvtopk.topk(part, K).numpy()) == []


@pytest.mark.parametrize("kind", [Versioned, Legacy])
def test_strides_that_are_not_given_are_compact(api: EmulatedDriver, x: Any, kind: type[Versioned]) -> None:
    array = made(kind, x)
    array.compact_strides = True
    assert find_errors(x, K, None, drvtopk.topk(array, K).numpy()) == []


def test_raw_addresses(api: EmulatedDriver, x: Any) -> None:
    memory, out = made(Memory, x), made(Memory, np.zeros((ROWS, 100), np.int32))
    logits = from_address(memory.at, (ROWS, WIDTH), "float32")
    to = from_address(out.at, (ROWS, K), "int32", strides=(100, 1))
    assert drvtopk.topk(logits, K, out=to) is to
    assert find_errors(x, K, None, out.fetched()[:, :K]) == [] and not out.fetched()[:, K:].any()


def test_an_object_with_a_handle_is_an_address_and_is_kept(api: EmulatedDriver) -> None:
    buffer = SimpleNamespace(handle=0x4000)
    found = from_address(buffer, (4, 8), "float32")
    assert found.address == 0x4000 and found.owner is buffer and found.strides == (8, 1)


# Streams


@pytest.mark.parametrize("kind", [Tensor, CupyArray])
@pytest.mark.parametrize("prepared", [False, True])
def test_without_a_stream_the_frameworks_current_one_is_used(
    api: EmulatedDriver, x: Any, kind: type[Memory], prepared: bool
) -> None:
    logits, out = made(kind, x), made(kind, np.zeros((ROWS, K), np.int32))
    if prepared:
        call = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)
        api.calls.clear()
        call(logits, out=out)
        assert api.names == ["cuLaunchKernel"], "a prepared call is one driver call"
    else:
        drvtopk.topk(logits, K, out=out)
    assert streams_launched_on(api) == [THEIRS] and "cuStreamWaitEvent" not in api.names


@pytest.mark.parametrize("kind", [Tensor, CupyArray])
def test_another_stream_than_the_current_one_waits_for_it(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    drvtopk.topk(made(kind, x), K, out=made(kind, np.zeros((ROWS, K), np.int32)), stream=9)
    assert streams_launched_on(api) == [9]
    assert [args[0] for name, args in api.calls if name == "cuStreamWaitEvent"] == [9]
    assert [args[1] for name, args in api.calls if name == "cuEventRecord"] == [THEIRS]


def test_each_stream_that_interfaces_name_is_waited_for_once(api: EmulatedDriver, x: Any) -> None:
    logits, lengths = made(Interface, x), made(Interface, np.full(ROWS, 50, np.int32))
    out = made(Interface, np.zeros((ROWS, K), np.int32))
    logits.stream, lengths.stream, out.stream = 5, 6, 5
    call = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)
    for stream, producers in ((7, {5, 6}), (6, {5}), (None, {6})):
        api.calls.clear()
        call(logits, lengths, out=out, stream=stream)
        assert {args[1] for name, args in api.calls if name == "cuEventRecord"} == producers
        assert streams_launched_on(api) == [stream or 5]


def test_the_legacy_stream_has_two_names(api: EmulatedDriver, x: Any) -> None:
    logits, out = made(Interface, x), made(Interface, np.zeros((ROWS, K), np.int32))
    logits.stream = out.stream = 1
    drvtopk.topk(logits, K, out=out, stream=0)
    assert "cuStreamWaitEvent" not in api.names
    logits.stream = 0
    with pytest.raises(InvalidArgument, match="stream 0"):
        drvtopk.topk(logits, K, out=out)


@pytest.mark.parametrize(("stream", "told"), [(None, 1), (0, 1), (2, 2), (0x99, 0x99)])
@pytest.mark.parametrize("kind", [Versioned, Legacy])
def test_dlpack_producers_are_told_our_stream(
    api: EmulatedDriver, x: Any, kind: type[Versioned], stream: int | None, told: int
) -> None:
    arrays = [made(kind, x), made(kind, np.full(ROWS, 50, np.int32)), made(kind, np.zeros((ROWS, K), np.int32))]
    drvtopk.topk(arrays[0], K, arrays[1], out=arrays[2], stream=stream)
    drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)(arrays[0], arrays[1], out=arrays[2], stream=stream)
    for array in arrays:
        asked_of = [asked["stream"] for asked in array.asked]
        assert asked_of.count(told) == 2 and set(asked_of) <= {told, -1}  # -1: only looked at
        assert all(asked.get("max_version", (1, 0)) == (1, 0) for asked in array.asked)


@pytest.mark.parametrize("prepared", [False, True])
def test_inside_a_capture_nothing_outside_is_waited_for(api: EmulatedDriver, x: Any, prepared: bool) -> None:
    """An event of a stream outside would end the capture."""
    for kind in KINDS:
        logits, out = made(kind, x), made(kind, np.zeros((ROWS, K), np.int32))
        if kind is Interface:
            logits.stream = 4
        call = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)
        drvtopk.topk(logits, K, out=out, stream=9)
        api.calls.clear()
        logits.asked.clear()
        api.replace["cuStreamIsCapturing"] = lambda stream: (0, int(stream == 9))
        if prepared:
            call(logits, out=out, stream=9)
        else:
            drvtopk.topk(logits, K, out=out, stream=9)
        assert not {"cuEventRecord", "cuStreamWaitEvent"} & set(api.names)
        assert all(asked["stream"] == -1 for asked in logits.asked)
        assert streams_launched_on(api) == [9]
        api.replace.clear()


class Protocol:
    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def __cuda_stream__(self) -> Any:
        return self.answer


STREAMS: list[tuple[Any, int]] = [
    (None, 0),
    (0, 0),
    (1, 1),
    (2, 2),
    (0x7F00, 0x7F00),
    (Protocol((0, 0x123)), 0x123),
    (SimpleNamespace(__cuda_stream__=(0, 5)), 5),
    (SimpleNamespace(cuda_stream=0x77), 0x77),  # torch
    (SimpleNamespace(ptr=0x78), 0x78),  # CuPy
    (SimpleNamespace(handle=ctypes.c_void_p(0x79)), 0x79),  # numba
    (SimpleNamespace(handle=ctypes.c_void_p(None)), 0),  # numba's default stream
    (ctypes.c_void_p(0x80), 0x80),
]


@pytest.mark.parametrize(("stream", "handle"), STREAMS)
def test_streams_of_every_kind(stream: Any, handle: int) -> None:
    assert stream_handle(stream) == handle


@pytest.mark.parametrize("stream", [True, -1, 1.5, "7", Protocol((1, 5)), object(), SimpleNamespace(ptr="x")])
def test_what_is_no_stream_is_refused(stream: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^stream: got"):
        stream_handle(stream)


def test_streams_of_cuda_core() -> None:
    core = pytest.importorskip("cuda.core")
    assert stream_handle(core.Stream.from_handle(0x1230)) == 0x1230
    for default, handle in (("LEGACY_DEFAULT_STREAM", 1), ("PER_THREAD_DEFAULT_STREAM", 2)):
        assert stream_handle(getattr(core, default)) == handle


def test_contexts_are_asked_for_by_ordinal_or_device(api: EmulatedDriver) -> None:
    with drvtopk.primary_context(SimpleNamespace(device_id=0)):
        pass
    for wrong in (1, -1, "cuda:0", True, SimpleNamespace(device_id=1)):
        with pytest.raises(InvalidArgument, match=r"^device: got"), drvtopk.primary_context(wrong):
            pass


def test_streams_of_the_bindings() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert stream_handle(driver.CUstream(0x1240)) == 0x1240


@pytest.mark.parametrize("kind", KINDS)
def test_bound_arrays_are_kept_and_launched_by_one_call(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    values, starts = made(kind, np.zeros((ROWS, K), np.float32)), made(kind, np.array([0, 7, 0], np.int32))
    logits, out, lengths = made(kind, x), made(kind, np.zeros((ROWS, K), np.int32)), np.array([WIDTH, 100, 0], np.int32)
    call = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, values=True, row_starts=True)
    bound = call.bind(logits, made(kind, lengths), out=out, values=values, row_starts=starts)
    references = sys.getrefcount(logits)
    api.calls.clear()
    for stream in (0, 9):
        bound(stream)
    assert api.names == ["cuLaunchKernel"] * 2 and streams_launched_on(api) == [0, 9]
    options = drvtopk.Options(values=True, row_starts=True)
    found = out.fetched(), values.fetched()
    assert find_errors(x, K, lengths, found[0], values=found[1], options=options, row_starts=starts.content) == []
    del bound
    gc.collect()
    dlpack.drop_abandoned()
    assert sys.getrefcount(logits) < references
    refused("out", "dtype float32", lambda: call.bind(logits, out=values, values=values, row_starts=starts))
    refused("values", "an array, as prepared", lambda: call.bind(logits, out=out, row_starts=starts))
    assert (
        drvtopk.prepare(rows=0, width=9, k=2).bind(made(kind, x[:0, :9]), out=made(kind, x[:0, :2].astype("i4")))(5)
        is None
    )
    assert api.names.count("cuLaunchKernel") == 2


# Refusals


def refused(argument: str, match: str, call: Any) -> None:
    with pytest.raises(InvalidArgument, match=match) as caught:
        call()
    assert caught.value.argument == argument


@pytest.mark.parametrize("kind", [Versioned, Legacy, Tensor, CupyArray])
@pytest.mark.parametrize("argument", ["logits", "lengths", "out"])
@pytest.mark.parametrize("prepared", [False, True])
def test_an_array_of_another_device_is_refused(
    api: EmulatedDriver, x: Any, kind: type[Memory], argument: str, prepared: bool
) -> None:
    contents = {"logits": x, "lengths": np.full(ROWS, 50, np.int32), "out": np.zeros((ROWS, K), np.int32)}
    arrays = {name: made(kind, a, device=int(name == argument)) for name, a in contents.items()}
    ready = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)

    def call() -> None:
        if prepared:
            ready(arrays["logits"], arrays["lengths"], out=arrays["out"])
        else:
            drvtopk.topk(arrays["logits"], K, arrays["lengths"], out=arrays["out"])

    refused(argument, "on device 1, allowed is device 0", call)
    assert not set(api.names) & set(LAUNCHES)


def test_where_an_interface_says_no_device_the_driver_is_asked(api: EmulatedDriver, x: Any) -> None:
    logits, out = made(Interface, x), made(Interface, np.zeros((ROWS, K), np.int32))
    api.ordinal_of = lambda address: (0, int(address == out.at))
    refused("out", "on device 1", lambda: drvtopk.topk(logits, K, out=out))
    api.ordinal_of = lambda address: (1, 0)
    refused("logits", "0x.*an address in device memory", lambda: drvtopk.topk(logits, K, out=out))
    api.ordinal_of = lambda address: (700, 0)
    with pytest.raises(DriverError, match="cuPointerGetAttribute"):
        drvtopk.topk(logits, K, out=out)
    assert not set(api.names) & set(LAUNCHES)


@pytest.mark.parametrize("kind", [Interface, Versioned])
def test_a_read_only_array_is_read_and_not_written(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    logits, out = made(kind, x, read_only=True), made(kind, np.zeros((ROWS, K), np.int32), read_only=True)
    refused("out", "a read-only array", lambda: drvtopk.topk(logits, K, out=out))
    assert find_errors(x, K, None, drvtopk.topk(logits, K).numpy()) == []
    view = from_address(logits.at, (ROWS, K), "int32", read_only=True)
    refused("out", "a read-only array", lambda: drvtopk.topk(logits, K, out=view))


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_fit_is_named(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    logits, out = made(kind, x), made(kind, np.zeros((ROWS, K), np.int32))
    refused("logits", "dtype int32, allowed is float32, float16 or bfloat16", lambda: drvtopk.topk(out, K))
    refused("out", "dtype float32, allowed is int32", lambda: drvtopk.topk(logits, K, out=made(kind, x[:, :K])))
    turned = made(kind, x.T, strides=(1, WIDTH), address=logits.at)
    refused("logits", f"an inner stride of {WIDTH}", lambda: drvtopk.topk(turned, K))
    inside = made(kind, out.content, address=logits.at + 256)
    refused("out", "memory that logits lies in", lambda: drvtopk.topk(logits, K, out=inside))
    small = made(kind, np.zeros(16, np.uint8))
    long = drvtopk.prepare(rows=ROWS, width=100_000, k=K, route="persistent")
    wide = made(kind, np.zeros((ROWS, 100_000), np.float32))
    refused("workspace", "16 bytes", lambda: long(wide, out=out, workspace=small))
    long(wide, out=out, workspace=made(kind, np.zeros(long.workspace_bytes, np.uint8)))
    assert len(streams_launched_on(api)) + api.names.count("cuLaunchCooperativeKernel") == 1


def test_arrays_that_are_not_on_a_device_are_refused(api: EmulatedDriver, x: Any) -> None:
    out = made(Interface, np.zeros((ROWS, K), np.int32))
    for kind, where in ((dlpack.CPU, "cpu"), (dlpack.CUDA_HOST, "pinned host"), (10, "rocm")):
        elsewhere = functools.partial(drvtopk.topk, made(Versioned, x), K)
        elsewhere.args[0].kind = kind
        refused("logits", f"in {where} memory, allowed is CUDA device memory", elsewhere)
    managed = made(Versioned, x)
    managed.kind = dlpack.CUDA_MANAGED
    assert find_errors(x, K, None, drvtopk.topk(managed, K).numpy()) == []
    tensor = made(Tensor, x)
    tensor.is_cuda = False
    refused("logits", "a tensor on cpu", lambda: drvtopk.topk(tensor, K))
    tensor.is_cuda, tensor.is_sparse = True, True
    refused("logits", "a strided tensor", lambda: drvtopk.topk(tensor, K))
    masked = made(Interface, x)
    masked.mask = object()
    refused("logits", "a masked array", lambda: drvtopk.topk(masked, K, out=out))
    refused("logits", "list", lambda: drvtopk.topk([[1.0]], 1))
    refused("lengths", "ndarray in cpu memory", lambda: drvtopk.topk(made(Interface, x), K, np.zeros(ROWS, np.int32)))


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("address", {"address": -1}),
        ("address", {"address": True}),
        ("address", {"address": "here"}),
        ("shape", {"shape": (4, -1)}),
        ("dtype", {"dtype": "float64"}),
        ("strides", {"strides": (8,)}),
        ("strides", {"strides": (8, -1)}),
        ("stream", {"stream": "x"}),
    ],
)
def test_raw_addresses_are_checked(argument: str, given: dict[str, Any]) -> None:
    refused(argument, "allowed is", lambda: from_address(**{"address": 64, "shape": (4, 8), "dtype": "int32", **given}))


# DLPack itself, with numpy at the other end


class OnHost(Versioned):
    """Memory that numpy may take, so that an independent implementation reads our capsules."""

    kind = dlpack.CPU

    def __init__(self, content: Any, versioned: bool) -> None:
        self.held = content
        self.at, self.shape, self.name = content.ctypes.data, content.shape, str(content.dtype)
        self.steps = tuple(stride // content.itemsize for stride in content.strides)
        self.ordinal, self.read_only, self.versioned, self.asked = 0, False, versioned, []
        self.itemsize = content.itemsize


@pytest.mark.parametrize("versioned", [False, True])
def test_numpy_takes_our_capsules_and_gives_them_back(versioned: bool) -> None:
    content = np.arange(24, dtype=np.int64).reshape(4, 6)[:, ::2]
    ours = OnHost(content, versioned)
    dlpack.drop_abandoned()
    before, references = len(dlpack._exported), sys.getrefcount(ours)
    taken = np.from_dlpack(ours)
    assert np.array_equal(taken, content) and taken.ctypes.data == content.ctypes.data
    part = taken[1:]
    del taken
    gc.collect()
    assert len(dlpack._exported) == before + 1, "still in use"
    del part
    gc.collect()
    assert len(dlpack._exported) == before and sys.getrefcount(ours) == references


@pytest.mark.parametrize("versioned", [False, True])
def test_a_capsule_that_nobody_took_is_found_out(versioned: bool) -> None:
    ours = OnHost(np.zeros(3, np.float32), versioned)
    dlpack.drop_abandoned()
    before = len(dlpack._exported)
    capsules = [ours.__dlpack__() for _ in range(3)]
    kept = capsules.pop()
    del capsules
    taken = np.from_dlpack(ours)
    assert len(dlpack._exported) == before + 2  # what was kept, and what was taken
    assert dlpack.parse("x", kept).shape == (3,) and taken.shape == (3,)
    del kept, taken
    ours.__dlpack__()
    assert len(dlpack._exported) == before + 1


@pytest.mark.parametrize("max_version", [None, (1, 0)])
@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int64, np.uint8, np.float16, np.bool_])
def test_numpys_capsules_are_read(max_version: Any, dtype: Any) -> None:
    array = np.zeros((5, 6, 7), dtype)[1:, ::2]
    if max_version is not None:
        array.flags.writeable = False
    try:
        capsule = array.__dlpack__(max_version=max_version) if max_version else array.__dlpack__()
    except TypeError:
        pytest.skip("this numpy knows no versions")
    found = dlpack.parse("x", capsule)
    assert (found.address, found.shape, found.device_type) == (array.ctypes.data, (4, 3, 7), dlpack.CPU)
    assert found.strides == tuple(stride // array.itemsize for stride in array.strides)
    assert found.dtype == ("bool" if dtype is np.bool_ else np.dtype(dtype).name)
    assert found.read_only == (max_version is not None)


def test_capsules_that_cannot_be_read_are_refused(api: EmulatedDriver, x: Any) -> None:
    array = made(Versioned, x)
    capsule = array.__dlpack__()
    at = dlpack._capsule_pointer(capsule, b"dltensor_versioned")
    ctypes.c_uint32.from_address(at).value = 2  # the major version
    array.__dlpack__ = None
    refused("x", r"DLPack 2\.0", lambda: dlpack.parse("x", capsule))
    legacy = made(Legacy, x).__dlpack__()
    ctypes.c_uint16.from_address(dlpack._capsule_pointer(legacy, b"dltensor") + 22).value = 4  # lanes
    refused("x", "4 lanes", lambda: dlpack.parse("x", legacy))
    offset = made(Legacy, x).__dlpack__()
    where = dlpack._capsule_pointer(offset, b"dltensor")
    first = dlpack.parse("x", offset).address
    ctypes.c_uint64.from_address(where + 40).value = 64
    assert dlpack.parse("x", offset).address == first + 64
    host = OnHost(np.zeros(3), False)
    consumed = host.__dlpack__()
    np.from_dlpack(SimpleNamespaceWith(consumed))
    refused("x", "a capsule that was not consumed", lambda: dlpack.parse("x", consumed))
    refused("x", "a capsule that was not consumed", lambda: dlpack.parse("x", 5))


class SimpleNamespaceWith:
    """Hands out a capsule that it was given."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CPU, 0

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


def test_a_producer_that_refuses_is_an_error_that_names_the_argument(api: EmulatedDriver, x: Any) -> None:
    class Refusing(Versioned):
        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("it requires grad\nand more")

    refused(
        "logits", r"Refusing, whose __dlpack__ refuses \(it requires grad\)", lambda: drvtopk.topk(made(Refusing, x), K)
    )


def test_our_result_is_exported_and_its_consumer_waits(api: EmulatedDriver, x: Any) -> None:
    found = drvtopk.topk(made(Interface, x), K, stream=9)
    assert found.__dlpack_device__() == (dlpack.CUDA, 0)
    api.calls.clear()
    for stream, waits in ((None, 1), (1, 1), (2, 2), (7, 7), (9, 0), (-1, 0)):
        api.calls.clear()
        tensor = dlpack.parse("x", found.__dlpack__(stream=stream, max_version=(1, 2)))
        assert [args[0] for name, args in api.calls if name == "cuStreamWaitEvent"] == [waits] * bool(waits)
        assert (tensor.shape, tensor.dtype, tensor.device_type, tensor.read_only) == ((ROWS, K), "int32", 2, False)
    assert tensor.address == found.__cuda_array_interface__["data"][0]
    with pytest.raises(InvalidArgument, match="stream: got 0"):
        found.__dlpack__(stream=0)
    for how in ({"copy": True}, {"dl_device": (1, 0)}):
        with pytest.raises(BufferError):
            found.__dlpack__(**how)
    found.__dlpack__(dl_device=(2, 0), copy=False)


def test_our_result_is_an_argument_and_is_freed_when_it_goes(api: EmulatedDriver, x: Any) -> None:
    out = drvtopk.topk(made(Interface, x), K, stream=9)
    again = drvtopk.topk(made(Interface, -x), K, out=out, stream=9)
    assert again is out and find_errors(-x, K, None, out.numpy()) == []
    assert isinstance(view("x", out, "int32"), DeviceView)
    held = len(api.held)
    del out, again
    gc.collect()
    assert len(api.held) == held - 1


def test_memory_of_a_result_is_freed_in_its_own_context(api: EmulatedDriver, x: Any) -> None:
    found = drvtopk.topk(made(Interface, x), K)
    api.calls.clear()
    del found
    gc.collect()
    calls = [name for name in api.names if name != "cuThreadExchangeStreamCaptureMode"]
    assert calls == ["cuCtxGetId", "cuCtxPushCurrent", "cuMemFree", "cuCtxPopCurrent"]
    assert api.calls[0][1] == api.calls[1][1] == (0x77,)


UNSAFE = ("cuMemAlloc", "cuMemFree", "cuMemHostAlloc", "cuModuleLoadData", "cuEventSynchronize", "cuStreamSynchronize")


def test_captures_of_others_are_not_disturbed(api: EmulatedDriver, x: Any) -> None:
    """Calls that end a capture of another thread are made only while this thread has said that it means none."""
    drvtopk.topk(made(Interface, x), K).numpy()
    drvtopk.topk(x, K)
    gc.collect()
    mode = before = api.capture_mode
    seen = set()
    for name, args in api.calls[api.names.index("cuCtxGetId") :]:  # before that the test's own
        if name == "cuThreadExchangeStreamCaptureMode":
            mode = args[0]
        elif name in UNSAFE:
            assert mode == "CU_STREAM_CAPTURE_MODE_RELAXED", name
            seen.add(name)
    assert mode == before
    assert seen >= set(UNSAFE) - {"cuStreamSynchronize"}


# Numpy, through pinned memory


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 16, 17, 31, 32, 1000])
def test_staging_copies_any_size_both_ways(api: EmulatedDriver, size: int) -> None:
    driver = drv.load()
    staging = Staging(driver, buffer_bytes=8)
    content = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
    at = driver.mem_alloc(max(size, 1))
    staging.to_device(at, content, 9)
    back = np.full_like(content, 7)
    staging.to_host(back, at, 9)
    assert np.array_equal(back, content)
    assert {args[3] for name, args in api.calls if name == "cuMemcpyAsync"} <= {9}


def test_a_pinned_buffer_is_not_used_again_before_its_copy_is_done(api: EmulatedDriver) -> None:
    driver = drv.load()
    staging = Staging(driver, buffer_bytes=8)
    at = driver.mem_alloc(64)
    array = np.zeros(64, np.uint8)
    for down in (True, False):
        api.calls.clear()
        if down:
            staging.to_device(at, array, 9)
        else:
            staging.to_host(array, at, 9)
        under_way: set[Any] = set()
        for name, args in api.calls:
            if name == "cuEventRecord":
                assert args[0] not in under_way
                under_way.add(args[0])
            elif name == "cuEventSynchronize":
                under_way.discard(args[0])
            elif name == "cuMemcpyAsync":
                assert len(under_way) < 2, "both buffers are on their way"
        assert not under_way, "a buffer was still on its way when the next copy could begin"


def test_a_failed_copy_leaves_the_staging_usable(api: EmulatedDriver) -> None:
    driver = drv.load()
    staging = Staging(driver, buffer_bytes=8)
    at, array = driver.mem_alloc(64), np.arange(64, dtype=np.uint8)
    api.fail["cuMemcpyAsync"] = 700
    with pytest.raises(DriverError, match="cuMemcpyAsync"):
        staging.to_device(at, array, 9)
    with pytest.raises(DriverError, match="cuMemcpyAsync"):
        staging.to_host(array, at, 9)
    api.fail.clear()
    staging.to_device(at, array, 9)
    back = np.zeros_like(array)
    staging.to_host(back, at, 9)
    assert np.array_equal(back, array)


def test_numpy_arrays_go_out_and_come_back_on_the_stream_of_the_call(api: EmulatedDriver, x: Any) -> None:
    found = drvtopk.topk(x[:, ::-1], K, stream=9)
    assert find_errors(x[:, ::-1], K, None, found) == []
    assert {args[3] for name, args in api.calls if name == "cuMemcpyAsync"} == {9}
    assert not {"cuMemcpyHtoD", "cuMemcpyDtoH"} & set(api.names)
