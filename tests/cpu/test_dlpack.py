"""Exports of DLPack while other threads, garbage collections and consumers come in between: none is lost or freed."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from drvtopk.interop import dlpack
from drvtopk.interop.dlpack import Tensor
from tests.interrupted import everywhere

_rename = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_SetName", ctypes.pythonapi))
USED = b"used_dltensor_versioned"  # a capsule keeps the address of its name


def exported(owner: object = None) -> Any:
    tensor = Tensor(
        address=0x1000,
        shape=(3,),
        strides=None,
        dtype="float32",
        bits=32,
        device_type=dlpack.CUDA,
        device=0,
        read_only=False,
    )
    return dlpack.capsule_of(tensor, owner, versioned=True)


def address(capsule: Any) -> int:
    return int(dlpack._capsule_pointer(capsule, b"dltensor_versioned"))


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    gc.collect()
    dlpack.drop_abandoned()
    yield
    gc.collect()
    dlpack.drop_abandoned()


def test_an_export_is_kept_wherever_another_thread_looks_for_abandoned_ones() -> None:
    def check(where: str) -> None:
        capsule = exported()
        assert address(capsule) in dlpack._exported, where
        assert dlpack.parse("x", capsule).shape == (3,)

    assert everywhere(dlpack.capsule_of, dlpack.drop_abandoned, check) > 10


def test_a_capsule_that_is_consumed_meanwhile_is_not_abandoned() -> None:
    """A consumer renames the capsule, lets go of it and keeps the tensor, whose deleter it calls when it is done."""
    held: list[Any] = []

    def consume() -> None:
        if held:
            assert _rename(held[0], USED) == 0
            held.clear()

    def check(where: str) -> None:
        held.append(exported())
        taken = address(held[0])
        dlpack.drop_abandoned()
        assert taken in dlpack._exported, where
        consume()
        dlpack.drop_abandoned()
        assert taken in dlpack._exported, where
        dlpack._delete(taken)
        assert taken not in dlpack._exported

    assert everywhere(dlpack._Export.abandoned, consume, check) > 10


@pytest.mark.parametrize("inner", ["delete", "export", "drop"])
def test_a_collection_may_end_and_begin_exports_while_abandoned_ones_are_looked_for(
    monkeypatch: pytest.MonkeyPatch, inner: str
) -> None:
    """A garbage collection runs finalizers on this very thread, in the middle of the look."""
    consumed, kept = exported(), exported()
    given_back, kept_at = address(consumed), address(kept)
    _rename(consumed, USED)
    del consumed
    abandoned = [exported() for _ in range(3)]
    new: list[Any] = []
    original = dlpack._Export.abandoned

    def collecting(export: dlpack._Export, unshared: int) -> bool:
        answer = original(export, unshared)
        monkeypatch.setattr(dlpack._Export, "abandoned", original)
        if inner == "delete":
            dlpack._delete(given_back)
        elif inner == "export":
            new.extend(exported() for _ in range(20))
        else:
            dlpack.drop_abandoned()
        return answer

    monkeypatch.setattr(dlpack._Export, "abandoned", collecting)
    del abandoned[:]
    dlpack.drop_abandoned()
    dlpack.drop_abandoned()
    expected = {kept_at, *map(address, new)} | ({given_back} if inner != "delete" else set())
    assert set(dlpack._exported) == expected
    dlpack._delete(given_back)


def test_no_export_is_lost_among_threads_that_switch_all_the_time() -> None:
    lost: list[int] = []
    turns = 400
    together = threading.Barrier(4)

    def work() -> None:
        together.wait()
        for _ in range(turns):
            capsule = exported()
            if address(capsule) not in dlpack._exported:
                lost.append(address(capsule))
                return

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(before)
    assert not lost and not any(thread.is_alive() for thread in threads)
    dlpack.drop_abandoned()
    assert not dlpack._exported


def test_a_deleter_waits_for_no_thread_that_looks_for_abandoned_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its caller may hold a lock that a finalizer on the other thread wants."""
    consumed, abandoned = exported(), exported()
    at = address(consumed)
    _rename(consumed, USED)
    looking, go_on = threading.Event(), threading.Event()
    original = dlpack._Export.abandoned

    def waiting(export: dlpack._Export, unshared: int) -> bool:
        looking.set()
        assert go_on.wait(20)
        return original(export, unshared)

    monkeypatch.setattr(dlpack._Export, "abandoned", waiting)
    del consumed, abandoned
    looker = threading.Thread(target=dlpack.drop_abandoned)
    looker.start()
    assert looking.wait(20)
    deleter = threading.Thread(target=dlpack._delete, args=(at,))
    deleter.start()
    deleter.join(5)
    waited = deleter.is_alive()
    go_on.set()
    looker.join(20)
    deleter.join(20)
    assert not waited and not dlpack._exported
