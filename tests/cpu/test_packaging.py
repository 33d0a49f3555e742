"""Wheel, sdist and editable install all carry the kernels; the top level and the dependencies stay as they are."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KERNELS = {f.name for f in (ROOT / "cuda_src").glob("*.cu*")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_the_package_and_its_kernels_and_works_from_there(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert {f"drvtopk/cuda_src/{k}" for k in KERNELS} <= names
    assert "drvtopk/py.typed" in names
    top = {n.split("/")[0] for n in names}
    assert len(top) == 2 and "drvtopk" in top, f"only the package and its metadata: {top}"
    code = (
        "import drvtopk; from drvtopk import compiler, source, spec\n"
        f"assert drvtopk.__file__.startswith({str(tmp_path)!r}), drvtopk.__file__\n"
        "v = spec.Variant(route='filtered', k=5, vec_size=1)\n"
        "print(len(source.kernel_sources()), len(compiler.compile_variant(v, 'sm_90a').cubin) > 1000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        timeout=60,
    )
    assert done.stdout.split() == [str(len(KERNELS)), "True"], done.stderr


def test_the_sdist_holds_everything_that_builds_and_tests(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {n.split("/", 1)[1] for n in archive.getnames() if "/" in n}
    assert {f"cuda_src/{k}" for k in KERNELS} <= names
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "tests/inputs.py", "tools/bench.py"} <= names


def test_runtime_dependencies_are_three() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    found = re.search(r"^dependencies = \[(.*?)^\]", text, re.S | re.M)
    assert found is not None
    names = re.findall(r'"([a-z0-9-]+)', found[1])
    assert names == ["cuda-python", "nvidia-cuda-nvrtc-cu12", "numpy"]


def test_nothing_imports_torch() -> None:
    for folder in ("drvtopk", "tools"):
        for file in (ROOT / folder).rglob("*.py"):
            assert not re.search(r"^import torch|^from torch", file.read_text(), re.M), file


def test_the_top_level_is_fixed() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    top = {name.split("/")[0] for name in listed.stdout.splitlines()}
    allowed = {"pyproject.toml", "drvtopk", "cuda_src", "tests", "tools", "README.md", "LICENSE", "CHANGELOG.md"}
    assert {name for name in top if not name.startswith(".")} <= allowed
