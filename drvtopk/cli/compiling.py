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
from drvtopk.spec import CLUSTERS, MAX_K, PLAIN, ROUTES, TOP_KS, Options, Variant, has_pdl, max_cluster

EVERY_VEC_SIZE = Options(dtype="bfloat16").vec_sizes


def add(commands: Any) -> None:
    parser = commands.add_parser("compile", help="compile every instantiation; no GPU needed", description=__doc__)
    parser.add_argument("--arch", required=True, help="sm_80 .. sm_121a; 'a' names the architecture-specific target")
    parser.add_argument("--k", type=whole(1, MAX_K), action="append", help="repeatable (default: 512 1024 2048)")
    parser.add_argument(
        "--vec-size", type=int, choices=EVERY_VEC_SIZE, action="append", help="repeatable (default: all)"
    )
    parser.add_argument(
        "--route", choices=ROUTES, action="append", help="repeatable (default: all that the architecture has)"
    )
    parser.add_argument(
        "--group", type=int, choices=CLUSTERS, action="append", help="blocks of a cluster, repeatable (default: all)"
    )
    parser.add_argument("--pdl", action="store_true", help="kernels for programmatic dependent launch")
    parser.add_argument("--out", type=Path, help="folder to write the cubins to")
    parser.add_argument("--no-cache", action="store_true", help="compile anew, so that every row has its seconds")
    add_options(parser, files=False)
    add_json(parser)
    parser.set_defaults(run=run)


def instantiations(
    arch: str,
    ks: Iterable[int] = TOP_KS,
    vec_sizes: Sequence[int] = (),
    routes: Sequence[str] = (),
    options: Options = PLAIN,
    *,
    groups: Sequence[int] = (),
    pdl: bool = False,
) -> list[Variant]:
    """Every combination that there is on `arch`, in reading order, of what is named, or else of all there is."""
    loads, largest = vec_sizes or options.vec_sizes, max_cluster(arch)
    if "clustered" in routes and largest == 1:
        raise InvalidArgument("--route", "clustered", f"persistent or filtered: {arch} has no clusters for it")
    found = []
    for route in routes or ROUTES:
        sizes = [n for n in groups or CLUSTERS if n <= largest] if route == "clustered" else [1]
        found += [
            Variant(
                route=route,
                k=k,
                vec_size=load,
                options=options,
                residency=residency,
                cluster=size,
                pdl=pdl and route != "persistent",
            )
            for size in sizes
            for residency in ((2,) if route == "persistent" else (1, 2))
            for k in ks
            for load in loads
        ]
    return found


def compile_all(variants: Sequence[Variant], arch: str, cache: Cache | None) -> list[Compiled]:
    """Compiles two at a time (NVRTC releases the GIL), in order, with progress."""
    with ThreadPoolExecutor(2) as pool:
        running = [pool.submit(compile_variant, v, arch, cache=cache) for v in variants]
        try:
            return [future.result() for future in progress(running, f"compile {arch}")]
        finally:
            for future in running:
                future.cancel()


def _named(v: Variant) -> str:
    """'clustered_k1024_v4_x8_alone': what tells it from the others, as a part of a file's name."""
    cluster = f"_x{v.cluster}" if v.cluster > 1 else ""
    return f"{v.route}{v.options.suffix}_k{v.k}_v{v.vec_size}{cluster}{'_alone' * (v.residency == 1)}{'_pdl' * v.pdl}"


def run(arguments: argparse.Namespace) -> int:
    arch = check_arch(arguments.arch)
    options = options_of(arguments)
    if arguments.pdl and not has_pdl(arch):
        raise InvalidArgument("--pdl", "given", f"from sm_90 on; {arch} has no programmatic dependent launch")
    variants = instantiations(
        arch,
        arguments.k or TOP_KS,
        arguments.vec_size or (),
        arguments.route or (),
        options,
        groups=arguments.group or (),
        pdl=arguments.pdl,
    )
    if arguments.out is not None:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidArgument("--out", str(arguments.out), f"a folder that can be made ({error})") from error
    compiled = compile_all(variants, arch, None if arguments.no_cache else Cache(default_folder()))
    files = [f"{_named(v)}_{arch}.cubin" for v in variants]
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
                        "group": v.cluster,
                        "residency": v.residency,
                        "threads": v.threads,
                        "pdl": v.pdl,
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
        (
            "instantiation",
            "threads",
            "registers",
            "spills",
            "static smem",
            "fixed dynamic smem",
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
                one.info.cubin_bytes,
                "cached" if one.from_cache else f"{one.info.seconds:.2f}",
            )
            for v, one in zip(variants, compiled, strict=True)
        ),
    )
    return 0
