"""Kernels compiled here, written to a folder for processes without a compiler: cubins, manifest, C headers."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import drvtopk
from drvtopk import spec
from drvtopk.cache import Cache
from drvtopk.compiler import Compiled, compile_variants, definitions
from drvtopk.errors import InvalidArgument
from drvtopk.export import manifest
from drvtopk.export.c_header import kernels_header, rules_header
from drvtopk.export.manifest import ExportedKernel, Key, Manifest, ManifestError
from drvtopk.files import folder_fault, output_fault, write_whole
from drvtopk.nvrtc import check_device_arch, nvrtc_version
from drvtopk.records import DIGEST, digest
from drvtopk.source import sources_digest
from drvtopk.spec import Variant

READABLE = 0o644  # others deploy what is written
INDEX = ("drvtopk.h", "drvtopk_kernels.h", manifest.MANIFEST)
"""What an export writes beside the cubins, in this order."""

__all__ = ["Export", "ExportedKernel", "check_out_folder", "cubin_name", "export_kernels"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What a folder holds after an export."""

    folder: Path
    sources: str
    """Digest of the kernel sources."""
    nvrtc: tuple[int, int]
    kernels: tuple[ExportedKernel, ...]
    """All of them, those of exports before included."""
    added: tuple[ExportedKernel, ...]
    """Those that this export brought."""


def cubin_name(variant: Variant, arch: str) -> str:
    """'clustered_k1024_v4_x8_alone_sm_90a.cubin': what tells it from the others of one tuning."""
    v = variant
    cluster = f"_x{v.cluster}" if v.cluster > 1 else ""
    alone, pdl = "_alone" * (v.residency == 1), "_pdl" * v.pdl
    return f"{v.route}{v.options.suffix}_k{v.k}_v{v.vec_size}{cluster}{alone}{pdl}_{arch}.cubin"


