"""Kernels from exported folders: taken before anything is compiled, verified, and never a wrong one."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import drvtopk
from drvtopk import compiler, engine, nvrtc, records, source
from drvtopk.__main__ import _parser, main
from drvtopk.cache import Cache
from drvtopk.cli.options import options_of
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import CacheWarning, CompilerUnavailable, DriverUnavailable, InvalidArgument
from drvtopk.export import export_kernels, prebuilt
from drvtopk.export.prebuilt import Prebuilt, export_command, use_cubins
from drvtopk.plan import Problem
from drvtopk.spec import CLUSTERS, Options, Tuning, Variant, instantiations
from tests.fake_driver import FakeDriver

pytestmark = pytest.mark.usefixtures("tiny_kernels")

ROOT = Path(__file__).resolve().parents[2]
ARCH = "sm_90a"
K = 64
WIDE = Problem(rows=4, width=200_000, k=K)
HELD = [
    *instantiations(ARCH, (K,), (4,), ("filtered", "persistent")),
    *instantiations(ARCH, (K,), (4,), ("clustered",), groups=CLUSTERS),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, compiled_before: Cache, tiny_kernels: None) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_kernels(folder, {ARCH: HELD}, cache=compiled_before)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prebuilt, "_named", None)
    monkeypatch.delenv("DRVTOPK_CUBINS", raising=False)


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(nvrtc, "_nvrtc", None)
    monkeypatch.setenv("DRVTOPK_NVRTC", "/nonexistent/libnvrtc.so")
    yield


def make(fake: FakeDriver | None = None, **more: Any) -> Engine:
    driver = Driver(fake or FakeDriver())
    return Engine(driver, driver.context_device(0x77), cache=Cache(None), **more)


def altered(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads((folder / "manifest.json").read_text())
    change(found)
    for record in found.get("kernels", ()):
        record["digest"] = records.digest(record)
    (folder / "manifest.json").write_text(json.dumps(found))


# A process in which there is no compiler

WITHOUT = """
import json, os, sys

class Poison:
    def find_spec(self, name, path=None, target=None):
        if not name.startswith("drvtopk.") and (name.endswith("nvrtc") or "nvrtc." in name):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Poison())
import drvtopk
from drvtopk import driver as drv
from drvtopk.driver import Driver
from tests.fake_driver import FakeDriver
fake = FakeDriver()
drv._loaded = Driver(fake)
if len(sys.argv) > 1:
    drvtopk.use_cubins(*sys.argv[1:])
said = {}
for route in ("auto", "persistent", "filtered", "clustered"):
    ready = drvtopk.prepare(rows=4, width=200_000, k=64, route=route)
    ready.launch(1 << 20, 2 << 20, 3 << 20, 4 << 20)
    said[route] = [ready.plan.route, ready.plan.grid]
