"""Which cases of the exhaustive sets an ordinary run takes: a fixed number of each, drawn by the sources' content.

The same tree draws the same cases, and each change draws others. Cases that failed in the last run come first, then
those of files that are changed.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("cuda_src", "drvtopk", "tests", "tools")
SAMPLE: Mapping[str, int] = {
    "mutations": 8,
    "schedules": 6,
    "harness": 14,
    "sanitized": 1,
    "planted": 1,
    "compiles": 10,
    "plans": 4,
    "device faults": 4,
    "streams": 3,
    "commands": 1,
}
"""How many cases of each set an ordinary run takes. The names are those of the `exhaustive` marks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A test of an exhaustive set."""

    id: str
    """pytest's node id."""
    file: str = ""
    """The source file it is about, relative to the root, where it is about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """What decides which cases are taken."""

    digest: str
    changed: frozenset[str] = frozenset()
    """Files, relative to the root."""
    failed: frozenset[str] = frozenset()
    """Node ids of the last run."""

    def taken(self, cases: Iterable[Case], count: int) -> set[str]:
        """The ids of `count` cases."""

        def place(case: Case) -> tuple[bool, bool, bytes]:
            drawn = hashlib.sha256(f"{self.digest} {case.id}".encode()).digest()
            return case.id not in self.failed, case.file not in self.changed, drawn

        return {case.id for case in sorted(cases, key=place)[:count]}


def sources_digest(root: Path = ROOT) -> str:
    """Changes with the name or the content of any source file."""
    digest = hashlib.sha256()
    for folder in SOURCES:
        for path in sorted((root / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith("."):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def changed_files(root: Path = ROOT) -> frozenset[str]:
    """Files that differ from HEAD, and those of the last commit; none where git does not answer."""
    questions: Sequence[Sequence[str]] = (
        ("diff", "--name-only", "HEAD"),
        ("ls-files", "--others", "--exclude-standard"),
        ("show", "--name-only", "--format=", "HEAD"),
    )
    found: set[str] = set()
    for question in questions:
        try:
            done = subprocess.run(["git", *question], cwd=root, capture_output=True, text=True, timeout=30)
        except (OSError, subprocess.TimeoutExpired):
            return frozenset()
        if done.returncode == 0:
            found.update(done.stdout.splitlines())
    return frozenset(found)
