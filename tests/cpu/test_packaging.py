"""What is shipped: the wheel and the sdist hold the kernels, and importing the package loads no CUDA library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import drvtopk

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {f.name for f in (ROOT / "cuda_src").glob("*.cu*")}
TOP_LEVEL = {"pyproject.toml", "drvtopk", "cuda_src", "tests", "tools", "README.md", "LICENSE", "CHANGELOG.md"}


def python(*arguments: str | Path, cwd: Path, path: Path | None = None) -> str:
    """Standard output of a fresh Python that sees the repository only if it is told to."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(wheel, sdist); the wheel is built from the unpacked sdist, as an installer without a wheel would."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    tree.mkdir()
    for name in TOP_LEVEL:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tree / name)
    python("-m", "build", "--no-isolation", "--outdir", folder / "dist", tree, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return wheel, sdist


def test_the_wheel_holds_the_package_and_its_kernels_and_nothing_else(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[0]).namelist())
    assert {name for name in names if re.search(r"\.cuh?$", name)} == {f"drvtopk/cuda_src/{name}" for name in KERNELS}
    assert {"drvtopk/py.typed", "drvtopk/__main__.py", "drvtopk/compiler.py", "drvtopk/export/drvtopk.h"} <= names
    measured = {f"drvtopk/{file.name}" for file in (ROOT / "drvtopk").glob("*.json")}
    assert measured == {"drvtopk/measured.json"} and measured <= names, "what the planner was measured to choose by"
    info = f"drvtopk-{drvtopk.__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"drvtopk", info}
    assert f"{info}/licenses/LICENSE" in names
    assert built[0].name == f"drvtopk-{drvtopk.__version__}-py3-none-any.whl"


def test_the_sdist_holds_all_that_it_takes_to_test_and_build(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {member.name.partition("/")[2] for member in archive.getmembers()}
    assert {f"cuda_src/{name}" for name in KERNELS} <= names
    assert {name.partition("/")[0] for name in names} - {"PKG-INFO", ".gitignore"} == TOP_LEVEL
    assert "tests/cpu/test_packaging.py" in names


def test_an_installed_wheel_finds_its_kernels_and_compiles_them(built: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "site"
    python("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", target, built[0], cwd=tmp_path)
    code = """
import drvtopk, drvtopk.source, drvtopk.compiler
names = sorted(drvtopk.source.kernel_sources())
drvtopk.compiler.compile_variant(drvtopk.Variant(route="persistent", k=8, vec_size=4), "sm_90a")
print(drvtopk.__file__, *names, sep="\\n")
"""
    origin, *names = python("-c", code, cwd=tmp_path, path=target).splitlines()
    assert Path(origin).is_relative_to(target)
    assert set(names) == KERNELS


FROM_ZIP = """
import drvtopk
from drvtopk.export import c_header
from drvtopk import measured, source
from drvtopk.__main__ import main
print(drvtopk.__file__, source.sources_digest(), len(measured.table()), len(c_header.rules_header()))
raise SystemExit(main("plan --device h200 --rows 64 --stride 60000 --k 1024 --occupancy 2".split()))
"""


def test_a_package_in_a_zip_reads_all_that_it_ships(tmp_path: Path) -> None:
    """The wheel's layout has the kernels inside the package, a checkout's beside it."""
    here = python("-c", FROM_ZIP, cwd=tmp_path, path=ROOT).splitlines()
    for layout, kernels in (("wheel", "drvtopk/cuda_src"), ("checkout", "cuda_src")):
        path = tmp_path / f"{layout}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for folder, name in (("drvtopk", "drvtopk"), ("cuda_src", kernels)):
                for file in (ROOT / folder).rglob("*"):
                    if file.is_file() and "__pycache__" not in file.parts:
                        archive.write(file, f"{name}/{file.relative_to(ROOT / folder)}")
        zipped = python("-c", FROM_ZIP, cwd=tmp_path, path=path).splitlines()
        assert zipped[0].startswith(f"{path}/drvtopk/__init__.py ")
        assert zipped[0].split()[1:] == here[0].split()[1:] and int(zipped[0].split()[2]) > 0
        assert zipped[1:] == here[1:], "and plans by the measured times"


LOADED = """
import sys
before = set(sys.modules)  # bindings 12.9 put a part of themselves there whenever Python starts
import drvtopk
print(*sorted(set(sys.modules) - before), sep="\\n")
maps = open("/proc/self/maps") if sys.platform == "linux" else []
print([line for line in maps if "libcuda" in line or "nvrtc" in line])
"""


def test_importing_the_package_loads_nothing_of_cuda() -> None:
    *modules, mapped = python("-c", LOADED, cwd=ROOT).splitlines()
    assert "drvtopk.plan" in modules
    assert [name for name in modules if re.match(r"(cuda|nvidia|torch|cupy)(\.|$)", name)] == []
    assert [name for name in modules if re.fullmatch(r"drvtopk\.(compiler|driver|engine|api|cache)", name)] == []
    assert mapped == "[]"


def test_the_runtime_dependencies_are_these_and_no_others(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        lines = wheel.read(f"drvtopk-{drvtopk.__version__}.dist-info/METADATA").decode().splitlines()
    required = [
        line.partition(": ")[2] for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line
    ]
    assert sorted(required) == ["cuda-python<14,>=12.9", "numpy", "nvidia-cuda-nvrtc-cu12<13,>=12.8"]
    assert "Requires-Python: >=3.10" in lines
    assert "License-Expression: Apache-2.0" in lines


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_the_top_level_is_exactly_this() -> None:
    try:
        listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not answer: {error}")
    top = {name.partition("/")[0] for name in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == TOP_LEVEL
