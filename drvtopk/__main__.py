"""python -m drvtopk: demo, topk, compile, export, plan, doctor."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from typing import NoReturn

from drvtopk import __version__
from drvtopk.cli import compiling, demo, doctor, exporting, planning, selecting
from drvtopk.cli.output import one_line_warning
from drvtopk.errors import InvalidArgument, PlanError, TopKError

BAD_INPUT, FAILED = 2, 1


class _UsageError(Exception):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage text above it."""
        raise _UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m drvtopk", description=__doc__)
    parser.add_argument("--version", action="version", version=f"drvtopk {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for module in (demo, selecting, compiling, exporting, planning, doctor):
        module.add(commands)
    return parser


def _settle_stdout() -> None:
    """A stdout that takes no more would be tried again at exit, and fail there with lines of its own."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code is 0, 2 for bad input, 1 for anything else that went wrong."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = one_line_warning
            arguments = _parser().parse_args(argv)
            code = int(arguments.run(arguments))
            sys.stdout.flush()  # so that a full disk is an error here, and not after the exit code is known
            return code
    except (_UsageError, InvalidArgument, PlanError) as error:
        code, message = BAD_INPUT, str(error)
    except (TopKError, OSError) as error:
        code, message = FAILED, str(error)
        _settle_stdout()
    except MemoryError as error:
        code, message = FAILED, f"out of memory: {error}" if str(error) else "out of memory"
    except KeyboardInterrupt:
        code, message = 130, "interrupted"
    print(f"drvtopk: error: {' '.join(message.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
