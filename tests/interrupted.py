"""Something that happens before one of the bytecodes of a function: where another thread, or a collection, may come."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any


class Interrupted:
    """Inside, the first `at` bytecodes of `function` run, then `between`, then the rest. `seen` counts them all."""

    def __init__(self, function: Any, at: int, between: Callable[[], object]) -> None:
        self.code, self.at, self.between = function.__code__, at, between
        self.seen = 0

    def __enter__(self) -> Interrupted:
        self.before = sys.gettrace()
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.before)

    def _called(self, frame: FrameType, event: str, arg: object) -> Any:
        if frame.f_code is not self.code:
            return None
        frame.f_trace_opcodes = True
        return self._step

    def _step(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            if self.seen == self.at:
                sys.settrace(None)
                self.between()
                sys.settrace(self._called)
            self.seen += 1
        return self._step


def everywhere(function: Any, between: Callable[[], object], call: Callable[[str], object]) -> int:
    """Runs `call` once for each bytecode of `function`, which is interrupted there; how many there are.

    `call` gets the place, for its complaints. The calls that begin inside one another count as one.
    """
    at = count = 0
    while at <= count:
        with Interrupted(function, at, between) as trace:
            call(f"before bytecode {at}")
        count, at = trace.seen, at + 1
    return count
