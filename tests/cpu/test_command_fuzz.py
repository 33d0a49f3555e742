"""A few of the command lines that tests/command_fuzz.py draws without end."""

from __future__ import annotations

from collections import Counter

import pytest

from drvtopk.cli import planning
from tests import command_fuzz, emulated
from tests.emulated import EmulatedDriver

EACH = 40


@pytest.mark.exhaustive("commands")
@pytest.mark.parametrize("part", range(30))
def test_any_command_line_ends_as_it_says(monkeypatch: pytest.MonkeyPatch, part: int) -> None:
    emulated.use(monkeypatch, EmulatedDriver())
    monkeypatch.setattr(planning, "compile_variant", emulated._compile)
    codes: Counter[int] = Counter()
    for seed in range(EACH * part, EACH * (part + 1)):
        wrong, code = command_fuzz.complaint(seed)
        assert not wrong, wrong
        codes[code] += 1
    assert codes[2] > 10 and set(codes) <= {0, 1, 2}, "many are wrong, and each of them in words"


def test_some_of_what_is_drawn_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the others would say little: 11 in 100 are, of a hundred thousand."""
    emulated.use(monkeypatch, EmulatedDriver())
    monkeypatch.setattr(planning, "compile_variant", emulated._compile)
    codes = Counter(command_fuzz.complaint(seed)[1] for seed in range(200))
    assert codes[0] >= 10 and codes[2] >= 100, codes
