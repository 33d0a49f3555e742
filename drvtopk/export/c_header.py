"""Writes `drvtopk_kernels.h`, by which a C or C++ host plans and launches an export: numbers, kernels, measured times.

The rules are in drvtopk.h beside this file, the numbers are here, so that neither is typed twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import drvtopk
from drvtopk import measured, spec
from drvtopk.choice import Choice
from drvtopk.errors import InvalidArgument
from drvtopk.export.manifest import ExportedKernel
from drvtopk.problem import MAX_OFFSET, MAX_STRIDE
from drvtopk.source import shipped
from drvtopk.spec import Options, Tuning, Variant

_PLANNED_BY = ("radix_threshold", "cluster_threshold", "sms_to_share", "min_chunk", "max_candidates")


def rules_header() -> bytes:
    """The text of drvtopk.h, by whose rules a host plans and launches."""
    return shipped("export/drvtopk.h").read_bytes()


def kernels_header(kernels: Sequence[ExportedKernel]) -> str:
    """The text of drvtopk_kernels.h for these kernels, which includes drvtopk.h: C99 and C++17.

    It defines DRVTOPK_VERSION, the numbers that the planner needs, and `drvtopk_exported`, with every kernel in the
    given order, the architectures, and the measured times of every device. Raises InvalidArgument without kernels, and
    for kernels of different tunings, since a host plans by one.
    """
    if not kernels:
        raise InvalidArgument("kernels", "none", "at least one")
    tuning = kernels[0].variant.tuning
    if any(kernel.variant.tuning != tuning for kernel in kernels):
        raise InvalidArgument("kernels", "several tunings", "one for all of them")
    archs = dict.fromkeys(kernel.arch for kernel in kernels)
    parts = [
        "// Written by drvtopk: the kernels of one export, and the numbers by which they are planned.",
        "#ifndef DRVTOPK_KERNELS_H",
        "#define DRVTOPK_KERNELS_H",
        "",
        *_definitions(),
        "",
        '#include "drvtopk.h"',
        "",
        "static const drvtopk_kernel drvtopk_kernels[] = {",
        *map(_kernel, kernels),
        "};",
        "",
        "static const drvtopk_arch drvtopk_archs[] = {",
        *(f"    {{{_text(a)}, {spec.max_cluster(a)}, {_truth(spec.has_pdl(a))}}}," for a in archs),
        "};",
        "",
        *_measured(),
        "static const drvtopk_export drvtopk_exported = {",
        "    DRVTOPK_VERSION,",
        f"    {_tuning(tuning)},",
        "    drvtopk_kernels,",
        "    sizeof drvtopk_kernels / sizeof *drvtopk_kernels,",
        "    drvtopk_archs,",
        "    sizeof drvtopk_archs / sizeof *drvtopk_archs,",
        "    drvtopk_measured_times,",
        f"    {len(measured.table())},",
        "};",
        "",
        "#endif  // DRVTOPK_KERNELS_H",
    ]
    return "\n".join(parts) + "\n"


def _definitions() -> list[str]:
    """Every number of the planner that is not a kernel's own."""
    alone = Variant(route="filtered", k=1, vec_size=1)
    cluster = Variant(route="clustered", k=1, vec_size=1, cluster=spec.CLUSTERS[0])
    numbers: dict[str, object] = {
        "VERSION": _text(drvtopk.__version__),
        "MAX_ROWS": spec.MAX_ROWS,
        "MAX_WIDTH": spec.MAX_WIDTH,
        "MAX_K": spec.MAX_K,
        "MAX_STRIDE": MAX_STRIDE,
        "MAX_OFFSET": MAX_OFFSET,
        "CLUSTERS": _list(spec.CLUSTERS),
        "THREADS": spec.THREADS,
        "NARROW_THREADS": spec.NARROW_THREADS,
        "WORKSPACE_ALIGNMENT": spec.WORKSPACE_ALIGNMENT,
        "ROUND_WORDS": spec.ROUND_WORDS,
        "ROUNDS": spec.ROUNDS,
        "CANDIDATE_BYTES": alone.candidate_bytes,
        "CLUSTER_CANDIDATE_BYTES": cluster.candidate_bytes,
        **{f"MODEL_{route.upper()}_US": us for route, us in measured.FIXED.items()},
        "MODEL_SHORT": measured.SHORT,
        "MODEL_SM_BYTES": measured.SM_BYTES,
        "MODEL_DEVICE_BYTES_OF_AN_SM": measured.DEVICE_BYTES_OF_AN_SM,
    }
    return [f"#define DRVTOPK_{name} {number}" for name, number in numbers.items()]


