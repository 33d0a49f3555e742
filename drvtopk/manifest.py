"""What an export holds: one record for each cubin, and `manifest.json`, which lists them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvtopk.spec import KernelInfo, Options, Tuning, Variant

FORMAT = 1  # of the manifest; another number is another format
MANIFEST = "manifest.json"

Key = tuple[str, Variant]
"""(architecture, instantiation)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedKernel:
    """One cubin of an export, which holds one kernel."""

    variant: Variant
    arch: str
    file: str
    """Its name in the export's folder."""
    info: KernelInfo
    sha256: str
    """Of the cubin, hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The part of a manifest by which kernels are found again."""

    drvtopk: str
    """The version that wrote it."""
    sources: str
    """`source.sources_digest` of what was compiled."""
    nvrtc: tuple[int, int]
    kernels: Mapping[Key, ExportedKernel]
    definitions: Mapping[Key, Mapping[str, int | str]]
    """The numbers that each was compiled with (`compiler.definitions`)."""


class Unreadable(Exception):
    """There is no manifest, or not one of this format; the text says which."""


def read(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises FileNotFoundError if there is none, Unreadable if it is not one."""
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_bytes())
        if document["format"] != FORMAT:
            raise Unreadable(f"{path} is of format {document['format']}, and {FORMAT} is what can be read")
        major, minor = map(int, document["nvrtc"])
        records = document["kernels"]
        kernels = {(one.arch, one.variant): one for one in map(_kernel, records)}
        return Manifest(
            drvtopk=str(document["drvtopk"]),
            sources=str(document["sources"]),
            nvrtc=(major, minor),
            kernels=kernels,
            definitions=dict(zip(kernels, (record["definitions"] for record in records), strict=True)),
        )
    except FileNotFoundError:
        raise
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise Unreadable(f"{path} cannot be read ({type(error).__name__}: {error})") from error


def _kernel(record: dict[str, Any]) -> ExportedKernel:
    fields = record["variant"]
    variant = Variant(**{**fields, "tuning": Tuning(**fields["tuning"]), "options": Options(**fields["options"])})
    file = record["file"]
    if not isinstance(file, str) or file in ("", ".", "..") or Path(file).name != file:
        raise ValueError(f"a kernel's file is {file!r}, which is no name in that folder")
    info = KernelInfo(**{f.name: record[f.name] for f in dataclasses.fields(KernelInfo) if f.name != "seconds"})
    return ExportedKernel(variant=variant, arch=record["arch"], file=file, info=info, sha256=record["sha256"])
