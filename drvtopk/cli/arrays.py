"""Arrays that commands read from .npy files, and the files that they write."""

from __future__ import annotations

import ast
import math
import os
import re
import sys
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from drvtopk.errors import InvalidArgument
from drvtopk.files import followed, is_same, open_regular, output_fault, write_together

_MAGIC = b"\x93NUMPY"
_MOST_HEADER = 10_000  # characters; what numpy reads too
_MOST_DIMENSIONS = 8


class _NoArray(ValueError):
    """It is no .npy file of one array; the text says why."""


def load(argument: str, path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, in this machine's byte order, never unpickled. Raises InvalidArgument."""
    try:
        with open_regular(path) as file:
            found = _read(file)
    except (OSError, ValueError, MemoryError) as error:
        raise InvalidArgument(argument, str(path), f"a readable .npy file ({error})") from error
    return found.astype(found.dtype.newbyteorder("="), copy=False)


def _read(file: BinaryIO) -> npt.NDArray[Any]:
    """Raises _NoArray for any other bytes."""
    start = file.read(8)
    if start[:6] != _MAGIC or len(start) < 8:
        raise _NoArray("it does not begin as one does")
    if start[6] not in (1, 2, 3) or start[7] != 0:
        raise _NoArray(f"it is of version {start[6]}.{start[7]}, and 1.0, 2.0 and 3.0 can be read")
    width = 2 if start[6] == 1 else 4
    size = int.from_bytes(file.read(width), "little")
    if size > _MOST_HEADER:
        raise _NoArray(f"its header has {size} characters, more than {_MOST_HEADER}")
    header = file.read(size)
    if len(header) < size:
        raise _NoArray("it is cut in its header")
    dtype, fortran, shape = _parse(header.decode("utf-8" if start[6] == 3 else "latin-1"))
    count = math.prod(shape)
    there = os.fstat(file.fileno()).st_size - file.tell()
    if count * dtype.itemsize > there:
        raise _NoArray(f"{dtype} of shape {shape} has {count * dtype.itemsize} bytes, and there are {there}")
    found = np.fromfile(file, dtype, count)
    return found.reshape(shape[::-1]).T if fortran else found.reshape(shape)


def _parse(header: str) -> tuple[np.dtype[Any], bool, tuple[int, ...]]:
    """(dtype, whether columns come first, shape). Raises _NoArray."""
    header = re.sub(r"(?<=\d)L\b", "", header)  # a long of Python 2
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Python's parser, on what is none of our text
            fields = ast.literal_eval(header.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise _NoArray(f"its header cannot be read: {error}") from error
    if not isinstance(fields, dict) or fields.keys() != {"descr", "fortran_order", "shape"}:
        raise _NoArray("its header is no dictionary of descr, fortran_order and shape")
    descr, fortran, shape = fields["descr"], fields["fortran_order"], fields["shape"]
    if type(fortran) is not bool:
        raise _NoArray("its fortran_order is neither True nor False")
    if type(shape) is not tuple or any(type(n) is not int or not 0 <= n < 2**63 for n in shape):
        raise _NoArray("its shape is no tuple of whole numbers below 2^63")
    if len(shape) > _MOST_DIMENSIONS or math.prod(n or 1 for n in shape) >= 2**59:
        raise _NoArray(f"its shape {shape} is of no array that fits anywhere")
    try:
        if not isinstance(descr, str) or not re.fullmatch("[<>|=]?[biufcV?][0-9]{0,2}", descr, re.ASCII):
            raise TypeError(f"{descr!r:.80}")
        dtype = np.dtype(descr)
        if dtype.itemsize == 0:
            raise TypeError("elements of no bytes")
    except (TypeError, ValueError) as error:
        raise _NoArray(f"its dtype is none of numbers: {error}") from error
    return dtype, fortran, shape


def check_outputs(outputs: Mapping[str, Path], inputs: Mapping[str, Path | None]) -> None:
    """InvalidArgument, before any work, for an output that cannot be written, or that lands on an input, on another
    output, or on what stdout or stderr writes to. Both by their arguments' names."""
    before: dict[str, Path] = {}
    for argument, path in outputs.items():
        allowed = output_fault(path)
        if allowed is not None:
            raise InvalidArgument(argument, str(path), allowed)
        for other, taken in (*inputs.items(), *before.items()):
            if taken is not None and is_same(path, taken):
                raise InvalidArgument(argument, str(path), f"another file than {other}")
        for stream in ("stdout", "stderr"):
            if _goes_to(getattr(sys, stream), path):
                raise InvalidArgument(argument, str(path), f"another file than the one that {stream} writes to")
        before[argument] = path


def _goes_to(stream: Any, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(stream.fileno()), path.stat())
    except (AttributeError, OSError, ValueError):  # there is no stream, or no file
        return False


def save(results: Mapping[Path, npt.NDArray[Any]]) -> None:
    """Each array as a .npy file, all of them or none; a link stays one. Raises OSError."""
    write_together({followed(path): partial(_save, array) for path, array in results.items()})


def _save(array: npt.NDArray[Any], file: BinaryIO) -> None:
    np.save(file, array, allow_pickle=False)
