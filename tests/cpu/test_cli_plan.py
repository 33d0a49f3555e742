"""python -m drvtopk plan is a calculator: its JSON alone is enough to redo every figure."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from typing import Any

import pytest

from drvtopk.__main__ import main
from drvtopk.cli.options import in_words
from drvtopk.spec import Options

COMMON = ["plan", "--device", "h200", "--rows", "4", "--stride", "100000", "--k", "1024"]
# Register counts do not matter where the occupancy is given, and then nothing is compiled.
GIVEN = [*COMMON, "--occupancy", "2"]


def document(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def up(value: int, to: int) -> int:
    return -(-value // to) * to


def redo(d: dict[str, Any]) -> dict[str, Any]:
    """The figures of a plan, from its inputs in the document and the rules of drvtopk/PLANS.md."""
    device, tuning, asked = d["device_info"], d["tuning"], d["asked"]
    sms = device["sms"] if asked["sm_budget"] is None else min(device["sms"], asked["sm_budget"])
    persistent, clustered = d["route"] == "persistent", d["route"] == "clustered"
    waits = persistent and d["max_seq_len"] > tuning["radix_threshold"]
    group = d["group"] if clustered else max(1, persistent and -(-d["width"] // d["chunk"]))
    residency = 2 if persistent or d["rows"] * group > sms else 1
    block = 512 if clustered or (d["route"] == "filtered" and residency == 2) else 1024
    options = d["options"]
    step = 0 if not persistent or group == 1 or options["row_starts"] else d["chunk"]
    widest = 4 if options["dtype"] == "float32" else 8
    vec = next(v for v in (8, 4, 2, 1) if v <= widest and d["offset"] % v == d["stride"] % v == step % v == 0)
    by_value, ordered = options["order"] == "value", options["order"] != "none"
    places = next(2**n for n in range(6, 13) if 2**n >= d["k"]) if ordered else 0
    fixed = max(2048, places if by_value else 0) * 4 + 512 + up(4 * max(d["k"], places), 16)
    blocks = min(2, device["max_threads_per_sm"] // block)
    budget = min(device["smem_optin"], (device["smem_per_sm"] // blocks - device["smem_reserved"]) // 128 * 128)
    held = up(4 * d["chunk"], 16) if waits else 0
    each, most = (20 if clustered else 8), tuning["max_candidates"]
    candidates = min(most, (budget - fixed) // each)
    whole = (device["smem_optin"] - fixed) // each  # with an SM to itself
    if clustered and (residency == 1 or candidates < 2 * d["k"]):
        candidates = max(candidates, min(most, max(6144, 4 * d["k"]), whole))
    elif block == 512 and candidates < d["k"]:
        candidates = min(most, whole)
    candidates = max(held // 8, candidates)
    smem = fixed + max(held, each * candidates)
    if clustered and residency == 1:
        smem = min(max(smem, device["smem_per_sm"] // 2), device["smem_optin"])
    if asked["occupancy"] is None:
        alone, pdl = ",alone" * (residency == 1), ",pdl" * d["pdl"]
        cluster = f",x{group}" * clustered
        name = re.compile(rf"{d['route']}\w*<{d['k']},{vec}{cluster}{alone}{pdl}>")  # between them: the options
        (kernel,) = (one for one in d["kernels"] if name.fullmatch(one["variant"]))
        warps = 4 * (device["regs_per_sm"] // 4 // up(32 * kernel["registers"], 256))
        by_memory = device["smem_per_sm"] // (up(kernel["static_smem_bytes"] + smem, 128) + device["smem_reserved"])
        by_threads = device["max_threads_per_sm"] // block
        occupancy = min(by_threads, warps // (block // 32), by_memory, device["max_blocks_per_sm"])
    else:
        occupancy = asked["occupancy"]
    cap = sms * occupancy
    headroom = 0 if not waits else sms if occupancy > 1 else 1
    kept = waits and cap - headroom >= group
    limit = None if asked["sm_budget"] is None else cap
    if clustered:
        together = sms // 18 * (18 * occupancy // group) + sms % 18 * occupancy // group
        (seen,) = (one for one in d["clusters"] if f",x{group}" in one["variant"])
        assert (
            seen["clusters"] == together
            and f" {together if limit is None else min(together, cap // group)} " in d["why"]
        )
        limit = None if limit is None else min(together, cap // group)
    if persistent:
        groups = max(1, min((cap - headroom * kept) // group, d["rows"]))
    else:
        groups = d["rows"] if limit is None else min(d["rows"], limit)
    members = 4 * d["k"] if ordered else 0
    state = up(128 + 3 * 2080 * 4 + 8 * group + members, 128) if waits else 0
    return {
        "sms": sms,
        "needs_cooperation": waits,
        "cooperative": waits,
        "group": group,
        "block": block,
        "residency": residency,
        "vec_size": vec,
        "fixed_smem_bytes": fixed,
        "candidates": candidates,
        "smem_bytes": smem,
        "occupancy": occupancy,
        "resident_cap": cap,
        "headroom": headroom,
        "headroom_kept": kept,
        "groups": groups,
        "grid": groups * group,
        "group_state_bytes": state,
        "workspace_bytes": groups * state,
    }


@pytest.mark.exhaustive("plans")
@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--chunk", "8472"],
        ["--rows", "300", "--stride", "262144"],
        ["--route", "persistent"],
        ["--route", "clustered"],
        ["--route", "clustered", "--group", "2", "--rows", "100", "--pdl"],
        ["--route", "clustered", "--group", "8", "--rows", "500", "--sm-budget", "40", "--k", "4096"],
        ["--route", "clustered", "--dtype", "bfloat16", "--order", "value", "--k", "2048", "--rows", "1"],
        ["--route", "filtered", "--pdl", "--device", "b200", "--rows", "1000"],
        ["--device", "a100", "--stride", "9000000"],  # a fallback
        ["--device", "l40s", "--rows", "500", "--k", "2048"],
        ["--stride", "9000000"],  # more than a group holds, so by clusters
        ["--max-seq-len", "9000"],
        ["--width", "50001", "--offset", "2"],
        ["--sm-budget", "20"],
        ["--sm-budget", "20", "--route", "filtered", "--rows", "500"],
        ["--occupancy", "1", "--sms", "77"],
        ["--device", "gb10", "--k", "4096"],
        ["--device", "a100", "--k", "77", "--chunk", "10001"],
        ["--dtype", "bfloat16", "--route", "persistent"],
        ["--dtype", "float16", "--width", "50001", "--offset", "4", "--chunk", "10004"],
        ["--order", "value", "--k", "4096", "--route", "persistent", "--nan", "highest"],
        ["--deterministic", "--k", "33", "--route", "persistent", "--index-dtype", "int64"],
        ["--row-starts", "--chunk", "10001", "--values", "--page-table", "--tie-break", "largest"],
    ],
    ids=" ".join,
)
def test_every_figure_can_be_redone_from_the_document(capsys: pytest.CaptureFixture[str], extra: list[str]) -> None:
    found = document(capsys, *COMMON, *extra)
    redone = redo(found)
    assert {name: found[name] for name in redone} == redone


def test_every_option_reaches_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    plain = document(capsys, *GIVEN, "--route", "persistent")
    assert plain["cooperative"] and plain["width"] == plain["stride"] == 100000 and plain["kernels"] == []
    shared = document(capsys, *GIVEN, "--route", "clustered", "--group", "4", "--pdl")
    assert (shared["route"], shared["group"], shared["pdl"], shared["cooperative"]) == ("clustered", 4, True, False)
    assert (shared["asked"]["group"], shared["asked"]["pdl"], plain["asked"]["group"]) == (4, True, None)
    assert (
        shared["clusters"][0]["clusters"] == 7 * (18 * 2 // 4) + 6 * 2 // 4 == 66
        and not plain["clusters"]
        and not plain["pdl"]
    )
    never = document(capsys, *GIVEN, "--waits", "never")
    assert never["route"] == "filtered" and "forbids" in never["why"] and never["asked"]["waits"] == "never"
    budget = document(capsys, *GIVEN, "--route", "persistent", "--sm-budget", "20")
    assert budget["sms"] == 20 and budget["grid"] <= 40 < plain["grid"] and budget["device_info"]["sms"] == 132
    narrow = document(capsys, *GIVEN, "--width", "40000")
    assert (narrow["width"], narrow["stride"], narrow["vec_size"]) == (40000, 100000, 4)
    assert document(capsys, *GIVEN, "--width", "40000", "--stride", "100001")["vec_size"] == 1
    far = document(capsys, *GIVEN, "--width", "40000", "--stride", "3000000000")
    assert far["stride"] == 3_000_000_000
    small = document(capsys, *GIVEN, "--smem-optin", "40000", "--chunk", "25000")
    assert small["route"] == "filtered" and small["rejected"]["occupancy"] == 0 and small["smem_bytes"] <= 40000
    assert document(capsys, *GIVEN, "--sms", "66")["resident_cap"] == 132


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        ((), Options()),
        (("--dtype", "float16", "--index-dtype", "int64"), Options(dtype="float16", index_dtype="int64")),
        (("--values", "--row-starts", "--page-table"), Options(values=True, row_starts=True, page_table=True)),
        (("--order", "value", "--tie-break", "largest"), Options(order="value", tie_break="largest")),
        (("--deterministic", "--nan", "highest"), Options(order="index", tie_break="smallest", nan="highest")),
        (("--deterministic", "--order", "value"), Options(order="value", tie_break="smallest")),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_every_option_of_the_selection_reaches_the_plan(
    capsys: pytest.CaptureFixture[str], argv: tuple[str, ...], options: Options
) -> None:
    found = document(capsys, *GIVEN, *argv)
    assert found["options"] == asdict(options) and found["asked"]["deterministic"] is ("--deterministic" in argv)
    assert main([*GIVEN, *argv]) == 0
    (shown,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("options")]
    assert shown.split(maxsplit=1)[1] == in_words(options)
    assert (shown.split()[1] == "plain") is (options == Options())


def test_a_width_that_no_index_reaches_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN, "--stride", "3000000000"]) == 2  # the width is the stride unless given
    shown = capsys.readouterr()
    assert shown.err.startswith("drvtopk: error: width: ") and shown.err.count("\n") == 1 and not shown.out


def test_a_person_sees_the_reason_first_and_what_was_rejected(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*GIVEN, "--stride", "9000000", "--chunk", "25000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = lines.index("")
    assert lines[0] == "4 rows of 9,000,000 float32 values, k 1,024, on h200 (132 SMs): filtered."
    assert lines[1].startswith("Why: fallback: one row needs ") and lines[-1].startswith("rejected")
    assert any(line.startswith("Rejected: persistent, 360 blocks of 25,000 values a row") for line in lines[:first])
    assert "resident_cap 264" in lines[-1]
    assert any(line.split() == ["occupancy", "from", "given"] for line in lines)
    assert len({len(line) - len(line.split("  ", 1)[1].lstrip()) for line in lines[first + 1 :]}) == 1, "one column"
