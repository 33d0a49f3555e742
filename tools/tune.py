"""Writes drvtopk/measured.json, from which the planner chooses routes: measured times by GPU, route, rows and length.

    python tools/bench.py --grid tune --out tools/results/routes.jsonl
    python tools/tune.py tools/results/routes.jsonl

Reads the cells of k 1024, normal float32 values, whole aligned rows, without programmatic dependent launch; of a cell
that was measured several times, the median. Says which route is the fastest where, and by how much, and how far
from that plans would be that go by the planner's model of a GPU instead of its times.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from drvtopk.choice import Choice
from drvtopk.measured import Grid, modelled_times
from drvtopk.spec import DEFAULT_TUNING, KNOWN_DEVICES, DeviceInfo
from tools.lines import choice_of, is_plain, read
from tools.timing import DRIFT, drift

MEASURED = Path(__file__).resolve().parent.parent / "drvtopk" / "measured.json"
K = 1024
PROVENANCE = ("command", "date", "driver", "drvtopk", "gpu", "nvrtc")

Times = dict[Choice, dict[int, dict[int, float]]]  # choice, rows, length -> microseconds


def wanted(line: Mapping[str, Any]) -> bool:
    return line["kind"] == "cell" and line["k"] == K and is_plain(line) and not line["pdl"]


def times(lines: Sequence[Mapping[str, Any]]) -> Times:
    """Microseconds by choice, rows and length, each sorted."""
    several: dict[tuple[Choice, int, int], list[float]] = {}
    for line in lines:
        several.setdefault((choice_of(line), line["rows"], line["len"]), []).append(line["us"])
    found: Times = {}
    for (choice, rows, length), us in sorted(several.items()):
        found.setdefault(choice, {}).setdefault(rows, {})[length] = round(statistics.median(us), 3)
    return found


def device(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One GPU's entry: its names (the driver's, and the planner's where it knows the GPU), SMs, provenance, times."""
    gpu = lines[0]["gpu"]
    known = [name for name in KNOWN_DEVICES if name in gpu.lower().split()]
    sms = {line["sms"] for line in lines}
    if len(sms) != 1:
        raise ValueError(f"{gpu}: times with {sorted(sms)} SMs do not belong together")
    said = {name: "; ".join(dict.fromkeys(str(line[name]) for line in lines)) for name in PROVENANCE}
    return {"names": [gpu, *known], "sms": sms.pop(), "provenance": said, "times": times(lines)}


def spelled_out(devices: Sequence[Mapping[str, Any]]) -> str:
    """JSON with one line for each route and rows, so that a changed time is a line in a diff."""
    entries = []
    for entry in devices:
        routes = []
        for choice, by_rows in entry["times"].items():
            rows = [
                f"    {json.dumps(str(r))}: {json.dumps({str(n): us for n, us in of.items()})}"
                for r, of in by_rows.items()
            ]
            routes.append(f"   {json.dumps(str(choice))}: {{\n" + ",\n".join(rows) + "\n   }")
        head = [
            f"  {json.dumps(name)}: {json.dumps(entry[name], sort_keys=True)}"
            for name in ("names", "provenance", "sms")
        ]
        entries.append(" {\n" + ",\n".join([*head, '  "times": {\n' + ",\n".join(routes) + "\n  }"]) + "\n }")
    return '{"devices": [\n' + ",\n".join(entries) + "\n]}\n"


def fastest(found: Times) -> list[str]:
    """A table: rows down, lengths across, the fastest route and how much slower the next one is."""
    at: dict[int, dict[int, list[tuple[float, Choice]]]] = {}
    for choice, by_rows in found.items():
        for rows, by_length in by_rows.items():
            for length, us in by_length.items():
                at.setdefault(rows, {}).setdefault(length, []).append((us, choice))
    lengths = sorted({length for by_length in at.values() for length in by_length})
    said = [f"{'rows':>5} " + " ".join(f"{length:>21}" for length in lengths)]
    for rows in sorted(at):
        cells = []
        for length in lengths:
            ranked = sorted(at[rows].get(length, []))
            ahead = f" -{1 - ranked[0][0] / ranked[1][0]:.0%}" if len(ranked) > 1 else ""
            cells.append(f"{ranked[0][1]}{ahead}" if ranked else "")
        said.append(f"{rows:>5} " + " ".join(f"{cell:>21}" for cell in cells))
    return said


def modelled(known: DeviceInfo, found: Mapping[Choice, Grid]) -> list[tuple[float, int, int, Choice]]:
    """What plans would lose if this GPU were not measured, the most first: how many times as long as the fastest route
    takes what the planner's model chooses, at which rows and length, and that choice."""
    losses = []
    for rows, by_length in found.get(Choice("filtered"), {}).items():
        for length in by_length:
            real = {choice: grid[rows][length] for choice, grid in found.items() if length in grid.get(rows, {})}
            guessed = modelled_times(known, rows, length, DEFAULT_TUNING.sms_to_share)
            chosen = min(guessed.keys() & real.keys(), key=lambda choice: guessed[choice])
            losses.append((real[chosen] / min(real.values()), rows, length, chosen))
    return sorted(losses, reverse=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="JSON lines of tools/bench.py")
    parser.add_argument("--out", type=Path, default=MEASURED)
    asked = parser.parse_args(argv)
    by_gpu: dict[str, list[Mapping[str, Any]]] = {}
    for path in asked.results:
        for line in read(path):
            if wanted(line):
                by_gpu.setdefault(line["gpu"], []).append(line)
    if not by_gpu:
        parser.error(f"no line of {', '.join(map(str, asked.results))} is of k {K} and plain")
    devices = [device(by_gpu[gpu]) for gpu in sorted(by_gpu)]
    asked.out.write_text(spelled_out(devices))
    for entry in devices:
        print(f"{entry['names'][0]}, {entry['provenance']['date']}", *fastest(entry["times"]), sep="\n")
        for known in (KNOWN_DEVICES[name] for name in entry["names"] if name in KNOWN_DEVICES):
            for loss, rows, length, choice in modelled(known, entry["times"])[:1]:
                print(f"not measured, its plans would take up to {loss:.2f}x the fastest ({rows} x {length}: {choice})")
        apart = drift([line["control_us"] for line in by_gpu[entry["names"][0]]])
        if apart > DRIFT:
            print(f"NOT COMPARABLE: the control read took {apart:.0%} longer in some cells than in others")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
