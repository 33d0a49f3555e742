"""The compiler: a closed request with a complete key, a report that is read right, errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from drvtopk import compiler, spec
from drvtopk import nvrtc as ours
from drvtopk.cache import Cache
from drvtopk.compiler import Compiled, compile_source, compile_variant, definitions, options
from drvtopk.errors import CompileError, CompilerUnavailable, InvalidArgument
from drvtopk.nvrtc import check_arch
from drvtopk.source import kernel_sources
from drvtopk.spec import Tuning, Variant
from tests.needs import needs_nvrtc

ROOT = Path(__file__).resolve().parents[2]
VARIANT = Variant(route="persistent", k=512, vec_size=4)
ARCH = "sm_90a"
KERNEL = b'#include "number.cuh"\nextern "C" __global__ void stub(int* out) { *out = kNumber + DRVTOPK_K; }\n'
HEADERS = {"number.cuh": b"constexpr int kNumber = 7;\n"}


def compiled_stub(cache: Cache | None = None, **changed: Any) -> Compiled:
    """A kernel of one line, compiled in milliseconds; `changed` names what is to differ."""
    request: dict[str, Any] = {
        "what": "stub",
        "source": KERNEL,
        "name": "stub.cu",
        "headers": HEADERS,
        "arch": ARCH,
        "opts": options(VARIANT, changed.get("arch", ARCH)),
    }
    return compile_source(**{**request, **changed}, cache=cache)


# -- the key -----------------------------------------------------------------------------------------------------------

DIFFERENT: dict[str, dict[str, Any]] = {
    "a byte of a header": {"headers": {"number.cuh": b"constexpr int kNumber = 8;\n"}},
    "a byte of a comment": {"headers": {"number.cuh": HEADERS["number.cuh"] + b"// \n"}},
    "one more header": {"headers": {**HEADERS, "unused.cuh": b""}},
    "a header's name": {"headers": {**HEADERS, "unused2.cuh": b""}},
    "a byte of the entry file": {"source": KERNEL.replace(b"+ DRV", b"- DRV")},
    "the entry file's name": {"name": "other.cu"},
    "the architecture": {"arch": "sm_80"},
    "k": {"opts": options(Variant(route="filtered", k=513, vec_size=4), ARCH)},
    "a threshold": {"opts": options(Variant(route="filtered", k=512, vec_size=4, tuning=Tuning(short_max=9)), ARCH)},
    "one more option": {"opts": options(VARIANT, ARCH, ("-lineinfo",))},
    "the order of options": {"opts": options(VARIANT, ARCH)[::-1]},
}


def test_the_same_request_is_answered_from_the_cache(tmp_path: Path) -> None:
    first = compiled_stub(Cache(tmp_path))
    again = compiled_stub(Cache(tmp_path))
    assert (first.from_cache, again.from_cache) == (False, True)
    assert (again.cubin, again.info, again.log) == (first.cubin, first.info, first.log)
    assert first.info.seconds > 0 and again.info.seconds == 0


def test_each_part_of_a_request_is_in_its_key(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    compiled_stub(cache)
    for part, changed in DIFFERENT.items():
        assert not compiled_stub(cache, **changed).from_cache, part
        assert compiled_stub(cache, **changed).from_cache, part
    assert len(list(tmp_path.iterdir())) == 1 + len(DIFFERENT)


def test_the_version_that_answers_is_in_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    compiled_stub(cache)
    monkeypatch.setattr(compiler, "nvrtc_version", lambda: (12, 99))
    assert not compiled_stub(cache).from_cache


def test_a_changed_header_of_the_kernels_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    assert not compile_variant(VARIANT, ARCH, cache=cache).from_cache
    assert compile_variant(VARIANT, ARCH, cache=cache).from_cache
    changed = {name: text + b"\n" * (name == "keys.cuh") for name, text in kernel_sources().items()}
    monkeypatch.setattr(compiler, "kernel_sources", lambda: changed)
    assert not compile_variant(VARIANT, ARCH, cache=cache).from_cache


def test_a_damaged_entry_is_compiled_anew(tmp_path: Path) -> None:
    whole = compiled_stub(Cache(tmp_path))
    (entry,) = tmp_path.iterdir()
    entry.write_bytes(entry.read_bytes()[:-1])
    again = compiled_stub(Cache(tmp_path))
    assert not again.from_cache
    assert again.cubin == whole.cubin
    assert compiled_stub(Cache(tmp_path)).from_cache


def compile_in_process(folder: str, start: Any, results: Any) -> None:
    start.wait()
    for k in (7, 9):
        compiled = compile_variant(Variant(route="persistent", k=k, vec_size=1), ARCH, cache=Cache(Path(folder)))
        results.put((k, hashlib.sha256(compiled.cubin).hexdigest()))


def test_processes_that_compile_into_one_folder_get_the_same_bytes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    start, results = spawn.Barrier(2), spawn.Queue()
    running = [spawn.Process(target=compile_in_process, args=(str(tmp_path), start, results)) for _ in range(2)]
    for process in running:
        process.start()
    answers = [results.get(timeout=120) for _ in range(4)]
    for process in running:
        process.join()
        assert process.exitcode == 0
    assert len(set(answers)) == 2, answers
    assert len(list(tmp_path.iterdir())) == 2
    for k, digest in set(answers):
        kept = compile_variant(Variant(route="persistent", k=k, vec_size=1), ARCH, cache=Cache(tmp_path))
        assert kept.from_cache
        assert hashlib.sha256(kept.cubin).hexdigest() == digest


# -- the request -------------------------------------------------------------------------------------------------------


def test_every_shared_number_goes_in() -> None:
    variant = Variant(route="persistent", k=513, vec_size=2, tuning=Tuning(short_max=64, radix_threshold=128))
    assert definitions(variant, "sm_89") == {
        "DRVTOPK_K": 513,
        "DRVTOPK_VEC": 2,
        "DRVTOPK_ENTRY": "drvtopk_persistent",
        **{f"DRVTOPK_{name}": 0 for name in ("DTYPE", "ORDER", "TIE_BREAK", "NAN_HIGHEST", "VALUES", "ROW_STARTS")},
        **{f"DRVTOPK_{name}": 0 for name in ("PAGE_TABLE", "EXTRAS")},
        "DRVTOPK_INDEX_BYTES": 4,
        "DRVTOPK_THREADS": spec.THREADS,
        "DRVTOPK_MIN_BLOCKS": 1,
        "DRVTOPK_DIGIT_BITS": spec.DIGIT_BITS,
        "DRVTOPK_SCRATCH_BYTES": spec.SCRATCH_BYTES,
        "DRVTOPK_ROUND_WORDS": spec.ROUND_WORDS,
        "DRVTOPK_ROUNDS": spec.ROUNDS,
        "DRVTOPK_STATE_LINE": spec.WORKSPACE_ALIGNMENT,
        "DRVTOPK_SHORT_MAX": 64,
        "DRVTOPK_MAX_CANDIDATES": 8192,
        "DRVTOPK_SAMPLES": 2048,
        "DRVTOPK_CACHED_BYTES": 48 << 20,
        "DRVTOPK_RADIX_THRESHOLD": 128,
        "DRVTOPK_CLUSTER_THRESHOLD": 8192,
        "DRVTOPK_CLUSTER": 1,
        "DRVTOPK_PDL": 0,
    }
    assert definitions(variant, ARCH)["DRVTOPK_MIN_BLOCKS"] == 2
    clustered = Variant(route="clustered", k=8, vec_size=4, cluster=16, pdl=True, tuning=Tuning(cluster_threshold=99))
    said = definitions(clustered, "sm_90a")
    names = ("THREADS", "MIN_BLOCKS", "CLUSTER", "CLUSTER_THRESHOLD", "PDL")
    assert [said[f"DRVTOPK_{name}"] for name in names] == [512, 2, 16, 99, 1]
    alone = definitions(replace(clustered, residency=1), "sm_90a")
    assert {name for name in said if said[name] != alone[name]} == {"DRVTOPK_MIN_BLOCKS"}
    narrow = Variant(route="filtered", k=8, vec_size=4)
    for arch in ("sm_80", "sm_89", "sm_90a", "sm_120a"):
        assert [definitions(narrow, arch)[f"DRVTOPK_{name}"] for name in names[:2]] == [512, 2], "1536 threads hold two"
        wide = definitions(replace(narrow, residency=1), arch)
        assert [wide[f"DRVTOPK_{name}"] for name in names[:2]] == [1024, 1]
    given = options(variant, "sm_89", ("-lineinfo",))
    assert given[0] == "--gpu-architecture=sm_89"
    assert given[-1] == "-lineinfo"
    assert {f"-D{name}={value}" for name, value in definitions(variant, "sm_89").items()} <= set(given)


def test_every_number_is_used_by_the_kernels_and_none_is_missing() -> None:
    text = b"".join(kernel_sources().values()).decode()
    optional = set(re.findall(r"#\s*ifn?def (DRVTOPK_\w+)", text))
    assert set(re.findall(r"\bDRVTOPK_\w+", text)) - optional == set(definitions(VARIANT, ARCH))


@pytest.fixture
def strays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A current folder full of files that a compile must not see."""
    monkeypatch.chdir(tmp_path)
    for name in kernel_sources():
        (tmp_path / name).write_text("#error this file is a stray\n")
    (tmp_path / "stray.cuh").write_text("constexpr int kNumber = 8;\n")


