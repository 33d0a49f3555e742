"""What arguments may be: integers of every make, and one table of good and bad ones for every door."""

from __future__ import annotations

import dataclasses
import decimal
import enum
import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import driver as drv
from drvtopk.__main__ import main
from drvtopk.engine import current_engine
from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.interop.arrays import from_address, stream_handle, view
from drvtopk.plan import Problem, plan
from drvtopk.spec import KNOWN_DEVICES, DeviceInfo, Options, Tuning, Variant
from drvtopk.testing.oracle import find_errors
from tests import emulated
from tests.emulated import EmulatedDriver
from tests.producers import Interface

H200 = KNOWN_DEVICES["h200"]
ROWS, WIDTH, K = 4, 256, 64


class Count(enum.IntEnum):
    SIXTY_FOUR = 64


class Index:
    def __init__(self, number: int) -> None:
        self.number = number

    def __index__(self) -> int:
        return self.number


class Broken:
    """Its own errors are nobody's business."""

    def __index__(self) -> int:
        raise RuntimeError("an error of its own")

    def __repr__(self) -> str:
        raise RuntimeError("an error of its own")


class BoolTensor(Index):
    dtype = "torch.bool"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> EmulatedDriver:
    return emulated.use(monkeypatch, EmulatedDriver())


@pytest.fixture
def x() -> Any:
    return np.random.default_rng(3).standard_normal((ROWS, WIDTH)).astype(np.float32)


def refused(argument: str, call: Callable[[], object]) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        call()
    assert caught.value.argument == argument
    assert str(caught.value) == f"{argument}: got {caught.value.value}, allowed is {caught.value.allowed}"
    return caught.value


# Integers

INTEGERS: tuple[Callable[[int], Any], ...] = (np.int64, np.int32, np.uint16, np.array, Index)
NO_INTEGERS = (True, np.True_, np.array(True), BoolTensor(1), 64.0, np.float32(64), np.array(64.0), np.array([64, 64]),
               decimal.Decimal(64), "64", b"64", [64], (64,), 64j, float("nan"), Broken(), object())  # fmt: skip

# Each place where the package takes an integer: a good one, and what is made with it.
PLACES: dict[str, tuple[int, Callable[[Any], Any]]] = {
    "Problem.rows": (4, lambda n: Problem(rows=n, width=256, k=64)),
    "Problem.width": (256, lambda n: Problem(rows=4, width=n, k=64)),
    "Problem.k": (64, lambda n: Problem(rows=4, width=256, k=n)),
    "Problem.stride": (300, lambda n: Problem(rows=4, width=256, k=64, stride=n)),
    "Problem.offset": (3, lambda n: Problem(rows=4, width=256, k=64, offset=n)),
    "Problem.max_seq_len": (128, lambda n: Problem(rows=4, width=256, k=64, max_seq_len=n)),
    "Problem.sm_budget": (8, lambda n: Problem(rows=4, width=256, k=64, sm_budget=n)),
    "Variant.k": (64, lambda n: Variant(route="filtered", k=n, vec_size=4)),
    "Variant.vec_size": (4, lambda n: Variant(route="filtered", k=64, vec_size=n)),
    "Variant.residency": (2, lambda n: Variant(route="filtered", k=64, vec_size=4, residency=n)),
    "Variant.cluster": (8, lambda n: Variant(route="clustered", k=64, vec_size=4, cluster=n)),
    "DeviceView.address": (64, lambda n: from_address(n, (4, 8), "int32")),
    "DeviceView.shape": (4, lambda n: from_address(64, (n, 8), "int32")),
    "DeviceView.strides": (8, lambda n: from_address(64, (4, 8), "int32", strides=(n, 1))),
    "DeviceView.device": (1, lambda n: from_address(64, (4, 8), "int32", device=n)),
    "DeviceView.stream": (7, lambda n: from_address(64, (4, 8), "int32", stream=n)),
    "with_limits.sms": (8, lambda n: H200.with_limits(sms=n)),
    "with_limits.smem_optin": (32768, lambda n: H200.with_limits(smem_optin=n)),
    "plan.chunk": (8192, lambda n: planned(route="persistent", chunk=n)),
    "plan.group": (4, lambda n: planned(route="clustered", group=n)),
}
PLACES |= {
    f"Tuning.{field.name}": (64, functools.partial(lambda name, n: Tuning(**{name: n}), field.name))
    for field in dataclasses.fields(Tuning)
}
PLACES |= {
    f"DeviceInfo.{field.name}": (
        64, functools.partial(lambda name, n: dataclasses.replace(H200, **{name: n}), field.name)
    )
    for field in dataclasses.fields(DeviceInfo) if field.name not in ("name", "arch")
}  # fmt: skip


