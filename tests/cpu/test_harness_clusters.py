"""The harness's clusters: toy kernels, right ones and such as break one rule each, which must be named."""

from __future__ import annotations

import numpy as np
import pytest

from drvtopk.plan import Problem
from drvtopk.source import kernel_sources
from drvtopk.spec import CLUSTERS
from tests.harness.runner import Run, simulate
from tests.harness.scenario import any_scenario, plan_for
from tests.needs import needs_cpp

pytestmark = needs_cpp

_TOY = """
#include "ptx.cuh"
extern "C" __global__ void __cluster_dims__(DRVTOPK_CLUSTER, 1, 1) DRVTOPK_ENTRY(const __grid_constant__ Params p) {
  extern __shared__ __align__(16) unsigned char dynamic[];
  u32* const w = reinterpret_cast<u32*>(dynamic);
  const u32 t = threadIdx.x, rank = ptx::cluster_rank(), next = (rank + 1) % kCluster;
  const auto meet = [] {
    ptx::cluster_arrive();
    ptx::cluster_wait();
  };
  const auto put = [&](u32 place, u32 value) { p.out[place] = static_cast<Index>(value); };
  (void)w, (void)t, (void)next, (void)put;
BODY
}
"""


def toy(
    body: str, *, seed: int = 0, cluster: int = 2, clusters: int = 1, slots: int | None = None, pdl: bool = False
) -> Run:
    """One launch of `clusters` clusters of this kernel, which has an output of 16 indices for each of them."""
    problem = Problem(rows=clusters, width=64, k=16, pdl=pdl)
    made = plan_for(problem, cluster * clusters, route="clustered", group=cluster)
    assert (made.grid, made.workspace_bytes) == (cluster * clusters, 0)
    x = np.zeros((clusters, 64), np.float32)
    sources = {**kernel_sources(), "clustered.cu": _TOY.replace("BODY", body).encode()}
    return simulate(made, x, sources=sources, seed=seed, slots=slots, timeout=20)


_OPEN = """
  u64* const box = reinterpret_cast<u64*>(w + 1024);
  uint4* const slot = reinterpret_cast<uint4*>(w) + rank;
  if (t == 0) ptx::mail_open(box, kCluster);
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
"""
_SEND = """
  if (t < kCluster) ptx::mail_announce(box, t, 16);
  if (t < kCluster) ptx::mail_send(slot, t, {rank, 1, 2, 3}, box);
"""

RIGHT = {
    "mail that has been waited for is there, turn after turn": _OPEN
    + _SEND
    + """
  ptx::mail_wait(box, 0);
  if (t < kCluster && w[4 * t] != t) w[1 << 20] = 0;
  meet();"""
    + _SEND
    + "ptx::mail_wait(box, 1);",
    "what was written before a barrier is read behind it, here and there": """
  w[t] = rank * 1000 + t;
  meet();
  const u32 there = ptx::remote_load(&w[t ^ 1], next);
  if (there != next * 1000 + (t ^ 1) || w[t ^ 1] != rank * 1000 + (t ^ 1)) w[1 << 20] = 0;
  meet();""",
    "all blocks add to one word, remotely and at home": """
  if (t == 0) w[0] = 0;
  meet();
  ptx::remote_add(&w[0], 0, 1);
  if (rank == 0) atomicAdd(&w[0], 1u);
  meet();
  if (rank == 0 && t == 0) put(0, w[0]);""",
    "a barrier of the block goes between as well": """
  w[t] = t;
  meet();
  if (t == 0) ptx::remote_store(&w[9], next, 7);
  meet();
  __syncthreads();
  if (w[9] != 7) w[1 << 20] = 0;
  __syncthreads();
  if (t == 3) w[9] = 8;""",
    "a relaxed arrival is enough to know that the others run": """
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
  ptx::remote_store(&w[t], next, t);
  meet();
  if (w[t] != t) w[1 << 20] = 0;""",
    "what a relaxed arrival leaves out, the next one releases": """
  w[t] = t;
  ptx::cluster_arrive_relaxed();
  ptx::cluster_wait();
  meet();
  (void)ptx::remote_load(&w[t], next);
  meet();""",
    "one thread waits for what the whole block then does": """
  w[t] = t;
  ptx::cluster_arrive();
  if (t / 32 == 0) ptx::cluster_wait();
  __syncthreads();
  (void)ptx::remote_load(&w[t], next);
  if (t / 32 != 0) ptx::cluster_wait();
  meet();""",
    "both halves of a barrier with work between": """
  w[t] = t;
  ptx::cluster_arrive();
  w[512 + t] = w[t];
  ptx::cluster_wait();
  (void)ptx::remote_load(&w[t], next);
  w[1024 + t] = w[512 + t];
  meet();""",
}

