"""What a run takes of the exhaustive sets, how many processes share it, and what it says of both and of skips.

Every case runs with `--exhaustive`, or if its node id is on the command line; else the sets are sampled (sampling.py).
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import drvtopk
from drvtopk.errors import CompilerUnavailable
from tests.needs import NEEDED, NO_NVRTC, nvrtc_is_missing
from tests.sampling import SAMPLE, Case, Draw, changed_files, sources_digest

WORKERS = 2
DRAW = pytest.StashKey[Draw]()
TAKEN = pytest.StashKey[dict[str, tuple[int, int]]]()
"""Of each set: how many cases were taken, and how many there are."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="run every case of every exhaustive set, not a sample")


# -- processes ---------------------------------------------------------------------------------------------------------


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Two processes, where pytest-xdist is installed and the command line does not say otherwise.

    One process where there is a GPU, since tests hold all of its SMs, and for tests that are named one by one.
    """
    option = config.option
    if getattr(option, "numprocesses", 0) is not None or option.dist != "no" or option.tx:
        return  # no pytest-xdist, or it is told what to do
    interactive = option.usepdb or option.collectonly or option.capture == "no"
    if hasattr(config, "workerinput") or interactive or _named(config):
        return
    if (os.cpu_count() or 1) >= WORKERS and not drvtopk.devices():
        option.numprocesses, option.dist = WORKERS, "worksteal"


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """All processes of a run draw the same sample, though files may change while they start."""
    draw = _draw(node.config)
    node.workerinput["draw"] = [draw.digest, sorted(draw.changed), sorted(draw.failed)]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    taken = getattr(node, "workeroutput", {}).get("taken", {})
    node.config.stash.setdefault(TAKEN, {}).update(taken)


# -- the sample --------------------------------------------------------------------------------------------------------


def _named(config: pytest.Config) -> list[tuple[Path, str]]:
    """(file, name in it) of each node id on the command line."""
    found = []
    for argument in config.args:
        file, separator, _ = argument.partition("[")[0].partition("::")
        if separator:
            found.append(((config.invocation_params.dir / file).resolve(), argument[len(file) + 2 :]))
    return found


def _is_named(item: pytest.Item, named: list[tuple[Path, str]]) -> bool:
    name = item.nodeid.partition("::")[2]
    return any(
        item.path.resolve() == file and (name == asked or name.startswith((f"{asked}[", f"{asked}::")))
        for file, asked in named
    )


def _draw(config: pytest.Config) -> Draw:
    if DRAW not in config.stash:
        if hasattr(config, "workerinput"):
            digest, changed, failed = config.workerinput["draw"]
        else:
            cache = getattr(config, "cache", None)
            digest, changed = sources_digest(), changed_files()
            failed = cache.get("cache/lastfailed", {}) if cache else {}
        config.stash[DRAW] = Draw(digest=digest, changed=frozenset(changed), failed=frozenset(failed))
    return config.stash[DRAW]


@pytest.hookimpl(trylast=True)  # of what -k and -m leave
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    sets: dict[str, list[Case]] = {}
    named = _named(config)
    for item in items:
        mark = item.get_closest_marker("exhaustive")
        if mark is not None and not _is_named(item, named):
            sets.setdefault(mark.args[0], []).append(Case(id=item.nodeid, file=mark.kwargs.get("file", "")))
    if config.option.exhaustive or not sets:
        return
    taken = {name: _draw(config).taken(cases, SAMPLE[name]) for name, cases in sets.items()}
    config.stash[TAKEN] = {name: (len(taken[name]), len(cases)) for name, cases in sets.items()}
    if hasattr(config, "workeroutput"):
        config.workeroutput["taken"] = config.stash[TAKEN]
    left = {case.id for name, cases in sets.items() for case in cases if case.id not in taken[name]}
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left])
    items[:] = [item for item in items if item.nodeid not in left]


# -- what is said ------------------------------------------------------------------------------------------------------


def pytest_report_header(config: pytest.Config) -> str:
    if config.option.exhaustive:
        return "exhaustive sets: every case"
    sizes = ", ".join(f"{count} {name}" for name, count in SAMPLE.items())
    return f"exhaustive sets: a sample ({sizes}) drawn for sources {_draw(config).digest}; every case: --exhaustive"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(call: pytest.CallInfo[None]) -> Iterator[None]:
    """Where there is no NVRTC, what needs it is skipped."""
    report: pytest.TestReport = yield  # type: ignore[assignment]
    # A command, or a process of its own, says so in its output.
    if report.failed and (_lacks_nvrtc(call) or "NVRTC is not there" in _said(report)) and nvrtc_is_missing():
        report.outcome = "skipped"
        report.longrepr = (report.location[0], report.location[1] or 0, f"Skipped: {NO_NVRTC}")
    return report  # type: ignore[return-value]


def _lacks_nvrtc(call: pytest.CallInfo[None]) -> bool:
    return call.excinfo is not None and call.excinfo.errisinstance(CompilerUnavailable)


def _said(report: pytest.TestReport) -> str:
    return "\n".join([report.longreprtext, *(text for _, text in report.sections)])


def _skips(reporter: pytest.TerminalReporter) -> Counter[str]:
    """How often each reason to skip was given."""
    reports: list[Any] = reporter.stats.get("skipped", [])
    return Counter(report.longrepr[2].removeprefix("Skipped: ") for report in reports)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, (taken, there) in sorted(config.stash.get(TAKEN, {}).items()):
        terminalreporter.write_line(f"sampled: {taken} of {there} {name}")
    for reason, count in _skips(terminalreporter).most_common():
        terminalreporter.write_line(f"{count} skipped: {reason}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """An exhaustive run in which nothing passes, or that lacks a compiler, fails."""
    option = session.config.option
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    if not option.exhaustive or option.collectonly or reporter is None or session.exitstatus:
        return
    if not reporter.stats.get("passed") or any(_skips(reporter)[reason] for reason in NEEDED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
