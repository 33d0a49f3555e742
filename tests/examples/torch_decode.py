"""A decode step of a sparse-attention indexer in torch: prepared once, captured in torch's CUDA graph, replayed.

Nothing is copied, every array is torch's, the workspace too, and the launch goes out on torch's current stream.
"""

from __future__ import annotations

import torch

import drvtopk

ROWS, WIDTH, K, STEPS = 8, 65_536, 2048, 5


def main() -> str:
    """Selects in each step with other logits and lengths; every step is held against torch.topk."""
    logits = torch.randn(ROWS, WIDTH, device="cuda")
    lengths = torch.full((ROWS,), WIDTH, dtype=torch.int32, device="cuda")
    out = torch.empty((ROWS, K), dtype=torch.int32, device="cuda")
    select = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)  # in the context that torch made current
    scratch = torch.empty(max(select.workspace_bytes, 1), dtype=torch.uint8, device="cuda")

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        select(logits, lengths, out=out, workspace=scratch)

    for step in range(STEPS):
        logits.normal_()
        lengths.random_(0, WIDTH + 1)
        lengths[0] = step  # fewer than k
        out.fill_(123)
        graph.replay()
        check(logits, lengths, out)
    return f"{STEPS} replays of {ROWS} x {WIDTH}, k {K}, exact; {select.plan.why}"


def check(logits: torch.Tensor, lengths: torch.Tensor, out: torch.Tensor) -> None:
    """Distinct members with the values of torch.topk, and -1 behind them."""
    for row, n in enumerate(lengths.tolist()):
        count = min(n, K)
        members = out[row, :count].long()
        assert bool((out[row, count:] == -1).all()) and members.unique().numel() == count
        expected = logits[row, :n].topk(count).values
        assert torch.equal(logits[row, :n][members].sort(descending=True).values, expected)


if __name__ == "__main__":
    print(main())
