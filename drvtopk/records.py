"""Records from files that anybody may have written: every field has its type and range, or `Malformed` names it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import reprlib
import struct
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from drvtopk.errors import InvalidArgument
from drvtopk.spec import KernelInfo

T = TypeVar("T")

DIGEST = "digest"
_TYPES: Mapping[str, type] = {"int": int, "str": str, "bool": bool}  # as dataclasses annotate them
_LIMITS: Mapping[str, tuple[int, int]] = {
    "registers": (1, 255),
    "spill_bytes": (0, 2**31 - 1),
    "stack_bytes": (0, 2**31 - 1),
    "static_smem_bytes": (0, 227 * 1024),
    "cubin_bytes": (1, 1 << 28),
}
"""Of what the compiler says of a kernel: what CUDA allows, where it names a limit."""


class Malformed(ValueError):
    """A record is not what it should be; the text names the field, its value and what is allowed."""


def parse(text: bytes) -> object:
    """The value of a JSON document. Raises Malformed, also for the constants that JSON does not have."""

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no number")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError as error:
        raise Malformed("it is nested too deeply") from error
    except ValueError as error:
        raise Malformed(f"{type(error).__name__}: {error}") from error


def digest(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record but for its digest, hexadecimal: of its JSON in ASCII, keys sorted, without spaces."""
    text = _canonical({name: value for name, value in record.items() if name != DIGEST})
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: object) -> str:
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise Malformed(str(error)) from error


class Fields:
    """A JSON object, whose fields are taken out by name, type and range. Raises Malformed."""

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"{where}: got {reprlib.repr(value)}, allowed is an object")
        self.values: dict[str, Any] = value
        self.where = where

    def refuse(self, name: str, allowed: str) -> NoReturn:
        raise Malformed(f"{self.where}.{name}: got {reprlib.repr(self.values.get(name))}, allowed is {allowed}")

    def one(self, name: str, kind: type[T], allowed: str) -> T:
        """A value of exactly this type: true is no integer."""
        if name not in self.values:
            raise Malformed(f"{self.where} has no {name}, allowed is {allowed}")
        if type(self.values[name]) is not kind:
            self.refuse(name, allowed)
        value: T = self.values[name]
        return value

    def whole(self, name: str, low: int, high: int) -> int:
        allowed = f"an integer in {low}..{high}"
        value = self.one(name, int, allowed)
        return value if low <= value <= high else self.refuse(name, allowed)

    def text(self, name: str, pattern: str, allowed: str) -> str:
        value = self.one(name, str, allowed)
        return value if re.fullmatch(pattern, value, re.ASCII) else self.refuse(name, allowed)

    def fields(self, name: str) -> Fields:
        return Fields(self.one(name, dict, "an object"), f"{self.where}.{name}")

    def list(self, name: str) -> list[Any]:
        return self.one(name, list, "a list")

    def same(self, name: str, expected: object) -> None:
        """Refuses all but one value."""
        if name not in self.values or _canonical(self.values[name]) != _canonical(expected):
            self.refuse(name, f"{expected!r}")

    def made(self, kind: type[T], **given: object) -> T:
        """A dataclass of integers, words and truth values, from as many fields; `given` are those that are neither."""
        wanted = {field.name: field.type for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
        if self.values.keys() != wanted.keys():
            raise Malformed(f"{self.where}: got the fields {', '.join(self.values)}, allowed are {', '.join(wanted)}")
        values = {
            name: given[name] if name in given else self.one(name, _TYPES[str(of)], f"of type {of}")
            for name, of in wanted.items()
        }
        try:
            return kind(**values)
        except InvalidArgument as error:
            raise Malformed(f"{self.where}.{error}") from error


def kernel_info(fields: Fields) -> KernelInfo:
    """What the compiler said of a kernel. Raises Malformed."""
    return KernelInfo(**{name: fields.whole(name, *limits) for name, limits in _LIMITS.items()})


def cubin_fault(cubin: bytes, arch: str) -> str | None:
    """Why these bytes are no cubin for `arch`, by its ELF header; None if they are, or if the header is of an ABI that
    is not known here. The header does not tell sm_100f from sm_100."""
    if len(cubin) < 64 or cubin[:6] != b"\x7fELF\2\1" or struct.unpack_from("<H", cubin, 18)[0] != 190:
        return "is no cubin"
    (flags,) = struct.unpack_from("<I", cubin, 48)
    abi = cubin[8]
    if abi not in (7, 8):
        return None
    number, specific = (flags & 0xFF, flags & 0x800) if abi == 7 else (flags >> 8 & 0xFF, flags & 8)
    found = f"sm_{number}{'a' if specific else ''}"
    return None if found == arch.removesuffix("f") else f"is a cubin for {found}, not for {arch}"


def code_bytes(cubin: bytes) -> int:
    """Bytes of machine code: what an SM fetches of a kernel, by the cubin's `.text` sections. Raises Malformed."""
    try:
        (table,) = struct.unpack_from("<Q", cubin, 0x28)
        each, count, names = struct.unpack_from("<HHH", cubin, 0x3A)
        sections = [struct.unpack_from("<II16xQQ", cubin, table + each * i) for i in range(count)]
        *_, texts, size_of_texts = sections[names]
        listed = cubin[texts : texts + size_of_texts]
        return sum(size for name, kind, _, size in sections if listed[name:].startswith(b".text.") and kind == 1)
    except (struct.error, IndexError) as error:
        raise Malformed("it is no ELF file with sections") from error