def planned(**how: Any) -> Any:
    return plan(Problem(rows=4, width=200_000, k=64), H200, lambda *_: 2, **how)


def plain(value: Any) -> bool:
    """Whether json, pickle and repr see Python's own integers only."""
    if isinstance(value, (tuple, list)):
        return all(map(plain, value))
    if dataclasses.is_dataclass(value):
        return all(plain(getattr(value, field.name)) for field in dataclasses.fields(value))
    return not hasattr(value, "__index__") or type(value) in (int, bool)


def test_every_dataclass_that_callers_fill_is_walked() -> None:
    for kind in (Problem, Tuning, DeviceInfo, Variant):
        integers = {f"{kind.__name__}.{f.name}" for f in dataclasses.fields(kind) if str(f.type).startswith("int")}
        assert integers and integers <= set(PLACES)


@pytest.mark.parametrize("place", PLACES)
def test_whatever_has_an_index_is_an_integer_and_nothing_else_is(place: str) -> None:
    good, make = PLACES[place]
    wanted = make(good)
    for kind in INTEGERS:
        found = make(kind(good))
        assert found == wanted and plain(found) and repr(found) == repr(wanted)
    for wrong in NO_INTEGERS:
        refused(place.partition(".")[2], functools.partial(make, wrong))


def test_an_enumeration_of_integers_becomes_a_plain_one() -> None:
    assert type(Problem(rows=1, width=100, k=Count.SIXTY_FOUR).k) is int


@pytest.mark.parametrize("kind", INTEGERS)
def test_calls_take_every_integer(api: EmulatedDriver, x: Any, kind: Callable[[int], Any]) -> None:
    table = np.arange(ROWS * 4, dtype=np.int32).reshape(ROWS, 4)
    how: dict[str, Any] = {"page_table": table, "page_size": kind(64)}
    found = drvtopk.topk(x, kind(K), max_seq_len=kind(WIDTH), sm_budget=kind(100), stream=kind(9), **how)
    options = Options(page_table=True)
    assert find_errors(x, K, None, found, options=options, page_table=table, page_size=64) == []
    reference = drvtopk.topk_reference(x, kind(K), **how)
    assert find_errors(x, K, None, reference, options=options, page_table=table, page_size=64) == []
    counts: dict[str, Any] = {
        "rows": ROWS,
        "width": WIDTH,
        "k": K,
        "stride": WIDTH,
        "offset": 8,
        "max_seq_len": WIDTH,
        "sm_budget": 9,
    }
    asked = {name: kind(n) for name, n in counts.items()}
    (ready,) = drvtopk.prepare_many([{**asked, "page_table": True, "stream": kind(9)}])
    assert plain(ready.problem) and plain(ready.plan) and json.dumps(ready.plan.document())
    driver = drv.load()
    given = {"page_table": Interface(driver, table), "out": Interface(driver, np.zeros((ROWS, K), np.int32))}
    logits = Interface(driver, x)
    ready(logits, page_size=kind(64), stream=kind(9), **given)
    for _ in range(2):
        assert find_errors(x, K, None, given["out"].fetched(), options=options, page_table=table, page_size=64) == []
        driver.copy_to_device(given["out"].at, given["out"].content)
        ready.bind(logits, page_size=kind(64), **given)(9)
    with drvtopk.primary_context(kind(0)):
        pass
    assert stream_handle(kind(5)) == 5 and type(stream_handle(kind(5))) is int
    assert drvtopk.prepare(**counts).problem == drvtopk.prepare(**asked).problem


# One table for every door


def door_topk(x: Any, **given: Any) -> Any:
    return drvtopk.topk(x, given.pop("k", K), **given)


def door_reference(x: Any, **given: Any) -> Any:
    return drvtopk.topk_reference(x, given.pop("k", K), **given)


