"""python -m drvtopk cache: the compiled kernels that are kept on disk, listed or removed."""

from __future__ import annotations

import argparse
import dataclasses
from datetime import datetime
from typing import Any

from drvtopk.cache import CACHE_VARIABLE, Cache, default_folder
from drvtopk.cli.output import add_json, print_json, print_table


def add(commands: Any) -> None:
    parser = commands.add_parser("cache", help="compiled kernels on disk", description=__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--list", action="store_true", help="every entry, the newest first")
    what.add_argument("--clear", action="store_true", help="remove every entry; files of another kind stay")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    cache = Cache(default_folder())
    folder = None if cache.folder is None else str(cache.folder)
    if arguments.clear:
        count, size = cache.clear()
        if arguments.json:
            print_json({"folder": folder, "removed": count, "bytes": size})
        else:
            print(f"{folder or 'no folder'}: {count} entries removed, {size} bytes")
        return 0
    entries, fault = cache.entries(), cache.distrust()
    if arguments.json:
        print_json({"folder": folder, "fault": fault, "entries": [dataclasses.asdict(entry) for entry in entries]})
        return 0
    if entries:
        print_table(
            ("entry", "bytes", "written", "usable"),
            (
                (e.name, e.bytes, f"{datetime.fromtimestamp(e.modified):%Y-%m-%d %H:%M}", "yes" if e.usable else "no")
                for e in entries
            ),
        )
    if fault is not None:
        print(f"none is used: {fault}")
    total = sum(entry.bytes for entry in entries)
    print(f"{folder or 'no folder'}: {len(entries)} entries, {total} bytes; another folder: {CACHE_VARIABLE}=DIR")
    return 0