def check_out_folder(argument: str, folder: Path, names: Iterable[str]) -> None:
    """Makes the folder. InvalidArgument, before any work, where files of these names cannot be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InvalidArgument(argument, str(folder), f"a folder that can be made ({error})") from error
    fault = folder_fault(folder)
    if fault is not None:
        raise InvalidArgument(argument, str(folder), f"a folder that may be written ({fault})")
    for name in names:
        allowed = output_fault(folder / name) if os.path.lexists(folder / name) else None
        if allowed is not None:
            raise InvalidArgument(argument, str(folder / name), allowed)


def export_kernels(
    folder: Path | str, wanted: Mapping[str, Sequence[Variant]], *, cache: Cache | None = None
) -> Export:
    """Compiles `wanted` ({'sm_90a': [...]}) and writes it to `folder`, beside what exports before wrote there.

    Writes a cubin for each kernel, drvtopk.h and drvtopk_kernels.h for hosts in C, and last manifest.json, each under a
    temporary name first, so that a reader sees the folder as it was or as it will be. What is there already, whole, is
    not compiled again.

    Raises InvalidArgument for a folder that cannot be made or written to, that holds an export of other kernel sources
    or of another NVRTC, for different tunings (a host plans by one), for an architecture that this NVRTC does not know
    or that no device asks for, and without kernels; CompilerUnavailable; CompileError; OSError for a write that fails.
    """
    folder = Path(folder).absolute()
    keys: list[Key] = [(check_device_arch(arch), variant) for arch, variants in wanted.items() for variant in variants]
    keys = list(dict.fromkeys(keys))
    if not keys:
        raise InvalidArgument("wanted", "nothing", "at least one kernel")
    check_out_folder("folder", folder, [*(cubin_name(variant, arch) for arch, variant in keys), *INDEX])
    before = _before(folder, keys)
    compiled: dict[Key, Compiled] = {}
    for arch in wanted:
        missing = [variant for one, variant in keys if one == arch and not _is_whole(folder, before, (arch, variant))]
        made = compile_variants(missing, arch, cache=cache, label=f"export {arch}")
        compiled |= {(arch, variant): one for variant, one in zip(missing, made, strict=True)}
    added = {key: _exported(key, one) for key, one in compiled.items()}
    with _alone(folder):
        before = _before(folder, keys)  # another export may have come in between
        kernels = {**(before.kernels if before is not None else {}), **added}
        for key, one in compiled.items():
            write_whole(folder / added[key].file, one.cubin, mode=READABLE)
        _write_index(folder, tuple(kernels.values()))
    return Export(
        folder=folder,
        sources=sources_digest(),
        nvrtc=nvrtc_version(),
        kernels=tuple(kernels.values()),
        added=tuple(added.values()),
    )


def _before(folder: Path, keys: Sequence[Key]) -> Manifest | None:
    """What the folder holds, if the wanted kernels may join it; InvalidArgument if they may not."""
    found = None
    try:
        found = manifest.read(folder)
    except FileNotFoundError:
        pass
    except ManifestError as error:
        raise InvalidArgument("folder", str(folder), f"an empty folder, or one with an export ({error})") from error
    if found is not None and found.sources != sources_digest():
        there, ours = f"drvtopk {found.drvtopk}, {found.sources}", f"drvtopk {drvtopk.__version__}, {sources_digest()}"
        raise InvalidArgument(
            "folder", str(folder), f"an export of the same kernel sources ({ours}); this one is of others ({there})"
        )
    if found is not None and found.nvrtc != nvrtc_version():
        there, ours = (".".join(map(str, version)) for version in (found.nvrtc, nvrtc_version()))
        raise InvalidArgument("folder", str(folder), f"an export by the same NVRTC ({ours}); this one is by {there}")
    if found is not None and any(found.definitions[key] != definitions(key[1], key[0]) for key in found.kernels):
        raise InvalidArgument(
            "folder",
            str(folder),
            f"an export by the same drvtopk ({drvtopk.__version__}); in this one, by "
            f"{found.drvtopk}, kernels were compiled with other numbers",
        )
    tunings = {variant.tuning for _, variant in [*keys, *(found.kernels if found is not None else ())]}
    if len(tunings) > 1:
        raise InvalidArgument("tuning", f"{len(tunings)} different ones", "one for all kernels of a folder")
    return found


def _is_whole(folder: Path, before: Manifest | None, key: Key) -> bool:
    """Whether the folder has this kernel already."""
    kernel = before.kernels.get(key) if before is not None else None
    if kernel is None:
        return False
    try:
        manifest.read_cubin(folder, kernel)
    except ManifestError:
        return False
    return True


def _exported(key: Key, compiled: Compiled) -> ExportedKernel:
    arch, variant = key
    return ExportedKernel(
        variant=variant,
        arch=arch,
        file=cubin_name(variant, arch),
        info=compiled.info,
        sha256=hashlib.sha256(compiled.cubin).hexdigest(),
    )


def _write_index(folder: Path, kernels: tuple[ExportedKernel, ...]) -> None:
    document = json.dumps(_document(kernels), indent=1) + "\n"
    texts = (rules_header(), kernels_header(kernels).encode(), document.encode())
    for name, text in zip(INDEX, texts, strict=True):
        write_whole(folder / name, text, mode=READABLE)


def _document(kernels: tuple[ExportedKernel, ...]) -> dict[str, Any]:
    return {
        "format": manifest.FORMAT,
        "drvtopk": drvtopk.__version__,
        "sources": sources_digest(),
        "nvrtc": list(nvrtc_version()),
        "kernels": [_record(kernel) for kernel in kernels],
        "parameters": manifest.parameters(),
        "workspace_alignment": spec.WORKSPACE_ALIGNMENT,
    }


def _record(kernel: ExportedKernel) -> dict[str, Any]:
    info = {name: value for name, value in dataclasses.asdict(kernel.info).items() if name != "seconds"}
    record = {
        "arch": kernel.arch,
        "file": kernel.file,
        "sha256": kernel.sha256,
        "variant": dataclasses.asdict(kernel.variant),
        **manifest.derived(kernel.variant),
        **info,
        "definitions": definitions(kernel.variant, kernel.arch),
    }
    return {**record, DIGEST: digest(record)}


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two exports into one folder take turns, where the system can tell."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
