"""The package's house: arrows point one way, one idea a file, and the page lists every file."""

from __future__ import annotations

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "drvtopk"
MOST_LINES = 450
FILES = sorted(ROOT.rglob("*.py"))


def module(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def for_checkers_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    """The package's modules that one imports when it is imported itself."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if for_checkers_only(node):
            continue
        for each in ast.walk(node) if isinstance(node, (ast.If, ast.Try)) else [node]:
            if isinstance(each, ast.Import):
                found |= {name.name for name in each.names}
            elif isinstance(each, ast.ImportFrom) and each.module:
                inner = {f"{each.module}.{name.name}" for name in each.names}
                found |= {name if name in MODULES else each.module for name in inner}
    return found & set(MODULES) - {module(path)}


def order(graph: dict[str, set[str]]) -> list[str]:
    """Raises CycleError."""
    return list(TopologicalSorter(graph).static_order())


def test_arrows_point_one_way() -> None:
    graph = {name: imports(path) for name, path in MODULES.items()}
    assert set(order(graph)) == set(MODULES)
    assert graph["drvtopk.api"] and graph["drvtopk.engine"], "else nothing was looked at"
    with pytest.raises(ValueError, match="cycle"):
        order(graph | {"drvtopk.spec": {"drvtopk.api"}})


@pytest.mark.parametrize("room", ["plan", "spec", "measured", "explain", "errors", "checks", "testing.oracle"])
def test_planning_never_touches_cuda(room: str) -> None:
    seen: set[str] = set()
    following = [f"drvtopk.{room}"]
    while following:
        name = following.pop()
        if name not in seen:
            seen.add(name)
            following += imports(MODULES[name])
    assert not seen & {f"drvtopk.{name}" for name in ("driver", "bindings", "memory", "nvrtc", "compiler", "engine")}


def test_only_one_room_imports_each_of_the_bindings() -> None:
    importers: dict[str, list[str]] = {"driver": [], "nvrtc": []}
    for name, path in MODULES.items():
        for binding, found in importers.items():
            if re.search(rf"from cuda\.bindings import {binding}\b", path.read_text()):
                found.append(name)
    assert importers == {"driver": ["drvtopk.driver"], "nvrtc": ["drvtopk.nvrtc"]}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_file_has_one_idea(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_page_lists_every_file() -> None:
    page = (ROOT / "README.md").read_text()
    listed = set(re.findall(r"`([\w/]+\.(?:py|json|h))`", page.partition("## Options")[0]))
    files = {path.relative_to(ROOT).as_posix() for path in FILES if path.name != "__init__.py"}
    assert {name for name in files if not name.startswith("cli/")} == {name for name in listed if name.endswith(".py")}
    assert all((ROOT / name).exists() for name in listed)
