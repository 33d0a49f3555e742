"""python -m drvtopk compile: every instantiation for one architecture, with what the compiler says of each."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from drvtopk.cache import Cache, default_folder
from drvtopk.cli.options import add_instantiations, add_options, in_words, instantiations_of, options_of
from drvtopk.cli.output import add_json, print_json, print_table
from drvtopk.compiler import compile_variants
from drvtopk.export.write import check_out_folder, cubin_name
from drvtopk.files import write_together
from drvtopk.nvrtc import check_arch, nvrtc_version
from drvtopk.records import code_bytes


def add(commands: Any) -> None:
    parser = commands.add_parser("compile", help="compile every instantiation; no GPU needed", description=__doc__)
    parser.add_argument("--arch", required=True, help="sm_80 .. sm_121a; 'a' names the architecture-specific target")
    add_instantiations(parser)
    parser.add_argument("--out", type=Path, help="folder to write the cubins to")
    parser.add_argument("--no-cache", action="store_true", help="compile anew, so that every row has its seconds")
    add_options(parser, files=False)
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    arch = check_arch(arguments.arch)
    options = options_of(arguments)
    variants = instantiations_of(arguments, arch)
    files = [cubin_name(v, arch) for v in variants]
    if arguments.out is not None:
        check_out_folder("--out", arguments.out, files)
    cache = None if arguments.no_cache else Cache(default_folder())
    compiled = compile_variants(variants, arch, cache=cache, label=f"compile {arch}")
    if arguments.out is not None:
        write_together({arguments.out / name: one.cubin for name, one in zip(files, compiled, strict=True)})
    if arguments.json:
        print_json(
            {
                "arch": arch,
                "nvrtc": list(nvrtc_version()),
                "options": dataclasses.asdict(options),
                "instantiations": [
                    {
                        "variant": str(v),
                        "route": v.route,
                        "k": v.k,
                        "vec_size": v.vec_size,
                        "group": v.cluster,
                        "residency": v.residency,
                        "threads": v.threads,
                        "pdl": v.pdl,
                        **dataclasses.asdict(one.info),
                        "code_bytes": code_bytes(one.cubin),
                        "fixed_smem_bytes": v.fixed_smem_bytes,
                        "from_cache": one.from_cache,
                        "file": str(arguments.out / name) if arguments.out is not None else None,
                    }
                    for v, one, name in zip(variants, compiled, files, strict=True)
                ],
            }
        )
        return 0
    print(f"{arch}, NVRTC {'.'.join(map(str, nvrtc_version()))}; options: {in_words(options)}")
    print_table(
        (
            "instantiation",
            "threads",
            "registers",
            "spills",
            "static smem",
            "fixed dynamic smem",
            "code bytes",
            "cubin bytes",
            "seconds",
        ),
        (
            (
                v,
                v.threads,
                one.info.registers,
                one.info.spill_bytes,
                one.info.static_smem_bytes,
                v.fixed_smem_bytes,
                code_bytes(one.cubin),
                one.info.cubin_bytes,
                "cached" if one.from_cache else f"{one.info.seconds:.2f}",
            )
            for v, one in zip(variants, compiled, strict=True)
        ),
    )
    return 0