ARRAYS = ("lengths", "row_starts", "page_table", "out", "values", "workspace")
CALL = (*ARRAYS, "page_size", "stream")


def _on_device(given: dict[str, Any]) -> dict[str, Any]:
    """Numpy arrays, as their equals in device memory."""
    driver = drv.load()
    return {
        name: Interface(driver, value) if type(value) is np.ndarray and value.dtype.kind in "iuf" else value
        for name, value in given.items()
    }


def door_device(x: Any, **given: Any) -> Any:
    given = _on_device({"logits": x, **given})
    found = drvtopk.topk(given.pop("logits"), given.pop("k", K), **given)
    return found.indices.numpy() if isinstance(found, drvtopk.Selected) else found.numpy()


def _prepared(given: dict[str, Any]) -> tuple[drvtopk.Prepared, dict[str, Any]]:
    asked = {"rows": ROWS, "width": WIDTH, "k": K} | {n: v for n, v in given.items() if n not in CALL}
    call = {name: value for name, value in given.items() if name in CALL}
    for name in ("row_starts", "page_table"):
        asked[name] = call.get(name) is not None
    driver = drv.load()
    if "values" in call:
        asked["values"] = call.pop("values")
    ready = drvtopk.prepare(**asked)
    if ready.problem.options.values:
        call["values"] = Interface(driver, np.zeros((ROWS, K), np.float32))
    dtype = ready.problem.options.index_dtype
    return ready, _on_device({"out": np.zeros((ROWS, K), dtype), **call})


def door_prepared(x: Any, **given: Any) -> Any:
    ready, call = _prepared(given)
    ready(Interface(drv.load(), x), **call)
    return call["out"].fetched()


def door_bind(x: Any, **given: Any) -> Any:
    ready, call = _prepared(given)
    ready.bind(Interface(drv.load(), x), **call)(0)
    return call["out"].fetched()


HOST = {"topk": door_topk, "reference": door_reference}
DEVICE = {"topk on a device": door_device, "prepared": door_prepared, "bind": door_bind}
DOORS: dict[str, Callable[..., Any]] = {**HOST, **DEVICE}

MATRIX = functools.partial(np.ndarray.view, type=np.matrix)  # whose constructor warns
TABLE = np.arange(ROWS * 4, dtype=np.int32).reshape(ROWS, 4)
COUNTS = np.array([WIDTH, 3, 0, 100], np.int32)

GOOD: list[dict[str, Any]] = [
    {},
    {"lengths": COUNTS},
    {"lengths": COUNTS.reshape(2, 2), "row_starts": COUNTS},
    {"page_table": TABLE, "page_size": 64},
    {"page_table": np.arange(WIDTH, dtype=np.int32)[None]},  # a page a column
    {"page_table": None, "page_size": 1},
    {"page_table": None, "page_size": np.int64(1)},
    {"values": True},
    {"values": np.True_},
    {"values": np.False_},
    {"deterministic": np.True_},
    {"order": np.str_("value"), "tie_break": "largest", "nan": "highest", "index_dtype": "int64"},
    {"k": np.int16(K)},
]

