"""One instantiation -> cubin, registers, spills, shared memory. The only importer of cuda.bindings.nvrtc.

A compile request is closed: the sources are handed over in memory and include nothing else, so its cache key is
complete, and every instantiation compiles for every architecture on a machine without a GPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.util
import json
import os
import re
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from drvtopk import cache as caching
from drvtopk import spec
from drvtopk.cache import Cache
from drvtopk.errors import CompileError, CompilerUnavailable, InvalidArgument
from drvtopk.source import kernel_sources
from drvtopk.spec import KernelInfo, Variant

_SCHEMA = b"drvtopk cubin 1"
NVRTC_VARIABLE = "DRVTOPK_NVRTC"
_GET_IT = "pip install 'nvidia-cuda-nvrtc-cu12>=12.9,<13'"

_lock = threading.Lock()
_nvrtc: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compiled instantiation: one cubin that holds one kernel."""

    what: str
    arch: str
    cubin: bytes
    info: KernelInfo
    log: str
    from_cache: bool


def _mapped_libraries() -> list[str]:
    """Paths of the NVRTC libraries that this process has loaded (Linux; elsewhere unknown)."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    found = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "libnvrtc.so" in line}
    return sorted(found)


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


def _version_of(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def _load() -> Any:
    """The bindings' nvrtc, with the library pinned that shall answer.

    Which library answers is decided by what is loaded first: the host's, if it already has one; else the one that
    DRVTOPK_NVRTC names; else that of our own wheel, so that a newer one elsewhere on the path does not slip in.
    """
    global _nvrtc
    with _lock:
        if _nvrtc is not None:
            return _nvrtc
        named = os.environ.get(NVRTC_VARIABLE)
        pinned: ctypes.CDLL | None = None
        if named or (sys.platform == "linux" and not _mapped_libraries()):
            path = named or _wheel_library()
            if path is not None:
                try:
                    pinned = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
                except OSError as error:
                    raise CompilerUnavailable(f"NVRTC cannot be loaded from {path}: {error}") from error
        try:
            from cuda.bindings import nvrtc

            code, major, minor = nvrtc.nvrtcVersion()
        except (ImportError, RuntimeError) as error:
            raise CompilerUnavailable(f"NVRTC is not there ({str(error).splitlines()[0]}): {_GET_IT}") from error
        if int(code) != 0:
            raise CompilerUnavailable(f"NVRTC does not answer (nvrtcVersion returned {int(code)}): {_GET_IT}")
        if named and pinned is not None and _version_of(pinned) != (major, minor):
            raise CompilerUnavailable(
                f"{NVRTC_VARIABLE} names {named} (NVRTC {'.'.join(map(str, _version_of(pinned)))}), but NVRTC "
                f"{major}.{minor} was loaded before and answers: {', '.join(_mapped_libraries())}"
            )
        _nvrtc = nvrtc
        return nvrtc


def nvrtc_version() -> tuple[int, int]:
    """The version of the NVRTC that answers, which need not be the one installed beside us. CompilerUnavailable."""
    _, major, minor = _load().nvrtcVersion()
    return int(major), int(minor)


def nvrtc_path() -> str | None:
    """The file of the NVRTC that answers, where the system tells; several, joined, if more than one is loaded."""
    _load()
    return ", ".join(_mapped_libraries()) or None


def supported_archs() -> tuple[str, ...]:
    """The plain targets this NVRTC compiles our kernels for: ('sm_80', ...). 'a' variants exist from sm_90 on."""
    code, numbers = _load().nvrtcGetSupportedArchs()
    return tuple(f"sm_{int(n)}" for n in numbers if int(n) >= 80) if int(code) == 0 else ()


def check_arch(arch: str) -> str:
    """`arch` if this NVRTC compiles for it, else InvalidArgument."""
    plain = re.fullmatch(r"(sm_\d+)([af]?)", arch)
    known = supported_archs()
    if plain is None or plain[1] not in known or (plain[2] and int(plain[1][3:]) < 90):
        raise InvalidArgument("arch", repr(arch), f"one of {', '.join(known)} (with 'a' from sm_90 on)")
    return arch


def definitions(variant: Variant, arch: str) -> dict[str, int]:
    """Every number that goes into the kernels, by the name it has there."""
    return {
        "DRVTOPK_K": variant.k,
        "DRVTOPK_VEC": variant.vec_size,
        "DRVTOPK_THREADS": spec.THREADS,
        "DRVTOPK_MIN_BLOCKS": spec.min_blocks(arch),
        "DRVTOPK_DIGIT_BITS": spec.DIGIT_BITS,
        "DRVTOPK_SCRATCH_BYTES": spec.SCRATCH_BYTES,
        "DRVTOPK_ROUND_WORDS": spec.ROUND_WORDS,
        "DRVTOPK_ROUNDS": spec.ROUNDS,
        "DRVTOPK_STATE_LINE": spec.WORKSPACE_ALIGNMENT,
        "DRVTOPK_SHORT_MAX": variant.tuning.short_max,
        "DRVTOPK_RADIX_THRESHOLD": variant.tuning.radix_threshold,
    }


def options(variant: Variant, arch: str, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The whole command line of one compile."""
    defines = tuple(f"-D{name}={value}" for name, value in definitions(variant, arch).items())
    return (f"--gpu-architecture={arch}", "-std=c++17", "--ptxas-options=-v", *defines, *extra)


