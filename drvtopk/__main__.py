"""python -m drvtopk: demo, topk, compile, export, plan, doctor, cache."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn, TextIO

from drvtopk import __version__
from drvtopk.cli import caching, compiling, demo, doctor, exporting, planning, selecting
from drvtopk.cli.output import note, one_line_warning
from drvtopk.errors import InvalidArgument, PlanError, TopKError

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
_GRACE_SECONDS = 0.4  # for Python to end by itself after Ctrl-C; a compiler at work does not let it


class _UsageError(Exception):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One line, without the usage text above it."""
        raise _UsageError(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: object = None) -> None:
        """To stdout: argparse would take stderr where there is none, and keep quiet of one that is full."""
        print(message, end="")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m drvtopk", description=__doc__)
    parser.add_argument("--version", action="version", version=f"drvtopk {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser, metavar="COMMAND")
    for module in (demo, selecting, compiling, exporting, planning, doctor, caching):
        module.add(commands)
    return parser


def _occupy_standard_handles() -> None:
    """A file that took the number of a closed stdout or stderr would get what libraries print there."""
    for handle in range(3):
        try:
            os.fstat(handle)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free


@contextlib.contextmanager
def _spelling() -> Iterator[None]:
    """What stdout's encoding lacks is written with backslashes; other streams than files are left as they are."""
    stream, reconfigure = sys.stdout, getattr(sys.stdout, "reconfigure", None)
    if reconfigure is None or getattr(stream, "closed", False):
        yield
        return
    before = stream.errors
    reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            reconfigure(errors=before)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C ends this process at once, also while a library is at work that Python cannot interrupt."""
    done = False
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        with os.fdopen(reader, "rb", buffering=0) as signals:
            while (got := signals.read(1)) and got[0] != signal.SIGINT:
                pass
            until = time.monotonic() + _GRACE_SECONDS
            while got and not done:
                if time.monotonic() < until:
                    time.sleep(0.01)
                    continue
                with contextlib.suppress(OSError):
                    os.write(2, _error("interrupted").encode() + b"\n")
                os._exit(INTERRUPTED)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done = True
        signal.set_wakeup_fd(before)
        os.close(writer)


def _flushed(stream: TextIO | None) -> None:
    """Raises OSError for a stream that is closed or takes no more, and empties it: it would be tried again at exit."""
    if stream is None or getattr(stream, "closed", False):
        raise OSError("stdout is closed: what was to be printed is lost")
    try:
        stream.flush()
    except OSError:
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def _error(message: str) -> str:
    return f"drvtopk: error: {' '.join(message.split())}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; the exit code is 0, 2 for bad input, 130 after Ctrl-C, 1 for anything else that went wrong.

    Without `argv` it is the process's own command, which Ctrl-C ends at once. Each error is a line on stderr, but that
    nobody reads stdout any more (`| head`).
    """
    own = argv is None and threading.current_thread() is threading.main_thread()
    if own:
        _occupy_standard_handles()
    code, message = 0, ""
    try:
        with warnings.catch_warnings(), _spelling(), _interruptible() if own else contextlib.nullcontext():
            warnings.showwarning = one_line_warning
            try:
                arguments = _parser().parse_args(argv)
                code = int(arguments.run(arguments))
            except SystemExit as done:  # of --help and --version
                code = int(done.code or 0)
            _flushed(sys.stdout)  # so that a full disk is an error here, and not after the exit code is known
    except (_UsageError, InvalidArgument, PlanError) as error:
        code, message = BAD_INPUT, str(error)
    except BrokenPipeError:
        code = FAILED
    except (TopKError, OSError) as error:
        code, message = FAILED, str(error)
    except MemoryError as error:
        code, message = FAILED, f"out of memory: {error}" if str(error) else "out of memory"
    except KeyboardInterrupt:
        code, message = INTERRUPTED, "interrupted"
        if own:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the impatient press it twice
    if message:
        note(_error(message))
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            _flushed(stream)
    if own and code == INTERRUPTED:
        os._exit(code)  # Python would wait for threads in which a compiler is at work
    return code


if __name__ == "__main__":
    raise SystemExit(main())
