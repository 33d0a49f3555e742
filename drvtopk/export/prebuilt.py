"""Kernels from folders that an export wrote: what a process without a compiler runs. Folders are only ever read."""

from __future__ import annotations

import dataclasses
import logging
import os
import shlex
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from drvtopk.compiler import definitions
from drvtopk.errors import CacheWarning, CompilerUnavailable, InvalidArgument
from drvtopk.events import log_event
from drvtopk.export import manifest
from drvtopk.export.manifest import ExportedKernel, Manifest, ManifestError
from drvtopk.source import sources_digest
from drvtopk.spec import DEFAULT_TUNING, PLAIN, KernelInfo, Options, Variant

CUBINS_VARIABLE = "DRVTOPK_CUBINS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A kernel that need not be compiled."""

    cubin: bytes
    info: KernelInfo
    nvrtc: tuple[int, int]
    """The version that compiled it."""
    path: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one folder is good for here."""

    folder: Path
    kernels: int
    """Listed in its manifest."""
    usable: tuple[ExportedKernel, ...]
    """Of them: made from these sources, and whole."""
    fault: str | None
    """Why not all are usable."""


class Prebuilt:
    """Folders of exported kernels, the first that has a kernel answers. Whatever is not exactly right is a miss, and
    a CacheWarning once. Safe from several threads."""

    def __init__(self, folders: Iterable[str | os.PathLike[str]] = ()) -> None:
        self.folders = tuple(Path(folder).absolute() for folder in folders)
        self._read: dict[Path, tuple[tuple[int, int, int], Manifest]] = {}
        self._warned: dict[str, object] = {}

    def find(self, variant: Variant, arch: str) -> Found | None:
        """The kernel, verified, or None. Never raises for what is in a folder."""
        for folder in self.folders:
            try:
                found = self._find(folder, variant, arch)
            except ManifestError as error:
                self._warn(str(error))
                continue
            if found is not None:
                log_event(logging.INFO, "compile", "%s for %s came from %s", variant, arch, found.path)
                return found
        return None

    def _find(self, folder: Path, variant: Variant, arch: str) -> Found | None:
        listed = self._manifest(folder)
        kernel = listed.kernels.get((arch, variant))
        if kernel is None:
            return None
        cubin = _verified(folder, listed, kernel)
        return Found(cubin=cubin, info=kernel.info, nvrtc=listed.nvrtc, path=folder / kernel.file)

    def _manifest(self, folder: Path) -> Manifest:
        """Read again when it has changed: exports of further kernels join those that are there."""
        try:
            status = (folder / manifest.MANIFEST).stat()
            state = status.st_mtime_ns, status.st_size, status.st_ino
            before = self._read.get(folder)
            if before is None or before[0] != state:
                before = self._read[folder] = state, manifest.read(folder)
        except OSError as error:
            raise ManifestError(f"{folder} holds no export that can be read ({error})") from error
        listed = before[1]
        if listed.sources != sources_digest():
            raise ManifestError(
                f"{folder} was exported from other kernel sources (drvtopk {listed.drvtopk}, {listed.sources[:12]}) "
                f"than these ({sources_digest()[:12]}) and is passed over: export anew"
            )
        return listed

    def _warn(self, text: str) -> None:
        ours = object()
        if self._warned.setdefault(text, ours) is ours:  # only one thread is the first
            log_event(logging.WARNING, "prebuilt", "%s", text)
            warnings.warn(text, CacheWarning, stacklevel=2)

    def holdings(self) -> list[Holding]:
        """What each folder is good for; reads every cubin."""
        found = []
        for folder in self.folders:
            usable: list[ExportedKernel] = []
            count, fault = 0, None
            try:
                listed = self._manifest(folder)
                count = len(listed.kernels)
            except ManifestError as error:
                fault = str(error)
                found.append(Holding(folder=folder, kernels=self._count(folder), usable=(), fault=fault))
                continue
            for kernel in listed.kernels.values():
                try:
                    _verified(folder, listed, kernel)
                except ManifestError as error:
                    fault = fault or str(error)
                else:
                    usable.append(kernel)
            found.append(Holding(folder=folder, kernels=count, usable=tuple(usable), fault=fault))
        return found

    def _count(self, folder: Path) -> int:
        read = self._read.get(folder)
        return len(read[1].kernels) if read is not None else 0

    def unavailable(self, variant: Variant, arch: str, reason: Exception) -> CompilerUnavailable:
        """What to raise where `variant` is in no folder and there is no compiler either, and what would help."""
        looked = ", ".join(map(str, self.folders)) or f"no folder, as {CUBINS_VARIABLE} names none"
        return CompilerUnavailable(
            f"{variant} for {arch} is neither prebuilt nor can it be compiled. Looked in: {looked}. {reason}. "
            f"Or, where there is an NVRTC: {export_command(variant, arch)}"
        )


def _verified(folder: Path, listed: Manifest, kernel: ExportedKernel) -> bytes:
    """The kernel's cubin, if it is what the manifest says and what would be compiled here. Raises ManifestError."""
    if listed.definitions[kernel.arch, kernel.variant] != definitions(kernel.variant, kernel.arch):
        path = folder / kernel.file
        raise ManifestError(
            f"{path} was compiled with other numbers than these (drvtopk {listed.drvtopk}): export anew"
        )
    return manifest.read_cubin(folder, kernel)


def export_command(variant: Variant, arch: str) -> str:
    """The command that exports `variant`, and with it whatever else plans may ask for at its k and options."""
    if variant.tuning != DEFAULT_TUNING:
        return f"drvtopk.export.export_kernels('DIR', {{'{arch}': [{variant!r}]}})"
    flags = [f"--k {variant.k}", *_flags(variant.options), *(["--pdl"] if variant.pdl else [])]
    return f"python -m drvtopk export --arch {shlex.quote(arch)} {' '.join(flags)} --out DIR"


def _flags(options: Options) -> list[str]:
    """Options as the commands take them."""
    asked = {name: value for name, value in dataclasses.asdict(options).items() if value != getattr(PLAIN, name)}
    return [f"--{name.replace('_', '-')}{'' if value is True else f' {value}'}" for name, value in asked.items()]


_named: Prebuilt | None = None  # by use_cubins
_environments: tuple[str, Prebuilt] = "", Prebuilt()


def use_cubins(*folders: str | os.PathLike[str]) -> None:
    """Takes kernels from these folders, which `python -m drvtopk export` wrote, before any is compiled.

    For the whole process, from the next kernel on, instead of the folders that DRVTOPK_CUBINS names; call it before the
    first `prepare`. Without arguments no folder is looked at. Raises InvalidArgument for a folder of which something
    cannot be used here: that holds no export, one of other kernel sources, or a damaged file.
    """
    global _named
    wanted = Prebuilt(folders)
    for holding in wanted.holdings():
        if holding.fault is not None:
            raise InvalidArgument("folders", str(holding.folder), f"a folder that an export wrote: {holding.fault}")
    _named = wanted


def current() -> Prebuilt:
    """What `use_cubins` named, else the folders of DRVTOPK_CUBINS."""
    global _environments
    if _named is not None:
        return _named
    value = os.environ.get(CUBINS_VARIABLE, "")
    known = _environments  # one look: another thread may change it
    if known[0] != value:
        known = _environments = value, Prebuilt(part for part in value.split(os.pathsep) if part)
    return known[1]
