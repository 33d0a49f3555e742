"""Runs the code of one page: `python -m tests.pages PAGE [emulated]`. Blocks of Python run in order, in one namespace.

What a block prints is held against the block of text that follows it, if one does.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = {name: ROOT / "drvtopk" / f"{name}.md" for name in ("EMBED", "GRAPHS", "DEPLOY", "PLANS")}


def blocks(page: Path) -> list[tuple[str, str, int]]:
    """(language, text, line of the page) of each fenced block."""
    text = page.read_text()
    return [
        (found[1], found[2], text[: found.start(2)].count("\n"))
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
    ]


def run(page: Path) -> int:
    """How many blocks of Python ran."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed, ran = io.StringIO(), 0
    for language, text, line in blocks(page):
        if language == "python":
            printed = io.StringIO()
            code = compile("\n" * line + text, str(page), "exec")  # errors name the page's own lines
            with contextlib.redirect_stdout(printed):
                exec(code, names)
            ran += 1
        elif language == "text":
            assert printed.getvalue() == text, f"{page.name}:{line}: printed is\n{printed.getvalue()}"
    return ran


def emulate() -> None:
    """Makes the emulated device this process's only one, for the bindings' own users too."""
    import cuda.bindings.nvrtc  # which takes something of the real one's

    from drvtopk import driver
    from tests import emulated, tiny

    emulated.install()
    tiny.install()  # what is exported is not run
    fake: Any = driver.load().api
    cuda.bindings.driver = fake
    sys.modules["cuda.bindings.driver"] = fake


if __name__ == "__main__":
    if "emulated" in sys.argv:
        emulate()
    print(run(PAGES[sys.argv[1]]), "blocks ran")