# What is wrong, the kernel, how the launch ends, and what it says.
WRONG = [
    (
        "mail read before it has come",
        _OPEN + _SEND + "if (t == 0) w[512] = w[4 * next];",
        "fault",
        "nobody wrote|in a race",
    ),
    (
        "mail to a block that may not have begun",
        "u64* const box = reinterpret_cast<u64*>(w + 1024); if (t == 0) ptx::mail_open(box, 2);"
        " ptx::mail_announce(box, next, 16); meet();",
        "fault",
        "which may not have begun",
    ),
    (
        "less mail than announced",
        _OPEN + "if (t < kCluster) ptx::mail_announce(box, t, 16); ptx::mail_wait(box, 0);",
        "deadlock",
        "threads 0-511 at clustered.cu:",
    ),
    (
        "mail where no box is open",
        "meet(); ptx::mail_announce(reinterpret_cast<u64*>(w + 1024), next, 16); meet();",
        "fault",
        "which has no open box there",
    ),
    (
        "a block ends while mail is under way",
        _OPEN + "if (rank == 1 && t == 0) ptx::mail_announce(box, 0, 16);",
        "fault",
        "ends while mail is under way|which has ended",
    ),
    (
        "words that are written while they are sent",
        _OPEN + "w[t] = t; __syncthreads(); if (t == 0) ptx::mail_announce(box, next, 16);"
        " if (t == 0) ptx::mail_copy(reinterpret_cast<uint4*>(w), next, box); if (t == 33) w[2] = 7;"
        " ptx::mail_wait(box, 0);",
        "fault",
        "in a race with",
    ),
    (
        "mail to a place that is no multiple of 16 bytes",
        _OPEN + "if (t == 0) ptx::mail_send(reinterpret_cast<uint4*>(w + 2), next, {1, 2, 3, 4}, box);",
        "fault",
        "no multiple of 16 bytes",
    ),
    (
        "announced twice in a turn",
        _OPEN + "if (t < 3) ptx::mail_announce(box, next, 16);",
        "fault",
        "as all have in this turn",
    ),
    (
        "reaching for a block that may not have begun",
        "w[t] = 1; ptx::remote_add(&w[t], next, 1); meet();",
        "fault",
        "of rank 1, which may not have begun|of rank 0, which may not have begun",
    ),
    ("reading what nobody wrote", "meet(); (void)ptx::remote_load(&w[t], next); meet();", "fault", "nobody wrote"),
    (
        "no barrier before what was written is read",
        "w[t] = 1; meet(); w[t] = 2; (void)ptx::remote_load(&w[t], next); meet();",
        "fault",
        "in a race with block",
    ),
    (
        "written again after the arrival",
        "w[t] = 1; ptx::cluster_arrive(); w[t] = 2; ptx::cluster_wait(); (void)ptx::remote_load(&w[t], next); meet();",
        "fault",
        "in a race with block",
    ),
    (
        "read before the wait",
        "w[t] = 1; meet(); ptx::cluster_arrive(); (void)ptx::remote_load(&w[t], next); ptx::cluster_wait();"
        " w[t] = 3; meet();",
        "fault",
        "in a race with block",
    ),
    (
        "released by no arrival that releases",
        "w[t] = 1; ptx::cluster_arrive_relaxed(); ptx::cluster_wait(); (void)ptx::remote_load(&w[t], next); meet();",
        "fault",
        "in a race with block",
    ),
    (
        "two blocks write one word",
        "meet(); if (t == 0) ptx::remote_store(&w[0], 0, rank); meet();",
        "fault",
        "shared bins[0] of block 0 in a race with block 0|shared bins[0] in a race with block 1",
    ),
    (
        "two threads of one block write one word of another",
        "meet(); if (rank == 1 && t < 2) ptx::remote_store(&w[0], 0, t); meet();",
        "fault",
        "shared bins[0] of block 0 in a race with thread",
    ),
    (
        "one block adds while another reads",
        "w[t] = 0; meet(); if (rank == 1) ptx::remote_add(&w[t], 0, 1); if (rank == 0) w[t + 512] = w[t]; meet();",
        "fault",
        "in a race with block",
    ),
    (
        "in a block, written between the halves and read behind them",
        "ptx::cluster_arrive(); w[t] = 1; ptx::cluster_wait(); w[t + 512] = w[t ^ 1]; meet();",
        "fault",
        "in a race with thread",
    ),
    (
        "in a block, no barrier",
        "meet(); w[t] = 1; w[t + 512] = w[t ^ 1]; meet();",
        "fault",
        "wrote|in a race with thread",
    ),
    (
        "a block ends while it may be reached",
        "w[t] = 1; meet(); if (rank == 1) (void)ptx::remote_load(&w[t], 0);",
        "fault",
        "block 0 ends after 1 cluster barriers, but block 1|of rank 0, which has ended",
    ),
    (
        "a block never arrives",
        "if (rank == 0) meet();",
        "deadlock",
        "threads 0-511 in cluster barrier 1 at clustered.cu:",
    ),
    (
        "a thread never arrives",
        "if (t != 77) ptx::cluster_arrive();\n if (t != 77) ptx::cluster_wait();\n __syncthreads();",
        "deadlock",
        "77-77 at clustered.cu:",
    ),
    (
        "a block that meets once more than the others",
        "meet(); if (rank == 1) meet();",
        "deadlock",
        "block 0 finished\nblock 1 after 0 barriers: threads 0-511 in cluster barrier 2",
    ),
    ("arriving twice", "ptx::cluster_arrive(); ptx::cluster_arrive();", "fault", "has not waited since it arrived"),
    ("waiting for nothing", "meet(); ptx::cluster_wait();", "fault", "and has not arrived"),
    (
        "a rank that is not there",
        "meet(); ptx::remote_store(&w[t], 2, 1); meet();",
        "fault",
        "the cluster does not have",
    ),
    (
        "a word past the end",
        "meet(); ptx::remote_store(&w[1 << 20], next, 1); meet();",
        "fault",
        "which is no word of it",
    ),
    (
        "no shared memory at all",
        "u32 mine = 0; meet(); ptx::remote_store(&mine, next, 1); meet();",
        "fault",
        "which is no word of it",
    ),
    (
        "lanes of a warp at two places",
        "if (t % 2) {\n ptx::cluster_arrive();\n } else {\n ptx::cluster_arrive();\n }\n ptx::cluster_wait();",
        "fault",
        "warp 0 is at|warp 1 is at|is at clustered.cu",
    ),
]


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize("what", RIGHT)
@pytest.mark.parametrize("cluster", [2, 8])
def test_what_keeps_the_rules_is_let_through(what: str, cluster: int) -> None:
    for seed in range(4):
        run = toy(RIGHT[what], seed=seed, cluster=cluster)
        assert run.status == "done", run.report


