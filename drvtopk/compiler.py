"""One instantiation -> cubin, registers, spills, shared memory.

A compile request is closed: the sources are handed over in memory and include nothing else, so its cache key is
complete, and every instantiation compiles for every architecture on a machine without a GPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from drvtopk import cache as caching
from drvtopk import spec, workers
from drvtopk.cache import Cache
from drvtopk.errors import CompileError, CompilerUnavailable, InvalidArgument
from drvtopk.events import log_event
from drvtopk.nvrtc import GET_IT, check_arch, in_words, load, nvrtc_path, nvrtc_version, supported_archs
from drvtopk.progress import compiling, progress
from drvtopk.records import Fields, Malformed, cubin_fault, kernel_info, parse
from drvtopk.source import kernel_sources
from drvtopk.spec import KernelInfo, Variant

_SCHEMA = b"drvtopk cubin 1"
COMPILE_VARIABLE = "DRVTOPK_COMPILE"
# Without this a quoted include that no header in memory answers is looked for in the current folder.
_CLOSED = ("--no-source-include",)
_REPORT = ("--ptxas-options=-v",)  # puts registers, spills and shared memory into the log
# They change what a float operation returns. Keys need denormals; the rest was tested and measured as it is.
_ARITHMETIC = ("use_fast_math", "ftz", "prec-div", "prec-sqrt", "fmad")


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """A compiled instantiation: one cubin that holds one kernel."""

    what: str
    arch: str
    cubin: bytes
    info: KernelInfo
    log: str
    from_cache: bool


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
        log_event(
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
        log_event(logging.INFO, "compile", "the cache's entry of %s for %s is passed over: %s", what, arch, error)
        return None
    log_event(logging.INFO, "compile", "%s for %s came from the cache", what, arch)
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
                log_event(logging.INFO, "compile", "no worker process compiles (%s), so this one does", error)
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
    nvrtc = load()

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
            raise CompilerUnavailable(f"{in_words()} does not find {builtins[1]}, which belongs beside it: {GET_IT}")
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
