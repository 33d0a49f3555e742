"""numba: between two kernels of its, on the same stream, with nothing copied and nobody waiting."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

import drvtopk

ROWS, WIDTH, K = 4, 20_000, 128
THREADS = 256


@cuda.jit  # type: ignore[untyped-decorator, unused-ignore]
def score(logits: Any, seed: int) -> None:
    """Any scores, no two of a row alike."""
    column = cuda.grid(1)
    row = cuda.blockIdx.y
    if column < logits.shape[1]:
        logits[row, column] = (column * 7919 + row * seed) % logits.shape[1]


@cuda.jit  # type: ignore[untyped-decorator, unused-ignore]
def gather(logits: Any, indices: Any, values: Any) -> None:
    """What a consumer does with the indices."""
    column = cuda.grid(1)
    row = cuda.blockIdx.y
    if column < indices.shape[1]:
        values[row, column] = logits[row, indices[row, column]]


def main() -> str:
    """Scores, selects and gathers; the values have to be the k largest."""
    stream = cuda.stream()
    logits = cuda.device_array((ROWS, WIDTH), np.float32, stream=stream)
    indices = cuda.device_array((ROWS, K), np.int32, stream=stream)
    values = cuda.device_array((ROWS, K), np.float32, stream=stream)
    blocks = -(-WIDTH // THREADS)
    for seed in (1, 5, 9):
        score[(blocks, ROWS), THREADS, stream](logits, seed)
        drvtopk.topk(logits, K, out=indices, order="value", stream=stream)
        gather[(1, ROWS), THREADS, stream](logits, indices, values)
        found = values.copy_to_host(stream=stream)
        stream.synchronize()
        assert np.array_equal(found, np.tile(np.arange(WIDTH - 1, WIDTH - 1 - K, -1, dtype=np.float32), (ROWS, 1)))
    return f"3 times between two kernels, {ROWS} x {WIDTH}, k {K}, exact"


if __name__ == "__main__":
    print(main())
