"""python -m drvtopk compile: every instantiation for one architecture, with what the compiler says of each."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from drvtopk.cache import Cache, default_folder
from drvtopk.cli.options import add_options, in_words, options_of
from drvtopk.cli.output import add_json, print_json, print_table, progress, whole
from drvtopk.compiler import Compiled, check_arch, compile_variant, nvrtc_version
from drvtopk.errors import InvalidArgument
from drvtopk.spec import MAX_K, PLAIN, ROUTES, TOP_KS, Options, Variant

EVERY_VEC_SIZE = Options(dtype="bfloat16").vec_sizes


def add(commands: Any) -> None:
    parser = commands.add_parser("compile", help="compile every instantiation; no GPU needed", description=__doc__)
    parser.add_argument("--arch", required=True, help="sm_80 .. sm_121a; 'a' names the architecture-specific target")
    parser.add_argument("--k", type=whole(1, MAX_K), action="append", help="repeatable (default: 512 1024 2048)")
    parser.add_argument(
        "--vec-size", type=int, choices=EVERY_VEC_SIZE, action="append", help="repeatable (default: all)"
    )
    parser.add_argument("--route", choices=ROUTES, action="append", help="repeatable (default: all)")
    parser.add_argument("--out", type=Path, help="folder to write the cubins to")
    parser.add_argument("--no-cache", action="store_true", help="compile anew, so that every row has its seconds")
    add_options(parser, files=False)
    add_json(parser)
    parser.set_defaults(run=run)


def instantiations(
    ks: Iterable[int] = TOP_KS,
    vec_sizes: Sequence[int] = (),
    routes: Iterable[str] = ROUTES,
    options: Options = PLAIN,
) -> list[Variant]:
    """Every combination, in reading order; every load that there is for the dtype, unless some are named."""
    loads = vec_sizes or options.vec_sizes
    return [Variant(route=r, k=k, vec_size=v, options=options) for r in routes for k in ks for v in loads]


def compile_all(variants: Sequence[Variant], arch: str, cache: Cache | None) -> list[Compiled]:
    """Compiles two at a time (NVRTC releases the GIL), in order, with progress."""
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(compile_variant, v, arch, cache=cache) for v in variants]
        try:
            return [future.result() for future in progress(running, f"compile {arch}")]
        finally:
            for future in running:
                future.cancel()


def run(arguments: argparse.Namespace) -> int:
    arch = check_arch(arguments.arch)
    options = options_of(arguments)
    variants = instantiations(arguments.k or TOP_KS, arguments.vec_size or (), arguments.route or ROUTES, options)
    if arguments.out is not None:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgument("--out", str(arguments.out), f"a folder that can be made ({error})") from error
    compiled = compile_all(variants, arch, None if arguments.no_cache else Cache(default_folder()))
    files = [f"{v.route}{options.suffix}_k{v.k}_v{v.vec_size}_{arch}.cubin" for v in variants]
    if arguments.out is not None:
        for name, one in zip(files, compiled, strict=True):
            (arguments.out / name).write_bytes(one.cubin)
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
                        **dataclasses.asdict(one.info),
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
        ("instantiation", "registers", "spills", "static smem", "fixed dynamic smem", "cubin bytes", "seconds"),
        (
            (
                v,
                one.info.registers,
                one.info.spill_bytes,
                one.info.static_smem_bytes,
                v.fixed_smem_bytes,
                one.info.cubin_bytes,
                "cached" if one.from_cache else f"{one.info.seconds:.2f}",
            )
            for v, one in zip(variants, compiled, strict=True)
        ),
    )
    return 0
