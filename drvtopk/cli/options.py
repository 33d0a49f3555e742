"""What a selection may be asked for beyond k, as arguments: declared once, for every command that takes them."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from drvtopk.api import devices
from drvtopk.cli.output import whole
from drvtopk.errors import InvalidArgument
from drvtopk.spec import (
    CLUSTERS,
    DTYPES,
    INDEX_DTYPES,
    MAX_K,
    NANS,
    ORDERS,
    PLAIN,
    ROUTES,
    TIE_BREAKS,
    TOP_KS,
    DeviceInfo,
    Options,
    Variant,
    instantiations,
)

EVERY_VEC_SIZE = Options(dtype="bfloat16").vec_sizes


def add_options(parser: argparse.ArgumentParser, *, files: bool) -> None:
    """`files`: arrays are named by their files; otherwise it is only said that there will be some."""
    group = parser.add_argument_group("options of the selection")
    dtype = "of 2-byte words that .npy has no name for" if files else f"of the logits (default: {PLAIN.dtype})"
    group.add_argument("--dtype", choices=tuple(DTYPES), default=None if files else PLAIN.dtype, help=dtype)
    group.add_argument("--index-dtype", choices=tuple(INDEX_DTYPES), default=PLAIN.index_dtype, help="of the output")
    group.add_argument("--order", choices=ORDERS, default=PLAIN.order, help="of a row's members")
    group.add_argument("--tie-break", choices=TIE_BREAKS, default=PLAIN.tie_break, help="index taken of equal values")
    group.add_argument("--deterministic", action="store_true", help="leave no choice open: smallest index, ascending")
    group.add_argument("--nan", choices=NANS, default=PLAIN.nan, help="below -inf, or above +inf")
    if files:
        group.add_argument("--values-out", type=Path, dest="values", metavar="FILE", help="the members' values, .npy")
        group.add_argument("--row-starts", type=Path, metavar="FILE", help="where each row's window begins, .npy")
        group.add_argument("--page-table", type=Path, metavar="FILE", help="integers (rows or a divisor, pages), .npy")
        group.add_argument("--page-size", type=whole(1, 2**31 - 1), metavar="N", help="columns of a page (default: 1)")
    else:
        group.add_argument("--values", action="store_true", help="the members' values too")
        group.add_argument("--row-starts", action="store_true", help="each row's window begins at a place of its own")
        group.add_argument("--page-table", action="store_true", help="the output goes through a page table")


def add_instantiations(parser: argparse.ArgumentParser) -> None:
    """Which of the instantiations that an architecture has; those that are not narrowed down are all meant."""
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
    parser.add_argument("--pdl", action="store_true", help="those for programmatic dependent launch instead")


def instantiations_of(arguments: argparse.Namespace, arch: str) -> list[Variant]:
    """Those that were asked for. Raises InvalidArgument for what the architecture does not have."""
    return instantiations(
        arch,
        arguments.k or TOP_KS,
        arguments.vec_size or (),
        arguments.route or (),
        options_of(arguments),
        groups=arguments.group or (),
        pdl=arguments.pdl,
    )


def options_of(arguments: argparse.Namespace, dtype: str | None = None) -> Options:
    """What was asked for; `dtype` is that of the logits, where they are here."""
    options = Options(
        dtype=dtype or arguments.dtype,
        index_dtype=arguments.index_dtype,
        values=bool(arguments.values),
        row_starts=bool(arguments.row_starts),
        order=arguments.order,
        tie_break=arguments.tie_break,
        nan=arguments.nan,
        page_table=bool(arguments.page_table),
    )
    return options.made_deterministic() if arguments.deterministic else options


def in_words(options: Options) -> str:
    """'plain', or what differs from it: 'dtype bfloat16, order index'."""
    asked = {name: value for name, value in dataclasses.asdict(options).items() if value != getattr(PLAIN, name)}
    return ", ".join(name if value is True else f"{name} {value}" for name, value in asked.items()) or "plain"


def add_gpu(parser: argparse.ArgumentParser) -> None:
    """`--gpu N`: which GPU runs it, as the driver counts those that CUDA_VISIBLE_DEVICES leaves."""
    parser.add_argument("--gpu", type=whole(0, 2**31 - 1), metavar="N", help="which GPU, as `doctor` lists them (0)")


def asked_gpu(number: int | None) -> DeviceInfo | None:
    """The GPU that is used; None where there is none and none was asked for. InvalidArgument if it is not there."""
    found = devices()
    if number is not None and number >= len(found):
        listed = ", ".join(f"{i}: {device.name}" for i, device in enumerate(found)) or "none: there is no GPU"
        raise InvalidArgument("--gpu", number, listed)
    return found[number or 0] if found else None
