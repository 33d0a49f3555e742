"""Logits that somebody overwrites while a launch runs, as hosts do by mistake; and lengths, where no block waits.

Such rows may be wrong, which is the caller's fault. These tests decide that the launch ends all the same, that nothing
beside its outputs is written, and that the next launch on steady words is right. Lengths and row starts must not change
where blocks share a row: they would take different ways at it, and such launches end with an error or never.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np
import pytest

from drvtopk.plan import Problem, plan
from drvtopk.spec import PLAIN, Options
from drvtopk.testing.inputs import make
from drvtopk.testing.oracle import find_errors
from tests.gpu.kernels import Kernel, within
from tests.gpu.support import POISON, Gpu, compile_ahead

pytestmark = [pytest.mark.alone, pytest.mark.real]
ROWS, WIDTH, K = 64, 131_072, 1024
LAUNCHES = 500
FENCE = 1 << 16  # bytes before and behind what a launch may write
PATIENCE_SECONDS = 20
OPTIONS = {
    "plain": PLAIN,
    "windows": Options(row_starts=True),
    "ordered": Options(values=True, order="value", tie_break="smallest", row_starts=True),
}


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the blocks of a row find each other; where they are fewer than the rows need, groups take row after row."""

    route: str
    group: int | None = None
    sm_budget: int | None = None


WAYS = {
    "filtered": Way(route="filtered"),
    "persistent": Way(route="persistent"),
    **{f"cluster_{n}": Way(route="clustered", group=n, sm_budget=64) for n in (2, 4, 8, 16)},
}


def problem_of(way: Way, options: Options) -> Problem:
    return Problem(rows=ROWS, width=WIDTH, k=K, sm_budget=way.sm_budget, options=options)


@pytest.fixture(scope="module", autouse=True)
def compiled(gpu: Gpu) -> None:
    wanted = []
    for way in WAYS.values():
        for options in OPTIONS.values() if way.route in gpu.routes else ():
            how = {"route": way.route, "group": way.group}
            problem, device = problem_of(way, options), gpu.engine.device
            made = plan(problem, device, lambda variant, smem: variant.residency, **how)  # type: ignore[arg-type]
            wanted.append(made.variant)
    compile_ahead(dict.fromkeys(wanted), gpu.engine.device.arch)


class Scribbler:
    """Overwrites arrays, (address, words) each, each by a kernel on a stream of its own, while its block runs."""

    def __init__(self, gpu: Gpu, *arrays: tuple[int, int]) -> None:
        self.driver, self.kernel, self.arrays = gpu.driver, Kernel(gpu, "scribbler"), arrays
        self.streams = [gpu.driver.stream_create() for _ in range(len(arrays) + 1)]
        self.words = gpu.driver.mem_alloc(8)
        self.turns = 0

    def __enter__(self) -> Scribbler:
        self.driver.memset(self.words, 0, 8)
        self.driver.synchronize()
        for (array, words), stream in zip(self.arrays, self.streams, strict=False):
            self.kernel(1, 128, stream, array, words, WIDTH, K, self.words, self.words + 4, PATIENCE_SECONDS * 10**9)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.driver.memset32(self.words, 1, 1, self.streams[-1])
        for stream in reversed(self.streams):
            self.driver.stream_synchronize(stream)
            self.driver.stream_destroy(stream)
        found = np.empty(2, np.uint32)
        self.driver.copy_to_host(found, self.words)
        self.turns = int(found[1])  # how often every word was overwritten
        self.driver.mem_free(self.words)


class Fenced:
    """Device memory that may be written, between canaries that may not."""

    def __init__(self, gpu: Gpu, whole: int, size: int) -> None:
        self.driver, self.whole, self.size = gpu.driver, whole, size
        self.address = whole + FENCE
        self.driver.memset(whole, POISON, size + 2 * FENCE)

    def untouched(self) -> bool:
        found = np.empty(self.size + 2 * FENCE, np.uint8)
        self.driver.copy_to_host(found, self.whole)
        return bool(np.all(found[:FENCE] == POISON) and np.all(found[FENCE + self.size :] == POISON))


@within(20)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("way", WAYS)
def test_every_launch_ends_and_writes_nothing_beside_its_outputs(gpu: Gpu, way: str, name: str) -> None:
    driver, options = gpu.driver, OPTIONS[name]
    gpu.needs(WAYS[way].route)
    x = make("normal", ROWS, WIDTH)
    prepared = gpu.engine.prepare(problem_of(WAYS[way], options), route=WAYS[way].route, group=WAYS[way].group)
    made = prepared.plan
    assert made.group > 1 or made.route == "filtered", "blocks share rows"
    sizes = [4 * ROWS * K, prepared.workspace_bytes, 4 * ROWS * K * options.values]
    stream = driver.stream_create()
    with gpu.memory(x.nbytes, 4 * ROWS, 4 * ROWS, *[size + 2 * FENCE for size in sizes]) as held:
        values, lengths, starts = held[:3]
        driver.copy_to_device(values, x)
        fenced = [Fenced(gpu, whole, size) for whole, size in zip(held[3:], sizes, strict=True)]
        out, workspace, beside = (each.address for each in fenced)
        more = {"row_starts": starts} if options.row_starts else {}
        more |= {"values": beside} if options.values else {}

        def steady() -> None:
            driver.memset32(lengths, WIDTH, ROWS)
            driver.memset32(starts, 0, ROWS)
            driver.synchronize()

        overwritten = {"logits": [(values, 2048)]}
        if made.route == "filtered":
            overwritten["lengths"] = [(lengths, ROWS)]
            if options.row_starts:
                overwritten |= {"row starts": [(starts, ROWS)], "both": [(lengths, ROWS), (starts, ROWS)]}
        for what, arrays in overwritten.items():
            steady()
            with Scribbler(gpu, *arrays) as scribbler:
                for _ in range(LAUNCHES):
                    prepared.launch(values, lengths, out, workspace, stream, **more)
                driver.stream_synchronize(stream)
            assert scribbler.turns > LAUNCHES, f"{what} did not change while launches ran"
            assert all(each.untouched() for each in fenced), f"memory beside the outputs was written, {what} changing"
            assert prepared.plan == made, "it was this plan that ran"
        steady()
        driver.copy_to_device(values, x)
        driver.memset(out, POISON, sizes[0])
        driver.synchronize()
        prepared.launch(values, lengths, out, workspace, stream, **more)
        driver.stream_synchronize(stream)
        found, kept = np.empty((ROWS, K), np.int32), np.empty((ROWS, K) if options.values else 0, np.float32)
        driver.copy_to_host(found, out)
        driver.copy_to_host(kept, beside)
    driver.stream_destroy(stream)
    windows = np.zeros(ROWS, np.int32) if options.row_starts else None
    given = kept if options.values else None
    assert find_errors(x, K, None, found, options=options, row_starts=windows, values=given) == []
