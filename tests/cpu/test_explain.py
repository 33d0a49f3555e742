"""explain(): what it says of each kind of plan is a committed text, and its figures are the plan's."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import drvtopk
from drvtopk.explain import explain
from drvtopk.plan import Plan, Problem, after_refusal, calculated_occupancy, plan
from drvtopk.spec import KNOWN_DEVICES, DeviceInfo, KernelInfo, Options, Tuning, Variant, min_blocks

GOLDEN = Path(__file__).parent / "golden_explanations.txt"
H200, A100, L40S = (KNOWN_DEVICES[name] for name in ("h200", "a100", "l40s"))


def occupancy_of(device: DeviceInfo) -> Callable[[Variant, int], int]:
    """That of kernels which use as many registers as they are allowed."""

    def occupancy(variant: Variant, smem_bytes: int) -> int:
        resident = min(variant.residency, min_blocks(device.arch, variant.threads))
        registers = min(255, 65536 // (variant.threads * resident))
        kernel = KernelInfo(registers=registers, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
        return calculated_occupancy(kernel, device, smem_bytes, variant.threads)

    return occupancy


def made(device: DeviceInfo, problem: Problem, **how: Any) -> tuple[Plan, Problem]:
    return plan(problem, device, occupancy_of(device), **how), problem


def refused() -> tuple[Plan, Problem]:
    first, problem = made(H200, Problem(rows=4, width=400_000, k=1024), route="persistent")
    return after_refusal(first, problem, H200, occupancy_of(H200)), problem


def refused_clusters() -> tuple[Plan, Problem]:
    first, problem = made(H200, Problem(rows=4, width=400_000, k=1024), route="clustered")
    return after_refusal(first, problem, H200, occupancy_of(H200)), problem


def cases() -> dict[str, tuple[Plan, Problem]]:
    """Every route, every fallback, every hint."""
    P = Problem
    small = H200.with_limits(smem_optin=40_000)
    return {
        "persistent, the blocks of a row wait": made(H200, P(rows=4, width=400_000, k=1024), route="persistent"),
        "persistent, nothing left to others": made(
            A100, P(rows=1, width=2_500_000, k=512, stride=2_500_001, pdl=True), route="persistent"
        ),
        "persistent, no block waits": made(H200, P(rows=500, width=30_000, k=64), route="persistent"),
        "persistent, odd chunks": made(H200, P(rows=2, width=100_000, k=64), route="persistent", chunk=10_001),
        "filtered, few rows": made(A100, P(rows=1, width=4096, k=2048)),
        "filtered, many rows": made(L40S, P(rows=4096, width=131_072, k=512)),
        "filtered, a budget": made(H200, P(rows=300, width=8192, k=100, sm_budget=20, offset=6), route="filtered"),
        "filtered, bfloat16 beside others": made(
            H200,
            P(rows=64, width=9000, stride=9004, k=64, options=Options(dtype="bfloat16", values=True), pdl=True),
            route="filtered",
        ),
        "clustered": made(H200, P(rows=4, width=1_000_000, k=1024)),
        "clustered, dependent launch": made(H200, P(rows=1, width=40_000, k=7, pdl=True), route="clustered", group=2),
        "clustered, a budget": made(H200, P(rows=90, width=90_000, k=2048, sm_budget=40), route="clustered", group=8),
        "fallback, a row needs more blocks than fit": made(
            A100, P(rows=4, width=9_000_000, k=1024), tuning=Tuning(sms_to_share=1)
        ),
        "fallback, not even one block fits": made(small, P(rows=4, width=100_000, k=64), chunk=25_000),
        "fallback, waiting is forbidden": made(A100, P(rows=2, width=200_000, k=1024, waits="never")),
        "fallback, the driver refused": refused(),
        "fallback, the driver refused clusters": refused_clusters(),
        "dependent launch asked for in vain": made(A100, P(rows=2, width=2000, k=8, pdl=True)),
        "no rows": made(H200, P(rows=0, width=1000, k=8)),
    }


def text() -> str:
    return "\n".join(f"# {name}\n{explain(p, problem=problem)}\n" for name, (p, problem) in cases().items())


@pytest.fixture(autouse=True)
def plans_of_the_model(nothing_measured: None) -> None:
    """What stands in the text changes with the rules, not with measurements."""


def test_what_is_said_is_the_committed_text() -> None:
    assert text() == GOLDEN.read_text(), "if this is meant: python -m tests.cpu.test_explain"


def numbers(line: str) -> set[int]:
    return {int(found.replace(",", "")) for found in re.findall(r"\d[\d,]*", line)}


@pytest.mark.parametrize("name", cases())
def test_its_figures_are_the_plans(name: str) -> None:
    p, problem = cases()[name]
    lines = dict(
        line.split(": ", 1) for line in explain(p, problem=problem).splitlines() if not line.startswith("Hint")
    )
    assert lines["Why"] == f"{p.why}."
    headline = explain(p).splitlines()[0]
    assert (
        {p.rows, p.width, p.k, p.sms} <= numbers(headline)
        and p.device in headline
        and headline.endswith(f": {p.route}.")
    )
    if p.rows:
        assert {p.grid, p.block, p.resident_cap, p.occupancy} <= numbers(lines["Grid"])
        assert p.group == 1 or {p.group} <= numbers(lines["Grid"])
        assert not p.headroom_kept or p.headroom in numbers(lines["Grid"])
    assert {p.vec_size, p.vec_size * p.options.item_bytes} <= numbers(lines["Loads"])
    assert {p.smem_bytes, p.smem_optin, p.candidates} <= numbers(lines["Memory"])
    assert ("cooperatively" in lines["Waiting"]) is p.cooperative
    assert ("the hardware starts them" in lines["Waiting"]) is (p.route == "clustered")
    assert ("predecessor" in lines["Waiting"]) is p.pdl
    assert lines["Workspace"] == "none." or p.workspace_bytes in numbers(lines["Workspace"])
    assert (p.workspace_bytes == 0) is (lines["Workspace"] == "none.")
    assert ("Rejected" in lines) is (p.rejected is not None)
    if p.rejected is not None:
        r = p.rejected
        assert {r.group, r.chunk, r.smem_bytes} <= numbers(lines["Rejected"]) and r.route in lines["Rejected"]


def test_what_narrows_the_loads_is_named() -> None:
    def said(**fields: Any) -> str:
        how = fields.pop("how", {})
        p, problem = made(H200, Problem(rows=3, k=64, **fields), **how)
        (line,) = [line for line in explain(p, problem=problem).splitlines() if line.startswith("Loads")]
        return line

    assert "the widest" in said(width=1000)
    assert "the row stride, 1,001, is no multiple of 2" in said(width=1001)
    assert "the row stride, 1,002, is no multiple of 4" in said(width=1002)
    assert "the base address lies 1 past a multiple of 2 elements" in said(width=1000, offset=5)
    assert "the base address lies 2 past a multiple of 4 elements" in said(width=1000, offset=6)
    assert "the chunk, 10,001" in said(width=100_000, how={"route": "persistent", "chunk": 10_001})
    assert "(16 bytes)" in said(width=1000, options=Options(dtype="float16"))
    assert "the row stride, 1,004, is no multiple of 8" in said(width=1004, options=Options(dtype="float16"))


def test_a_prepared_problem_brings_what_was_asked_along() -> None:
    p, problem = cases()["filtered, a budget"]
    prepared = SimpleNamespace(plan=p, problem=problem)
    assert drvtopk.explain(prepared) == explain(p) == explain(p, problem=problem)
    assert "sm_budget=20" in explain(p)


def test_another_problem_may_be_what_was_asked() -> None:
    """As where a plan that was made for one problem was prepared for another."""
    p, problem = cases()["filtered, a budget"]
    asked = replace(problem, sm_budget=30, offset=7)
    for said in (explain(p, problem=asked), drvtopk.explain(SimpleNamespace(plan=p, problem=asked))):
        assert "sm_budget=30" in said and "sm_budget=20" not in said and "lies 3 past" in said


def test_what_forbade_the_launch_is_the_plans_reason() -> None:
    p, problem = cases()["fallback, waiting is forbidden"]
    assert explain(p, problem=replace(problem, waits="allowed")) == explain(
        p
    ) and "which the caller forbids" in explain(p)


def test_no_line_is_said_twice_and_each_is_a_sentence() -> None:
    for p, problem in cases().values():
        lines = explain(p, problem=problem).splitlines()
        assert len(set(lines)) == len(lines) and all(line.endswith(".") and len(line) < 200 for line in lines)


if __name__ == "__main__":
    from unittest import mock

    with mock.patch("drvtopk.measured.table", dict):
        GOLDEN.write_text(text())
