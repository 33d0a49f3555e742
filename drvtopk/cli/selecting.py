"""python -m drvtopk topk: what is selected from a file's rows, to a file."""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy.typing as npt

from drvtopk.api import primary_context, topk
from drvtopk.cli.arrays import check_outputs, load, save
from drvtopk.cli.options import add_gpu, add_options, asked_gpu, in_words, options_of
from drvtopk.cli.output import add_json, note, print_json, whole
from drvtopk.engine import current_engine
from drvtopk.errors import InvalidArgument
from drvtopk.interop.host_arrays import check_pages, logits_dtype, row_lengths, row_starts_of
from drvtopk.planned import Plan
from drvtopk.problem import Problem
from drvtopk.spec import INDEX_DTYPES, MAX_K, MAX_WIDTH, ROUTES, Options
from drvtopk.testing.oracle import topk_reference

NOT_ON_A_DEVICE = "no GPU: nothing ran on a device"
FILES = ("logits", "lengths", "row_starts", "page_table", "out", "values")  # arguments that name one, in this order


def add(commands: Any) -> None:
    parser = commands.add_parser("topk", help="select from a .npy file", description=__doc__)
    parser.add_argument("logits", type=Path, help="float32, float16 or bfloat16 (rows, width), .npy")
    parser.add_argument("--k", type=whole(1, MAX_K), required=True)
    parser.add_argument("--lengths", type=Path, help="integers, one a row, .npy")
    parser.add_argument("--out", type=Path, required=True, help="indices (rows, k) are written here, .npy")
    parser.add_argument("--route", choices=("auto", *ROUTES), default="auto")
    parser.add_argument("--max-seq-len", type=whole(0, MAX_WIDTH))
    add_options(parser, files=True)
    add_gpu(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def _load_integers(argument: str, path: Path | None) -> npt.NDArray[Any] | None:
    found = None if path is None else load(argument, path)
    if found is not None and found.dtype.kind not in "iu":
        raise InvalidArgument(argument, f"dtype {found.dtype}", "integers")
    return found


def _check_pages(
    shape: tuple[int, ...], table: npt.NDArray[Any] | None, page_size: int | None, index_dtype: str
) -> None:
    """InvalidArgument for a table that is too small, or whose places the output has no room for."""
    if table is None:
        if page_size is not None:
            raise InvalidArgument("--page-size", page_size, "a size only with --page-table")
        return
    rows, width = shape
    size = page_size or 1
    check_pages((rows, width), table.shape, size)
    used = table[:, : -(-width // size)]
    low, high = (int(used.min()), int(used.max())) if used.size else (0, 0)
    if not -(2**31) <= low <= high < 2**31:
        raise InvalidArgument("--page-table", f"pages {low}..{high}", "pages that fit into int32")
    last = (high + 1) * size - 1
    if last >= 1 << 8 * INDEX_DTYPES[index_dtype] - 1:
        raise InvalidArgument("--index-dtype", index_dtype, f"int64, as the table leads to places up to {last}")


def _on_a_device(
    arguments: argparse.Namespace, options: Options, arrays: dict[str, Any], asked: dict[str, Any]
) -> tuple[Any, Plan]:
    hints = {"max_seq_len": arguments.max_seq_len}
    rows, width = arrays["logits"].shape
    with primary_context(arguments.gpu or 0):
        found = topk(k=arguments.k, route=arguments.route, **arrays, **asked, **hints)
        problem = Problem(rows=rows, width=width, k=arguments.k, options=options, **hints)
        return found, current_engine().prepare_once(problem, arguments.route).plan


def run(arguments: argparse.Namespace) -> int:
    # Everything is refused before anything is done.
    outputs = {"--out": arguments.out, "--values-out": arguments.values}
    inputs = {f"--{name.replace('_', '-')}": getattr(arguments, name) for name in FILES[1:4]}
    check_outputs(
        {name: path for name, path in outputs.items() if path is not None}, {"logits": arguments.logits, **inputs}
    )
    logits = load("logits", arguments.logits)
    if logits.ndim != 2:
        raise InvalidArgument("logits", f"{logits.dtype} of shape {logits.shape}", "two dimensions: (rows, width)")
    options = options_of(arguments, logits_dtype(logits, arguments.dtype))
    rows, width = logits.shape
    lengths = _load_integers("--lengths", arguments.lengths)
    row_starts = _load_integers("--row-starts", arguments.row_starts)
    page_table = _load_integers("--page-table", arguments.page_table)
    row_lengths(rows, width, lengths)
    row_starts_of(rows, width, row_starts)
    _check_pages(logits.shape, page_table, arguments.page_size, options.index_dtype)
    arrays: dict[str, Any] = {"logits": logits, "lengths": lengths, "row_starts": row_starts, "page_table": page_table}
    asked: dict[str, Any] = {name: getattr(options, name) for name in ("index_dtype", "order", "tie_break", "nan")}
    asked |= {"dtype": options.dtype, "values": options.values, "page_size": arguments.page_size or 1}
    device = asked_gpu(arguments.gpu)
    made: Plan | None = None
    started = time.perf_counter()
    if device:
        found, made = _on_a_device(arguments, options, arrays, asked)
    else:
        note(f"drvtopk: warning: {NOT_ON_A_DEVICE}; this is the numpy reference")
        found = topk_reference(k=arguments.k, **arrays, **asked)
    seconds = time.perf_counter() - started
    why = NOT_ON_A_DEVICE if made is None else made.why
    results = (
        {arguments.out: found.indices, arguments.values: found.values} if options.values else {arguments.out: found}
    )
    save(results)
    if arguments.json:
        print_json(
            {
                **{name: None if getattr(arguments, name) is None else str(getattr(arguments, name)) for name in FILES},
                "rows": rows,
                "width": width,
                "k": arguments.k,
                "options": dataclasses.asdict(options),
                "page_size": arguments.page_size or 1,
                "device": device.name if device else None,
                "why": why,
                "plan": None if made is None else made.document(),
                "seconds": seconds,
            }
        )
    else:
        print(why if device is None else f"{device.name}: {why}")
        print(f"{rows} rows of {width}, k {arguments.k}: {seconds:.3f} s with all preparation and copies")
        print(f"options: {in_words(options)}")
        for what, path in zip(("indices", "values"), results, strict=False):
            print(f"{what} written to {path}")
    return 0
