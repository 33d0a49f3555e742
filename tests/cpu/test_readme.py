"""README: its example runs, its table is what the data says, its links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from drvtopk.spec import DTYPES, INDEX_DTYPES, NANS, ORDERS, TIE_BREAKS, Options
from tools import results_table

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *(p for f in ("cuda_src", "drvtopk", "tests", "tools") for p in (ROOT / f).glob("*.md"))]


def test_the_examples_run_one_after_the_other() -> None:
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert len(examples) == 2
    names: dict[str, Any] = {}
    for example in examples:
        exec(compile(example, "README.md", "exec"), names)


def test_the_example_of_options_names_every_one() -> None:
    _, options = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    given = {word.arg for call in ast.walk(ast.parse(options)) if isinstance(call, ast.Call) for word in call.keywords}
    asked = {field.name for field in dataclasses.fields(Options)} - {"dtype"} | {"deterministic", "page_size"}
    assert asked <= given


def test_what_is_said_of_choices_is_all_there_is() -> None:
    text = (ROOT / "drvtopk" / "README.md").read_text()
    section = text.split("## Options\n")[1].split("\n## ")[0]
    for words in (DTYPES, INDEX_DTYPES, ORDERS, TIE_BREAKS, NANS):
        assert all(f"{word}" in section for word in words)
    for name in (*(field.name for field in dataclasses.fields(Options)), "deterministic", "page_size"):
        assert f"`{name}" in section, name


def test_the_table_is_generated_from_the_committed_results() -> None:
    text = (ROOT / "README.md").read_text()
    assert results_table.rewritten(text) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: f"{p.parent.name}/{p.name}")
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_command_of_the_readme_is_one() -> None:
    from drvtopk.__main__ import _parser

    shown = re.findall(r"python -m drvtopk (plan .*|compile .*|topk .*)", (ROOT / "README.md").read_text())
    assert len(shown) == 4
    for line in shown:
        _parser().parse_args(line.split())
