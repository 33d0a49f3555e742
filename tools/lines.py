"""The JSON lines of results: one a measurement, its `kind` "cell", "peer" (another library at that cell) or "host"."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drvtopk.choice import Choice
from tools.cells import FULL_LENGTHS, FULL_ROWS

Line = Mapping[str, Any]


def read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file. What older ones do not say is what was the only case then."""
    lines = []
    for text in path.read_text().splitlines():
        given = json.loads(text)
        older = {"kind": "cell", "stride": given["len"], "offset": 0, "lengths": "full", "pdl": False, "group": 1}
        lines.append({**older, **given})
    return lines


def label(line: Line) -> str:
    """How a line's route was asked for: "auto", "filtered", "clustered:8"."""
    return "auto" if line["planned"] else spelled(line)


def choice_of(line: Line) -> Choice:
    """What ran: the group is a choice where it is a cluster."""
    return Choice(line["route"], line["group"] if line["route"] == "clustered" else 1)


def spelled(line: Line) -> str:
    """What ran, in a word: "filtered", "clustered:8"."""
    return str(choice_of(line))


def is_plain(line: Line) -> bool:
    """float32, normal values, whole rows back to back and aligned."""
    return (
        line["dtype"] == "float32"
        and line["input"] == "normal"
        and line["lengths"] == "full"
        and line["stride"] == line["len"]
        and not line["offset"]
    )


def in_full_grid(line: Line) -> bool:
    return is_plain(line) and line["rows"] in FULL_ROWS and line["len"] in FULL_LENGTHS


def shape(line: Line) -> str:
    """The cell in a few words, what is usual left out."""
    said = f"{line['rows']} x {line['len']}"
    if line["stride"] != line["len"]:
        said += f", stride {line['stride']}"
    if line["offset"]:
        said += f", offset {line['offset']}"
    if line["lengths"] != "full":
        said += f", lengths {line['lengths']}"
    said += f", k {line['k']}"
    return said + "".join(
        f", {line[n]}" for n, usual in (("input", "normal"), ("dtype", "float32")) if line[n] != usual
    )