def compile_variant(
    variant: Variant, arch: str, *, cache: Cache | None = None, extra: tuple[str, ...] = ()
) -> Compiled:
    """Compiles one instantiation for one architecture ('sm_90a'), or takes it from `cache`.

    Releases the GIL while compiling; safe from several threads. Raises CompileError with NVRTC's log,
    CompilerUnavailable, or InvalidArgument for an architecture that this NVRTC does not know.
    """
    check_arch(arch)
    sources = kernel_sources()
    entry = f"{variant.route}.cu"
    headers = {name: text for name, text in sources.items() if name.endswith(".cuh")}
    return compile_source(
        str(variant), sources[entry], entry, headers, arch, options(variant, arch, extra), cache=cache
    )


def compile_source(
    what: str,
    source: bytes,
    name: str,
    headers: Mapping[str, bytes],
    arch: str,
    opts: tuple[str, ...],
    *,
    cache: Cache | None = None,
) -> Compiled:
    """Compiles one translation unit that holds one kernel and includes nothing but `headers`."""
    major, minor = nvrtc_version()
    fields = [_SCHEMA, f"{major}.{minor}".encode(), name.encode(), source]
    for option in opts:
        fields += [b"option", option.encode()]
    for header in sorted(headers):
        fields += [b"header", header.encode(), headers[header]]
    entry = caching.key(fields)
    if cache is not None:
        found = cache.get(entry)
        if found is not None:
            return _unpack(what, arch, found)
    started = time.perf_counter()
    cubin, log = _run(what, source, name, headers, opts)
    info = _info(log, len(cubin), time.perf_counter() - started)
    if cache is not None:
        cache.put(entry, _pack(cubin, info, log))
    return Compiled(what=what, arch=arch, cubin=cubin, info=info, log=log, from_cache=False)


def _run(what: str, source: bytes, name: str, headers: Mapping[str, bytes], opts: tuple[str, ...]) -> tuple[bytes, str]:
    nvrtc = _load()

    def checked(answer: tuple[Any, ...], call: str) -> Any:
        code, *rest = answer
        if int(code) != 0:
            raise CompileError(what, opts, f"{call} returned {int(code)}")
        return rest[0] if rest else None

    names = [n.encode() for n in headers]
    program = checked(
        nvrtc.nvrtcCreateProgram(source, name.encode(), len(names), list(headers.values()), names), "nvrtcCreateProgram"
    )
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(opts), [option.encode() for option in opts])
        size = checked(nvrtc.nvrtcGetProgramLogSize(program), "nvrtcGetProgramLogSize")
        text = bytearray(size)
        checked(nvrtc.nvrtcGetProgramLog(program, text), "nvrtcGetProgramLog")
        log = bytes(text).rstrip(b"\0").decode(errors="replace")
        if int(code) != 0:
            raise CompileError(what, opts, log)
        size = checked(nvrtc.nvrtcGetCUBINSize(program), "nvrtcGetCUBINSize")
        cubin = bytearray(size)
        checked(nvrtc.nvrtcGetCUBIN(program, cubin), "nvrtcGetCUBIN")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(cubin), log


def _info(log: str, cubin_bytes: int, seconds: float) -> KernelInfo:
    """What ptxas says of the one kernel. A log without its figures is an error: a guess would feed the planner."""

    def figure(pattern: str, missing: int | None = None) -> int:
        found = re.search(pattern, log)
        if found:
            return int(found[1])
        if missing is None:
            raise CompileError("the compiler's report", (), f"no figure for {pattern!r} in: {log}")
        return missing

    return KernelInfo(
        registers=figure(r"Used (\d+) registers"),
        spill_bytes=figure(r"(\d+) bytes spill stores") + figure(r"(\d+) bytes spill loads"),
        stack_bytes=figure(r"(\d+) bytes stack frame"),
        static_smem_bytes=figure(r"(\d+) bytes smem", 0),
        cubin_bytes=cubin_bytes,
        seconds=seconds,
    )


def _pack(cubin: bytes, info: KernelInfo, log: str) -> bytes:
    head = json.dumps({"info": dataclasses.asdict(info), "log": log}).encode()
    return len(head).to_bytes(4, "little") + head + cubin


def _unpack(what: str, arch: str, packed: bytes) -> Compiled:
    size = int.from_bytes(packed[:4], "little")
    head = json.loads(packed[4 : 4 + size])
    info = KernelInfo(**{**head["info"], "seconds": 0.0})
    return Compiled(what=what, arch=arch, cubin=packed[4 + size :], info=info, log=head["log"], from_cache=True)
