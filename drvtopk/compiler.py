"""One instantiation -> cubin, registers, spills, shared memory. The only importer of cuda.bindings.nvrtc.

A compile request is closed: the sources are handed over in memory and include nothing else, so its cache key is
complete, and every instantiation compiles for every architecture on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import logging
import os
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drvtopk import cache as caching
from drvtopk import forks, spec, workers
from drvtopk.cache import Cache
from drvtopk.errors import CompileError, CompilerUnavailable, InvalidArgument
from drvtopk.events import tell
from drvtopk.progress import compiling, progress
from drvtopk.records import Fields, Malformed, cubin_fault, kernel_info, parse
from drvtopk.source import kernel_sources
from drvtopk.spec import KernelInfo, Variant

_SCHEMA = b"drvtopk cubin 1"
NVRTC_VARIABLE = "DRVTOPK_NVRTC"
COMPILE_VARIABLE = "DRVTOPK_COMPILE"
OLDEST = (12, 8)
"""Kernels in clusters need PTX ISA 8.6, of CUDA 12.7: mbarrier.arrive.expect_tx.relaxed.cluster."""
_GET_IT = "pip install 'nvidia-cuda-nvrtc-cu12>=12.8,<13'"
# Without this a quoted include that no header in memory answers is looked for in the current folder.
_CLOSED = ("--no-source-include",)
_REPORT = ("--ptxas-options=-v",)  # puts registers, spills and shared memory into the log
# They change what a float operation returns. Keys need denormals; the rest was tested and measured as it is.
_ARITHMETIC = ("use_fast_math", "ftz", "prec-div", "prec-sqrt", "fmad")

_lock = forks.lock()
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
        raise CompilerUnavailable(f"{source} {path} cannot be loaded as NVRTC ({error}): {_GET_IT}") from error
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


def _load() -> Any:
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
            raise CompilerUnavailable(f"NVRTC is not there ({reason}): {_GET_IT}") from error
        if int(code) != 0:
            raise CompilerUnavailable(f"NVRTC does not answer (nvrtcVersion returned {int(code)}): {_GET_IT}")
        if named and library is not None:
            _check_answers(named, library, (int(major), int(minor)))
        if (int(major), int(minor)) < OLDEST:
            raise CompilerUnavailable(
                f"NVRTC {int(major)}.{int(minor)} ({_file_at(_called_address()) or 'of unknown path'}) is too old: the "
                f"kernels need {OLDEST[0]}.{OLDEST[1]}, since clusters need PTX ISA 8.6. {_GET_IT}, and name its "
                f"library in {NVRTC_VARIABLE} if this process has loaded the older one"
            )
        _nvrtc = nvrtc
        return nvrtc


def nvrtc_version() -> tuple[int, int]:
    """The version of the NVRTC that answers, which need not be the one installed beside us. CompilerUnavailable."""
    _, major, minor = _load().nvrtcVersion()
    return int(major), int(minor)


def nvrtc_path() -> str | None:
    """The file of the NVRTC that answers, where the system tells. CompilerUnavailable."""
    _load()
    return _file_at(_called_address())


def _nvrtc_in_words() -> str:
    """'NVRTC 12.9 (/.../libnvrtc.so.12)'."""
    major, minor = nvrtc_version()
    return f"NVRTC {major}.{minor} ({nvrtc_path() or 'of unknown path'})"


def check_nvrtc() -> None:
    """Compiles next to nothing. CompilerUnavailable where NVRTC cannot, as without its builtins library."""
    source = b'extern "C" __global__ void nothing() {}'
    _run("nothing", source, "nothing.cu", {}, (f"--gpu-architecture={supported_archs()[0]}", *_uncached()))


def never_compile() -> bool:
    """Whether DRVTOPK_COMPILE forbids compiling. InvalidArgument for a value that it does not have."""
    value = os.environ.get(COMPILE_VARIABLE, "")
    if value not in ("", "never"):
        raise InvalidArgument(COMPILE_VARIABLE, repr(value), "'never', or nothing")
    return value == "never"


def supported_archs() -> tuple[str, ...]:
    """The plain targets this NVRTC compiles our kernels for: ('sm_80', ...)."""
    code, numbers = _load().nvrtcGetSupportedArchs()
    return tuple(f"sm_{int(n)}" for n in numbers if int(n) >= 80) if int(code) == 0 else ()


def check_arch(arch: str) -> str:
    """`arch` if this NVRTC compiles for it, else InvalidArgument."""
    plain = re.fullmatch(r"(sm_\d+)([af]?)", arch)
    known = supported_archs()
    since = {"": 80, "a": 90, "f": 100}
    if plain is None or plain[1] not in known or int(plain[1][3:]) < since[plain[2]]:
        suffixes = "'a' may follow from sm_90, 'f' from sm_100 on"
        raise InvalidArgument(
            "arch", repr(arch), f"one of {', '.join(known)} ({suffixes}): {_nvrtc_in_words()} knows no other"
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


def definitions(variant: Variant, arch: str) -> dict[str, int | str]:
    """Every number that goes into the kernels, and the kernel's name, by the name it has there."""
    options = variant.options
    limit = {"DRVTOPK_WAIT_LIMIT": variant.tuning.wait_limit} if variant.tuning.wait_limit else {}
    return {
        "DRVTOPK_K": variant.k,
        "DRVTOPK_VEC": variant.vec_size,
        "DRVTOPK_ENTRY": variant.entry,
        "DRVTOPK_DTYPE": tuple(spec.DTYPES).index(options.dtype),
        "DRVTOPK_INDEX_BYTES": spec.INDEX_DTYPES[options.index_dtype],
        "DRVTOPK_ORDER": spec.ORDERS.index(options.order),
        "DRVTOPK_TIE_BREAK": spec.TIE_BREAKS.index(options.tie_break),
        "DRVTOPK_NAN_HIGHEST": int(options.nan == "highest"),
        "DRVTOPK_VALUES": int(options.values),
        "DRVTOPK_ROW_STARTS": int(options.row_starts),
        "DRVTOPK_PAGE_TABLE": int(options.page_table),
        "DRVTOPK_EXTRAS": int(options.extras),
        "DRVTOPK_THREADS": variant.threads,
        "DRVTOPK_MIN_BLOCKS": min(variant.residency, spec.min_blocks(arch, variant.threads)),
        "DRVTOPK_DIGIT_BITS": spec.DIGIT_BITS,
        "DRVTOPK_SCRATCH_BYTES": spec.SCRATCH_BYTES,
        "DRVTOPK_ROUND_WORDS": spec.ROUND_WORDS,
        "DRVTOPK_ROUNDS": spec.ROUNDS,
        "DRVTOPK_STATE_LINE": spec.WORKSPACE_ALIGNMENT,
        "DRVTOPK_SHORT_MAX": variant.tuning.short_max,
        "DRVTOPK_MAX_CANDIDATES": variant.tuning.max_candidates,
        "DRVTOPK_SAMPLES": variant.tuning.samples,
        "DRVTOPK_CACHED_BYTES": variant.tuning.cached_bytes,
        "DRVTOPK_RADIX_THRESHOLD": variant.tuning.radix_threshold,
        "DRVTOPK_CLUSTER_THRESHOLD": variant.tuning.cluster_threshold,
        "DRVTOPK_CLUSTER": variant.cluster,
        "DRVTOPK_PDL": int(variant.pdl),
        **limit,
    }


