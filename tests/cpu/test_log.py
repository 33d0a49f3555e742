"""The log "drvtopk": which event is told at which level, and that nothing is printed unless the host says so."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.events import EVENTS, log_event
from drvtopk.export import export_kernels, prebuilt
from drvtopk.export.prebuilt import Prebuilt
from drvtopk.plan import Problem
from drvtopk.reasons import Kind
from drvtopk.spec import instantiations
from tests.fake_driver import FakeDriver

pytestmark = pytest.mark.usefixtures("tiny_kernels")

ROOT = Path(__file__).resolve().parents[2]
SHORT = Problem(rows=4, width=8192, k=64)
ADDRESSES = (1 << 20, 2 << 20, 3 << 20, 4 << 20)


@pytest.fixture(autouse=True)
def everything(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    caplog.set_level(logging.DEBUG, logger="drvtopk")
    monkeypatch.setattr(prebuilt, "_named", Prebuilt())


def make(fake: FakeDriver | None = None, **more: Any) -> Engine:
    driver = Driver(fake or FakeDriver())
    more.setdefault("cache", Cache(None))
    return Engine(driver, driver.context_device(0x77), **more)


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """(event, level, text) of each record since the last look."""
    found = [(r.__dict__["event"], r.levelname, r.getMessage()) for r in caplog.records if r.name == "drvtopk"]
    caplog.clear()
    return found


def test_a_preparation_tells_what_it_compiles_loads_and_plans(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    made = make(cache=cache)
    ready = made.prepare(SHORT, route="filtered")
    compiled, loaded, planned = told(caplog)
    name = str(ready.plan.variant)
    assert compiled[:2] == ("compile", "INFO") and re.fullmatch(
        rf"compiled {name} for sm_90a in \d+\.\d\d s: \d+ registers, \d+ bytes of spills", compiled[2]
    )
    assert loaded[:2] == ("load", "INFO") and loaded[2].startswith(f"loaded {name} for sm_90a")
    assert planned == ("plan", "INFO", f"4 rows of 8192, k 64: {ready.plan.why}")
    make(cache=Cache(tmp_path)).prepare(SHORT, route="filtered")
    assert told(caplog)[0] == ("compile", "INFO", f"{name} for sm_90a came from the cache")
    made.prepare(SHORT, route="filtered")
    assert [event for event, _, _ in told(caplog)] == ["plan"], "what is loaded is loaded once"
    ready.launch(*ADDRESSES)
    assert told(caplog) == [], "a launch tells nothing"


def test_a_prebuilt_kernel_is_told_with_its_file(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, compiled_before: Cache
) -> None:
    found = export_kernels(
        tmp_path, {"sm_90a": instantiations("sm_90a", (64,), (4,), ("filtered",))}, cache=compiled_before
    )
    caplog.clear()
    make(prebuilt=Prebuilt([tmp_path])).prepare(SHORT, route="filtered")
    file = tmp_path / found.kernels[0].file
    assert told(caplog)[0] == ("compile", "INFO", f"filtered<64,4,alone> for sm_90a came from {file}")


def test_a_fallback_is_a_warning_unless_it_was_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    made = make(FakeDriver(sms=4))
    long = Problem(rows=1, width=3_000_000, k=64)
    ready = made.prepare(long, chunk=20_000)
    event, level, text = told(caplog)[-1]
    assert (event, level) == ("fallback", "WARNING")
    assert text == f"1 rows of 3000000, k 64: {ready.plan.why}" and ready.plan.reason.kind is Kind.DOES_NOT_FIT
    never = Problem(rows=1, width=3_000_000, k=64, waits="never")
    made.prepare(never, chunk=400_000)
    assert told(caplog)[-1][:2] == ("plan", "INFO")


def test_a_refused_launch_is_a_warning_once(caplog: pytest.LogCaptureFixture) -> None:
    fake = FakeDriver()
    ready = make(fake).prepare(Problem(rows=4, width=1_000_000, k=64), route="persistent")
    told(caplog)
    fake.fail["cuLaunchCooperativeKernel"] = 720
    for _ in range(3):
        ready.launch(*ADDRESSES)
    assert told(caplog) == [("fallback", "WARNING", ready.plan.why)] and ready.plan.reason.kind is Kind.REFUSED


def test_a_folder_that_cannot_be_used_is_a_warning(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="no export"):
        make(prebuilt=Prebuilt([tmp_path])).prepare(SHORT, route="filtered")
    event, level, text = told(caplog)[0]
    assert (event, level) == ("prebuilt", "WARNING") and str(tmp_path) in text


def test_records_name_the_line_that_told_them(caplog: pytest.LogCaptureFixture) -> None:
    log_event(logging.INFO, "plan", "%s", "here")
    assert caplog.records[-1].filename == Path(__file__).name


SILENT = """
import logging, drvtopk.events
log = logging.getLogger("drvtopk")
log.warning("to nobody")
assert [type(handler).__name__ for handler in log.handlers] == ["NullHandler"] and log.level == 0 and log.propagate
logging.basicConfig(format="%(levelname)s %(message)s")
log.warning("to the host")
"""


def test_without_the_hosts_word_nothing_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SILENT], cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", "WARNING to the host\n")


def test_the_page_lists_every_event() -> None:
    text = (ROOT / "drvtopk" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (INFO|WARNING)[^|]* \|", text.split("## Log\n")[1].split("\n## ")[0], re.M)
    assert [name for name, _ in rows] == list(EVENTS)
    assert dict(rows) == {event: "WARNING" if event in ("fallback", "prebuilt") else "INFO" for event in EVENTS}