def _kernel(kernel: ExportedKernel) -> str:
    variant = kernel.variant
    options = variant.options
    fields = (
        _enumerator("route", variant.route),
        variant.k,
        variant.vec_size,
        variant.residency,
        variant.cluster,
        _truth(variant.pdl),
        _options(options),
        variant.threads,
        options.vec_sizes[-1],
        options.item_bytes,
        spec.INDEX_DTYPES[options.index_dtype],
        spec.packed((*spec.PARAMS, *spec.EXTRAS) if options.extras else spec.PARAMS).size,
        variant.fixed_smem_bytes,
        kernel.info.static_smem_bytes,
        variant.candidate_bytes,
        variant.k if options.order != "none" else 0,
        kernel.info.registers,
        _text(options.suffix),
        _text(str(variant)),
        _text(variant.entry),
        _text(kernel.arch),
        _text(kernel.file),
        _text(kernel.sha256),
    )
    return f"    {_list(fields)},"


def _options(options: Options) -> str:
    named = [
        _enumerator(name, getattr(options, name)) for name in ("dtype", "index_dtype", "order", "tie_break", "nan")
    ]
    return _list([*named, *(_truth(getattr(options, name)) for name in ("values", "row_starts", "page_table"))])


def _tuning(tuning: Tuning) -> str:
    return _list([getattr(tuning, name) for name in _PLANNED_BY])


def _measured() -> list[str]:
    """Each device's times as axes and one dense table, in which 0 stands for what was not measured."""
    lines: list[str] = []
    rows_of_table: list[str] = []
    written: dict[int, str] = {}
    for (name, sms), grids in measured.table().items():
        counts = sorted({rows for grid in grids.values() for rows in grid})
        lengths = sorted({n for grid in grids.values() for line in grid.values() for n in line})
        if id(grids) not in written:  # one table may go by several names
            tag = written[id(grids)] = f"drvtopk_measured_{len(written)}"
            choices = [_choice(choice) for choice in grids]
            lines += [
                f"static const drvtopk_choice {tag}_choice[] = {_list(choices)};",
                f"static const int64_t {tag}_row[] = {_list(counts)};",
                f"static const int64_t {tag}_length[] = {_list(lengths)};",
                f"static const double {tag}_us[] = {{",
            ]
            for grid in grids.values():
                for rows in counts:
                    times = [repr(float(grid.get(rows, {}).get(n, 0))) for n in lengths]
                    lines.append(f"    {', '.join(times)},")
            lines += ["};", ""]
        tag = written[id(grids)]
        sizes = f"{len(grids)}, {len(counts)}, {len(lengths)}"
        arrays = ", ".join(f"{tag}_{axis}" for axis in ("choice", "row", "length", "us"))
        rows_of_table.append(f"    {{{_text(name)}, {sms}, {sizes}, {arrays}}},")
    rows_of_table.append("    {NULL, 0, 0, 0, 0, NULL, NULL, NULL, NULL},  // an array has at least one element")
    return [*lines, "static const drvtopk_measured drvtopk_measured_times[] = {", *rows_of_table, "};", ""]


def _choice(choice: Choice) -> str:
    """As a drvtopk_choice."""
    return _list([_enumerator("route", choice.route), choice.cluster])


def _enumerator(name: str, value: str) -> str:
    """Named by a rule, so that a word that the C header does not know fails to compile."""
    return f"DRVTOPK_{name}_{value}".upper()


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _list(values: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _text(value: str) -> str:
    """A string literal: what is not plain ASCII as octal escapes, which end after three digits."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in value.encode())
    return '"' + "".join(plain) + '"'
