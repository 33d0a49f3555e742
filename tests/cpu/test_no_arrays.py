"""What looks like a device array and is none: each protocol malformed, raising or absurd. Refused by the argument's
name, before anything is launched."""

from __future__ import annotations

import ctypes
import decimal
import functools
import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import driver as drv
from drvtopk.errors import InvalidArgument
from drvtopk.interop import arrays, dlpack
from drvtopk.interop.arrays import from_address, stream_handle, view
from drvtopk.testing.oracle import find_errors
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.producers import CupyArray, Interface, Legacy, Memory, Tensor, Versioned, frameworks


def name_of(value: object) -> str:
    """The same in every process: no address of an object."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


ROWS, WIDTH, K = 3, 500, 16
LAUNCHES = {"cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel"}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    frameworks(monkeypatch, 0x5150)
    return emulated.use(monkeypatch, EmulatedDriver())


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(5).standard_normal((ROWS, WIDTH)).astype(np.float32)


def refused(argument: str, call: Callable[[], object]) -> str:
    with pytest.raises(InvalidArgument) as caught:
        call()
    error = caught.value
    assert error.argument == argument and str(error) == f"{argument}: got {error.value}, allowed is {error.allowed}"
    return str(error)


def refused_everywhere(api: EmulatedDriver, x: Any, wrong: Callable[[Any], Any]) -> set[str]:
    """What is said of an array at every door and as every argument; `wrong` makes it of its content."""
    driver = drv.load()
    contents = {
        "logits": x,
        "lengths": np.full(ROWS, 50, np.int32),
        "row_starts": np.zeros(ROWS, np.int32),
        "page_table": np.arange(WIDTH, dtype=np.int32)[None],
        "out": np.zeros((ROWS, K), np.int32),
        "values": np.zeros((ROWS, K), np.float32),
    }
    ready = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, row_starts=True, page_table=True, values=True)
    said = set()
    for argument in contents:
        given: dict[str, Any] = {name: Interface(driver, content) for name, content in contents.items()}
        given[argument] = wrong(contents[argument])
        logits = given.pop("logits")
        for call in (
            functools.partial(drvtopk.topk, logits, K),
            *(functools.partial(f, logits) for f in (ready, ready.bind)),
        ):
            said.add(refused(argument, functools.partial(call, **given)).partition(": ")[2])
    assert not LAUNCHES & set(api.names)
    return said


# torch


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("torch's own words\nand more of them")


TENSORS: dict[str, tuple[dict[str, Any], str]] = {
    "on the CPU": ({"is_cuda": False}, "a tensor on cpu"),
    "meta": ({"is_cuda": False, "device": "meta"}, "a tensor on meta"),
    "pinned": ({"is_cuda": False, "is_pinned": lambda: True}, "a tensor on cpu"),
    "fake, as it is now": ({"data_ptr": failing}, "whose memory torch does not tell (torch's own words)"),
    "fake, as it was": ({"data_ptr": lambda: 0}, "without memory"),
    "sparse": ({"is_sparse": True, "layout": "torch.sparse_coo"}, "layout sparse_coo"),
    "sparse, by rows": ({"layout": "torch.sparse_csr", "stride": failing}, "layout sparse_csr"),
    "sparse, by blocks": ({"layout": "torch.sparse_bsc"}, "layout sparse_bsc"),
    "of another library": ({"layout": "torch._mkldnn"}, "layout _mkldnn"),
    "nested": ({"is_nested": True, "stride": failing}, "layout nested"),
    "jagged": ({"layout": "torch.jagged", "shape": (3, "j1")}, "layout jagged"),
    "quantized": ({"is_quantized": True}, "a strided tensor of plain values"),
    "negated": ({"is_neg": lambda: True}, "a strided tensor of plain values"),
    "of a shape that raises": ({"stride": failing}, "torch's own words"),
    "of a device that raises": ({"get_device": failing}, "torch's own words"),
    "of which everything raises": (
        dict.fromkeys(("is_neg", "data_ptr", "stride", "element_size"), failing),
        "own words",
    ),
}


def tensor(content: Any, **changed: Any) -> Any:
    kind = type("Tensor", (Tensor,), {name: value for name, value in changed.items() if not callable(value)})
    made = kind(drv.load(), content)
    for name, value in changed.items():
        if callable(value):
            setattr(made, name, value)
        elif name == "shape":
            made.shape = value
    return made


@pytest.mark.parametrize("what", TENSORS)
def test_tensors_that_are_no_memory_on_a_gpu(api: EmulatedDriver, x: Any, what: str) -> None:
    changed, words = TENSORS[what]
    said = refused_everywhere(api, x, lambda content: tensor(content, **changed))
    assert all(words in one for one in said)


def test_a_vmapped_tensor_has_a_shape_and_no_memory(api: EmulatedDriver, x: Any) -> None:
    said = refused_everywhere(api, x, lambda content: tensor(content, data_ptr=failing))
    assert all("torch's own words" in one and "and more" not in one for one in said)


def test_torch_is_not_asked_for_the_stream_of_a_device_that_is_none(
    api: EmulatedDriver, x: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setattr(sys.modules["torch"], "cuda", SimpleNamespace(current_stream=failing))
    refused("logits", lambda: drvtopk.topk(tensor(x, is_cuda=False), K))
    assert "torch's own words" in refused("logits", lambda: drvtopk.topk(tensor(x), K))


def test_the_reference_takes_no_tensor(api: EmulatedDriver, x: Any) -> None:
    several: list[Any] = [tensor(x), tensor(x, is_cuda=False), Interface(drv.load(), x)]
    for wrong in several:
        refused("logits", functools.partial(drvtopk.topk_reference, wrong, K))
        refused("lengths", functools.partial(drvtopk.topk_reference, x, K, wrong))
        refused("lengths", functools.partial(drvtopk.topk, x, K, wrong))


def test_an_empty_tensor_has_no_memory_and_is_an_array(api: EmulatedDriver, x: Any) -> None:
    found = view("x", tensor(x[:0], data_ptr=lambda: 0), "float32")
    assert (found.address, found.shape) == (0, (0, WIDTH))


def test_a_cupy_array_that_fails(api: EmulatedDriver, x: Any) -> None:
    class Failing(CupyArray):
        @property
        def data(self) -> Any:
            raise RuntimeError("cupy's own words")

    Failing.__module__ = "cupy"
    said = refused_everywhere(api, x, lambda content: Failing(drv.load(), content))
    assert all("whose memory cupy does not tell (cupy's own words)" in one for one in said)


# numpy


def test_numpy_arrays_are_none(api: EmulatedDriver, x: Any) -> None:
    ready = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)
    out = Interface(drv.load(), np.zeros((ROWS, K), np.int32))
    for wrong in (x, np.ma.masked_array(x), x.view(np.matrix), np.float32(1)):
        for call in (ready, ready.bind):
            refused("logits", functools.partial(call, wrong, out=out))
    lengths = np.full(ROWS, 50, np.int32)
    for wrong in (lengths, np.ma.masked_array(lengths), lengths.view(np.matrix)):
        refused("lengths", functools.partial(drvtopk.topk, Interface(drv.load(), x), K, wrong))


# __cuda_array_interface__


class Missing:
    """In place of an entry that is not there."""


ENTRIES: dict[str, list[Any]] = {
    "shape": [Missing, None, 5, "35", b"35", (3.0, 5), (-1, 5), (True, 5), ("3", 5), (2**63, 5), (None, 5), object()],
    "typestr": [Missing, None, 5, "", "f4", "<f", "<q9", "<f0", "<f-4", "<f4 ", "<O8", "<M8", "<U4", "<S4", "<f4,<f4",
                ">", "float32", b"<f4", ["<f4"], "<f99999999999999999999", np.dtype(np.float32)],
    "data": [Missing, None, 5, (), (64,), (64, False, 0), ("64", False), (64.0, False), (-64, False), (2**64, False),
             (2**64 - 8, False), (True, False), (64, "no"), (64, None), (64, 2), (64, np.zeros(2)), (None, False),
             (0, False), "64", b"64", object()],
    "strides": [5, "42", (4,), (4, 4, 4), (4.0, 4), ("4", 4), (4, None), (6, 4), (4, 3), (-2000, 4), (2**63, 4),
                (2**63 - 4, 4), (2**70, 4), (True, 4), object()],
    "version": [Missing, None, "3", 3.0, -1, 4, True, 2**64, (3, 0)],
    "stream": [0, -1, "7", 7.0, True, 2**64, (7,), object()],
    "mask": [object(), False, np.zeros(3)],
}  # fmt: skip


def described(content: Any, **changed: Any) -> Any:
    given = {**Interface(drv.load(), content).__cuda_array_interface__, **changed}
    return SimpleNamespace(
        __cuda_array_interface__={name: value for name, value in given.items() if value is not Missing}
    )


@pytest.mark.parametrize(("entry", "wrong"), [(n, w) for n, several in ENTRIES.items() for w in several], ids=name_of)
def test_malformed_interfaces(api: EmulatedDriver, x: Any, entry: str, wrong: Any) -> None:
    logits, out = Interface(drv.load(), x), Interface(drv.load(), np.zeros((ROWS, K), np.int32))
    refused("logits", lambda: drvtopk.topk(described(x, **{entry: wrong}), K, out=out))
    refused("workspace", lambda: view("workspace", described(x, **{entry: wrong}), None))
    refused("out", lambda: drvtopk.topk(logits, K, out=described(out.content, **{entry: wrong})))
    assert not LAUNCHES & set(api.names)


@pytest.mark.parametrize("wrong", [None, 5, "x", [], (), object(), {}, failing], ids=name_of)
def test_interfaces_that_are_none(api: EmulatedDriver, x: Any, wrong: Any) -> None:
    class Owner:
        @property
        def __cuda_array_interface__(self) -> Any:
            return wrong() if callable(wrong) else wrong

    said = refused_everywhere(api, x, lambda _: Owner())
    assert all("Owner" in one or "in its __cuda_array_interface__" in one for one in said)


def test_interfaces_that_are_somewhat_unusual_are_read(api: EmulatedDriver, x: Any) -> None:
    shape = np.array([ROWS, WIDTH])
    for changed in (
        {"shape": list(shape)}, {"strides": Missing}, {"strides": None}, {"version": 2, "stream": Missing},
        {"strides": np.array([4 * WIDTH, 4])}, {"mask": Missing}, {"mask": None}, {"descr": [("", "<f4")]},
        {"stream": np.int64(5)}, {"version": np.int32(3)},
    ):  # fmt: skip
        found = drvtopk.topk(described(x, **changed), K).numpy()
        assert find_errors(x, K, None, found) == []
        seen = view("x", described(x, **changed), "float32")
        assert all(type(n) is int for n in (*seen.shape, *seen.strides, seen.address))
    data = Interface(drv.load(), x).at
    flags: list[Any] = [False, np.False_, 0, True, np.True_, 1]
    for flag in flags:
        assert view("x", described(x, data=[data, flag]), "float32").read_only == bool(flag)
    nothing = view("x", described(x[:0], data=(0, False)), "float32")
    assert (nothing.address, nothing.size) == (0, 0)


# DLPack


DEVICES = [None, 2, (), (2,), (2, 0, 0), ("cuda", 0), (2.0, 0), (2, "0"), (2, None), "20", (2**40, 0), (True, 0),
           failing, (1, 0), (0, 0), (-1, 0), (99, 0), object()]  # fmt: skip


@pytest.mark.parametrize("answer", DEVICES, ids=name_of)
def test_devices_that_are_none(api: EmulatedDriver, x: Any, answer: Any) -> None:
    class Wrong(Versioned):
        def __dlpack_device__(self) -> Any:
            return answer() if callable(answer) else answer

    said = refused_everywhere(api, x, lambda content: Wrong(drv.load(), content))
    assert all("Wrong" in one or "from __dlpack_device__" in one for one in said)


@pytest.mark.parametrize(
    "error", [AttributeError, KeyError, BufferError, OSError, ZeroDivisionError, TypeError, MemoryError]
)
def test_exports_that_raise(api: EmulatedDriver, x: Any, error: type[Exception]) -> None:
    class Raising(Versioned):
        def __dlpack__(self, **_: Any) -> Any:
            raise error("somebody's own words")

    said = refused_everywhere(api, x, lambda content: Raising(drv.load(), content))
    assert all("whose __dlpack__ refuses" in one and "own words" in one for one in said)


@pytest.mark.parametrize("answer", [None, 5, "dltensor", b"dltensor", (), object(), {}], ids=name_of)
def test_exports_that_are_no_capsules(api: EmulatedDriver, x: Any, answer: Any) -> None:
    class Wrong(Versioned):
        def __dlpack__(self, **_: Any) -> Any:
            return answer

    said = refused_everywhere(api, x, lambda content: Wrong(drv.load(), content))
    assert all("from __dlpack__" in one for one in said)


# Where DLTensor has its fields, what is written there, and as what.
FIELDS: dict[str, tuple[int, Any, int]] = {
    "no data": (0, ctypes.c_uint64, 0),
    "data at the end of memory": (0, ctypes.c_uint64, 2**64 - 8),
    "host memory": (8, ctypes.c_int32, 1),
    "memory of another maker": (8, ctypes.c_int32, 10),
    "negative device": (12, ctypes.c_int32, -1),
    "negative dimensions": (16, ctypes.c_int32, -1),
    "many dimensions": (16, ctypes.c_int32, 2**31 - 1),
    "no dimensions": (16, ctypes.c_int32, 0),
    "another type": (20, ctypes.c_uint8, 77),
    "no bits": (21, ctypes.c_uint8, 0),
    "half a byte": (21, ctypes.c_uint8, 4),
    "lanes": (22, ctypes.c_uint16, 4),
    "no lanes": (22, ctypes.c_uint16, 0),
    "no shape": (24, ctypes.c_uint64, 0),
    "an offset beyond memory": (40, ctypes.c_uint64, 2**64 - 1),
}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("kind", [Versioned, Legacy])
def test_capsules_that_say_nonsense(api: EmulatedDriver, x: Any, kind: type[Versioned], field: str) -> None:
    def edited(versioned: bool, capsule: Any) -> Any:
        name = b"dltensor_versioned" if versioned else b"dltensor"
        first = dlpack._capsule_pointer(capsule, name) + (dlpack._VERSIONED_HEAD.size if versioned else 0)
        offset, word, value = FIELDS[field]
        word.from_address(first + offset).value = value
        return capsule

    class Wrong(kind):  # type: ignore[misc, valid-type]
        def _capsule(self, versioned: bool) -> Any:
            return edited(versioned, super()._capsule(versioned))

    said = refused_everywhere(api, x, lambda content: Wrong(drv.load(), content))
    assert said


@pytest.mark.parametrize("kind", [Versioned, Legacy])
def test_sizes_and_strides_in_capsules_that_cannot_be(api: EmulatedDriver, x: Any, kind: type[Memory]) -> None:
    for shape in ((-ROWS, WIDTH), (ROWS, -WIDTH), (2**40, 2**40), (2**62, 1)):
        wrong = kind(drv.load(), x, strides=dlpack.compact(shape))
        wrong.shape = shape
        refused("logits", functools.partial(drvtopk.topk, wrong, K))
        refused("x", functools.partial(view, "x", wrong, None))
    for strides in ((-WIDTH, 1), (2**62, 1), (2**63 - 1, 1), (WIDTH, 2), (WIDTH, -1)):
        wrong = kind(drv.load(), x, strides=strides)
        refused("logits", functools.partial(drvtopk.topk, wrong, K))
    assert not LAUNCHES & set(api.names)


# Raw addresses and streams


WRONG: dict[str, list[Any]] = {
    "address": [-1, 2**64, 2**70, 8.0, np.float64(8), "8", b"8", None, True, np.True_, (8,), [8], np.array([8, 9]),
                decimal.Decimal(8), float("nan"), object(), SimpleNamespace(handle=None), SimpleNamespace(handle="8"),
                SimpleNamespace(handle=8.0), SimpleNamespace(handle=-8), SimpleNamespace(handle=True), 2**64 - 4],
    "shape": [3, None, "48", b"48", (4.0, 8), (4, -8), (True, 8), ("4", 8), (2**63, 8), (2**62, 2**62), {4: 8}, {4, 8},
              3.0, (None, 8), object(), np.float32(3), ((4, 8),)],
    "dtype": ["float64", "f4", "<f4", "", None, 5, [], np.float32, np.dtype(np.float32), b"int32", "Float32"],
    "strides": [8, "81", (8,), (8, 1, 1), (8.0, 1), (-8, 1), (8, -1), (2**63, 1), (2**62, 1), (2**70, 1), (True, 1),
                ("8", 1), (None, 1), object(), ()],
    "device": [-1, 1.0, "0", "cuda:0", True, (2, 0), 2**31, object()],
    "stream": ["7", 7.0, True, -1, 2**64, object(), SimpleNamespace(ptr="x"), SimpleNamespace(ptr=7.5),
               SimpleNamespace(handle=-1), SimpleNamespace(cuda_stream=2**64), SimpleNamespace(cuda_stream=True)],
    "read_only": ["no", 1, 0, None, []],
}  # fmt: skip


@pytest.mark.parametrize(("argument", "wrong"), [(n, w) for n, several in WRONG.items() for w in several], ids=name_of)
def test_raw_addresses_that_cannot_be(argument: str, wrong: Any) -> None:
    good: dict[str, Any] = {"address": 64, "shape": (4, 8), "dtype": "int32"}
    refused(argument, lambda: from_address(**{**good, argument: wrong}))


def test_raw_addresses_up_to_the_last_byte() -> None:
    assert from_address(2**64 - 128, (4, 8), "int32").span == (2**64 - 128, 2**64)
    assert from_address(0, (0, 8), "int32").size == 0
    assert from_address(8, (), "float32").size == 1
    for address in (np.uint64(2**63), SimpleNamespace(handle=np.uint64(2**63))):
        found = from_address(address, list(np.array([4, 8])), np.str_("int32"), strides=[8, 1])
        assert (found.address, found.shape, found.strides, found.dtype) == (2**63, (4, 8), (8, 1), "int32")
        assert all(type(n) is int for n in (found.address, *found.shape, *found.strides)) and type(found.dtype) is str


def test_an_address_of_nothing_is_refused_where_something_is_read(api: EmulatedDriver, x: Any) -> None:
    refused("logits", lambda: drvtopk.topk(from_address(0, (ROWS, WIDTH), "float32"), K))
    assert not LAUNCHES & set(api.names)


STREAMS = [None, 5, (), (0,), (0, 1, 2), ("0", 5), (0, "5"), (0, 5.0), (0, -5), (0, 2**64), (1, 5), (0, None),
           (0, True), "05", failing]  # fmt: skip


@pytest.mark.parametrize("answer", STREAMS, ids=name_of)
def test_stream_protocols_that_say_nonsense(answer: Any) -> None:
    given = SimpleNamespace(__cuda_stream__=answer if callable(answer) else lambda: answer)
    refused("stream", lambda: stream_handle(given))
    if not callable(answer):
        refused("stream", lambda: stream_handle(SimpleNamespace(__cuda_stream__=answer)))


class Pointer:
    """Memory that belongs to an object, which says where it is by `__int__` alone."""

    def __int__(self) -> int:
        return 64


class Closed:
    @property
    def handle(self) -> Any:
        raise RuntimeError("the buffer is closed")


def test_what_owns_memory_is_kept_with_its_address() -> None:
    for owner in (Pointer(), SimpleNamespace(handle=64), SimpleNamespace(handle=Pointer())):
        found = from_address(owner, (4, 8), "int32")
        assert found.address == 64 and found.owner is owner
        assert from_address(owner, (4, 8), "int32", owner=5).owner == 5
    assert from_address(64, (4, 8), "int32").owner is None
    refused("address", lambda: from_address(Closed(), (4, 8), "int32"))


@pytest.mark.parametrize("stream", ["7", 7.0, True, 0, -2, 2**64, object()])
def test_our_export_takes_streams_that_are_some(api: EmulatedDriver, x: Any, stream: Any) -> None:
    found = drvtopk.topk(Interface(drv.load(), x), K)
    refused("stream", lambda: found.__dlpack__(stream=stream))
    found.__dlpack__(stream=np.int64(7))
    assert api.names.count("cuStreamWaitEvent") == 1


def test_pointers_of_the_bindings_are_addresses() -> None:
    driver = pytest.importorskip("cuda.bindings.driver")
    assert from_address(driver.CUdeviceptr(64), (4, 8), "int32").address == 64
    assert from_address(SimpleNamespace(handle=driver.CUdeviceptr(64)), (4, 8), "int32").address == 64
    assert arrays.stream_handle(driver.CUstream(7)) == 7
