"""Writes `drvtopk_kernels.h`, by which a C or C++ host plans and launches an export: numbers, kernels, measured times.

The planner is in drvtopk.h beside this file. What `spec` knows is written here, with the types that hold it: words,
parameter blocks, tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import drvtopk
from drvtopk import measured, spec
from drvtopk.choice import Choice
from drvtopk.errors import InvalidArgument
from drvtopk.export.manifest import ExportedKernel, parameters
from drvtopk.problem import MAX_OFFSET, MAX_STRIDE
from drvtopk.source import shipped
from drvtopk.spec import Options, Tuning, Variant

_PLANNED_BY = {
    "radix_threshold": "elements; rows up to this length belong to one block; compiled in",
    "cluster_threshold": "elements; rows longer than this are shared by the blocks of a cluster; compiled in",
    "sms_to_share": "SMs for each row from which on sharing long rows is faster than a block reading each",
    "min_chunk": "elements; a group is not split finer",
    "max_candidates": "keys that one block keeps in shared memory",
}
_REASONS = {
    "none": "there is no plan",
    "asked": "the caller named the route or the chunk",
    "short_rows": "no row above tuning.radix_threshold is expected",
    "many_rows": "fewer than tuning.sms_to_share SMs for each row",
    "measured": "the fastest of those that fit, by times measured on this device",
    "modelled": "the same by a model of this device",
    "few_rows": "persistent: long rows, few enough that blocks share each",
    "waits_forbidden": "fallback: blocks would wait for each other",
    "does_not_fit": "fallback: the blocks of one row do not fit together, or their kernel is not exported",
    "refused": "fallback: the driver refused the launch",
}
_WORDS: Mapping[str, Iterable[str]] = {
    "route": spec.ASKED_ROUTES,
    "dtype": spec.DTYPES,
    "index_dtype": spec.INDEX_DTYPES,
    "order": spec.ORDERS,
    "tie_break": spec.TIE_BREAKS,
    "nan": spec.NANS,
}
_OPTIONS = {
    "dtype": "of the logits",
    "index_dtype": "of the output",
    "order": "of a row's indices",
    "tie_break": "which of equal values are taken",
    "nan": "below -inf or above +inf",
    "values": "the selected values too",
    "row_starts": "each row's window begins at an element of its own",
    "page_table": "the output is what a page table makes of the indices",
}
_PARAMETERS = {
    "logits": "device address: (rows, width)",
    "lengths": "device address: int32[rows]; 0: every row has `width` elements",
    "out": "device address: (rows, k) indices",
    "workspace": "device address: plan.workspace_bytes, any contents, for one launch at a time; 0 where no block waits",
    "logits_stride": "elements",
    "out_stride": "elements",
    "rows": "",
    "width": "elements",
    "group": "blocks that share a row",
    "groups": "rows in flight",
    "chunk": "elements that one block of a group holds",
    "candidates": "keys that one block keeps in shared memory",
    "cooperative": "0 or 1",
    "reserved": "0",
    "values": "device address: (rows, k) of the logits' dtype",
    "row_starts": "device address: int32[rows]",
    "page_table": "device address: int32",
    "values_stride": "elements",
    "page_table_stride": "elements",
    "page_size": "indices",
    "rows_per_table": "row r reads row r / rows_per_table of the page table",
}
"""What each field of the parameter block is, or its unit."""
_KERNEL = {
    "drvtopk_route route": "",
    "int32_t k": "",
    "int32_t vec_size": "elements of a load",
    "int32_t residency": "blocks that an SM shall hold at once",
    "int32_t cluster": "blocks of a hardware cluster; 1: none",
    "bool pdl": "waits for its predecessor itself",
    "drvtopk_options options": "",
    "int32_t threads": "of a block",
    "int32_t widest": "elements of the widest load that these options have",
    "int32_t item_bytes": "of a logit, and of a value",
    "int32_t index_bytes": "of an index of the output",
    "int32_t params_bytes": "of its parameter block",
    "int32_t fixed_smem_bytes": "of a block, before its chunk or candidates",
    "int32_t static_smem_bytes": "of a block, beside the dynamic shared memory",
    "int32_t candidate_bytes": "of shared memory for each candidate",
    "int32_t sorted_members": "members of a row in the workspace of a group, 4 bytes each",
    "int32_t registers": "of a thread",
    "const char* name": "as Python has it",
    "const char* entry": "of the function in the cubin",
    "const char* arch": "",
    "const char* file": "the cubin's name in the export's folder",
    "const char* sha256": "of the cubin, hexadecimal",
}
_ARCH = {
    "const char* arch": "",
    "int32_t max_cluster": "blocks of its largest cluster; 1: none",
    "bool has_pdl": "",
}
_CHOICE = {"drvtopk_route route": "", "int32_t cluster": "blocks; 1: none"}
_MEASURED = {
    "const char* name": "of the device",
    "int32_t sms": "",
    "int32_t choices, rows, lengths": "how many of each",
    "const drvtopk_choice* choice": "",
    "const int64_t* row": "ascending",
    "const int64_t* length": "elements, ascending",
    "const double* us": "microseconds a launch [choices][rows][lengths]; 0: not measured",
}
_EXPORT = {
    "const char* version": "",
    "drvtopk_tuning tuning": "that the kernels were compiled with",
    "const drvtopk_kernel* kernels": "",
    "size_t kernel_count": "",
    "const drvtopk_arch* archs": "",
    "size_t arch_count": "",
    "const drvtopk_measured* measured": "",
    "size_t measured_count": "",
}


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
        "#include <stdbool.h>",
        "#include <stddef.h>",
        "#include <stdint.h>",
        "",
        *_words(),
        *_parameter_blocks(),
        *_tables(),
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


def _words() -> list[str]:
    """An enum for each kind of word."""
    lines = [
        f"typedef enum drvtopk_{name} {_list(_enumerator(name, word) for word in words)} drvtopk_{name};"
        for name, words in _WORDS.items()
    ]
    reasons = [f"    {_enumerator('reason', reason)},  // {note}" for reason, note in _REASONS.items()]
    return [
        *lines,
        "",
        "// What decided a plan.",
        "typedef enum drvtopk_reason {",
        *reasons,
        "} drvtopk_reason;",
        "",
    ]


def _parameter_blocks() -> list[str]:
    """Both parameter blocks, whose layout the compiler checks."""
    plain, extended = parameters().values()
    behind = extended["fields"][len(plain["fields"]) :]

    def declared(fields: Sequence[Mapping[str, object]]) -> dict[str, str]:
        kinds = {"i64": "int64_t", "u32": "uint32_t"}  # the others are addresses
        return {f"{kinds.get(str(f['type']), 'uint64_t')} {f['name']}": _PARAMETERS[str(f["name"])] for f in fields}

    def checked(name: str, layout: Mapping[str, object], fields: Sequence[Mapping[str, object]]) -> list[str]:
        offsets = [f"DRVTOPK_IS_(offsetof({name}, {f['name']}) == {f['offset']}, {f['name']});" for f in fields]
        return [f"DRVTOPK_IS_(sizeof({name}) == {layout['bytes']}, size_of_{name});", *offsets]

    return [
        *_struct(
            "drvtopk_params",
            declared(plain["fields"]),
            "What a plain kernel is told, by value. A host sets addresses and out_stride, 0 elsewhere, and "
            "drvtopk_fill_params the rest.",
        ),
        *_struct(
            "drvtopk_extended_params",
            {"drvtopk_params plain": "", **declared(behind)},
            "What a kernel with more arrays is told. A plain one reads the front only.",
        ),
        "// An array of -1 elements, where the compiler lays out anything else.",
        "#define DRVTOPK_IS_(what, name) typedef char drvtopk_##name##_is_as_compiled_[(what) ? 1 : -1]",
        *checked("drvtopk_params", plain, plain["fields"]),
        *checked("drvtopk_extended_params", extended, behind),
        "",
    ]


def _tables() -> list[str]:
    """The types of the tables below."""
    options = {f"{f'drvtopk_{name}' if name in _WORDS else 'bool'} {name}": note for name, note in _OPTIONS.items()}
    tuning = {f"int32_t {name}": note for name, note in _PLANNED_BY.items()}
    return [
        *_struct("drvtopk_options", options, "What a caller may ask for beyond k. All zeros is the plain selection."),
        *_struct("drvtopk_tuning", tuning, "When a route pays."),
        *_struct("drvtopk_kernel", _KERNEL, "One kernel: a cubin that holds one function."),
        *_struct("drvtopk_arch", _ARCH, "What an architecture has."),
        *_struct("drvtopk_choice", _CHOICE, "A way to launch, as times are kept for it."),
        *_struct("drvtopk_measured", _MEASURED, "Times measured on one device."),
        *_struct("drvtopk_export", _EXPORT, "All of it."),
    ]


def _struct(name: str, fields: Mapping[str, str], what: str) -> list[str]:
    """Declarations, each with its note."""
    lines = [f"    {field};{f'  // {note}' if note else ''}" for field, note in fields.items()]
    return [f"// {what}", f"typedef struct {name} {{", *lines, f"}} {name};", ""]


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
        "ROUTE_NAMES": _list(map(_text, spec.ASKED_ROUTES)),
        "REASON_NAMES": _list(map(_text, _REASONS)),
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
        _text(str(variant)),
        _text(variant.entry),
        _text(kernel.arch),
        _text(kernel.file),
        _text(kernel.sha256),
    )
    return f"    {_list(fields)},"


def _options(options: Options) -> str:
    values = ((name, getattr(options, name)) for name in _OPTIONS)
    return _list(_enumerator(name, value) if name in _WORDS else _truth(value) for name, value in values)


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
    """'route', 'auto' -> DRVTOPK_ROUTE_AUTO"""
    return f"DRVTOPK_{name}_{value}".upper()


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _list(values: Iterable[object]) -> str:
    return "{" + ", ".join(map(str, values)) + "}"


def _text(value: str) -> str:
    """A string literal: what is not plain ASCII as octal escapes, which end after three digits."""
    plain = (chr(b) if 32 <= b < 127 and chr(b) not in '"\\?' else f"\\{b:03o}" for b in value.encode())
    return '"' + "".join(plain) + '"'
