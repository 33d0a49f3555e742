"""The pages beside the package: their code runs on the emulated device, their commands are commands, their links lead
somewhere."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from drvtopk.__main__ import _parser, main
from tests.pages import PAGES, ROOT, blocks, run

COMMAND = re.compile(r"^(?:\w+=\S+ )*python -m drvtopk (.*)$", re.M)
COMMANDS = [
    (name, found)
    for name, page in PAGES.items()
    for kind, text, _ in blocks(page)
    if kind == "sh"
    for found in COMMAND.findall(text)
]


@pytest.mark.parametrize("name", PAGES)
def test_the_code_of_a_page_runs(name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    inherited = {k: v for k, v in os.environ.items() if k != "DRVTOPK_CUBINS"}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    cache = str(tmp_path_factory.getbasetemp() / "pages-cache")
    done = subprocess.run(
        [sys.executable, "-m", "tests.pages", name, "emulated"],
        cwd=tmp_path,
        env={**inherited, "PYTHONPATH": path, "DRVTOPK_CACHE": cache},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    count = sum(kind == "python" for kind, _, _ in blocks(PAGES[name]))
    assert count >= 2 and done.stdout == f"{count} blocks ran\n"


@pytest.mark.parametrize(("name", "command"), COMMANDS)
def test_a_command_of_a_page_is_one(name: str, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = _parser().parse_args(shlex.split(command))
    if arguments.command == "plan":
        assert main(shlex.split(command)) == 0
        assert capsys.readouterr().out


def test_pages_have_commands() -> None:
    assert {name for name, _ in COMMANDS} == {"DEPLOY", "PLANS"}
    assert {command.split()[0] for _, command in COMMANDS} == {"export", "doctor", "plan"}


@pytest.mark.parametrize("name", PAGES)
def test_links_of_a_page_lead_to_files_and_to_headings(name: str) -> None:
    text = PAGES[name].read_text()
    for file, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)", text):
        if file.startswith("http"):
            continue
        target = PAGES[name].parent / file if file else PAGES[name]
        assert target.exists(), file
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{file}#{anchor}"


def test_a_page_that_is_wrong_fails(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n")
    assert run(page) == 1
    page.write_text(page.read_text().replace("text\n2", "text\n3"))
    with pytest.raises(AssertionError, match=r"page.md:5: printed is\n2"):
        run(page)
    page.write_text("\n\n```python\nassert False\n```\n")
    with pytest.raises(AssertionError) as wrong:
        run(page)
    assert wrong.traceback[-1].lineno == 3  # counted from 0: the page's fourth line


def test_every_page_is_linked_from_the_readmes() -> None:
    for readme in (ROOT / "README.md", ROOT / "drvtopk" / "README.md"):
        linked = set(re.findall(r"\]\((?:drvtopk/)?(\w+)\.md", readme.read_text()))
        assert set(PAGES) <= linked, readme
