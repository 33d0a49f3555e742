"""Writes README's tables of results from tools/results/*.jsonl, between its two markers.

python tools/results_table.py            # rewrite
python tools/results_table.py --check    # exit code 1 if README is not what the data says
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import baselines, lines
from tools.cells import FULL_ROWS
from tools.timing import DRIFT, drift

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"
SHOWN_K = 1024

Lines = Sequence[dict[str, Any]]


def load(name: str) -> list[dict[str, Any]]:
    """The lines of one file of results; none if it was never measured."""
    file = ROOT / "tools" / "results" / name
    return lines.read(file) if file.exists() else []


def planned(measured: Lines) -> list[dict[str, Any]]:
    """The cells that the planner's own choice was timed at."""
    return [line for line in measured if line["kind"] == "cell" and line["planned"]]


def table(measured: Lines) -> str:
    """The planned route's times for k 1024 and normal values: rows down, lengths across, and their command."""
    cells = planned(measured)
    shown = [c for c in cells if lines.in_full_grid(c) and c["k"] == SHOWN_K and not c["pdl"]]
    if not shown:
        return "not measured yet"
    about = shown[0]
    rows = sorted({c["rows"] for c in shown})
    lengths = sorted({c["len"] for c in shown})
    at = {(c["rows"], c["len"]): _time_and_speed(c) for c in shown}
    head = [
        f"{about['gpu']}, driver {about['driver']}, {about['date']}, drvtopk {about['drvtopk']}; k {SHOWN_K},",
        "normal values, float32, the planned route, L2 cold. Microseconds a launch",
    ]
    if baselines.comparable(about["gpu"]):
        head[-1] += " and, in brackets, how many times as"
        head += [
            "fast that is as the fastest of the other libraries at that cell",
            f"([their times](tools/results/peers.json), {baselines.data()['date']}; below 1: slower).",
        ]
    else:
        head[-1] += "."
    commands = dict.fromkeys(f"`{c['command']}`" for c in cells)
    found = [
        *head,
        f"Command: {', '.join(commands)}",
        *_drift(shown),
        "",
        "| rows | " + " | ".join(f"{n:,}" for n in lengths) + " |",
        "|---:|" + "---:|" * len(lengths),
    ]
    found += [f"| {r} | " + " | ".join(at.get((r, n), "") for n in lengths) + " |" for r in rows]
    return "\n".join(found)


def _time_and_speed(cell: dict[str, Any]) -> str:
    yard = baselines.at(cell) if baselines.comparable(cell["gpu"]) else None
    return f"{cell['us']:.1f}" + (f" ({yard.best.us / cell['us']:.2f}x)" if yard is not None else "")


def _drift(cells: Lines) -> list[str]:
    """The caveat that the data itself carries: how steady one fixed read was over the cells."""
    control = [c["control_us"] for c in cells]
    if drift(control) <= DRIFT:
        return []
    return [
        "",
        f"A fixed control read took {min(control):.2f} us in some of these cells and {max(control):.2f} us in others",
        "(see [tools](tools/README.md)), so compare small cells with their own floor only.",
    ]


def kind_of(cell: dict[str, Any]) -> tuple[int, str]:
    """Which line of the summary a cell belongs to: (place, name)."""
    k = f"k {cell['k']}"
    if cell["pdl"]:
        return 6, f"{k}, programmatic dependent launch"
    if cell["dtype"] != "float32":
        return 5, f"{k}, {cell['dtype']}"
    if cell["input"] != "normal":
        return 7, ""  # has a table of its own
    if cell["lengths"] != "full":
        return 4, f"{k}, rows of different lengths"
    if cell["rows"] > FULL_ROWS[-1]:
        return 3, f"{k}, more than {FULL_ROWS[-1]} rows"
    if lines.in_full_grid(cell):
        return 1, k
    return 2, f"{k}, other lengths and alignments"