WRONG: dict[str, list[Any]] = {
    "k": [0, 4097, -1, "5", 5.0, True, None, np.nan, [5], np.float32(4)],
    "lengths": [
        [1, 2, 3, 4], (1, 2, 3, 4), 5, 5.0, True, False, "1234", np.nan, {}, range(4), np.int32(3), object(),
        COUNTS.astype(np.float32), COUNTS.astype(bool), COUNTS.astype(str), COUNTS.astype(object),
        np.full(ROWS, np.nan), COUNTS.astype("m8[s]"), COUNTS[:3], np.zeros((0,), np.int32), np.zeros((4, 4), np.int32),
        np.ma.masked_array(COUNTS, COUNTS == 3), MATRIX(COUNTS),
    ],
    "row_starts": [
        [0, 0, 0, 0], False, "x", np.zeros(ROWS), np.zeros(ROWS, bool), np.zeros(3, np.int32),
        np.ma.masked_array(COUNTS), MATRIX(COUNTS),
    ],
    "page_table": [
        [[0, 1, 2, 3]], "x", True, TABLE.astype(np.float32), TABLE.astype(bool), TABLE[:3], TABLE[:, :3], TABLE[0],
        np.ma.masked_array(TABLE), MATRIX(TABLE),
    ],
    "page_size": [64, 0, -1, "64", 64.0, 1.0, True, None, 2**31, np.int64(7)],
    "order": ["x", "", None, 0, True, [], b"index"],
    "tie_break": ["x", "", None, 0, True, [], b"any"],
    "nan": ["x", "", None, 0, True, [], np.nan],
    "index_dtype": ["int16", np.int32, 32, [], ""],
    "dtype": ["int8", np.float32, 4, [], ""],
    "deterministic": ["x", 1, 0, None, []],
    "values": ["x", 1, 0, 2.5, [], {}, ""],
}  # fmt: skip
BAD: list[tuple[str, dict[str, Any]]] = [
    (name, {name: wrong, "page_size": 64} if name == "page_table" else {name: wrong})
    for name, several in WRONG.items()
    for wrong in several
]
BAD += [
    ("page_size", {"page_table": TABLE, "page_size": wrong}) for wrong in WRONG["page_size"] if wrong not in (7, 64)
]
BAD += [("page_table", {"page_table": TABLE})]  # without a size its pages are of one column: too few
LAUNCHES = {"cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel"}


def name_of(given: Any) -> str:
    """The same in every process: no address of an object."""
    if not isinstance(given, dict):
        return str(given)
    return ",".join(f"{name}={repr(value).partition(' object at ')[0][:30]}" for name, value in given.items())


@pytest.mark.parametrize("given", GOOD, ids=name_of)
def test_every_door_takes_the_same(api: EmulatedDriver, x: Any, given: dict[str, Any]) -> None:
    asked = {**given, "order": "index", "tie_break": "smallest"} if "order" not in given else given
    results = {}
    for name, door in DOORS.items():
        found = door(x, **asked)
        results[name] = found.indices if isinstance(found, drvtopk.Selected) else found
    for name, found in results.items():
        assert np.array_equal(found, results["reference"]) and found.dtype == results["reference"].dtype, name


@pytest.mark.parametrize(("argument", "given"), BAD, ids=name_of)
def test_every_door_refuses_the_same_in_the_same_words(
    api: EmulatedDriver, x: Any, argument: str, given: dict[str, Any]
) -> None:
    errors = {name: refused(argument, functools.partial(door, x, **given)) for name, door in DOORS.items()}
    assert not LAUNCHES & set(api.names)
    if argument == "values":
        return  # another thing may be given at each door
    for doors in (HOST, DEVICE):
        assert len({str(errors[name]) for name in doors}) == 1
    if argument not in ARRAYS:
        assert len(set(map(str, errors.values()))) == 1


NO_LOGITS = ([[1.0, 2.0]], "x", None, 5.0, True, np.float32(3), object(), Broken(), SimpleNamespace(shape=(2, 2)))


