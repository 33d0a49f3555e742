"""What commands print: one JSON document, or lines and tables for a person; notes go to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TextIO


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout, and nothing else there")


def print_json(document: Any) -> None:
    print(json.dumps(document, indent=2, default=str))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Columns aligned: the first to the left, the others to the right."""
    cells = [list(map(str, headings)), *[[str(c) for c in row] for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(headings))]
    for row in cells:
        print("  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))))


def print_pairs(pairs: Iterable[tuple[str, object]]) -> None:
    listed = list(pairs)
    width = max(len(name) for name, _ in listed)
    for name, value in listed:
        print(f"{name.ljust(width)}  {value}")


def note(text: str) -> None:
    """Something a person should know, beside the result: on stderr, or nowhere if that takes nothing."""
    if sys.stderr is not None:  # print would take stdout instead
        with contextlib.suppress(OSError, ValueError):
            print(text, file=sys.stderr, flush=True)


def one_line_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A `warnings.showwarning` for a person: no file name, no source line."""
    note(f"drvtopk: warning: {' '.join(str(message).split())}")


def whole(low: int, high: int) -> Callable[[str], int]:
    """An argparse type: an integer in low..high, or an error that says so."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"got {text}, allowed is an integer in {low}..{high}")
        return value

    return parse
