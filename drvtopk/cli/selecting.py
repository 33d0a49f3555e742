"""python -m drvtopk topk: the indices of a file's rows, to a file."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk.api import devices, primary_context, topk
from drvtopk.cli.output import add_json, note, print_json, whole
from drvtopk.engine import current_engine
from drvtopk.errors import InvalidArgument
from drvtopk.plan import Plan, Problem
from drvtopk.reference import row_lengths, topk_reference
from drvtopk.spec import MAX_K, MAX_WIDTH, ROUTES

NOT_ON_A_DEVICE = "no GPU: nothing ran on a device"


def add(commands: Any) -> None:
    parser = commands.add_parser("topk", help="select from a .npy file", description=__doc__)
    parser.add_argument("logits", type=Path, help="float32 (rows, width), .npy")
    parser.add_argument("--k", type=whole(1, MAX_K), required=True)
    parser.add_argument("--lengths", type=Path, help="integers, one a row, .npy")
    parser.add_argument("--out", type=Path, required=True, help="int32 (rows, k) is written here, .npy")
    parser.add_argument("--route", choices=("auto", *ROUTES), default="auto")
    parser.add_argument("--max-seq-len", type=whole(0, MAX_WIDTH))
    add_json(parser)
    parser.set_defaults(run=run)


def load(argument: str, path: Path) -> npt.NDArray[Any]:
    """The array in a .npy file, never unpickled. Raises InvalidArgument."""
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise InvalidArgument(argument, str(path), f"a readable .npy file ({error})") from error
    if not isinstance(found, np.ndarray):
        raise InvalidArgument(argument, str(path), "a .npy file of one array")
    return found


def check_out(path: Path) -> None:
    """InvalidArgument for a place that cannot be written to, before any work is done for it."""
    if not path.parent.is_dir():
        raise InvalidArgument("--out", str(path), "a file in a folder that exists")
    if path.is_dir():
        raise InvalidArgument("--out", str(path), "a file; this is a folder")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidArgument("--out", str(path), "a file that may be written")


def run(arguments: argparse.Namespace) -> int:
    logits = load("logits", arguments.logits)
    if logits.ndim != 2 or logits.dtype != np.float32:
        raise InvalidArgument("logits", f"{logits.dtype} of shape {logits.shape}", "float32 of shape (rows, width)")
    lengths = None if arguments.lengths is None else load("--lengths", arguments.lengths)
    if lengths is not None and lengths.dtype.kind not in "iu":
        raise InvalidArgument("--lengths", f"dtype {lengths.dtype}", "integers")
    rows, width = logits.shape
    row_lengths(rows, width, lengths)  # refuses a wrong count before anything is done
    check_out(arguments.out)
    found = devices()
    made: Plan | None = None
    started = time.perf_counter()
    if found:
        indices = topk(logits, arguments.k, lengths, max_seq_len=arguments.max_seq_len, route=arguments.route)
        with primary_context():
            problem = Problem(rows=rows, width=width, k=arguments.k, max_seq_len=arguments.max_seq_len)
            made = current_engine().prepare_once(problem, arguments.route).plan
    else:
        note(f"drvtopk: warning: {NOT_ON_A_DEVICE}; this is the numpy reference")
        indices = topk_reference(logits, arguments.k, lengths)
    seconds = time.perf_counter() - started
    why = NOT_ON_A_DEVICE if made is None else made.why
    with arguments.out.open("wb") as file:
        np.save(file, indices)
    if arguments.json:
        print_json(
            {
                "logits": str(arguments.logits),
                "lengths": None if arguments.lengths is None else str(arguments.lengths),
                "out": str(arguments.out),
                "rows": rows,
                "width": width,
                "k": arguments.k,
                "device": found[0].name if found else None,
                "why": why,
                "plan": None if made is None else dataclasses.asdict(made),
                "seconds": seconds,
            }
        )
    else:
        print(why)
        print(f"{rows} rows of {width}, k {arguments.k}: {seconds:.3f} s with all preparation and copies")
        print(f"indices written to {arguments.out}")
    return 0
