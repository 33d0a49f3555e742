"""Every exception of the package survives pickle and copy: type, fields, message, and what a caller added."""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import pickle
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import drvtopk
from drvtopk.errors import CompileError, DriverError, InvalidArgument, PlanError, WorkspaceTooSmall

# What an exception whose constructor takes other things than a message is made of.
GIVEN: dict[type[BaseException], tuple[Any, ...]] = {
    CompileError: ("filtered<512,4>", ["--std=c++17"], "a.cu(3): error: no\na.cu(4): error: neither\n" * 3),
    DriverError: ("cuLaunchKernel", 700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal address", "grid 4"),
    InvalidArgument: ("k", 5, "1"),
    PlanError: ("clustered", "no clusters here"),
    WorkspaceTooSmall: (16, 4096),
}


class Narrower(InvalidArgument):
    """A host's own, with a constructor of its own."""

    def __init__(self, *, row: int) -> None:
        self.row = row
        super().__init__("lengths", row, "a row that is there")


def _exceptions() -> Iterator[type[BaseException]]:
    for module in pkgutil.walk_packages(drvtopk.__path__, "drvtopk."):
        for found in vars(importlib.import_module(module.name)).values():
            if isinstance(found, type) and issubclass(found, BaseException) and found.__module__ == module.name:
                yield found


EXCEPTIONS = sorted(set(_exceptions()), key=lambda kind: kind.__qualname__)


def _pickled(protocol: int) -> Callable[[Any], Any]:
    return lambda error: pickle.loads(pickle.dumps(error, protocol))


WAYS: dict[str, Callable[[Any], Any]] = {"copy": copy.copy, "deepcopy": copy.deepcopy}
WAYS |= {f"protocol {n}": _pickled(n) for n in range(pickle.HIGHEST_PROTOCOL + 1)}


def made(kind: type[BaseException]) -> BaseException:
    return Narrower(row=7) if kind is Narrower else kind(*GIVEN.get(kind, ("what went wrong",)))


def fields(error: BaseException) -> dict[str, Any]:
    return {"type": type(error), "message": str(error), "args": error.args, "repr": repr(error), **vars(error)}


def test_all_that_the_package_exports_are_walked() -> None:
    public = {found for found in vars(drvtopk).values() if isinstance(found, type) and issubclass(found, BaseException)}
    assert public <= set(EXCEPTIONS) and len(public) >= 10 and set(GIVEN) <= set(EXCEPTIONS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [*EXCEPTIONS, Narrower], ids=lambda kind: kind.__name__)
def test_an_exception_survives(kind: type[BaseException], way: str) -> None:
    error = made(kind)
    error.request = ["who asked", 3]  # type: ignore[attr-defined]
    if hasattr(error, "add_note"):
        error.add_note("in the third batch")
    again = WAYS[way](error)
    assert again is not error and fields(again) == fields(error)
    again.later = 1
    assert not hasattr(error, "later"), "a copy has fields of its own"
    assert (again.request is error.request) == (way == "copy")  # type: ignore[attr-defined]
    assert fields(WAYS[way](again)) == fields(again)


def _fail(number: int) -> None:
    raise WorkspaceTooSmall(number, 2 * number)


def test_a_pool_hands_an_exception_over() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        with pytest.raises(WorkspaceTooSmall) as caught:
            pool.apply_async(_fail, (8,)).get(timeout=60)
        assert (caught.value.given, caught.value.required, caught.value.argument) == (8, 16, "workspace")