def test_the_current_folder_is_not_read(strays: None) -> None:
    compile_variant(VARIANT, ARCH)
    for include in (b'"stray.cuh"', b"<stray.cuh>", b'"./stray.cuh"', b"<cuda_fp16.h>"):
        with pytest.raises(CompileError, match="could not open source file"):
            compiled_stub(source=KERNEL.replace(b'"number.cuh"', include))


# -- the report --------------------------------------------------------------------------------------------------------

SPILLING = b"""
extern "C" __global__ void __launch_bounds__(1024, 2) stub(float* p) {
  float held[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) held[i] = p[threadIdx.x + i * 1024];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[threadIdx.x * 64 + i] = held[i] * held[63 - i] + held[(i * 7) % 64];
}
"""
CALLING = b"""
__device__ __noinline__ float called(float* p) {
  volatile float on_the_stack[32];
  for (int i = 0; i < 32; ++i) on_the_stack[i] = p[i];
  return on_the_stack[threadIdx.x % 32];
}
extern "C" __global__ void stub(float* p) { *p = called(p); }
"""
STATIC = b"""
extern "C" __global__ void stub(float* p) {
  __shared__ float shared[300];
  shared[threadIdx.x] = *p;
  __syncthreads();
  *p = shared[299 - threadIdx.x];
}
"""