@pytest.mark.exhaustive("harness")
@pytest.mark.parametrize(("what", "body", "status", "says"), WRONG, ids=[what for what, *_ in WRONG])
def test_what_breaks_a_rule_is_told_whatever_the_schedule(what: str, body: str, status: str, says: str) -> None:
    for seed in range(6):
        run = toy(body, seed=seed)
        assert run.status == status, f"{what}: {run.status} {run.report}"
        assert any(text in run.report for text in says.split("|")), run.report


def test_sums_of_remote_adds_are_right_and_first_comes_any_block() -> None:
    body = """
  if (t == 0) w[0] = 0;
  meet();
  if (t == 0 && ptx::remote_fetch_add(&w[0], 0, 1 + rank) == 0) put(blockIdx.x / kCluster * 16, rank);
  meet();
  if (rank == 0 && t == 0) put(blockIdx.x / kCluster * 16 + 1, w[0]);"""
    first = set()
    for seed in range(24):
        run = toy(body, seed=seed, cluster=4, clusters=3, slots=9)
        assert run.status == "done", run.report
        assert np.all(run.out[:, 1] == 10)
        first |= set(run.out[:, 0].tolist())
    assert first == {0, 1, 2, 3}


def test_a_cluster_waits_until_all_its_blocks_fit() -> None:
    body = "meet(); if (rank == 0 && t == 0) put(blockIdx.x / kCluster * 16, 5);"
    for slots in (4, 7, 8):
        run = toy(body, cluster=4, clusters=4, slots=slots)
        assert run.status == "done" and np.all(run.out[:, 0] == 5), run.report
    run = toy(body, cluster=4, clusters=4, slots=3)
    assert (run.status, run.report) == ("deadlock", "no cluster of 4 blocks fits into 3 slots")


@pytest.mark.parametrize(
    "touch", ["(void)__ldg(p.logits + t % 64);", "if (t == 0 && rank == 0) put(0, 1);"], ids=["read", "write"]
)
def test_memory_is_touched_only_after_the_launch_before_has_ended(touch: str) -> None:
    waits = "ptx::wait_for_predecessor();\n"
    assert toy(waits + touch, pdl=True).status == "done"
    assert toy(touch, pdl=False).status == "done"
    for early in (touch, touch + waits, "if (t == 77 || t == 0 ) {} else " + waits + touch):
        run = toy(early, pdl=True)
        assert run.status == "fault" and "has not waited for the launch before" in run.report, run.report


def test_what_is_drawn_has_clusters_of_all_sizes_with_a_row_after_the_other() -> None:
    drawn = [scenario.plan for scenario in map(any_scenario, range(120)) if scenario.plan.route == "clustered"]
    assert {made.group for made in drawn} == set(CLUSTERS)
    assert {made.group for made in drawn if made.rows > made.groups} == set(CLUSTERS)