def _uncached() -> tuple[str, ...]:
    """From 12.9 on NVRTC has a cache of its own, which answers without the compiler's report; ours keeps the report."""
    return ("--no-cache",) if nvrtc_version() >= (12, 9) else ()


def options(variant: Variant, arch: str, extra: tuple[str, ...] = ()) -> tuple[str, ...]:
    """What one instantiation is compiled with; `extra` comes last. Every option is a part of the cache key.

    InvalidArgument for an option in `extra` that changes arithmetic.
    """
    for option in extra:
        if option.lstrip("-").partition("=")[0] in _ARITHMETIC:
            raise InvalidArgument("extra", repr(option), f"any option but --{', --'.join(_ARITHMETIC)}")
    defines = tuple(f"-D{name}={value}" for name, value in definitions(variant, arch).items())
    return (f"--gpu-architecture={arch}", "-std=c++17", *defines, *extra)


def compile_variant(
    variant: Variant, arch: str, *, cache: Cache | None = None, extra: tuple[str, ...] = ()
) -> Compiled:
    """Compiles one instantiation for one architecture ('sm_90a'), or takes it from `cache`.

    Releases the GIL while compiling; safe from several threads, which use all cores: while this process compiles one
    program, others go to worker processes. Raises CompileError with NVRTC's log, CompilerUnavailable (also where
    DRVTOPK_COMPILE=never and the cache has not got it), or InvalidArgument for an architecture that this NVRTC does not
    know and for an option that changes arithmetic.
    """
    if not never_compile():
        check_arch(arch)
    sources = kernel_sources()
    entry = f"{variant.route}.cu"
    headers = {name: text for name, text in sources.items() if name.endswith(".cuh")}
    return compile_source(
        str(variant), sources[entry], entry, headers, arch, options(variant, arch, extra), cache=cache
    )


