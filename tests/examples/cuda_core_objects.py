"""cuda.core: its Device makes the context, its Stream orders the work, its Buffers are the memory."""

from __future__ import annotations

import numpy as np
from cuda.bindings import driver
from cuda.core import Device

import drvtopk

ROWS, WIDTH, K = 4, 300_000, 1024


def main() -> str:
    """Selects from a Buffer into a Buffer, with a Buffer as workspace."""
    device = Device(0)
    device.set_current()
    stream = device.create_stream()
    x = np.random.default_rng(0).standard_normal((ROWS, WIDTH), dtype=np.float32)

    with drvtopk.primary_context(device):  # the device's context is current already, and stays so
        select = drvtopk.prepare(rows=ROWS, width=WIDTH, k=K, route="persistent")
    buffers = [device.allocate(size, stream=stream) for size in (x.nbytes, ROWS * K * 4, select.workspace_bytes)]
    logits = drvtopk.from_address(buffers[0], (ROWS, WIDTH), "float32")
    out = drvtopk.from_address(buffers[1], (ROWS, K), "int32")
    (code,) = driver.cuMemcpyHtoDAsync(logits.address, x.ctypes.data, x.nbytes, stream.handle)
    assert int(code) == 0
    select(logits, out=out, workspace=buffers[2], stream=stream)
    indices = np.empty((ROWS, K), np.int32)
    (code,) = driver.cuMemcpyDtoHAsync(indices.ctypes.data, out.address, indices.nbytes, stream.handle)
    assert int(code) == 0
    stream.sync()
    expected = -np.sort(-x, axis=1)[:, :K]
    assert np.array_equal(-np.sort(-np.take_along_axis(x, indices, axis=1), axis=1), expected)
    for buffer in buffers:
        buffer.close(stream)
    return f"{ROWS} x {WIDTH}, k {K}, exact; {select.plan.why}"


if __name__ == "__main__":
    print(main())
