"""What an export holds: one record for each cubin, and `manifest.json`, which lists them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvtopk import files, spec
from drvtopk.records import DIGEST, Fields, Malformed, cubin_fault, digest, kernel_info, parse
from drvtopk.spec import KernelInfo, Options, Tuning, Variant

FORMAT = 2  # of the manifest; another number is another format
MANIFEST = "manifest.json"
_MOST_BYTES = 1 << 26  # of a manifest
_SHA256 = ("[0-9a-f]{64}", "64 hexadecimal digits")

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


class ManifestError(Exception):
    """There is no manifest, or not one of this format, or its kernel is not what it says; the text says which."""


def read(folder: Path) -> Manifest:
    """The manifest in `folder`. Raises FileNotFoundError if there is none, ManifestError if it is not one."""
    path = folder / MANIFEST
    try:
        document = Fields(parse(files.read_regular(path, _MOST_BYTES)), "manifest")
        written = document.whole("format", 0, 2**31 - 1)
        version = document.text("drvtopk", r"[!-~]{1,64}", "a version")
        if written != FORMAT:
            raise ManifestError(
                f"{path} is of format {written}, as drvtopk {version} wrote it, and {FORMAT} is what can be read: "
                "export anew, into an empty folder"
            )
        nvrtc = document.list("nvrtc")
        if len(nvrtc) != 2 or any(type(part) is not int or not 0 <= part < 1000 for part in nvrtc):
            document.refuse("nvrtc", "two integers in 0..999")
        document.fields("parameters")  # this and the alignment are for hosts without this package
        document.whole("workspace_alignment", 1, 1 << 20)
        kernels: dict[Key, ExportedKernel] = {}
        numbers: dict[Key, Mapping[str, int | str]] = {}
        for at, value in enumerate(document.list("kernels")):
            record = Fields(value, f"kernels[{at}]")
            kernel = _kernel(record)
            key = kernel.arch, kernel.variant
            if key in kernels:
                raise Malformed(f"{record.where} is {kernel.variant} for {kernel.arch} again")
            kernels[key], numbers[key] = kernel, _definitions(record.fields("definitions"))
        return Manifest(
            drvtopk=version,
            sources=document.text("sources", *_SHA256),
            nvrtc=(nvrtc[0], nvrtc[1]),
            kernels=kernels,
            definitions=numbers,
        )
    except FileNotFoundError:
        raise
    except (OSError, Malformed) as error:
        raise ManifestError(f"{path} cannot be read ({error})") from error


def read_cubin(folder: Path, kernel: ExportedKernel) -> bytes:
    """The kernel's cubin, if it is the one that was exported, and for its architecture. Raises ManifestError."""
    path = folder / kernel.file
    try:
        cubin = files.read_regular(path, kernel.info.cubin_bytes)
    except OSError as error:
        raise ManifestError(f"{path} cannot be read ({error})") from error
    if hashlib.sha256(cubin).hexdigest() != kernel.sha256:
        raise ManifestError(f"{path} is damaged: its SHA-256 is not the manifest's")
    fault = cubin_fault(cubin, kernel.arch)
    if fault is not None:
        raise ManifestError(f"{path} {fault}")
    return cubin


def derived(variant: Variant) -> dict[str, Any]:
    """What a record says of an instantiation beside its fields, for hosts without this package."""
    options = variant.options
    return {
        "name": str(variant),
        "entry": variant.entry,
        "threads": variant.threads,
        "vec_sizes": list(options.vec_sizes),
        "item_bytes": options.item_bytes,
        "index_bytes": spec.INDEX_DTYPES[options.index_dtype],
        "parameter_bytes": spec.packed((*spec.PARAMS, *spec.EXTRAS) if options.extras else spec.PARAMS).size,
        "fixed_smem_bytes": variant.fixed_smem_bytes,
        "candidate_bytes": variant.candidate_bytes,
    }


def parameters() -> dict[str, Any]:
    """Both layouts of the parameter block: bytes, and each field's name, C type, offset and size."""
    return {
        name: {"bytes": spec.packed(fields).size, "fields": _layout(fields)}
        for name, fields in (("plain", spec.PARAMS), ("extended", (*spec.PARAMS, *spec.EXTRAS)))
    }


def _layout(fields: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": kind,
            "offset": spec.packed(fields[:at]).size,
            "bytes": spec.packed([(name, kind)]).size,
        }
        for at, (name, kind) in enumerate(fields)
    ]


def _kernel(record: Fields) -> ExportedKernel:
    """Of one record. Raises Malformed."""
    fields = record.fields("variant")
    tuning, options = fields.fields("tuning").made(Tuning), fields.fields("options").made(Options)
    variant = fields.made(Variant, tuning=tuning, options=options)
    kernel = ExportedKernel(
        variant=variant,
        arch=record.text("arch", "sm_[0-9]{2,3}[af]?", "an architecture, 'sm_90a'"),
        file=record.text("file", r"(?!\.\.?$)[A-Za-z0-9._-]{1,255}", "a file; this is no name in that folder"),
        info=kernel_info(record),
        sha256=record.text("sha256", *_SHA256),
    )
    for name, value in derived(variant).items():
        record.same(name, value)
    record.same(DIGEST, digest(record.values))
    return kernel


def _definitions(fields: Fields) -> Mapping[str, int | str]:
    for name, value in fields.values.items():
        if type(value) not in (int, str):
            fields.refuse(name, "an integer or a word")
    return fields.values
