"""Programmatic dependent launch after SMs have cached what the predecessor then overwrites.

Our kernels read logits, lengths, row starts and pages as constant data, which an SM keeps in a cache that nobody
else's writes reach. A dependent launch may be resident while its predecessor still reads the old words on the same
SM, and that writes the new ones from another. These tests decide that a launch that has waited sees the new ones.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from drvtopk.launch import Prepared
from drvtopk.plan import Problem, plan
from drvtopk.spec import PLAIN, Options, Selected
from drvtopk.testing.oracle import select
from tests.gpu.kernels import Kernel
from tests.gpu.support import Array, Gpu, Ints, compile_ahead

pytestmark = [pytest.mark.alone, pytest.mark.real]
SETS = 5  # of data, in turns
WINDOW = 4096  # words that an SM caches beside much shared memory
WAIT_NS = 20_000  # the successor comes up meanwhile
PAGE = 16
WRITERS = {"beside": 0, "gone": 8}
"""How many of the producer's blocks stay to write, the others having left whole SMs to us. 0: all, one on each SM."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kind of selection. All its rows are the same elements, so that any SM may have cached what any block reads;
    more rows than SMs are selected by blocks that leave room beside them."""

    rows: int
    width: int
    k: int
    route: str = "filtered"
    group: int | None = None
    options: Options = PLAIN

    @property
    def problem(self) -> Problem:
        return Problem(rows=self.rows, width=self.width, k=self.k, stride=0, options=self.options, pdl=True)


PAGED = Options(values=True, page_table=True)
CASES = {
    "short": Case(rows=140, width=4096, k=64),
    "short_alone": Case(rows=1, width=4096, k=64),
    "short_wide_k": Case(rows=140, width=4096, k=2048),
    "streamed": Case(rows=140, width=20_000, k=64),
    "streamed_alone": Case(rows=1, width=20_000, k=2048),
    "streamed_wide_k": Case(rows=140, width=20_000, k=2048),
    "paged": Case(rows=140, width=4096, k=64, options=PAGED),
    "windows": Case(rows=140, width=4096, k=64, options=Options(row_starts=True)),
    "bfloat16": Case(rows=140, width=20_000, k=2048, options=Options(dtype="bfloat16", values=True)),
    "cluster_2": Case(rows=80, width=20_000, k=64, route="clustered", group=2),
    "cluster_8": Case(rows=24, width=20_000, k=64, route="clustered", group=8),
    "cluster_8_alone": Case(rows=1, width=20_000, k=2048, route="clustered", group=8),
    "cluster_8_paged": Case(rows=24, width=20_000, k=64, route="clustered", group=8, options=PAGED),
    "cluster_16": Case(rows=16, width=20_000, k=64, route="clustered", group=16),
    "cluster_16_bfloat16": Case(
        rows=16, width=20_000, k=64, route="clustered", group=16, options=Options(dtype="bfloat16", values=True)
    ),
}
CONTROLS = ("short", "cluster_8")


@pytest.fixture(scope="module", autouse=True)
def compiled(gpu: Gpu) -> None:
    device = gpu.engine.device
    if not device.has_pdl:
        pytest.skip("no dependent launch here: compute capability 9.0 has it")
    wanted = []
    for name, case in CASES.items():
        if case.route in gpu.routes:
            for pdl in (True, False) if name in CONTROLS else (True,):
                problem = replace(case.problem, pdl=pdl)
                how = {"route": case.route, "group": case.group}
                made = plan(problem, device, lambda variant, smem: variant.residency, **how)  # type: ignore[arg-type]
                wanted.append(made.variant)
    compile_ahead(dict.fromkeys(wanted), device.arch)


def distinct(random: np.random.Generator, case: Case) -> Array:
    """A row without ties, so that only one set of indices is right."""
    if case.options.item_bytes == 4:
        return random.permutation(case.width).astype(np.float32) - case.width // 2
    finite: Ints = np.arange(1 << 16, dtype=np.uint16)
    finite = finite[(finite >> 7 & 0xFF != 0xFF) & (finite != 0x8000)]  # as bfloat16, and one zero
    return random.permutation(finite)[: case.width]


class Data:
    """Sets of logits, lengths and of what the options need, on the host, and what is right for each."""

    def __init__(self, case: Case) -> None:
        random = np.random.default_rng(7)
        rows, width, options = case.rows, case.width, case.options
        self.logits = [distinct(random, case) for _ in range(SETS)]
        self.lengths = [random.integers(width // 2, width + 1, rows).astype(np.int32) for _ in range(SETS)]
        self.third: list[Ints] = []
        for turn in range(SETS if options.page_table or options.row_starts else 0):
            if options.page_table:
                self.third.append(random.permutation(-(-width // PAGE)).astype(np.int32) + 7 * turn)
            else:
                self.third.append(random.integers(0, width // 4, rows).astype(np.int32))
        self.right = [self._right(case, turn) for turn in range(SETS)]

    def _right(self, case: Case, turn: int) -> Selected:
        options = case.options
        found = select(
            np.ascontiguousarray(np.broadcast_to(self.logits[turn], (case.rows, case.width))),
            case.k,
            self.lengths[turn],
            options=options,
            row_starts=self.third[turn] if options.row_starts else None,
            page_table=self.third[turn][None] if options.page_table else None,
            page_size=PAGE,
        )
        return Selected(in_order(found.indices), in_order(found.values) if options.values else None)


def in_order(found: Array) -> Array:
    """Each row sorted, as what may stand anywhere in it shall not count; values as their words."""
    words = found.view(np.uint32 if found.dtype.itemsize == 4 else np.uint16) if found.dtype.kind != "i" else found
    return np.sort(words, axis=-1)


def wrong_rows(gpu: Gpu, prepared: Prepared, case: Case, data: Data, writers: int, *, late: bool) -> tuple[int, int]:
    """How many rows are not those of the latest data, and of how many."""
    driver, options, rows, k = gpu.driver, case.options, case.rows, case.k
    sms = gpu.engine.device.sms
    rounds = min(300, max(40, 8_000_000 // (rows * k)))
    producer, stream = Kernel(gpu, "stale_producer"), driver.stream_create()
    arrays = [data.logits, data.lengths, *([data.third] if data.third else [])]
    item = options.item_bytes
    sizes = [sets[0].nbytes for sets in arrays]
    results = [4 * rounds * rows * k, item * rounds * rows * k * options.values]
    with gpu.memory(*sizes, *sizes * SETS, *results, 8, prepared.workspace_bytes) as held:
        (out, values, small, workspace), inputs = held[-4:], held[: len(arrays)]
        fresh = [held[len(arrays) * (1 + turn) : len(arrays) * (2 + turn)] for turn in range(SETS)]
        for turn in range(SETS):
            for address, sets in zip(fresh[turn], arrays, strict=True):
                driver.copy_to_device(address, sets[turn])
        for address, size in zip([*inputs, small], [*sizes, 8], strict=True):
            driver.memset(address, 0, size)
        driver.synchronize()
        logits, counts, third = (*inputs, 0)[:3]
        for turn in range(rounds):
            words: list[int] = []
            for address, new, size in zip(inputs, fresh[turn % SETS], sizes, strict=True):
                words += [address, new, size // 4]
            words += [0, 0, 0] * (3 - len(arrays))
            words += [WINDOW, turn, WAIT_NS, writers or sms, int(late), small, small + 4]
            producer(sms, 128, stream, *words)
            more: dict[str, int] = {}
            if options.values:
                more["values"] = values + item * turn * rows * k
            if options.page_table:
                pages = len(data.third[0])
                more |= {"page_table": third, "page_table_stride": pages, "page_size": PAGE, "rows_per_table": rows}
            if options.row_starts:
                more["row_starts"] = third
            prepared.launch(logits, counts, out + 4 * turn * rows * k, workspace, stream, **more)
        driver.stream_synchronize(stream)
        found = np.empty((rounds, rows, k), np.int32)
        driver.copy_to_host(found, out)
        beside = np.empty((rounds, rows, k) if options.values else 0, np.uint32 if item == 4 else np.uint16)
        driver.copy_to_host(beside, values)
        gave_up = np.empty(2, np.uint32)
        driver.copy_to_host(gave_up, small)
    driver.stream_destroy(stream)
    assert gave_up.tolist() == [sms * rounds, 0], "the producer's blocks did not run side by side"
    wrong = 0
    for turn in range(rounds):
        right = data.right[turn % SETS]
        differs = np.any(in_order(found[turn]) != right.indices, axis=1)
        if options.values:
            differs |= np.any(in_order(beside[turn]) != right.values, axis=1)
        wrong += int(np.count_nonzero(differs))
    return wrong, rounds * rows


@pytest.mark.parametrize("name", CASES)
def test_what_an_sm_cached_before_is_not_what_is_selected_from(gpu: Gpu, name: str) -> None:
    """Old words read once early, and once again as late as can be before the new ones are written."""
    case = CASES[name]
    gpu.needs(case.route)
    data = Data(case)
    prepared = gpu.engine.prepare(case.problem, route=case.route, group=case.group)
    assert prepared.plan.pdl
    found = {
        f"{stay}, {'late' if late else 'early'}": wrong_rows(gpu, prepared, case, data, writers, late=late)
        for stay, writers in WRITERS.items()
        for late in (False, True)
    }
    assert sum(wrong for wrong, _ in found.values()) == 0, f"rows of old words, of how many: {found}"


@pytest.mark.parametrize("name", CONTROLS)
def test_the_same_without_dependent_launch(gpu: Gpu, name: str) -> None:
    """The control: if this fails, it is the test that is wrong."""
    case = CASES[name]
    gpu.needs(case.route)
    prepared = gpu.engine.prepare(replace(case.problem, pdl=False), route=case.route, group=case.group)
    assert not prepared.plan.pdl
    wrong, _ = wrong_rows(gpu, prepared, case, Data(case), 0, late=True)
    assert wrong == 0