def summary_table(measured: Lines) -> str:
    """Geometric means of the planned cells, by kind."""
    kinds: dict[tuple[int, int, str], list[dict[str, Any]]] = {}
    for cell in planned(measured):
        place, name = kind_of(cell)
        if name:
            kinds.setdefault((place, cell["k"], name), []).append(cell)
    if not kinds:
        return ""
    found = [
        "",
        "Geometric means: how many times as fast as the fastest other library at each cell, as the fastest of those",
        "that were right for every input tried, and the time over the time to read the same bytes once.",
        "",
        "| cells | number | over the fastest | over the fastest exact | over one read | slower than the fastest in |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for (_, _, name), cells in sorted(kinds.items()):
        means = baselines.summary(cells)
        assert means is not None  # a type fact: each kind has a cell
        comparable = means.compared and baselines.comparable(cells[0]["gpu"])
        over = [_times(means.over_best), _times(means.over_exact)] if comparable else ["", ""]
        slower = f"{means.slower} of {means.compared}" if comparable else ""
        found.append(f"| {name} | {means.cells} | {over[0]} | {over[1]} | {_times(means.over_floor)} | {slower} |")
    return "\n".join(found)


def _times(ratio: float) -> str:
    return "" if math.isnan(ratio) else f"{ratio:.2f}x"


def adversarial_table(measured: Lines) -> str:
    """How much slower the other inputs of a shape are than normal values."""
    cells = [c for c in planned(measured) if c["dtype"] == "float32" and c["lengths"] == "full" and not c["pdl"]]
    shapes: dict[tuple[int, int, int], dict[str, dict[str, Any]]] = {}
    for cell in cells:
        shapes.setdefault((cell["rows"], cell["len"], cell["k"]), {})[cell["input"]] = cell
    found = []
    for (rows, length, k), inputs in sorted(shapes.items()):
        normal = inputs.pop("normal", None)
        if normal is None or not inputs:
            continue
        worst = max(inputs, key=lambda name: inputs[name]["us"])
        mean = baselines.geometric_mean([c["us"] / normal["us"] for c in inputs.values()])
        found.append(
            f"| {rows} x {length:,}, k {k} | {normal['us']:.1f} | {len(inputs)} | {mean:.2f}x | "
            f"{worst}: {inputs[worst]['us']:.1f} ({inputs[worst]['us'] / normal['us']:.2f}x) |"
        )
    if not found:
        return ""
    head = "| | normal values, us | other inputs | their time over that, geometric mean | the slowest of them, us |"
    return "\n".join(
        [
            "",
            "[Inputs that break kernels of this family](drvtopk/testing/inputs.py):",
            "",
            head,
            "|---|---:|---:|---:|---|",
            *found,
        ]
    )


def host_table(measured: Lines) -> str:
    """What a prepared call costs the host."""
    costs = [line for line in measured if line["kind"] == "host"]
    if not costs:
        return ""
    libraries = [line for line in costs if "torch_us" in line]
    beside = f" | torch {libraries[0]['torch']} topk" if libraries else ""
    bound = " | bound" if any("bound_us" in line for line in costs) else ""
    found = [
        "",
        "What a prepared call costs the host, microseconds:",
        "",
        f"| | prepared call{bound} | the driver call in it{beside} |",
        "|---|---:|---:|" + "---:|" * (bool(bound) + bool(libraries)),
    ]
    for line in costs:
        pdl = ", programmatic dependent launch" if line["pdl"] else ""
        what = f"{line['rows']} x {line['len']:,}, {lines.spelled(line)}{pdl}"
        beside = f" {line['torch_us']:.2f} |" if "torch_us" in line else " |" * bool(libraries)
        if bound:
            what += f" | {line['us']:.2f}"
        us = line.get("bound_us", math.nan) if bound else line["us"]
        found.append(f"| {what} | {us:.2f} | {line['bare_us']:.2f} |{beside}")
    return "\n".join(found)


def neighbour_table(measured: Lines) -> str:
    """What a reading neighbour loses beside back-to-back selections, by budget of SMs."""
    if not measured:
        return ""
    about = measured[0]
    shown = [
        "",
        f"Beside a neighbour that reads 64 MiB in {about['alone_us']:.1f} us alone ({about['gpu']}, driver",
        f"{about['driver']}, {about['date']}; selections of {about['rows']} x {about['len']:,}, k {about['k']}, back",
        "to back on another stream):",
        f"the neighbour's time over its time alone. Command: `{about['command']}`",
        "",
        "| route | " + " | ".join("no budget" if b is None else f"{b} SMs" for b in _budgets(measured)) + " |",
        "|---|" + "---:|" * len(_budgets(measured)),
    ]
    for route in dict.fromkeys(line["route"] for line in measured):
        cells = [f"{line['ratio']:.2f}x ({line['grid']} blocks)" for line in measured if line["route"] == route]
        shown.append(f"| {route} | " + " | ".join(cells) + " |")
    return "\n".join(shown)


def _budgets(measured: Lines) -> list[int | None]:
    return list(dict.fromkeys(line["sm_budget"] for line in measured))


# What to know of a measurement: what it was of, where not of the version it lies beside, and what ran beside it.
MEASURED = {
    "h200.jsonl": "A fuzzer ran beside it on another GPU, so the CPU was not idle: see what a call costs the host.",
    "h100.jsonl": "The kernels of commit c6f686c, three small changes earlier.",
}


def content() -> str:
    """Everything between the markers."""
    parts = []
    for name, caveat in MEASURED.items():
        measured = load(name)
        if measured:
            about = next(line["gpu"] for line in measured)
            parts += [f"### {about}", "", *([caveat, ""] if caveat else [])]
            parts += [
                part
                for part in (
                    table(measured),
                    summary_table(measured),
                    adversarial_table(measured),
                    host_table(measured),
                )
                if part
            ]
            parts.append("")
    parts += ["### Neighbours", neighbour_table(load("neighbour.jsonl"))]
    return "\n".join(parts)


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