@pytest.mark.parametrize("door", DOORS)
def test_logits_that_are_none_are_refused(api: EmulatedDriver, x: Any, door: str) -> None:
    masked, matrix = np.ma.masked_array(x, x > 0), MATRIX(x)
    shapes = x[0], x[None], x.astype(np.float64), x.astype(np.int32), x.astype(">f4"), x.astype(object)
    for wrong in (*NO_LOGITS, masked, matrix, *(shapes if door in HOST else ())):
        given = Interface(drv.load(), x) if wrong is None else wrong
        if door in HOST:
            refused("logits", functools.partial(DOORS[door], wrong))
        elif door == "topk on a device":
            refused("logits", functools.partial(drvtopk.topk, wrong, K))
        else:
            ready, call = _prepared({})
            refused("logits", functools.partial(ready if door == "prepared" else ready.bind, wrong, **call))
        del given
    assert not LAUNCHES & set(api.names)


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda field: field.name)
def test_every_option_is_of_its_type(field: Any) -> None:
    for wrong in ("x", 1, 0, None, 2.5, [], {}, np.zeros(3), Broken(), b"int32", object()):
        asked: dict[str, Any] = {field.name: wrong}
        refused(field.name, functools.partial(Options, **asked))
    given: Any = np.str_(field.default) if isinstance(field.default, str) else np.bool_(field.default)
    found = Options(**{field.name: given})
    assert found == Options() and type(getattr(found, field.name)) is type(field.default)


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("route", {"route": "x"}),
        ("route", {"route": ["auto"]}),
        ("route", {"route": None}),
        ("waits", {"waits": True}),
        ("waits", {"waits": []}),
        ("pdl", {"pdl": "yes"}),
        ("sm_budget", {"sm_budget": 0}),
        ("sm_budget", {"sm_budget": 2.0}),
        ("max_seq_len", {"max_seq_len": -1}),
        ("max_seq_len", {"max_seq_len": "9"}),
        ("stream", {"stream": "x"}),
        ("stream", {"stream": 2**64}),
        ("stream", {"stream": 1.0}),
    ],
)
def test_what_is_said_of_a_launch_is_checked_at_each_door(
    api: EmulatedDriver, x: Any, argument: str, given: dict[str, Any]
) -> None:
    doors: list[Callable[..., Any]] = [door_topk, door_device]
    doors.append(lambda x, **given: drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, **given))
    assert len({str(refused(argument, functools.partial(door, x, **given))) for door in doors}) == 1
    assert not LAUNCHES & set(api.names)


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        *(("offset", {"offset": wrong}) for wrong in (-1, "x", 2.5, True, None)),
        ("options", {"options": "x"}),
        ("values", {"values": np.zeros(3)}),
        ("page_table", {"page_table": TABLE}),
        ("row_starts", {"row_starts": 1}),
        ("stride", {"stride": 2.0}),
        ("rows", {"rows": "4"}),
    ],
)
def test_preparations_are_checked(api: EmulatedDriver, argument: str, given: dict[str, Any]) -> None:
    asked = {"rows": ROWS, "width": WIDTH, "k": K}
    if argument == "options":
        refused(argument, lambda: Problem(**{**asked, **given}))
    else:
        refused(argument, lambda: drvtopk.prepare(**{**asked, **given}))


@pytest.mark.parametrize(
    ("argument", "given"),
    [
        ("tuning", {"tuning": None}),
        ("tuning", {"tuning": {"samples": 64}}),
        ("assume", {"assume": "h100"}),
        ("group", {"group": 4}),
        ("group", {"group": 4.0, "route": "clustered"}),
        ("chunk", {"chunk": 1e4, "route": "persistent"}),
    ],
)
def test_knobs_of_the_engine_are_checked(api: EmulatedDriver, argument: str, given: dict[str, Any]) -> None:
    refused(argument, lambda: current_engine().prepare(Problem(rows=ROWS, width=WIDTH, k=K), **given))


# The command, which has its arguments as text and files


def command(capsys: pytest.CaptureFixture[str], folder: Path, x: Any, **given: Any) -> tuple[int, str]:
    argv = ["topk", str(folder / "x.npy"), "--out", str(folder / "out.npy")]
    np.save(folder / "x.npy", x)
    for name, value in {"k": K, **given}.items():
        if isinstance(value, np.ndarray):
            np.save(folder / f"{name}.npy", value, allow_pickle=False)
            value = folder / f"{name}.npy"
        argv += [f"--{name.replace('_', '-')}", str(value)]
    capsys.readouterr()
    return main(argv), capsys.readouterr().err


FOR_COMMANDS = [
    (argument, given)
    for argument, given in BAD
    if argument in ("k", "lengths", "row_starts", "page_table", "page_size", "order", "tie_break", "nan")
    and all((type(v) is np.ndarray and v.dtype != object) or type(v) in (int, str) for v in given.values())
    and not (argument in ARRAYS and type(given[argument]) is not np.ndarray)
    and not (argument in ("k", "page_size") and type(given[argument]) is str)  # all of a command's are text
]


