"""Progress on stderr, where a terminal watches: of a list that is worked through, and of compiling inside `prepare()`.

A bar of tqdm, if that is installed, else a counter. DRVTOPK_PROGRESS=0 turns it off. Nothing ever goes to stdout.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextvars import ContextVar
from typing import Any, TypeVar

from drvtopk import forks

T = TypeVar("T")

PROGRESS_VARIABLE = "DRVTOPK_PROGRESS"


def watched() -> bool:
    """Whether somebody sees it: stderr is a terminal, and it is not turned off."""
    if os.environ.get(PROGRESS_VARIABLE) == "0" or sys.stderr is None:
        return False
    try:
        return sys.stderr.isatty()
    except ValueError:  # it is closed
        return False


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """The items, with a bar or a counter when a terminal watches."""
    if not watched():
        yield from items
        return
    try:
        from tqdm import tqdm
    except ImportError:
        yield from _counted(items, label)
    else:
        yield from tqdm(items, desc=label, file=sys.stderr, leave=False)


def _counted(items: Iterable[T], label: str) -> Iterator[T]:
    total = len(items) if isinstance(items, Sized) else "?"
    for done, item in enumerate(items):
        _write(f"{label}: {done}/{total}")
        yield item
    _write("")


def _write(text: str) -> None:
    print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


class _Compiling:
    """How many kernels a preparation has compiled; how many there will be nobody knows before."""

    def __init__(self) -> None:
        self._lock = forks.lock()  # several threads may compile for one preparation
        self._begun = False
        self._done = 0
        self._bar: Any = None

    def begin(self, what: str) -> None:
        label = f"drvtopk: compiling {what}"
        with self._lock:
            if not self._begun:
                with contextlib.suppress(ImportError):
                    from tqdm import tqdm

                    shape = "{desc} ({n_fmt} done, {elapsed})"
                    self._bar = tqdm(desc=label, file=sys.stderr, leave=False, bar_format=shape)
            self._begun = True
            if self._bar is None:
                _write(f"{label} ({self._done} done)")
            else:
                self._bar.set_description_str(label)

    def end(self) -> None:
        with self._lock:
            self._done += 1
            if self._bar is not None:
                self._bar.update()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._begun:
            _write("")


_shown: ContextVar[_Compiling | None] = ContextVar("drvtopk_compiling", default=None)
_terminal = forks.lock()  # held by the one preparation that shows; never waited for


@contextlib.contextmanager
def preparing() -> Iterator[None]:
    """Around work that may compile: the first kernel that is really compiled, `compiling`, opens the display."""
    if not watched() or _shown.get() is not None or not _terminal.acquire(blocking=False):
        yield
        return
    display = _Compiling()
    token = _shown.set(display)
    try:
        yield
    finally:
        _shown.reset(token)
        _terminal.release()
        display.close()


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Around one compilation; shown inside `preparing` only."""
    display = _shown.get()
    if display is None:
        yield
        return
    display.begin(what)
    yield
    display.end()
