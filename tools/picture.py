"""Draws tools/results/h200.svg from h200.jsonl: time over length for each number of rows, ours and the peers'.

python -m pip install -e '.[plot]' && python tools/picture.py
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tools import baselines
from tools.lines import in_full_grid, label, read

RESULTS = Path(__file__).resolve().parent / "results"
K = 1024
COLUMNS = 3
STYLES = {  # a curve's colour, line and marker
    "best peer": ("#8f8f8f", "-", "o"),
    "best exact peer": ("#c77700", "-", "s"),
    "drvtopk": ("#0b62c4", "-", "o"),
    "floor: one read of the same bytes": ("#8f8f8f", ":", ""),
}


def curves(lines: Sequence[Mapping[str, Any]], rows: int) -> dict[str, list[tuple[int, float]]]:
    """(length, microseconds) by curve, for one number of rows."""
    found: dict[str, list[tuple[int, float]]] = {name: [] for name in STYLES}
    for line in sorted((line for line in lines if line["rows"] == rows), key=lambda line: int(line["len"])):
        yard = baselines.at(line) if baselines.comparable(line["gpu"]) else None
        if yard is not None:
            found["best peer"].append((line["len"], yard.best.us))
            if yard.exact is not None:
                found["best exact peer"].append((line["len"], yard.exact.us))
        found["drvtopk"].append((line["len"], line["us"]))
        found["floor: one read of the same bytes"].append((line["len"], line["floor_us"]))
    return found


def shown(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The planned cells of the full grid for one k, without programmatic dependent launch."""
    return [
        line
        for line in lines
        if line["kind"] == "cell"
        and line["k"] == K
        and in_full_grid(line)
        and label(line) == "auto"
        and not line["pdl"]
    ]


def draw(lines: Sequence[Mapping[str, Any]], out: Path) -> None:
    try:
        matplotlib: Any = importlib.import_module("matplotlib")
    except ImportError as error:
        raise SystemExit(f"no picture without matplotlib ({error}): pip install 'drvtopk[plot]'") from error
    matplotlib.use("svg")
    # No date and no random names: the same data give the same file.
    matplotlib.rcParams.update({"svg.hashsalt": "drvtopk", "svg.fonttype": "none", "font.size": 9})
    plt: Any = importlib.import_module("matplotlib.pyplot")
    cells = shown(lines)
    if not cells:
        raise SystemExit("no picture: there is no planned cell of the full grid")
    all_rows = sorted({cell["rows"] for cell in cells})
    down = -(-len(all_rows) // COLUMNS)
    size = 9, 2.3 * down + 0.8
    figure, axes = plt.subplots(down, COLUMNS, figsize=size, sharex=True, squeeze=False, layout="constrained")
    lengths = sorted({cell["len"] for cell in cells})
    for axis, rows in zip(axes.flat, all_rows, strict=False):
        for name, points in curves(cells, rows).items():
            colour, line, marker = STYLES[name]
            if points:
                axis.plot(
                    *zip(*points, strict=True), color=colour, linestyle=line, marker=marker, markersize=3, label=name
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(lengths[::2], [f"{n // 1024}k" if n < 1 << 20 else f"{n >> 20}M" for n in lengths[::2]])
        axis.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(matplotlib.ticker.StrMethodFormatter("{x:g}"))
        axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.set_title(f"{rows} row" + "s" * (rows > 1), fontsize=9)
        axis.grid(True, color="#e4e4e4", linewidth=0.5)
    for axis in axes.flat[len(all_rows) :]:
        axis.set_visible(False)
    figure.supxlabel("row length")
    figure.supylabel("microseconds a launch")
    handles, names = max((axis.get_legend_handles_labels() for axis in axes.flat), key=lambda found: len(found[1]))
    title = f"{cells[0]['gpu']}, {cells[0]['date']}, k {K}, float32, L2 cold"
    figure.legend(handles, names, title=title, loc="outside upper center", ncols=len(names), frameon=False)
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS / "h200.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "h200.svg")
    asked = parser.parse_args(argv)
    draw(read(asked.results), asked.out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
