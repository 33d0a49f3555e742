"""Plan.reason and Plan.why: each kind is reached by a plan, and its sentence has the plan's figures."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest

from drvtopk import measured
from drvtopk.choice import Choice
from drvtopk.plan import Plan, Problem, after_refusal, plan
from drvtopk.reasons import Kind, Reason
from drvtopk.spec import DEFAULT_TUNING, KNOWN_DEVICES, PLAIN, DeviceInfo, Options, Tuning, Variant

H200, A100 = KNOWN_DEVICES["h200"], KNOWN_DEVICES["a100"]
FEW = Problem(rows=4, width=131_072, k=512)
BEYOND = Problem(rows=1, width=9_000_000, k=1024)
FALLBACKS = {Kind.WAITS_FORBIDDEN, Kind.DOES_NOT_FIT, Kind.REFUSED}
TIMES = {Choice("filtered"): {4: {131_072: 2.0}}, Choice("clustered", 8): {4: {131_072: 1.0}}}


def resident(variant: Variant, smem_bytes: int) -> int:
    return variant.residency


def made(device: DeviceInfo = H200, problem: Problem = FEW, **how: Any) -> Plan:
    return plan(problem, device, resident, **how)


def refused(route: str) -> Plan:
    return after_refusal(made(route=route), FEW, H200, resident)


ALONE = "; one block per row, none waits"
CASES: dict[str, tuple[Kind, Callable[[], Plan], str]] = {
    "filtered, asked": (Kind.ASKED, lambda: made(route="filtered"), f"filtered: asked for{ALONE}"),
    "clustered, asked": (
        Kind.ASKED,
        lambda: made(route="clustered"),
        "clustered: the 16 blocks of a cluster share each long row; 7 clusters fit at once",
    ),
    "persistent, asked": (
        Kind.ASKED,
        lambda: made(route="persistent"),
        "persistent: 32 blocks of 4096 elements share a row, 4 of 4 rows in flight; "
        "132 of 264 resident blocks left to others",
    ),
    "persistent, its chunk": (
        Kind.ASKED,
        lambda: made(A100, replace(FEW, rows=1), chunk=1000),
        "persistent: 132 blocks of 1000 elements share a row, 1 of 1 rows in flight; no headroom: 132 of 216 needed",
    ),
    "persistent, asked of short rows": (
        Kind.ASKED,
        lambda: made(problem=replace(FEW, rows=500, max_seq_len=9000), route="persistent"),
        "persistent: no row above 32768 is expected (max_seq_len 16384), so one block takes each row and none waits; "
        "264 of 500 rows in flight",
    ),
    "short rows": (
        Kind.SHORT_ROWS,
        lambda: made(problem=replace(FEW, max_seq_len=5000)),
        f"filtered: no row above 32768 is expected (max_seq_len 8192){ALONE}",
    ),
    "many rows": (
        Kind.MANY_ROWS,
        lambda: made(A100, replace(FEW, rows=7)),
        f"filtered: 7 rows on 108 SMs, sharing pays from 16 SMs a row on{ALONE}",
    ),
    "few rows": (
        Kind.FEW_ROWS,
        lambda: made(A100),
        "persistent: 27 blocks of 4856 elements share a row, 4 of 4 rows in flight; "
        "108 of 216 resident blocks left to others",
    ),
    "measured, filtered": (
        Kind.MEASURED,
        lambda: made(replace(H200, name="filtered pays", sms=9)),
        f"filtered: measured fastest near 4 x 131072{ALONE}",
    ),
    "measured, clustered": (
        Kind.MEASURED,
        lambda: made(replace(H200, name="sharing pays", sms=40)),
        "clustered: the 8 blocks of a cluster share each long row; 4 clusters fit at once; "
        "measured fastest near 4 x 131072",
    ),
    "modelled, filtered": (
        Kind.MODELLED,
        lambda: made(problem=replace(FEW, rows=1000)),
        f"filtered: by a model the fastest for 1000 x 131072{ALONE}",
    ),
    "modelled, persistent": (
        Kind.MODELLED,
        lambda: made(problem=replace(FEW, rows=1, width=2_000_000, stride=None, max_seq_len=None)),
        "persistent: 132 blocks of 15152 elements share a row, 1 of 1 rows in flight; "
        "132 of 264 resident blocks left to others",
    ),
    "waits are forbidden": (
        Kind.WAITS_FORBIDDEN,
        lambda: made(problem=replace(FEW, waits="never")),
        "fallback: blocks of a row would wait for each other, which the caller forbids",
    ),
    "a row does not fit": (
        Kind.DOES_NOT_FIT,
        lambda: made(A100, BEYOND),
        "fallback: one row needs 514 blocks, 216 fit",
    ),
    "a block does not fit": (
        Kind.DOES_NOT_FIT,
        lambda: plan(FEW, A100, lambda variant, smem: int(variant.route == "filtered")),
        "fallback: a block holding 4856 elements needs 76288 bytes of shared memory and none fits an SM "
        "(166912 bytes a block at most)",
    ),
    "the fastest does not fit": (  # and filtered, though ranked next, then says of what it is the fallback
        Kind.DOES_NOT_FIT,
        lambda: plan(
            Problem(rows=1, width=2_000_000, k=512),
            H200,
            lambda variant, smem: int(variant.route == "filtered"),
        ),
        "fallback: a block holding 15152 elements needs 76288 bytes of shared memory and none fits an SM "
        "(232448 bytes a block at most)",
    ),
    "refused, cooperative": (
        Kind.REFUSED,
        lambda: refused("persistent"),
        "fallback: the driver refused the cooperative launch (720, COOPERATIVE_LAUNCH_TOO_LARGE) for 128 blocks, "
        "264 were to fit",
    ),
    "refused, in clusters": (
        Kind.REFUSED,
        lambda: refused("clustered"),
        "fallback: the driver refused the launch in clusters of 16 blocks (912, INVALID_CLUSTER_SIZE)",
    ),
}


@pytest.fixture(autouse=True)
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two devices that are measured, and no other."""
    slow = {**TIMES, Choice("clustered", 8): {4: {131_072: 3.0}}}
    known = {("sharing pays", 40): TIMES, ("filtered pays", 9): slow}
    monkeypatch.setattr(measured, "table", lambda: known)