def test_what_the_compiler_reports_is_read() -> None:
    plain = compiled_stub().info
    assert (plain.spill_bytes, plain.stack_bytes, plain.static_smem_bytes) == (0, 0, 0)
    assert 2 <= plain.registers <= 16
    spilling = compiled_stub(source=SPILLING).info
    assert spilling.registers == 32
    assert spilling.spill_bytes > 100
    assert spilling.stack_bytes > 50
    assert compiled_stub(source=CALLING).info.stack_bytes >= 128
    assert compiled_stub(source=STATIC).info.static_smem_bytes == 1200


@pytest.mark.parametrize(
    "source", [KERNEL + KERNEL.split(b"\n")[1].replace(b"stub", b"another"), b"__device__ int no_kernel;"]
)
def test_a_report_of_other_than_one_kernel_is_refused(source: bytes) -> None:
    with pytest.raises(CompileError, match="does not describe one kernel"):
        compiled_stub(source=source)


def test_a_source_that_does_not_compile_says_where_and_with_what(tmp_path: Path) -> None:
    with pytest.raises(CompileError) as refused:
        compiled_stub(Cache(tmp_path), source=KERNEL.replace(b"kNumber", b"kUnknown"))
    assert 'stub.cu(2): error: identifier "kUnknown" is undefined' in refused.value.log
    assert refused.value.options[: len(options(VARIANT, ARCH))] == options(VARIANT, ARCH)
    said = 'stub did not compile:\n  stub.cu(2): error: identifier "kUnknown" is undefined'
    assert str(refused.value) == said and refused.value.what == "stub"
    assert list(tmp_path.iterdir()) == []


def test_a_compile_error_shows_the_first_three_errors_and_how_many_more() -> None:
    lines = [f'a.cuh({n}): error: identifier "x{n}" is undefined\n    x{n} + 1;\n    ^\n\n' for n in range(7)]
    warning = "a.cuh(1): warning #177-D: variable was declared but never referenced: error of nobody\n"
    log = warning + "".join(lines) + "7 errors detected in the compilation of a.cu.\n"
    error = CompileError("it", ("-std=c++17",), log)
    assert str(error).splitlines() == [
        "it did not compile:",
        *(f'  a.cuh({n}): error: identifier "x{n}" is undefined' for n in range(3)),
        "  and 4 more (`CompileError.log`)",
    ]
    assert (error.what, error.options, error.log) == ("it", ("-std=c++17",), log)
    ptxas = CompileError("it", (), "\nptxas application ptx input, line 9; error   : Feature needs PTX ISA 8.6\n")
    assert str(ptxas).endswith(":\n  ptxas application ptx input, line 9; error   : Feature needs PTX ISA 8.6")
    assert str(CompileError("it", (), "one\ntwo\nthree\nfour")).endswith("three\n  and 1 more (`CompileError.log`)")
    assert str(CompileError("it", (), "")) == "it did not compile:"


