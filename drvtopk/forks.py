"""What a fork must not take along: locks that other threads of the parent hold, and what belongs to the parent's CUDA.

In a forked child only the thread that forked exists, so that a lock which another one held stays locked for ever. Every
lock of this package is made here, and is free again in a child.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def lock() -> threading.Lock:
    """A lock that is free in a forked child, whoever held it in the parent."""
    made = threading.Lock()
    _locks.add(made)
    return made


def condition() -> threading.Condition:
    """A condition that is free in a forked child, and that nobody waits for there."""
    made = threading.Condition()
    _locks.add(made)
    return made


def in_child(call: Callable[[], None]) -> Callable[[], None]:
    """Has `call` run in each forked child, before anything else of this package."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=call)
    return call


@in_child
def _renew() -> None:
    for held in list(_locks):
        held._at_fork_reinit()  # what threading and logging do with theirs
