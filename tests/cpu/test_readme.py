"""README: its example runs, its table is what the data says, its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import results_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(ROOT / f / "README.md" for f in ("cuda_src", "drvtopk", "tests", "tools"))]


def test_the_example_runs() -> None:
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(example, "README.md", "exec"), {})


def test_the_table_is_generated_from_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert results_table.rewritten(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.parent.name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_is_one() -> None:
    from drvtopk.__main__ import _parser

    shown = re.findall(r"python -m drvtopk (plan .*|compile .*|topk .*)", (ROOT / "README.md").read_text())
    assert len(shown) == 3
    for line in shown:
        _parser().parse_args(line.split())