@pytest.mark.parametrize("arch", ["sm_80", "sm_89", "sm_90", "sm_90a", "sm_100a", "sm_100f", "sm_120a"])
def test_an_architecture_that_is_known(arch: str) -> None:
    assert check_arch(arch) == arch


@pytest.mark.parametrize("arch", ["", "sm_75", "sm_80a", "sm_90f", "sm_999", "sm_90b", "compute_90", "90a", "sm_90a "])
def test_an_architecture_that_is_not(arch: str) -> None:
    with pytest.raises(InvalidArgument, match="sm_80, "):
        compile_variant(VARIANT, arch)


# -- a switch ----------------------------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_compiled_where_that_is_forbidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = compile_variant(VARIANT, ARCH, cache=Cache(tmp_path))
    monkeypatch.setenv("DRVTOPK_COMPILE", "never")
    monkeypatch.setattr(compiler, "_run", lambda *_: pytest.fail("it was compiled"))
    assert compile_variant(VARIANT, ARCH, cache=Cache(tmp_path)).cubin == before.cubin
    missing = replace(VARIANT, k=511)
    for cache in (Cache(tmp_path), Cache(None), None):
        for arch in (ARCH, "sm_999"):
            with pytest.raises(CompilerUnavailable) as refused:
                compile_variant(missing, arch, cache=cache)
            said = str(refused.value)
            assert said.startswith(f"persistent<511,4> for {arch} is not in the cache"), said
            assert "DRVTOPK_COMPILE=never" in said
            assert (str(tmp_path) in said) is (cache is not None and cache.folder is not None)
    assert len(list(tmp_path.iterdir())) == 1, "not even a lock"
    monkeypatch.setattr(ours, "load", gone)
    with pytest.raises(CompilerUnavailable, match=r"persistent<511,4> for sm_90a .*no NVRTC.*DRVTOPK_COMPILE=never"):
        compile_variant(missing, ARCH, cache=Cache(tmp_path))


def gone() -> Any:
    raise CompilerUnavailable("no NVRTC")


def test_the_switch_has_one_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRVTOPK_COMPILE", "")
    assert not compiler.never_compile()
    for value in ("Never", "0", "no", " never", "always"):
        monkeypatch.setenv("DRVTOPK_COMPILE", value)
        with pytest.raises(InvalidArgument, match=f"DRVTOPK_COMPILE: got '{value}', allowed is 'never', or nothing"):
            compile_variant(VARIANT, ARCH)


# -- processes that begin together -------------------------------------------------------------------------------------

RANK = """
import logging, sys
from pathlib import Path
logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
from drvtopk.cache import Cache
from drvtopk.compiler import compile_variant
from drvtopk.nvrtc import nvrtc_version
from drvtopk.spec import Variant
nvrtc_version()
input()
for k in (3, 5):
    made = compile_variant(Variant(route="persistent", k=k, vec_size=1), "sm_90a", cache=Cache(Path(sys.argv[1])))
    print("bytes", k, hash(made.cubin))
"""


def test_of_processes_that_begin_together_one_compiles_each_kernel(tmp_path: Path) -> None:
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": "1"},
        )
        for _ in range(4)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.write("\n")
        rank.stdin.flush()
    lines = [line for rank in ranks for line in rank.communicate(timeout=120)[0].splitlines()]
    assert all(rank.returncode == 0 for rank in ranks)
    for k in (3, 5):
        assert len([one for one in lines if one.startswith(f"compiled persistent<{k},1> for sm_90a")]) == 1, lines
        assert lines.count(f"persistent<{k},1> for sm_90a came from the cache") == 3
    assert len({line for line in lines if line.startswith("bytes")}) == 2
    assert len(list(tmp_path.iterdir())) == 2, "no locks are left"


# -- threads -----------------------------------------------------------------------------------------------------------


