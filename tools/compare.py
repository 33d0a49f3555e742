"""Two runs of the benchmark side by side: what became faster or slower by more than noise.

    python tools/compare.py old.jsonl new.jsonl

A difference counts where it exceeds twice the spreads of both times and one per cent. Planned cells are compared with
planned ones, whatever their routes; a route that was asked for only with itself.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools.baselines import geometric_mean
from tools.lines import label, read, shape, spelled
from tools.timing import DRIFT, drift

BETWEEN_RUNS = 0.01  # of a time: how far apart runs of the same code are on the same machine

Cells = dict[tuple[Any, ...], dict[str, Any]]


def cells(path: Path) -> Cells:
    """Cells by what they are; of one that was measured twice the later."""
    names = ("dtype", "k", "rows", "len", "stride", "offset", "input", "lengths", "pdl")
    found = [line for line in read(path) if line["kind"] == "cell"]
    return {(*(line[name] for name in names), label(line)): line for line in found}


def noise(old: Mapping[str, Any], new: Mapping[str, Any]) -> float:
    """Microseconds that two times of the same code may be apart."""
    return float(2 * (old["spread_us"] + new["spread_us"]) + BETWEEN_RUNS * old["us"])


def verdict(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """ "faster", "SLOWER", or nothing: within noise."""
    if abs(new["us"] - old["us"]) <= noise(old, new):
        return ""
    return "faster" if new["us"] < old["us"] else "SLOWER"


def compared(old: Cells, new: Cells) -> list[str]:
    """A line for each cell of both, and what they come to."""
    both = [key for key in old if key in new]
    said = [f"{'cell':<52} {'route':<27} {'old us':>9} {'new us':>9} {'old/new':>8} {'noise':>6}"]
    counts = {"faster": 0, "SLOWER": 0, "": 0}
    for key in sorted(both, key=str):
        was, now = old[key], new[key]
        mark = verdict(was, now)
        counts[mark] += 1
        routes = spelled(was) if spelled(was) == spelled(now) else f"{spelled(was)} -> {spelled(now)}"
        pdl = ", pdl" if was["pdl"] else ""
        said.append(
            f"{shape(was) + pdl:<52} {routes:<27} {was['us']:>9.2f} {now['us']:>9.2f} "
            f"{was['us'] / now['us']:>8.3f} {noise(was, now):>6.2f} {mark}".rstrip()
        )
    if not both:
        return ["no cell is in both"]
    mean = geometric_mean([old[key]["us"] / new[key]["us"] for key in both])
    said.append(
        f"{len(both)} cells, geometric mean of old/new {mean:.3f}: {counts['faster']} faster, "
        f"{counts['SLOWER']} slower, {counts['']} within noise"
    )
    for name, some, others in (("old", old, new), ("new", new, old)):
        alone = [key for key in some if key not in others]
        if alone:
            said.append(f"only in the {name} run: {len(alone)} cells")
    return said + _different_machines([old[key] for key in both], [new[key] for key in both])


def _different_machines(old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for name in ("gpu", "driver", "nvrtc"):
        was, now = {line.get(name) for line in old}, {line.get(name) for line in new}
        if was != now:
            said.append(f"another {name}: {', '.join(map(str, was))} and {', '.join(map(str, now))}")
    controls = [geometric_mean([line["control_us"] for line in lines]) for lines in (old, new)]
    if drift(controls) > DRIFT:
        said.append(f"NOT COMPARABLE: the control read took {controls[0]:.2f} us, then {controls[1]:.2f} us")
    return said


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    asked = parser.parse_args(argv)
    print(*compared(cells(asked.old), cells(asked.new)), sep="\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
