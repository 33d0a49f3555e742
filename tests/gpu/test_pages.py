"""The code of the pages beside the package, on a real GPU, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gpu.support import Gpu
from tests.pages import PAGES, ROOT, blocks

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(gpu: Gpu, name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.pages", name],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(kind == "python" for kind, _, _ in blocks(PAGES[name]))
    assert count and done.stdout.endswith(f"{count} blocks ran\n")