def test_threads_that_compile_the_same_get_the_same_bytes() -> None:
    cache = Cache(None)
    with ThreadPoolExecutor(4) as pool:
        cubins = {one.cubin for one in pool.map(lambda _: compile_variant(VARIANT, ARCH, cache=cache), range(4))}
    assert len(cubins) == 1


def test_other_threads_run_while_one_compiles() -> None:
    compiled_stub()  # loads the library, which is not what is looked at
    worker = threading.Thread(target=compile_variant, args=(VARIANT, ARCH))
    longest, last = 0.0, time.perf_counter()
    began = last
    worker.start()
    while worker.is_alive():
        time.sleep(0.001)
        longest, last = max(longest, time.perf_counter() - last), time.perf_counter()
    assert longest < (last - began) / 2, f"stood still for {longest:.3f} of {last - began:.3f} s"


# -- which NVRTC answers -----------------------------------------------------------------------------------------------

ASK = """
import ctypes, json, sys
for path, mode in json.loads(sys.argv[1]):
    ctypes.CDLL(path, mode=getattr(ctypes, mode))
from drvtopk import compiler, errors, nvrtc
try:
    print(json.dumps({"version": nvrtc.nvrtc_version(), "path": nvrtc.nvrtc_path()}))
except errors.CompilerUnavailable as error:
    print(json.dumps({"error": str(error)}))
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="which file answers is known on Linux only")


def ask(
    loaded_before: list[tuple[str, str]] | None = None, named: str | None = None, code: str = ASK
) -> dict[str, Any]:
    """What a fresh process says of its NVRTC, after its host loaded some libraries."""
    environment = {name: value for name, value in os.environ.items() if name != ours.NVRTC_VARIABLE}
    if named is not None:
        environment[ours.NVRTC_VARIABLE] = named
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(loaded_before or [])],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.fixture(scope="module")
def installed() -> str:
    library = ours._wheel_library()
    assert library is not None, "nvidia-cuda-nvrtc-cu12 is a dependency"
    return os.path.realpath(library)


@pytest.fixture(scope="module")
def another(installed: str) -> Iterator[str]:
    """A second NVRTC, which no search finds. Removed at once: it is 100 MB."""
    with tempfile.TemporaryDirectory() as folder:
        yield shutil.copy(installed, folder)


@linux
@needs_nvrtc
def test_our_own_wheel_answers_unless_told_otherwise(installed: str) -> None:
    assert ask() == {"version": [12, 9], "path": installed}


@linux
@needs_nvrtc
def test_the_library_that_is_named_answers(another: str) -> None:
    assert ask(named=another) == {"version": [12, 9], "path": another}


@linux
@pytest.mark.parametrize("mode", ["RTLD_LOCAL", "RTLD_GLOBAL"])
@needs_nvrtc
def test_the_library_that_the_host_loaded_answers_and_no_other_is_loaded(another: str, mode: str) -> None:
    code = ASK.replace("nvrtc.nvrtc_path()", "nvrtc.nvrtc_path(), 'loaded': nvrtc._loaded_files()")
    answer = ask([(another, mode)], code=code)
    assert answer == {"version": [12, 9], "path": another, "loaded": [another]}


@linux
@needs_nvrtc
def test_a_newer_library_that_is_installed_too_does_not_slip_in(installed: str, another: str, tmp_path: Path) -> None:
    folder = tmp_path / "nvidia" / "cu13" / "lib"  # where the bindings look first
    folder.mkdir(parents=True)
    newer = folder / "libnvrtc.so.13"
    newer.symlink_to(another)
    first = f"import site\nthere = [{str(tmp_path)!r}, *site.getsitepackages()]\nsite.getsitepackages = lambda: there\n"
    code = first + ASK
    unpinned = code.replace("errors\n", "errors\nours._wheel_library = lambda: None\n")
    if ask(code=unpinned)["path"] != another:
        pytest.skip("these bindings do not look there")
    assert ask(code=code)["path"] == installed


@linux
@needs_nvrtc
def test_the_library_that_is_named_wins_over_one_that_the_host_keeps_to_itself(another: str, installed: str) -> None:
    assert ask([(another, "RTLD_LOCAL")], named=installed) == {"version": [12, 9], "path": installed}


@linux
@needs_nvrtc
def test_a_named_library_that_does_not_answer_is_an_error_that_names_both(another: str, installed: str) -> None:
    error = ask([(another, "RTLD_GLOBAL")], named=installed)["error"]
    assert ours.NVRTC_VARIABLE in error
    assert installed in error and another in error


@pytest.mark.parametrize("named", ["/nowhere/libnvrtc.so.12", str(Path(__file__))])
def test_a_named_library_that_cannot_be_loaded_is_an_error(named: str) -> None:
    error = ask(named=named)["error"]
    assert f"{ours.NVRTC_VARIABLE} {named}" in error
    assert "pip install" in error


@linux
def test_a_named_library_that_is_no_nvrtc_is_an_error() -> None:
    assert "cannot be loaded as NVRTC" in ask(named="libm.so.6")["error"]


def test_an_nvrtc_that_is_too_old_is_named_with_version_path_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    path = ours.nvrtc_path()
    monkeypatch.setattr(ours, "_nvrtc", None)
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (0, 12, 6))
    with pytest.raises(CompilerUnavailable) as refused:
        compile_variant(VARIANT, ARCH)
    said = str(refused.value)
    assert said.startswith(f"NVRTC 12.6 ({path}) is too old: the kernels need 12.8, since clusters need PTX ISA 8.6")
    assert "pip install 'nvidia-cuda-nvrtc-cu12>=12.8,<13'" in said and "DRVTOPK_NVRTC" in said
    monkeypatch.setattr(nvrtc, "nvrtcVersion", lambda: (0, 12, 8))
    assert ours.nvrtc_version() == (12, 8)


def test_an_architecture_that_is_newer_than_this_nvrtc_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "supported_archs", lambda: ("sm_80", "sm_90", "sm_100"))
    monkeypatch.setattr(ours, "nvrtc_version", lambda: (12, 8))
    with pytest.raises(InvalidArgument) as refused:
        check_arch("sm_103a")
    said = str(refused.value)
    assert said.startswith("arch: got 'sm_103a', allowed is one of sm_80, sm_90, sm_100 (")
    assert said.endswith(f"NVRTC 12.8 ({ours.nvrtc_path()}) knows no other")


COMPILES = ASK.replace("try:", "try:\n    compiler.check_nvrtc()")


@linux
@needs_nvrtc
def test_a_library_without_its_builtins_is_named(another: str, installed: str) -> None:
    error = ask(named=another, code=COMPILES)["error"]
    assert error.startswith(f"NVRTC 12.9 ({another}) does not find libnvrtc-builtins.so.12.9, which belongs beside it")
    assert ask(named=installed, code=COMPILES)["path"] == installed


@linux
@needs_nvrtc
def test_doctor_names_a_library_without_its_builtins(another: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "drvtopk", "doctor"],
        cwd=ROOT,
        env={**os.environ, "DRVTOPK_NVRTC": another},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and f"NVRTC 12.9 ({another}) does not find libnvrtc-builtins" in done.stdout


@pytest.mark.skipif("DRVTOPK_TEST_NVRTC" not in os.environ, reason="DRVTOPK_TEST_NVRTC names no second NVRTC")
def test_the_oldest_nvrtc_compiles_the_kernels() -> None:
    """The library of NVRTC 12.8.93, for one: `pip download --no-deps nvidia-cuda-nvrtc-cu12==12.8.93`, unpacked."""
    code = """
