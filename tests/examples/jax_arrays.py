"""JAX: an array of its in, an array of its out without a copy; and a callback from a jitted function.

JAX keeps no context current on the caller's thread, so one is asked for: the primary one, which is JAX's too.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import drvtopk

ROWS, WIDTH, K = 4, 50_000, 256


def main() -> str:
    """Selects from a computed array and inside a jitted function; both are held against jax.lax.top_k."""
    logits = jax.random.normal(jax.random.key(0), (ROWS, WIDTH)) * 3
    with drvtopk.primary_context():
        found = drvtopk.topk(logits, K)  # waits for JAX's work, as DLPack hands over streams
        indices = jnp.from_dlpack(found)
    check(logits, indices)

    def on_the_host(x: Any) -> Any:
        return drvtopk.topk(np.asarray(x), K)

    def select(x: Any) -> Any:
        shifted = x - x.mean()
        return shifted, jax.pure_callback(on_the_host, jax.ShapeDtypeStruct((ROWS, K), jnp.int32), shifted)

    shifted, indices = jax.jit(select)(logits)
    check(shifted, indices)
    return f"from an array and from a callback, {ROWS} x {WIDTH}, k {K}, exact"


def check(logits: Any, indices: Any) -> None:
    """Distinct members with the values of jax.lax.top_k."""
    members = jnp.sort(indices, axis=1)
    assert bool((members[:, 1:] != members[:, :-1]).all())
    values = jnp.take_along_axis(logits, indices, axis=1)
    assert bool((-jnp.sort(-values, axis=1) == jax.lax.top_k(logits, K)[0]).all())


if __name__ == "__main__":
    print(main())
