"""Writes README's table of results from tools/results/*.jsonl, between its two markers.

python tools/results_table.py            # rewrite
python tools/results_table.py --check    # exit code 1 if README is not what the data says
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SHOWN_K = 1024


def load(name: str) -> list[dict[str, Any]]:
    """The lines of one file of results; none if it was never measured."""
    file = ROOT / "tools" / "results" / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def table(cells: Sequence[dict[str, Any]]) -> str:
    """The planned route's times for k 1024 and normal values: rows down, lengths across, and their command."""
    shown = [c for c in cells if c["k"] == SHOWN_K and c["input"] == "normal" and c["planned"]]
    if not shown:
        return "not measured yet"
    about = shown[0]
    rows = sorted({c["rows"] for c in shown})
    lengths = sorted({c["len"] for c in shown})
    at = {(c["rows"], c["len"]): f"{c['us']:.1f} ({c['us'] / c['floor_us']:.1f}x)" for c in shown}
    lines = [
        f"{about['gpu']}, driver {about['driver']}, {about['date']}, drvtopk {about['drvtopk']}; k {SHOWN_K},",
        "normal values, float32, the planned route, L2 cold. Microseconds a launch and, in brackets, that over the",
        f"time to read the same bytes once. Command: `{about['command']}`",
        *_drift(shown),
        "",
        "| rows | " + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|---:|" + "---:|" * len(lengths),
    ]
    lines += [f"| {r} | " + " | ".join(at.get((r, n), "") for n in lengths) + " |" for r in rows]
    return "\n".join(lines)


def _drift(cells: Sequence[dict[str, Any]]) -> list[str]:
    """The caveat that the data itself carries: how steady one fixed read was over the cells."""
    control = [c["control_us"] for c in cells if "control_us" in c]
    if not control or max(control) <= 1.05 * min(control):
        return []
    return [
        "",
        f"A fixed control read took {min(control):.2f} us in some of these cells and {max(control):.2f} us in others",
        "(see [tools](tools/README.md)), so compare small cells with their own floor only.",
    ]


def neighbour_table(lines: Sequence[dict[str, Any]]) -> str:
    """What a reading neighbour loses beside back-to-back selections, by budget of SMs."""
    if not lines:
        return ""
    about = lines[0]
    shown = [
        "",
        f"Beside a neighbour that reads 64 MiB in {about['alone_us']:.1f} us alone ({about['gpu']}, driver",
        f"{about['driver']}, {about['date']}; selections of {about['rows']} x {about['len']:,}, k {about['k']}, back",
        "to back on another stream):",
        f"the neighbour's time over its time alone. Command: `{about['command']}`",
        "",
        "| route | " + " | ".join("no budget" if b is None else f"{b} SMs" for b in _budgets(lines)) + " |",
        "|---|" + "---:|" * len(_budgets(lines)),
    ]
    for route in dict.fromkeys(line["route"] for line in lines):
        cells = [f"{line['ratio']:.2f}x ({line['grid']} blocks)" for line in lines if line["route"] == route]
        shown.append(f"| {route} | " + " | ".join(cells) + " |")
    return "\n".join(shown)


def _budgets(lines: Sequence[dict[str, Any]]) -> list[int | None]:
    return list(dict.fromkeys(line["sm_budget"] for line in lines))


def content() -> str:
    """Everything between the markers."""
    return "\n".join(part for part in (table(load("h200.jsonl")), neighbour_table(load("neighbour.jsonl"))) if part)


def rewritten(readme: str) -> str:
    """README with the tables as the data has them between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{content()}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rewritten(text)
    if check:
        return 0 if new == text else 1
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
