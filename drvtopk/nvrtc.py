"""The NVRTC that answers in this process, and what it compiles for. The only importer of cuda.bindings.nvrtc."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import sys
from pathlib import Path
from typing import Any

from drvtopk import forks, spec
from drvtopk.errors import CompilerUnavailable, InvalidArgument

NVRTC_VARIABLE = "DRVTOPK_NVRTC"
OLDEST = (12, 8)
"""Kernels in clusters need PTX ISA 8.6, of CUDA 12.7: mbarrier.arrive.expect_tx.relaxed.cluster."""
GET_IT = "pip install 'nvidia-cuda-nvrtc-cu12>=12.8,<13'"

_lock = forks.lock()
_nvrtc: Any = None


def _mapped_libraries() -> list[tuple[int, int, str]]:
    """(first address, past the last, file) of each piece of an NVRTC in this process (Linux; elsewhere unknown)."""
    try:
        maps = Path("/proc/self/maps").read_text(errors="surrogateescape")
    except OSError:
        return []
    found = []
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        name = fields[5].rpartition("/")[2] if len(fields) == 6 else ""
        if name.startswith("libnvrtc") and "builtins" not in name:
            first, _, past = fields[0].partition("-")
            found.append((int(first, 16), int(past, 16), fields[5]))
    return found


def _loaded_files() -> list[str]:
    return sorted({file for _, _, file in _mapped_libraries()})


def _file_at(address: int | None) -> str | None:
    """The NVRTC whose code is at `address`; of an unknown address, the only NVRTC there is."""
    if address is None:
        files = _loaded_files()
        return files[0] if len(files) == 1 else None
    return next((file for first, past, file in _mapped_libraries() if first <= address < past), None)


def _called_address() -> int | None:
    """Where the bindings' nvrtcVersion is, if they tell (12.9.0 does not)."""
    try:
        from cuda.bindings._internal import nvrtc as internal

        return int(internal._inspect_function_pointer("__nvrtcVersion")) or None
    except (ImportError, AttributeError, KeyError):
        return None


def _wheel_library() -> Path | None:
    """The library of the nvidia-cuda-nvrtc-cu12 wheel beside us, if it is installed."""
    try:
        found = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except (ImportError, ValueError):
        return None
    for place in (found.submodule_search_locations or ()) if found else ():
        library = Path(place) / "lib" / "libnvrtc.so.12"
        if library.exists():
            return library
    return None


def _open(path: str, mode: int, source: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(path, mode=mode)
        library.nvrtcVersion.restype = ctypes.c_int
    except (OSError, AttributeError) as error:
        raise CompilerUnavailable(f"{source} {path} cannot be loaded as NVRTC ({error}): {GET_IT}") from error
    return library


def _check_answers(named: str, library: ctypes.CDLL, version: tuple[int, int]) -> None:
    """CompilerUnavailable unless the library that DRVTOPK_NVRTC names is the one that the bindings call."""
    ours, called = ctypes.cast(library.nvrtcVersion, ctypes.c_void_p).value, _called_address()
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    own = major.value, minor.value
    if own != version if called is None else ours != called:
        others = ", ".join(file for file in _loaded_files() if file != _file_at(ours))
        answering = _file_at(called) or others or "another library"
        raise CompilerUnavailable(
            f"{NVRTC_VARIABLE} names {named} (NVRTC {own[0]}.{own[1]}), but {answering} "
            f"(NVRTC {version[0]}.{version[1]}) was loaded before and answers: unset the one, or load the other later"
        )


def load() -> Any:
    """The bindings' nvrtc, with the library pinned that shall answer.

    The bindings call what the process's global symbols name, else a loaded libnvrtc.so.13, else .12, else what they
    find installed. So: the library that DRVTOPK_NVRTC names is put among the global symbols, where it wins or the
    check says who did; else what the host has loaded stays in charge; else our own wheel's library is loaded first,
    so that a newer one elsewhere does not slip in, and kept out of the global symbols, where the host might meet it.
    """
    global _nvrtc
    with _lock:
        if _nvrtc is not None:
            return _nvrtc
        named = os.environ.get(NVRTC_VARIABLE)
        library = None
        if named:
            library = _open(named, ctypes.RTLD_GLOBAL, NVRTC_VARIABLE)
        elif sys.platform == "linux" and not _mapped_libraries() and (ours := _wheel_library()) is not None:
            _open(str(ours), ctypes.RTLD_LOCAL, "the installed")
        try:
            from cuda.bindings import nvrtc

            code, major, minor = nvrtc.nvrtcVersion()
        except (ImportError, RuntimeError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CompilerUnavailable(f"NVRTC is not there ({reason}): {GET_IT}") from error
        if int(code) != 0:
            raise CompilerUnavailable(f"NVRTC does not answer (nvrtcVersion returned {int(code)}): {GET_IT}")
        if named and library is not None:
            _check_answers(named, library, (int(major), int(minor)))
        if (int(major), int(minor)) < OLDEST:
            raise CompilerUnavailable(
                f"NVRTC {int(major)}.{int(minor)} ({_file_at(_called_address()) or 'of unknown path'}) is too old: the "
                f"kernels need {OLDEST[0]}.{OLDEST[1]}, since clusters need PTX ISA 8.6. {GET_IT}, and name its "
                f"library in {NVRTC_VARIABLE} if this process has loaded the older one"
            )
        _nvrtc = nvrtc
        return nvrtc


def nvrtc_version() -> tuple[int, int]:
    """The version of the NVRTC that answers, which need not be the one installed beside us. CompilerUnavailable."""
    _, major, minor = load().nvrtcVersion()
    return int(major), int(minor)


def nvrtc_path() -> str | None:
    """The file of the NVRTC that answers, where the system tells. CompilerUnavailable."""
    load()
    return _file_at(_called_address())


def in_words() -> str:
    """'NVRTC 12.9 (/.../libnvrtc.so.12)'."""
    major, minor = nvrtc_version()
    return f"NVRTC {major}.{minor} ({nvrtc_path() or 'of unknown path'})"


def supported_archs() -> tuple[str, ...]:
    """The plain targets this NVRTC compiles our kernels for: ('sm_80', ...)."""
    code, numbers = load().nvrtcGetSupportedArchs()
    return tuple(f"sm_{int(n)}" for n in numbers if int(n) >= 80) if int(code) == 0 else ()


def check_arch(arch: str) -> str:
    """`arch` if this NVRTC compiles for it, else InvalidArgument."""
    plain = re.fullmatch(r"(sm_\d+)([af]?)", arch)
    known = supported_archs()
    since = {"": 80, "a": 90, "f": 100}
    if plain is None or plain[1] not in known or int(plain[1][3:]) < since[plain[2]]:
        suffixes = "'a' may follow from sm_90, 'f' from sm_100 on"
        raise InvalidArgument(
            "arch", repr(arch), f"one of {', '.join(known)} ({suffixes}): {in_words()} knows no other"
        )
    return arch


def check_device_arch(arch: str) -> str:
    """`check_arch`, and InvalidArgument too for a target that no device asks for, such as 'sm_90' beside 'sm_90a'."""
    number = int(re.sub(r"\D", "", check_arch(arch)))
    asked = spec.arch_of(*divmod(number, 10))
    if arch != asked:
        raise InvalidArgument(
            "arch", repr(arch), f"{asked!r}: what devices of compute capability {number / 10} ask for"
        )
    return arch