loaded = [bytes(args[0]) for name, args in fake.calls if name == "cuModuleLoadData"]
maps = open("/proc/self/maps").read() if sys.platform == "linux" else ""
print(json.dumps({
    "said": said,
    "cubins": [cubin[:4].hex() for cubin in loaded],
    "nvrtc": [n for n in sys.modules if "nvrtc" in n and n != "drvtopk.nvrtc"] + ["mapped"] * ("libnvrtc" in maps),
}))
"""


def without_a_compiler(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DRVTOPK_NVRTC": "/nonexistent/lib", "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-W", "error::drvtopk.CacheWarning", "-c", WITHOUT, *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)


@pytest.mark.parametrize("by", ["environment", "use_cubins", "the second of two"])
def test_with_everything_prebuilt_nvrtc_is_never_asked_for(exported: Path, tmp_path: Path, by: str) -> None:
    cache = str(tmp_path / "cache")
    if by == "environment":
        done = without_a_compiler(DRVTOPK_CUBINS=str(exported), DRVTOPK_CACHE=cache)
    elif by == "use_cubins":
        done = without_a_compiler(str(exported), DRVTOPK_CUBINS="/nowhere", DRVTOPK_CACHE=cache)
    else:
        export_kernels(tmp_path / "first", {"sm_80": instantiations("sm_80", (K,), (4,), ("filtered",))})
        done = without_a_compiler(DRVTOPK_CUBINS=f"{tmp_path / 'first'}{os.pathsep}{exported}", DRVTOPK_CACHE=cache)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["nvrtc"] == [] and set(found["cubins"]) == {b"\x7fELF".hex()}
    assert {name: made[0] for name, made in found["said"].items() if name != "auto"} == {
        name: name for name in ("persistent", "filtered", "clustered")
    }
    assert not (tmp_path / "cache").exists(), "nothing was compiled, so nothing is kept"


def test_the_folder_is_never_written_to(exported: Path) -> None:
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in exported.iterdir()}
    made = make(prebuilt=Prebuilt([exported]))
    made.prepare(WIDE)
    made.prepare(Problem(rows=4, width=200_000, k=K, offset=1), route="filtered")  # which is not there
    Prebuilt([exported]).holdings()
    assert {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in exported.iterdir()} == before


# What is taken


def test_a_prebuilt_kernel_is_what_would_be_compiled(exported: Path, compiled_before: Cache) -> None:
    folders = Prebuilt([exported])
    for variant in HELD:
        found = folders.find(variant, ARCH)
        again = compiler.compile_variant(variant, ARCH, cache=compiled_before)
        assert found is not None and (found.cubin, found.info) == (again.cubin, again.info)
        assert found.nvrtc == nvrtc.nvrtc_version() and found.path.parent == exported


def test_only_the_very_same_instantiation_is_taken(exported: Path) -> None:
    folders, held = Prebuilt([exported]), HELD[0]
    assert held.route == "filtered" and folders.find(held, ARCH) is not None
    others: list[dict[str, Any]] = [
        {"k": K + 1},
        {"vec_size": 2},
        {"pdl": True},
        {"route": "clustered", "cluster": 2, "pdl": True},
        {"options": Options(nan="highest")},
        {"options": Options(index_dtype="int64")},
        {"options": Options(values=True)},
        *({"tuning": Tuning(**{f.name: 64})} for f in dataclasses.fields(Tuning)),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for fields in others:
            assert folders.find(dataclasses.replace(held, **fields), ARCH) is None, fields
        for arch in ("sm_90", "sm_80", "sm_100a", ""):
            assert folders.find(held, arch) is None


def test_what_is_not_prebuilt_is_compiled(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Variant] = []
    really = compiler.compile_variant

    def seen(variant: Variant, arch: str, *, cache: Cache | None = None) -> Any:
        compiled.append(variant)
        return really(variant, arch, cache=cache)

    monkeypatch.setattr(engine, "compile_variant", seen)
    monkeypatch.setenv("DRVTOPK_CUBINS", str(exported))
    made = make()
    made.prepare(WIDE, route="filtered")
    assert compiled == []
    odd = made.prepare(Problem(rows=4, width=200_001, k=K), route="filtered").plan
    assert compiled == [odd.variant] and odd.vec_size == 1


def test_the_environment_is_read_when_a_kernel_is_needed(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert prebuilt.current().folders == ()
    monkeypatch.setenv("DRVTOPK_CUBINS", f"{exported}{os.pathsep}{os.pathsep}relative")
    assert prebuilt.current().folders == (exported, Path.cwd() / "relative")
    assert prebuilt.current() is prebuilt.current()
    use_cubins(exported)
    assert prebuilt.current().folders == (exported,)
    use_cubins()
    assert prebuilt.current().folders == ()


def test_use_cubins_refuses_a_folder_of_which_something_cannot_be_used(copy: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidArgument, match="holds no export") as refused:
            use_cubins(copy, folder)
        assert str(folder) in str(refused.value)
    next(copy.glob("*.cubin")).write_bytes(b"torn")
    with pytest.raises(InvalidArgument, match="damaged"):
        drvtopk.use_cubins(copy)
    assert prebuilt.current().folders == ()


def test_kernels_that_join_a_folder_later_are_found(copy: Path, compiled_before: Cache) -> None:
    folders = Prebuilt([copy])
    (more,) = instantiations(ARCH, (8,), (1,), ("persistent",))
    assert folders.find(more, ARCH) is None
    export_kernels(copy, {ARCH: [more]}, cache=compiled_before)
    assert folders.find(more, ARCH) is not None


# What is passed over: one warning, and a miss


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def torn_manifest(folder: Path) -> None:
    whole = (folder / "manifest.json").read_bytes()
    (folder / "manifest.json").write_bytes(whole[: len(whole) // 2])


def other_sources(folder: Path) -> None:
    altered(folder, lambda found: found.update(sources="ab" * 32))


def other_format(folder: Path) -> None:
    altered(folder, lambda found: found.update(format=3))


def other_numbers(folder: Path) -> None:
    altered(folder, lambda found: found["kernels"][0]["definitions"].update(DRVTOPK_THREADS=256))


def no_cubin(folder: Path) -> None:
    (folder / json.loads((folder / "manifest.json").read_text())["kernels"][0]["file"]).unlink()


def torn_cubin(folder: Path) -> None:
    name = json.loads((folder / "manifest.json").read_text())["kernels"][0]["file"]
    (folder / name).write_bytes((folder / name).read_bytes()[:-1])


def another_cubin(folder: Path) -> None:
    """A whole cubin, of another kernel."""
    first, second, *_ = json.loads((folder / "manifest.json").read_text())["kernels"]
    shutil.copy(folder / second["file"], folder / first["file"])


def file_elsewhere(folder: Path) -> None:
    altered(folder, lambda found: found["kernels"][0].update(file="../elsewhere.cubin"))


def no_kernels(folder: Path) -> None:
    altered(folder, lambda found: found.pop("kernels"))


def bad_variant(folder: Path) -> None:
    altered(folder, lambda found: found["kernels"][0]["variant"].update(k=0))


def a_folder_in_its_place(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").mkdir()


FAULTS: dict[Callable[[Path], None], str] = {
    no_manifest: "holds no export",
    torn_manifest: "cannot be read",
    other_sources: "other kernel sources",
    other_format: "format 3",
    other_numbers: "other numbers",
    no_cubin: "cannot be read",
    torn_cubin: "damaged",
    another_cubin: "damaged",
    file_elsewhere: "no name in that folder",
    no_kernels: "cannot be read",
    bad_variant: "cannot be read",
    a_folder_in_its_place: "manifest.json",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_whatever_is_not_right_is_one_warning_and_a_miss(
    copy: Path, fault: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    fault(copy)
    folders = Prebuilt([copy])
    with pytest.warns(CacheWarning, match=FAULTS[fault]) as seen:
        assert folders.find(HELD[0], ARCH) is None
        assert folders.find(HELD[0], ARCH) is None
    assert len(seen) == 1 and str(copy) in str(seen[0].message)
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.__dict__["event"] == "prebuilt" and record.getMessage() == str(seen[0].message)
    (holding,) = folders.holdings()
    assert holding.fault == str(seen[0].message) and len(holding.usable) < len(HELD)
    if fault is other_sources:
        assert "abababababab" in str(seen[0].message) and source.sources_digest()[:12] in str(seen[0].message)


def test_a_damaged_kernel_is_taken_from_the_next_folder(copy: Path, exported: Path) -> None:
    torn_cubin(copy)
    with pytest.warns(CacheWarning, match="damaged"):
        found = Prebuilt([copy, exported]).find(HELD[0], ARCH)
    assert found is not None and found.path.parent == exported


def test_a_damaged_kernel_is_compiled_where_there_is_a_compiler(copy: Path) -> None:
    torn_cubin(copy)
    fake = FakeDriver()
    with pytest.warns(CacheWarning, match="damaged"):
        ready = make(fake, prebuilt=Prebuilt([copy])).prepare(WIDE, route="filtered")
    assert ready.plan.variant == HELD[0]
    (loaded,) = [bytes(args[0]) for name, args in fake.calls if name == "cuModuleLoadData"]
    assert loaded == compiler.compile_variant(HELD[0], ARCH).cubin


# What is said where nothing helps


MISSING = [
    Problem(rows=4, width=200_000, k=K + 1),
    Problem(rows=4, width=200_000, k=K, pdl=True),
    Problem(
        rows=4,
        width=200_000,
        k=K,
        options=Options(dtype="bfloat16", order="value", tie_break="largest", values=True, index_dtype="int64"),
    ),
]


@pytest.mark.parametrize("problem", MISSING, ids=["another k", "pdl", "options"])
def test_without_a_compiler_a_missing_kernel_says_what_would_make_it(
    exported: Path, tmp_path: Path, no_nvrtc: None, problem: Problem
) -> None:
    made = make(prebuilt=Prebuilt([exported]))
    with pytest.raises(CompilerUnavailable) as refused:
        made.prepare(problem, route="filtered")
    said = str(refused.value)
    assert "/nonexistent/libnvrtc.so" in said and str(exported) in said
    variant = next(
        v for v in instantiations(ARCH, (problem.k,), options=problem.options, pdl=problem.pdl) if str(v) in said
    )
    command = said[said.index("python -m drvtopk export") :].split()
    arguments = _parser().parse_args([*command[3:-1], str(tmp_path)])
    (arch,) = arguments.arch
    wanted = instantiations(arch, arguments.k, options=options_of(arguments), pdl=arguments.pdl)
    assert variant in wanted and arch == ARCH


def test_a_missing_kernel_of_another_tuning_names_the_function_that_makes_it(no_nvrtc: None) -> None:
    with pytest.raises(CompilerUnavailable, match="DRVTOPK_CUBINS names none") as refused:
        make().prepare(WIDE, route="filtered", tuning=Tuning(samples=64))
    call = str(refused.value).partition("NVRTC: ")[2]
    asked: list[Any] = []
    eval(
        call,
        {"drvtopk": type("", (), {"export": type("", (), {"export_kernels": lambda *a: asked.extend(a)})})}
        | {name: getattr(drvtopk, name) for name in ("Variant", "Tuning", "Options")},
    )
    assert asked[1][ARCH][0] == dataclasses.replace(HELD[0], tuning=Tuning(samples=64))
    assert export_command(HELD[0], ARCH) == "python -m drvtopk export --arch sm_90a --k 64 --out DIR"


def test_kernels_of_a_newer_nvrtc_than_the_driver_are_refused(copy: Path) -> None:
    altered(copy, lambda found: found.update(nvrtc=[13, 0]))
    with pytest.raises(CompilerUnavailable) as refused:
        make(FakeDriver(version=12080), prebuilt=Prebuilt([copy])).prepare(WIDE, route="filtered")
    said = str(refused.value)
    assert "NVRTC 13.0 is newer than the driver, which runs CUDA 12.8" in said and str(copy) in said
    assert make(FakeDriver(version=13000), prebuilt=Prebuilt([copy])).prepare(WIDE, route="filtered")


# The commands


def no_driver() -> None:
    raise DriverUnavailable("no CUDA driver: libcuda could not be loaded")


def test_plan_calculates_from_prebuilt_kernels(
    exported: Path, no_nvrtc: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["plan", "--device", "h200", "--rows", "4", "--stride", "200000", "--k", str(K), "--route", "filtered"]
    assert main(argv) == 1
    assert "neither prebuilt nor can it be compiled" in capsys.readouterr().err
    monkeypatch.setenv("DRVTOPK_CUBINS", str(exported))
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["kernels"][0]["registers"] > 0 and found["route"] == "filtered"


def test_doctor_lists_the_folders_and_what_they_are_good_for(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("drvtopk.cli.doctor.load", no_driver)
    torn_cubin(copy)
    monkeypatch.setenv("DRVTOPK_CUBINS", f"{copy}{os.pathsep}{tmp_path / 'none'}")
    assert main(["doctor", "--json"]) == 1
    first, second = json.loads(capsys.readouterr().out)["cubins"]
    assert (first["folder"], first["kernels"], first["usable"]) == (str(copy), len(HELD), len(HELD) - 1)
    assert first["archs"] == [ARCH] and "damaged" in first["fault"]
    assert (second["kernels"], second["usable"], second["archs"]) == (0, 0, []) and "no export" in second["fault"]
    main(["doctor"])
    assert f"{copy}: {len(HELD) - 1} of {len(HELD)} kernels usable for sm_90a (" in capsys.readouterr().out


def test_doctor_is_content_without_a_compiler_where_kernels_for_the_device_are_prebuilt(
    exported: Path, no_nvrtc: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = FakeDriver()
    monkeypatch.setattr("drvtopk.cli.doctor.load", lambda: Driver(fake))
    assert main(["doctor", "--json"]) == 1
    assert "/nonexistent/libnvrtc.so" in json.loads(capsys.readouterr().out)["missing"][0]
    monkeypatch.setenv("DRVTOPK_CUBINS", str(exported))
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == [] and "/nonexistent/libnvrtc.so" in found["only_prebuilt"] and found["nvrtc"] is None
    fake.attributes |= {"COMPUTE_CAPABILITY_MAJOR": 8}
    assert main(["doctor"]) == 1, "there is no kernel for that device"


# -- nothing is compiled -----------------------------------------------------------------------------------------------


def test_where_compiling_is_forbidden_a_missing_kernel_is_named_with_the_switch(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DRVTOPK_COMPILE", "never")
    monkeypatch.setattr(compiler, "_run", lambda *_: pytest.fail("it was compiled"))
    monkeypatch.setenv("DRVTOPK_CUBINS", str(exported))
    made = make()
    assert made.prepare(WIDE, route="filtered").plan.vec_size == 4, "what is prebuilt runs"
    with pytest.raises(CompilerUnavailable) as refused:
        made.prepare(Problem(rows=4, width=200_001, k=K), route="filtered")
    said = str(refused.value)
    assert said.startswith("filtered<") and "DRVTOPK_COMPILE=never" in said and str(exported) in said
    monkeypatch.setenv("DRVTOPK_COMPILE", "nevr")
    with pytest.raises(InvalidArgument, match="DRVTOPK_COMPILE: got 'nevr', allowed is 'never', or nothing"):
        make().prepare(WIDE, route="filtered")


def test_a_device_that_is_newer_than_the_compiler_is_named_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "supported_archs", lambda: ("sm_80",))
    with pytest.raises(CompilerUnavailable, match=r"got 'sm_90a', allowed is one of sm_80 .*NVRTC 12\.\d+ .* no other"):
        make().prepare(WIDE, route="filtered")
