"""Checks of arguments, one for each kind: they return plain Python values, or raise InvalidArgument."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Set
from typing import Any, TypeVar

import numpy as np

from drvtopk.errors import InvalidArgument

T = TypeVar("T")
_SHOWN = 200  # characters of a value


def shown(value: object) -> str:
    """A value in a message: its repr in one line, unless that is long or fails."""
    try:
        text = " ".join(repr(value).split())
    except Exception:
        return type(value).__name__
    return text if len(text) <= _SHOWN else f"{type(value).__name__} {text[:_SHOWN]}..."


def reason(error: Exception) -> str:
    """The first line of somebody else's error."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def as_int(value: Any) -> int | None:
    """A plain int of anything with `__index__`; None of anything else, and of bools."""
    if type(value) is int:
        return value
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool"):  # also a bool tensor's
            return None
        return int(operator.index(value))
    except Exception:  # a tensor's own error, too
        return None


def integer(name: str, value: object, low: int, high: int) -> int:
    """An integer in low..high: whatever has `__index__`, but for bools."""
    number = as_int(value)
    if number is None or not low <= number <= high:
        raise InvalidArgument(name, shown(value if number is None else number), f"an integer in {low}..{high}")
    return number


def integers(name: str, value: Any, low: int, high: int) -> tuple[int, ...]:
    """A sequence of integers in low..high."""
    numbers: list[int] = []
    try:
        if isinstance(value, (bytes, Mapping, Set)):  # which have integers in them, and are no sequences of sizes
            raise TypeError
        for one in value:
            number = as_int(one)
            if number is None or not low <= number <= high:
                raise ValueError
            numbers.append(number)
    except Exception as error:
        raise InvalidArgument(name, shown(value), f"a tuple of integers in {low}..{high}") from error
    return tuple(numbers)


def flag(name: str, value: object) -> bool:
    """True or False, of numpy too."""
    if not isinstance(value, (bool, np.bool_)):
        raise InvalidArgument(name, shown(value), "True or False")
    return bool(value)


def one_of(name: str, value: object, allowed: Collection[str]) -> str:
    """One of these words."""
    if not isinstance(value, str) or value not in allowed:
        raise InvalidArgument(name, shown(value), " or ".join(map(repr, allowed)))
    return str(value)  # numpy's strings are some


def instance(name: str, value: object, kind: type[T]) -> T:
    """An object of one of this package's classes."""
    if not isinstance(value, kind):
        raise InvalidArgument(name, shown(value), f"an instance of {kind.__name__}")
    return value


def store(target: object, **checked: object) -> None:
    """Sets fields of a frozen dataclass to what their checks returned."""
    for name, value in checked.items():
        object.__setattr__(target, name, value)