import json
from drvtopk import compiler
from drvtopk.spec import instantiations
for arch in ("sm_80", "sm_90a"):
    made = [compiler.compile_variant(v, arch) for v in instantiations(arch, (512,), (4,), groups=(16,))]
print(json.dumps({"version": ours.nvrtc_version()}))
"""
    assert ask(named=os.environ["DRVTOPK_TEST_NVRTC"], code=code)["version"] >= [12, 8]


@pytest.mark.parametrize("missing", ["cuda", "cuda.bindings", "cuda.bindings.nvrtc"])
def test_without_the_bindings_it_says_how_to_get_them(missing: str) -> None:
    error = ask(code=f"import sys; sys.modules[{missing!r}] = None\n{ASK}")["error"]
    assert error.startswith("NVRTC is not there (")
    assert "pip install 'nvidia-cuda-nvrtc-cu12" in error


def test_a_library_that_the_bindings_do_not_find_is_translated(monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    def missing() -> None:
        raise RuntimeError("Failure finding libnvrtc.so\nsearched everywhere")

    monkeypatch.setattr(ours, "_nvrtc", None)
    monkeypatch.setattr(nvrtc, "nvrtcVersion", missing)
    with pytest.raises(CompilerUnavailable, match=r"\(Failure finding libnvrtc\.so\): pip install"):
        ours.nvrtc_version()