@pytest.mark.parametrize(("argument", "given"), FOR_COMMANDS, ids=name_of)
def test_the_command_refuses_the_same(
    api: EmulatedDriver,
    x: Any,
    argument: str,
    given: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    code, said = command(capsys, tmp_path, x, **given)
    assert code == 2 and argument.replace("_", "-") in said.replace("_", "-")
    assert not (tmp_path / "out.npy").exists() and not LAUNCHES & set(api.names)


@pytest.mark.parametrize("given", GOOD[:5], ids=name_of)
def test_the_command_takes_the_same(
    api: EmulatedDriver, x: Any, given: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = command(capsys, tmp_path, x, order="index", tie_break="smallest", **given)
    assert code == 0, said
    wanted = drvtopk.topk_reference(x, K, order="index", tie_break="smallest", **given)
    assert np.array_equal(np.load(tmp_path / "out.npy"), wanted)


# Outputs in numpy


def test_an_output_that_cannot_be_written_is_refused_before_any_work(api: EmulatedDriver, x: Any) -> None:
    shapes = {"out": np.zeros((ROWS, K), np.int32), "values": np.zeros((ROWS, K), np.float32)}
    for name, array in shapes.items():
        array.flags.writeable = False
        for wrong in (array, np.broadcast_to(array[0], array.shape), array.view()):
            api.calls.clear()
            assert "read-only" in str(refused(name, functools.partial(door_topk, x, **{name: wrong})))
            assert not api.calls
    for name, array in shapes.items():
        good = array.copy()
        others = good.tolist(), MATRIX(good), np.ma.masked_array(good), Interface(drv.load(), good), "x"
        for wrong in (*others, good[:, :-1], good.astype(">i8"), good.astype(object), True if name == "out" else 1):
            api.calls.clear()
            refused(name, functools.partial(door_topk, x, **{name: wrong}))
            assert not api.calls


def test_an_output_that_overlaps_is_refused_in_numpy_too(api: EmulatedDriver, x: Any) -> None:
    both = np.zeros((2, ROWS, K), np.int32)
    refused("out", lambda: drvtopk.topk(x, K, out=both[0], values=both[0].view(np.float32)))
    refused("out", lambda: drvtopk.topk(x, K, out=x.view(np.int32)[:, :K]))
    refused("values", lambda: drvtopk.topk(x, K, values=x[:, :K]))
    assert not LAUNCHES & set(api.names)
    out, values = both[0], both[1].view(np.float32)
    found = drvtopk.topk(x, K, out=out, values=values)
    assert found.indices is out and found.values is values


# Anything at all


class Raising:
    """Everything that may be asked of it raises."""

    __hash__ = None  # type: ignore[assignment]

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("an error of its own")

    def _raise(self, *_: Any) -> Any:
        raise RuntimeError("an error of its own")

    __eq__ = __bool__ = __len__ = __iter__ = __repr__ = __int__ = _raise


ANYTHING: list[Any] = [
    None, True, -1, 2**70, 10**5000, 1.5, float("inf"), 1j, "", "x", "int32", b"xx", bytearray(b"xx"), [], (1, 2), {},
    {1: 2}, {1, 2}, range(3), object(), object, len, Raising(), Broken(), SimpleNamespace(), iter([1]), Ellipsis,
    memoryview(b"abcd"), np.int64(3), np.float32(3), np.str_("x"), np.datetime64(0, "s"), np.array(3), np.array([1, 2]),
    np.array("x"), np.array([None]), np.zeros((2, 2)), np.ma.masked, np.zeros(3, [("a", "i4")]), np.dtype("f4"),
    np.float32,
]  # fmt: skip


def in_context(device: Any) -> None:
    with drvtopk.primary_context(device):
        pass


@pytest.mark.parametrize("place", range(len(ANYTHING)))
def test_whatever_is_given_is_taken_or_refused(api: EmulatedDriver, x: Any, place: int) -> None:
    anything = ANYTHING[place]
    driver = drv.load()
    calls: list[tuple[Callable[..., Any], dict[str, Any]]] = [
        (drvtopk.topk, {"logits": x, "k": K}),
        (drvtopk.topk, {"logits": Interface(driver, x), "k": K}),
        (drvtopk.topk_reference, {"logits": x, "k": K}),
        (drvtopk.prepare, {"rows": ROWS, "width": WIDTH, "k": K}),
        (from_address, {"address": 64, "shape": (4, 8), "dtype": "int32"}),
        (view, {"argument": "x", "value": None, "dtype": None}),
        (in_context, {"device": 0}),
    ]
    for call, good in calls:
        for name in inspect.signature(call).parameters:
            if call is view and name != "value":
                continue
            try:
                call(**{**good, name: anything})
            except (InvalidArgument, PlanError) as error:
                assert str(error)
