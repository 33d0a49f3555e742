"""The demo's input: the logits of a small lightning indexer, as DeepSeek V3.2's sparse attention computes them.

logit(row, s) = sum over heads h of w[row, h] * relu(q[row, h] . k[s]); the row's top-k positions s are what the
attention kernel then reads.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

HEADS = 8
HEAD_DIM = 32
_BLOCK = 16384  # positions at a time: bounds the (rows x heads x positions) intermediate


def indexer_logits(rows: int, width: int, *, seed: int) -> npt.NDArray[np.float32]:
    """float32 (rows, width), the same for the same seed."""
    random = np.random.default_rng(seed)
    queries = random.standard_normal((rows * HEADS, HEAD_DIM), dtype=np.float32)
    weights = random.standard_normal((rows, HEADS), dtype=np.float32)
    logits = np.empty((rows, width), dtype=np.float32)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        keys = random.standard_normal((stop - start, HEAD_DIM), dtype=np.float32)
        scores = np.maximum(queries @ keys.T, np.float32(0)).reshape(rows, HEADS, stop - start)
        logits[:, start:stop] = np.einsum("rh,rhs->rs", weights, scores, optimize=True)
    return logits
