"""The committed table of plans: a changed heuristic is a diff that a person reads."""

from __future__ import annotations

from pathlib import Path

from tools.plan_table import lines

GOLDEN = Path(__file__).parent / "golden_plans.txt"


def test_plans_are_those_of_the_committed_table() -> None:
    expected = GOLDEN.read_text().splitlines()
    found = lines()
    changed = [f"- {a}\n+ {b}" for a, b in zip(expected, found, strict=False) if a != b]
    assert not changed and len(found) == len(expected), (
        "\n".join(changed) + "\nif this is meant: python tools/plan_table.py > tests/cpu/golden_plans.txt"
    )
