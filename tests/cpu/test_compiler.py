"""The compiler without a GPU: every instantiation for every architecture, closed requests, keys, errors."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from drvtopk import compiler, source
from drvtopk.cache import Cache
from drvtopk.cli.compiling import instantiations
from drvtopk.compiler import compile_source, compile_variant, options, supported_archs
from drvtopk.errors import CompileError, CompilerUnavailable, InvalidArgument
from drvtopk.plan import calculated_occupancy
from drvtopk.spec import ARCHITECTURES, KNOWN_DEVICES, DeviceInfo, Tuning, Variant, min_blocks

ODD_KS = (1, 2, 31, 500, 511, 513, 1000, 2051, 3000, 4096)
REPORT = "Used 1 registers, 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads"
SMALL = Tuning(short_max=256, radix_threshold=512, min_chunk=64, max_candidates=64)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("cubins"))


def device_of(arch: str) -> DeviceInfo:
    found = [d for d in KNOWN_DEVICES.values() if d.arch == arch]
    return found[0] if found else dataclasses.replace(KNOWN_DEVICES["l40s"], arch=arch)  # sm_86: same limits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_instantiation_compiles_without_spills_and_for_its_planned_occupancy(arch: str, folder: Cache) -> None:
    if arch.rstrip("a") not in supported_archs():
        pytest.skip(f"this NVRTC does not know {arch}")
    variants = instantiations()
    if arch == "sm_90a":
        variants += instantiations(ks=ODD_KS)
        variants += [dataclasses.replace(v, tuning=SMALL) for v in instantiations(ks=(512,))]
    with ThreadPoolExecutor(2) as pool:
        for variant, made in zip(
            variants, pool.map(lambda v: compile_variant(v, arch, cache=folder), variants), strict=True
        ):
            assert made.info.spill_bytes == made.info.stack_bytes == made.info.static_smem_bytes == 0, (variant, arch)
            blocks = calculated_occupancy(made.info, device_of(arch), variant.fixed_smem_bytes)
            assert blocks == min_blocks(arch), (variant, arch, made.info)


def test_this_nvrtc_knows_most_of_the_architectures() -> None:
    assert sum(arch.rstrip("a") in supported_archs() for arch in ARCHITECTURES) >= 6


def test_each_cubin_holds_one_kernel_by_its_plain_name(folder: Cache) -> None:
    for route in ("persistent", "filtered"):
        cubin = compile_variant(Variant(route=route, k=512, vec_size=4), "sm_90a", cache=folder).cubin
        assert cubin[:4] == b"\x7fELF"
        names = {n for n in cubin.split(b"\0") if n.startswith(b".text.")}
        assert names == {f".text.drvtopk_{route}".encode()}


def test_a_second_compile_gives_the_same_bytes_and_a_cached_one_says_so(tmp_path: Path) -> None:
    variant = Variant(route="filtered", k=512, vec_size=4)
    first = compile_variant(variant, "sm_90a")
    again = compile_variant(variant, "sm_90a", cache=Cache(tmp_path))
    cached = compile_variant(variant, "sm_90a", cache=Cache(tmp_path))
    assert first.cubin == again.cubin == cached.cubin
    assert (first.from_cache, again.from_cache, cached.from_cache) == (False, False, True)
    assert cached.info == first.info and first.info.seconds > 0 and cached.info.seconds == 0


def keys_asked(monkeypatch: pytest.MonkeyPatch, variant: Variant, arch: str, **changed: object) -> str:
    asked: list[str] = []

    class Spy(Cache):
        def get(self, name: str) -> bytes | None:
            asked.append(name)
            return None

        def put(self, name: str, payload: bytes) -> None: ...

    monkeypatch.setattr(
        compiler,
        "_run",
        lambda *a: (b"", REPORT),
    )
    compile_variant(variant, arch, cache=Spy(None), **changed)  # type: ignore[arg-type]
    return asked[0]


def test_everything_that_enters_a_compile_enters_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Variant(route="filtered", k=512, vec_size=4)
    keys = [
        keys_asked(monkeypatch, base, "sm_90a"),
        keys_asked(monkeypatch, dataclasses.replace(base, k=513), "sm_90a"),
        keys_asked(monkeypatch, dataclasses.replace(base, vec_size=2), "sm_90a"),
        keys_asked(monkeypatch, dataclasses.replace(base, route="persistent"), "sm_90a"),
        keys_asked(monkeypatch, dataclasses.replace(base, tuning=Tuning(short_max=4096)), "sm_90a"),
        keys_asked(monkeypatch, dataclasses.replace(base, tuning=Tuning(radix_threshold=9)), "sm_90a"),
        keys_asked(monkeypatch, base, "sm_80"),
        keys_asked(monkeypatch, base, "sm_90a", extra=("-DDRVTOPK_WAIT_LIMIT=9",)),
    ]
    changed = {**source.kernel_sources()}
    changed["keys.cuh"] += b"\n"
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "kernel_sources", lambda: changed)
        keys.append(keys_asked(monkeypatch, base, "sm_90a"))
    with monkeypatch.context() as patch:
        patch.setattr(compiler, "nvrtc_version", lambda: (99, 1))
        keys.append(keys_asked(monkeypatch, base, "sm_90a"))
    assert len(set(keys)) == len(keys)
    assert keys[0] == keys_asked(monkeypatch, base, "sm_90a")


def test_the_request_is_closed() -> None:
    for name, text in source.kernel_sources().items():
        for line in text.decode().splitlines():
            if line.lstrip().startswith("#include"):
                assert line.split('"')[1] in source.kernel_sources(), f"{name}: {line}"


def test_kernel_files_stay_small() -> None:
    for name, text in source.kernel_sources().items():
        assert len(text.splitlines()) < 250, name


def test_a_compile_error_carries_the_log_and_the_options() -> None:
    opts = options(Variant(route="filtered", k=1, vec_size=1), "sm_90a")
    with pytest.raises(CompileError, match="undeclared_thing") as caught:
        compile_source("broken", b"__global__ void f() { undeclared_thing(); }", "broken.cu", {}, "sm_90a", opts)
    assert caught.value.options == opts


@pytest.mark.parametrize("arch", ["", "sm_75", "sm_9000", "90a", "sm_80a", "compute_90", "sm_90b"])
def test_an_unknown_architecture_is_named_with_what_is_known(arch: str) -> None:
    with pytest.raises(InvalidArgument, match=r"arch: .* allowed is one of sm_80, "):
        compile_variant(Variant(route="filtered", k=1, vec_size=1), arch)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=60
    )


def test_importing_the_package_imports_no_cuda_library() -> None:
    done = python("import drvtopk, sys; print([m for m in sys.modules if m.startswith('cuda')])")
    assert done.stdout.strip() == "[]", done


def test_the_wheels_nvrtc_is_pinned_and_a_named_one_is_used() -> None:
    here = compiler.nvrtc_path()
    assert here is not None
    code = "from drvtopk import compiler as c; print(c.nvrtc_path())"
    assert python(code).stdout.strip() == here
    assert python(code, DRVTOPK_NVRTC=here).stdout.strip() == here


def test_a_missing_named_nvrtc_is_a_clear_error() -> None:
    code = "from drvtopk import compiler as c\ntry: c.nvrtc_version()\nexcept c.CompilerUnavailable as e: print(e)"
    assert "/nowhere/libnvrtc.so" in python(code, DRVTOPK_NVRTC="/nowhere/libnvrtc.so").stdout


def test_no_nvrtc_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "_nvrtc", None)
    monkeypatch.setattr(compiler, "_wheel_library", lambda: None)
    monkeypatch.setitem(sys.modules, "cuda.bindings.nvrtc", None)
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(CompilerUnavailable, match="pip install 'nvidia-cuda-nvrtc-cu12"):
        compiler.nvrtc_version()


def test_missing_sources_are_a_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(source, "_PLACES", (tmp_path,))
    with pytest.raises(CompilerUnavailable, match="reinstall drvtopk"):
        source.kernel_sources.__wrapped__()
