"""Real hosts on the device: torch, CuPy, JAX, numba and cuda.core with their own arrays, streams and graphs.

What is not installed is skipped, which is no failure. Each test has a process of its own: frameworks change contexts,
allocators and what is loaded.
"""

from __future__ import annotations

import importlib
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk.spec import ROUTES
from drvtopk.testing.oracle import find_errors
from tests.gpu.support import NOT_INSTALLED, Gpu

pytestmark = [pytest.mark.alone, pytest.mark.real]
EXAMPLES = {
    "torch_decode": "torch",
    "cupy_script": "cupy",
    "jax_arrays": "jax",
    "numba_kernels": "numba.cuda",
    "cuda_core_objects": "cuda.core",
}
THREADS = 32


def host(name: str) -> Any:
    """A framework, with memory left for others."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    compiler = shutil.which("nvcc")
    if compiler is not None:  # numba looks here for NVVM, unless it has a wheel of it
        os.environ.setdefault("CUDA_HOME", str(Path(compiler).resolve().parent.parent))
    try:
        found = importlib.import_module(name)
    except ImportError as error:
        pytest.skip(f"{NOT_INSTALLED} {name} ({error})")
    if name == "numba.cuda":
        try:
            importlib.import_module("numba.cuda.cudadrv.nvvm").NVVM()
        except (ImportError, RuntimeError) as error:  # numba's own, and that of what looks for libraries
            pytest.skip(f"{NOT_INSTALLED} NVVM, which numba compiles with ({error})")
        try:
            importlib.import_module("numba.cuda.np.arrayobj")
        except AttributeError as error:  # it wants something that this NumPy no longer has
            pytest.skip(f"{NOT_INSTALLED} a NumPy that this numba works with ({error})")
    return found


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_example_runs(gpu: Gpu, example: str) -> None:
    host(EXAMPLES[example])
    said = importlib.import_module(f"tests.examples.{example}").main()
    assert "exact" in said


@pytest.mark.parametrize("route", ROUTES)
def test_torch_tensors_go_in_and_come_out_without_a_copy(gpu: Gpu, route: str) -> None:
    torch = host("torch")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(3, 70_001, device="cuda").to(dtype)
        rows = x[:, 1:]  # neither aligned nor contiguous
        rows.requires_grad_()
        lengths = torch.tensor([[70_000], [9], [0]], dtype=torch.int32, device="cuda")
        # 16 bits have ties among so many.
        how: dict[str, Any] = {"route": route, "order": "value", "tie_break": "smallest"}
        found = drvtopk.topk(rows, 100, lengths, values=True, **how)
        indices, values = torch.from_dlpack(found.indices), torch.from_dlpack(found.values)
        assert indices.data_ptr() == found.indices.__cuda_array_interface__["data"][0]
        assert indices.dtype == torch.int32 and values.dtype == x.dtype
        for row, n in enumerate((70_000, 9, 0)):
            count = min(n, 100)
            expected = rows[row, :n].float().topk(count).values
            assert torch.equal(values[row, :count].float(), expected)
            assert torch.equal(rows[row].float()[indices[row, :count].long()], expected)
            assert bool((indices[row, count:] == -1).all())
        given = torch.empty(3, 256, dtype=torch.int64, device="cuda")
        drvtopk.topk(rows, 100, lengths, out=given[:, 5:105], **how)
        assert torch.equal(given[:, 5:105].int(), indices)
        kept, last = indices.clone(), found.indices
        del found, indices, values, given, rows, x
        torch.cuda.empty_cache()
        assert torch.equal(torch.as_tensor(last, device="cuda"), kept), "who holds it keeps the memory"


@pytest.mark.parametrize("explicit", [False, True])
def test_torch_streams_are_followed(gpu: Gpu, explicit: bool) -> None:
    """The logits are still being made when the call comes, on a stream that nobody synchronises."""
    torch = host("torch")
    side = torch.cuda.Stream()
    slow = torch.randn(4096, 4096, device="cuda")
    source = torch.randn(8, 100_000, device="cuda")
    torch.cuda.synchronize()
    wrong = 0
    other = torch.cuda.Stream()
    for turn in range(20):
        with torch.cuda.stream(side):
            logits = torch.zeros_like(source)
            for _ in range(5):
                slow @ slow
            logits.copy_(source).mul_(turn + 1)
            found = drvtopk.topk(logits, 64, order="value", stream=other if explicit else None)
            indices = torch.from_dlpack(found)  # torch's current stream waits for the launch
            wrong += int(not torch.equal(indices.long(), source.topk(64).indices))
    assert wrong == 0


def test_torchs_allocator_lends_the_workspace_while_its_graph_is_replayed(gpu: Gpu) -> None:
    torch = host("torch")
    select = drvtopk.prepare(rows=4, width=500_000, k=1024, route="persistent")
    logits = torch.empty(4, 500_000, device="cuda")
    out = torch.empty(4, 1024, dtype=torch.int32, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        scratch = torch.empty(select.workspace_bytes, dtype=torch.uint8, device="cuda")  # from the graph's own pool
        select(logits, out=out, workspace=scratch)
        del scratch
    for _ in range(50):
        logits.normal_()
        graph.replay()
    x = logits.cpu().numpy()
    assert find_errors(x, 1024, None, out.cpu().numpy()) == []


def test_calls_of_other_threads_do_not_end_a_capture(gpu: Gpu) -> None:
    """torch captures in the mode in which an allocation of any thread ends the capture."""
    torch = host("torch")
    x = np.random.default_rng(1).standard_normal((2, 50_000), dtype=np.float32)
    logits = torch.from_numpy(x).cuda()
    drvtopk.topk(x, 64)
    drvtopk.topk(logits, 64).numpy()
    stop = threading.Event()
    complaints: list[str] = []

    def beside() -> None:
        with drvtopk.primary_context():
            while not stop.is_set():
                complaints.extend(find_errors(x, 64, None, drvtopk.topk(x, 64)))

    others = [threading.Thread(target=beside) for _ in range(3)]
    for other in others:
        other.start()
    out = torch.empty(2, 64, dtype=torch.int32, device="cuda")
    select = drvtopk.prepare(rows=2, width=50_000, k=64)
    try:
        for _ in range(20):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                select(logits, out=out)
            out.zero_()
            graph.replay()
            assert find_errors(x, 64, None, out.cpu().numpy()) == []
    finally:
        stop.set()
        for other in others:
            other.join()
    assert complaints == []


def test_many_threads_use_everything_first_at_once(gpu: Gpu) -> None:
    """Each with a stream of its own, numpy and device arrays, prepared and not."""
    shapes = [(2, 3000, 16), (3, 20_000, 64), (2, 150_000, 1024), (40, 9000, 512)]
    together = threading.Barrier(THREADS)
    driver = gpu.driver

    def work(which: int) -> list[str]:
        complaints = []
        with drvtopk.primary_context():
            stream = driver.stream_create()
            together.wait()
            for turn in range(8):
                rows, width, k = shapes[(which + turn) % len(shapes)]
                x = np.random.default_rng(100 * which + turn).standard_normal((rows, width), dtype=np.float32)
                found: Any
                if which % 2:
                    found = drvtopk.topk(x, k, stream=stream)
                else:
                    with driver.temporary(x.nbytes, stream) as address:
                        gpu.engine.staging.to_device(address, x, stream)
                        found = drvtopk.topk(drvtopk.from_address(address, x.shape, "float32"), k, stream=stream)
                        found = found.numpy()
                complaints += find_errors(x, k, None, found)
            driver.stream_synchronize(stream)
            driver.stream_destroy(stream)
        return complaints

    with ThreadPoolExecutor(THREADS) as pool:
        assert [c for found in pool.map(work, range(THREADS)) for c in found] == []


@pytest.mark.parametrize("stream", [1, 2])
def test_the_default_streams_by_their_handles(gpu: Gpu, stream: int) -> None:
    x = np.random.default_rng(stream).standard_normal((3, 40_000), dtype=np.float32)
    routes: tuple[Any, ...] = gpu.routes
    for route in routes:
        assert find_errors(x, 512, None, drvtopk.topk(x, 512, stream=stream, route=route)) == []


def test_an_address_that_is_not_in_device_memory_is_refused(gpu: Gpu) -> None:
    x = np.zeros((2, 100), np.float32)
    host_memory = drvtopk.from_address(x.ctypes.data, x.shape, "float32")
    with pytest.raises(drvtopk.InvalidArgument, match="an address in device memory"):
        drvtopk.topk(host_memory, 4)


def test_a_forked_child_is_told_so(gpu: Gpu) -> None:
    drvtopk.topk(np.zeros((2, 100), np.float32), 4)
    pid = os.fork()
    if pid == 0:
        try:
            drvtopk.topk(np.zeros((2, 100), np.float32), 4)
        except drvtopk.DriverUnavailable as error:
            os._exit(17 if "forked after CUDA was initialised" in str(error) else 18)
        os._exit(19)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 17


def test_numpy_arrays_larger_than_the_pinned_buffers(gpu: Gpu) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3_000_001), dtype=np.float32)
    assert find_errors(x, 1024, None, drvtopk.topk(x, 1024)) == []
    found = drvtopk.topk(x[:, ::-1], 4096, values=True, order="value", index_dtype="int64")
    assert np.array_equal(found.values, -np.sort(-x, axis=1)[:, :4096])
