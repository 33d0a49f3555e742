"""The kernel sources are found in a wheel and in a checkout, and include nothing but one another."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from drvtopk import source
from drvtopk.errors import CompilerUnavailable
from drvtopk.spec import ROUTES


@pytest.fixture
def unread() -> Iterator[None]:
    source.kernel_sources.cache_clear()
    yield
    source.kernel_sources.cache_clear()


def test_every_route_has_its_entry_file() -> None:
    sources = source.kernel_sources()
    assert {name for name in sources if name.endswith(".cu")} == {f"{route}.cu" for route in ROUTES}
    assert all(sources.values())


def test_a_source_includes_only_headers_that_are_handed_over() -> None:
    sources = source.kernel_sources()
    for name, text in sources.items():
        for included in re.findall(rb"^\s*#\s*include\s*(.*?)\s*$", text, re.MULTILINE):
            quoted = re.fullmatch(rb'"([^"/]+\.cuh)"', included)
            assert quoted is not None, f"{name} includes {included.decode()}"
            assert quoted[1].decode() in sources, f"{name} includes {included.decode()}"


def test_the_sources_inside_the_package_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: None
) -> None:
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    for folder in (inside, beside):
        folder.mkdir()
        (folder / "a.cu").write_text(folder.name)
        (folder / "a.cuh").write_text(folder.name)
        (folder / "a.cubin").write_text("no source")
    monkeypatch.setattr(source, "_places", lambda: (inside, beside))
    assert source.kernel_sources() == {"a.cu": b"inside", "a.cuh": b"inside"}


def test_a_package_without_sources_says_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unread: None
) -> None:
    monkeypatch.setattr(source, "_places", lambda: (tmp_path / "inside", tmp_path / "beside"))
    with pytest.raises(CompilerUnavailable) as refused:
        source.kernel_sources()
    assert str(tmp_path / "inside") in str(refused.value)
    assert str(tmp_path / "beside") in str(refused.value)
