"""python -m drvtopk export: cubins, manifest and C headers in a folder, to deploy where there is no compiler."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from drvtopk.cache import Cache, default_folder
from drvtopk.cli.options import add_instantiations, add_options, in_words, instantiations_of, options_of
from drvtopk.cli.output import add_json, print_json, print_table
from drvtopk.export import export_kernels
from drvtopk.export.manifest import MANIFEST
from drvtopk.export.prebuilt import CUBINS_VARIABLE
from drvtopk.nvrtc import check_device_arch


def add(commands: Any) -> None:
    parser = commands.add_parser("export", help="kernels for machines without a compiler", description=__doc__)
    parser.add_argument("--arch", required=True, action="append", help="sm_80 .. sm_121a, repeatable")
    add_instantiations(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to write to; kernels join those of its sources")
    add_options(parser, files=False)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    options = options_of(arguments)
    wanted = {arch: instantiations_of(arguments, arch) for arch in map(check_device_arch, arguments.arch)}
    found = export_kernels(arguments.out, wanted, cache=Cache(default_folder()))
    if arguments.json:
        added = {kernel.file for kernel in found.added}
        print_json(
            {
                "folder": str(found.folder),
                "manifest": str(found.folder / MANIFEST),
                "sources": found.sources,
                "nvrtc": list(found.nvrtc),
                "options": dataclasses.asdict(options),
                "kernels": [
                    {
                        "variant": str(kernel.variant),
                        "arch": kernel.arch,
                        "file": kernel.file,
                        "sha256": kernel.sha256,
                        "cubin_bytes": kernel.info.cubin_bytes,
                        "added": kernel.file in added,
                    }
                    for kernel in found.kernels
                ],
            }
        )
        return 0
    print(f"options: {in_words(options)}")
    print_table(
        ("added", "arch", "registers", "cubin bytes"),
        ((k.variant, k.arch, k.info.registers, k.info.cubin_bytes) for k in found.added),
    )
    print(
        f"{len(found.added)} added, {len(found.kernels)} kernels in all; to use them: {CUBINS_VARIABLE}={found.folder}"
    )
    return 0
