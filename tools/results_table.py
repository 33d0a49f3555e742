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


def load() -> list[dict[str, Any]]:
    """Every measured cell, in file order."""
    files = sorted((ROOT / "tools" / "results").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines() if line]


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
        "",
        "| rows | " + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|---:|" + "---:|" * len(lengths),
    ]
    lines += [f"| {r} | " + " | ".join(at.get((r, n), "") for n in lengths) + " |" for r in rows]
    return "\n".join(lines)


def rewritten(readme: str, content: str) -> str:
    """README with `content` between the markers."""
    before, rest = readme.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{content}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    readme = ROOT / "README.md"
    text = readme.read_text()
    new = rewritten(text, table(load()))
    if check:
        return 0 if new == text else 1
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