@pytest.mark.parametrize("name", CASES)
def test_each_reason_is_reached_and_said(name: str) -> None:
    kind, planned, sentence = CASES[name]
    found = planned()
    assert found.reason.kind is kind and found.why == sentence
    assert (found.rejected is not None) is (kind in FALLBACKS)
    assert (found.reason.grid > 0) is (kind is Kind.REFUSED)
    assert (found.clusters > 0) is (found.route == "clustered")


def test_every_kind_has_a_case_and_a_word() -> None:
    assert {kind for kind, _, _ in CASES.values()} == set(Kind)
    assert all(kind == str(kind) == f"{kind}" == kind.name.lower() for kind in Kind)


def test_the_refused_grid_is_kept() -> None:
    for route in ("persistent", "clustered"):
        assert refused(route).reason == Reason(kind=Kind.REFUSED, grid=made(route=route).grid)


@pytest.mark.parametrize("budget", [None, 20, 500])
@pytest.mark.parametrize("route", ["auto", "persistent", "filtered", "clustered"])
def test_a_plan_holds_the_problem_as_asked_and_the_limits_it_kept(route: str, budget: int | None) -> None:
    problem = replace(FEW, sm_budget=budget, offset=6, pdl=True)
    found = made(problem=problem, route=route)
    fallback = after_refusal(found, problem, H200, resident)
    for p in (found, fallback):
        assert p.problem == problem
        assert p.limits == H200.with_limits(sms=min(budget or 132, 132))
        assert (p.sms, p.device, p.smem_optin) == (p.limits.sms, "h200", H200.smem_optin)
        assert (p.k, p.rows, p.width, p.stride, p.max_seq_len) == (512, 4, 131_072, 131_072, 131_072)
        assert (p.variant.k, p.options, p.tuning) == (512, PLAIN, DEFAULT_TUNING)
        assert pickle.loads(pickle.dumps(p)) == p and hash(p) == hash(replace(p))


def test_the_document_is_flat_and_its_order_is_fixed() -> None:
    problem = Problem(rows=3, width=100_001, k=100, stride=100_008, max_seq_len=50_000, options=Options(values=True))
    tuning = Tuning(sms_to_share=8)
    found = plan(problem, A100, resident, tuning=tuning)
    assert json.dumps(found.document()) == json.dumps(
        {
            "route": "persistent",
            "k": 100,
            "vec_size": 4,
            "rows": 3,
            "width": 100_001,
            "stride": 100_008,
            "max_seq_len": 65_536,
            "grid": 75,
            "block": 1024,
            "group": 25,
            "groups": 3,
            "chunk": 4096,
            "candidates": 8192,
            "smem_bytes": 74_640,
            "device": "a100",
            "sms": 108,
            "smem_optin": 166_912,
            "occupancy": 2,
            "resident_cap": 216,
            "needs_cooperation": True,
            "headroom": 108,
            "headroom_kept": True,
            "cooperative": True,
            "workspace_bytes": 3 * 25_344,
            "why": "persistent: 25 blocks of 4096 elements share a row, 3 of 3 rows in flight; "
            "108 of 216 resident blocks left to others",
            "tuning": asdict(tuning),
            "options": asdict(Options(values=True)),
            "residency": 2,
            "pdl": False,
            "rejected": None,
        }
    )
    beyond = made(A100, BEYOND)
    assert beyond.document()["rejected"] == {
        "route": "persistent",
        "vec_size": 4,
        "group": 514,
        "chunk": 17_536,
        "smem_bytes": 82_944,
        "occupancy": 2,
        "resident_cap": 216,
    }