def compile_variants(variants: Sequence[Variant], arch: str, *, cache: Cache | None, label: str) -> list[Compiled]:
    """Several on all cores, in order, with progress. Raises as `compile_variant` does, and leaves the rest."""
    calls = [partial(compile_variant, variant, arch, cache=cache) for variant in variants]
    return workers.together(calls, partial(progress, label=label))


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
    """Compiles one translation unit that holds one kernel and includes nothing but `headers`.

    `opts` names the architecture and the rest; what closes the request and asks for the report is added here.
    """
    never = never_compile()
    try:
        opts = (*opts, *_CLOSED, *_uncached(), *_REPORT)
        entry = _key(source, name, headers, opts)
    except CompilerUnavailable as error:
        if never:
            raise _forbidden(what, arch, f"cannot be looked up in the cache ({error})") from error
        raise
    found = _cached(what, arch, entry, cache)
    if found is not None:
        return found
    if never:
        folder = "" if cache is None or cache.folder is None else f" {cache.folder}"
        raise _forbidden(what, arch, f"is not in the cache{folder}")
    with contextlib.ExitStack() as during:
        during.enter_context(compiling(f"{what} for {arch}"))
        if cache is not None:
            during.enter_context(cache.alone(entry, workers.pause))
            found = _cached(what, arch, entry, cache)  # another process may have been faster
            if found is not None:
                return found
        cubin, log, seconds = _compile(what, source, name, headers, opts)
        info = _info(log, len(cubin), seconds)
        tell(
            logging.INFO,
            "compile",
            "compiled %s for %s in %.2f s: %s registers, %s bytes of spills",
            what,
            arch,
            info.seconds,
            info.registers,
            info.spill_bytes,
        )
        if cache is not None:
            cache.put(entry, _pack(cubin, info, log))
    return Compiled(what=what, arch=arch, cubin=cubin, info=info, log=log, from_cache=False)


def _key(source: bytes, name: str, headers: Mapping[str, bytes], opts: tuple[str, ...]) -> str:
    """Everything that the compiler reads, and its version."""
    major, minor = nvrtc_version()
    fields = [_SCHEMA, f"{major}.{minor}".encode(), name.encode(), source]
    for option in opts:
        fields += [b"option", option.encode()]
    for header in sorted(headers):
        fields += [b"header", header.encode(), headers[header]]
    return caching.key(fields)


def _cached(what: str, arch: str, entry: str, cache: Cache | None) -> Compiled | None:
    found = None if cache is None else cache.get(entry)
    if found is None:
        return None
    try:
        compiled = _unpack(what, arch, found)
    except Malformed as error:  # whole, but of something else than this code
        tell(logging.INFO, "compile", "the cache's entry of %s for %s is passed over: %s", what, arch, error)
        return None
    tell(logging.INFO, "compile", "%s for %s came from the cache", what, arch)
    return compiled


