"""What the tests here share: a folder of compiled kernels, and plans that no measurement decides."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from drvtopk import compiler, engine, measured
from drvtopk.cache import Cache
from drvtopk.spec import KernelInfo, Variant
from tests import tiny

ROOT = Path(__file__).resolve().parents[2]


def kernels_folder() -> Path:
    """In DRVTOPK_CACHE or the temporary folder; one for all processes and runs, until the code that fills it changes.

    What the code puts there has the kernels' sources, the options and NVRTC's version in its key.
    """
    package = ROOT / "drvtopk"
    digest = hashlib.sha256()
    for path in (*sorted(package.glob("compile*.py")), package / "cache.py", package / "spec.py"):
        digest.update(path.read_bytes())
    given = os.environ.get("DRVTOPK_CACHE")
    base = Path(given) if given else Path(tempfile.gettempdir()) / f"drvtopk-tests-{os.getuid()}"
    return base / f"tests-{digest.hexdigest()[:12]}"


KERNELS = kernels_folder()


@pytest.fixture(autouse=True)
def nothing_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are those of the model: `measured.json` changes with every measurement. Tests of it bring their own."""
    monkeypatch.setattr(measured, "table", dict)


@pytest.fixture(autouse=True)
def kernels_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands, and processes that tests start, use the folder too."""
    monkeypatch.setenv("DRVTOPK_CACHE", str(KERNELS))


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that answers at once, for tests of the driver layer alone."""

    def compile_variant(variant: Variant, arch: str, *, cache: object = None) -> object:
        info = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=6)
        return SimpleNamespace(cubin=b"cubin of " + str(variant).encode(), info=info)

    monkeypatch.setattr(engine, "compile_variant", compile_variant)
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))


@pytest.fixture(scope="module")
def tiny_kernels() -> Iterator[None]:
    """For a module whose tests are of what becomes of cubins: kernels that compile in no time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "kernel_sources", lambda: tiny.SOURCES)
        yield


@pytest.fixture(scope="session")
def compiled_before() -> Cache:
    """Kernels that this run or an earlier one compiled, of the same sources by the same code."""
    return Cache(KERNELS)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Processes that are started take Ctrl-C, also where a shell has this run, in the background, ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
