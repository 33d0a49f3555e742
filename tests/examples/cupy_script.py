"""A CuPy script: on CuPy's current stream, in a graph of CuPy's, and the result as a CuPy array without a copy."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np

import drvtopk

ROWS, WIDTH, K = 4, 100_000, 512


def main() -> str:
    """Selects eagerly and by a captured graph; both are held against a full sort."""
    logits = cupy.random.standard_normal((ROWS, WIDTH), dtype=cupy.float32)
    lengths = cupy.asarray([WIDTH, 50_000, 100, 0], dtype=cupy.int32)
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        found = drvtopk.topk(logits, K, lengths)  # on `stream`, which is current
        indices = cupy.from_dlpack(found)  # the same memory
        assert indices.data.ptr == found.__cuda_array_interface__["data"][0]
        check(logits, lengths, indices)

        select = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K)
        out = cupy.empty((ROWS, K), dtype=cupy.int32)
        scratch = cupy.empty(max(select.workspace_bytes, 1), dtype=cupy.uint8)
        stream.begin_capture()
        select(logits, lengths, out=out, workspace=scratch)
        graph = stream.end_capture()
        for turn in range(3):
            logits *= -1  # other members, the same memory
            out.fill(turn)
            graph.launch(stream)
            check(logits, lengths, out)
    return f"eager and 3 replays of {ROWS} x {WIDTH}, k {K}, exact; {select.plan.why}"


def check(logits: Any, lengths: Any, out: Any) -> None:
    """Distinct members with the largest values, and -1 behind them."""
    values, found = logits.get(), out.get()
    for row, n in enumerate(lengths.get().tolist()):
        count = min(n, K)
        members = found[row, :count]
        assert bool((found[row, count:] == -1).all()) and len(np.unique(members)) == count
        expected = np.sort(values[row, :n])[n - count :]
        assert bool((np.sort(values[row][members]) == expected).all())


if __name__ == "__main__":
    print(main())