def _forbidden(what: str, arch: str, why: str) -> CompilerUnavailable:
    return CompilerUnavailable(f"{what} for {arch} {why}, and {COMPILE_VARIABLE}=never forbids compiling it")


def _compile(
    what: str, source: bytes, name: str, headers: Mapping[str, bytes], opts: tuple[str, ...]
) -> tuple[bytes, str, float]:
    """(cubin, log, seconds), from this process, or from a worker while this one compiles another program."""
    with workers.place() as elsewhere:
        started = time.perf_counter()
        if elsewhere:
            try:
                code, log, cubin = workers.compile_elsewhere(nvrtc_path(), nvrtc_version(), source, name, headers, opts)
            except workers.WorkerFailed as error:
                tell(logging.INFO, "compile", "no worker process compiles (%s), so this one does", error)
                started = time.perf_counter()
            else:
                if code != 0:
                    raise CompileError(what, opts, log)
                return cubin, log, time.perf_counter() - started
        cubin, log = _run(what, source, name, headers, opts)
        return cubin, log, time.perf_counter() - started


def _run(
    what: str, source: bytes, name: str, headers: Mapping[str, bytes], opts: tuple[str, ...], result: str = "CUBIN"
) -> tuple[bytes, str]:
    """The result, "CUBIN" or, where `opts` names a virtual architecture, "PTX"; and the compiler's log."""
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
        builtins = re.search(r"failed to open (libnvrtc-builtins\S*?)\.?$", log, re.MULTILINE)
        if int(code) != 0 and builtins:
            raise CompilerUnavailable(
                f"{_nvrtc_in_words()} does not find {builtins[1]}, which belongs beside it: {_GET_IT}"
            )
        if int(code) != 0:
            raise CompileError(what, opts, log)
        size = checked(getattr(nvrtc, f"nvrtcGet{result}Size")(program), f"nvrtcGet{result}Size")
        made = bytearray(size)
        checked(getattr(nvrtc, f"nvrtcGet{result}")(program, made), f"nvrtcGet{result}")
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return bytes(made), log


def _info(log: str, cubin_bytes: int, seconds: float) -> KernelInfo:
    """What ptxas says of the one kernel and of what it calls. A log without its figures is an error: a guess would
    feed the planner."""
    registers = re.findall(r"Used (\d+) registers", log)
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if len(registers) != 1 or not frames:
        raise CompileError("the compiler's report", (), f"it does not describe one kernel: {log!r}")
    static = re.search(r"(\d+) bytes smem", log)
    return KernelInfo(
        registers=int(registers[0]),
        spill_bytes=sum(int(stores) + int(loads) for _, stores, loads in frames),
        stack_bytes=sum(int(stack) for stack, _, _ in frames),
        static_smem_bytes=int(static[1]) if static else 0,
        cubin_bytes=cubin_bytes,
        seconds=seconds,
    )


def _pack(cubin: bytes, info: KernelInfo, log: str) -> bytes:
    head = json.dumps({"info": dataclasses.asdict(info), "log": log}).encode()
    return len(head).to_bytes(4, "little") + head + cubin


def _unpack(what: str, arch: str, packed: bytes) -> Compiled:
    """Raises Malformed for what `_pack` did not write."""
    size = int.from_bytes(packed[:4], "little")
    head, cubin = Fields(parse(packed[4 : 4 + size]), "entry"), packed[4 + size :]
    info, log = kernel_info(head.fields("info")), head.one("log", str, "a log")
    if info.cubin_bytes != len(cubin):
        raise Malformed(f"the cubin has {len(cubin)} bytes, not {info.cubin_bytes}")
    fault = cubin_fault(cubin, arch)
    if fault is not None:
        raise Malformed(f"it {fault}")
    return Compiled(what=what, arch=arch, cubin=cubin, info=info, log=log, from_cache=True)
