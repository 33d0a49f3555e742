"""The planner in C makes Python's plans, and a C host without Python selects by exported cubins (on a fake driver)."""

from __future__ import annotations

import ctypes
import itertools
import json
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import drvtopk
from drvtopk import engine, measured, spec
from drvtopk.cache import Cache
from drvtopk.choice import CHOICES, Choice
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import InvalidArgument, PlanError
from drvtopk.export import ExportedKernel, export_kernels
from drvtopk.export.c_header import kernels_header
from drvtopk.launch import EXTRAS_BYTES, PARAMS_BYTES
from drvtopk.plan import Plan, Problem, Rejected, after_refusal, calculated_clusters, calculated_occupancy, plan
from drvtopk.problem import MAX_STRIDE
from drvtopk.reasons import Kind
from drvtopk.spec import (
    ARCHITECTURES,
    CLUSTERS,
    DEFAULT_TUNING,
    KNOWN_DEVICES,
    MAX_COUNTED,
    MAX_ROWS,
    MAX_WIDTH,
    PLAIN,
    ROUTES,
    DeviceInfo,
    KernelInfo,
    Options,
    Tuning,
    Variant,
)
from drvtopk.testing.oracle import find_errors, ordered_keys
from tests.c_host.running import CC, SOURCES, STRICT, Host, Ran, as_printed, build, cc, undefined_is_fatal
from tests.fake_driver import FakeDriver

ROOT = Path(__file__).resolve().parents[2]
READ = measured.table  # before the fixture that hides what was measured
LIBRARY = ("-shared", "-fPIC", "-O1")
CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_uint32)
COMBINATIONS = [
    *((k, PLAIN) for k in (1, 64, 1000, 1024, 2048, 4096)),
    (1024, Options(dtype="bfloat16")),
    (1000, Options(dtype="float16", order="value", tie_break="largest")),
    (4096, Options(order="value", index_dtype="int64", nan="highest")),
    (3, Options(order="index", tie_break="smallest")),
    (1024, Options(values=True, row_starts=True, page_table=True)),
    (2048, Options(dtype="bfloat16", row_starts=True)),
]
"""What the exports here hold: (k, options)."""
SEED = 20260
ARRAYS = (
    *("logits", "lengths", "out", "workspace", "values", "row_starts", "page_table"),
    *("out_stride", "values_stride", "page_table_stride", "page_size", "rows_per_table"),
)

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler")


def exported(variant: Variant, arch: str) -> ExportedKernel:
    """A row of the table for a cubin that nobody wrote: planning reads none."""
    info = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
    return ExportedKernel(variant=variant, arch=arch, file=f"{variant}.cubin", info=info, sha256="00" * 32)


def instantiations(arch: str, k: int, options: Options) -> list[Variant]:
    """All that plans may ask for on such a device, with the default tuning."""
    every = [
        variant
        for pdl in (False, True)[: 1 + spec.has_pdl(arch)]
        for variant in spec.instantiations(arch, [k], options=options, pdl=pdl)
    ]
    return list(dict.fromkeys(every))


def made_up_times(chance: random.Random, shapes: int) -> dict[Choice, measured.Grid]:
    """Times with gaps and ties, by which any route may be the fastest."""
    counts = sorted(chance.sample(range(1, 300), shapes))
    lengths = sorted(chance.sample(range(5000, 2_000_000), shapes))
    choices = list(CHOICES)
    chance.shuffle(choices)

    def line() -> dict[int, float]:
        return {n: float(chance.randint(4, 12)) for n in lengths if chance.random() < 0.9}

    return {choice: {rows: line() for rows in counts if chance.random() < 0.9} for choice in choices}


class Shim:
    """The C planner, called as Python's is."""

    def __init__(self, library: Path, kernels: list[ExportedKernel]) -> None:
        self.kernels = kernels
        self.library = ctypes.CDLL(str(library))
        self.library.shim_error_text.restype = ctypes.c_char_p
        self.on_hopper = {kernel.variant: i for i, kernel in enumerate(kernels) if kernel.arch == "sm_90a"}

    def plan(
        self,
        problem: Problem | dict[str, Any],
        device: DeviceInfo,
        occupancy: Callable[[Variant, int], int],
        clusters: Callable[[Variant, int], int],
        *,
        route: str = "auto",
        chunk: int | None = None,
        group: int | None = None,
        tuning: Tuning | None = None,
        refused: bool = False,
    ) -> tuple[int, dict[str, Any]]:
        """(error code, the plan or why there is none)."""
        asked = problem if isinstance(problem, dict) else asdict(problem)
        options = asked["options"] if isinstance(asked["options"], dict) else asdict(asked["options"])

        def question(answer: Callable[[Variant, int], int]) -> Any:
            def ask(kernel: int, smem_bytes: int) -> int:
                variant = self.kernels[kernel].variant
                return answer(variant if tuning is None else replace(variant, tuning=tuning), smem_bytes)

            return CALLBACK(ask)

        names = ("rows", "width", "k", "stride", "offset", "max_seq_len", "sm_budget")
        routes = ("auto", *ROUTES)
        figures = [asked[name] or 0 for name in names]
        figures += [chunk or 0, group or 0, routes.index(route) if route in routes else 77]
        figures += [asked["waits"] == "never", asked["pdl"]]
        chosen = [
            list(spec.DTYPES).index(options["dtype"]),
            list(spec.INDEX_DTYPES).index(options["index_dtype"]),
            spec.ORDERS.index(options["order"]),
            spec.TIE_BREAKS.index(options["tie_break"]),
            spec.NANS.index(options["nan"]),
            *(options[name] for name in ("values", "row_starts", "page_table")),
        ]
        limits = [device.sms, device.smem_optin, device.smem_per_sm, device.smem_reserved, device.max_threads_per_sm]
        text = ctypes.create_string_buffer(8192)
        code = self.library.shim_plan(
            int64s(figures),
            int64s(chosen),
            device.name.encode(),
            device.arch.encode(),
            int64s(limits),
            None if tuning is None else int64s(tuned(tuning)),
            question(occupancy),
            question(clusters),
            int(refused),
            text,
            ctypes.c_size_t(len(text)),
        )
        return code, json.loads(text.value)

    def params(self, made: Plan, arrays: dict[str, int]) -> tuple[int, bytes]:
        """(error code, the parameter block of a launch of this plan with these addresses and strides)."""
        figures = [made.rows, made.width, made.stride, made.group, made.groups, made.chunk, made.candidates]
        figures += [made.cooperative, made.workspace_bytes]
        block = ctypes.create_string_buffer(PARAMS_BYTES + EXTRAS_BYTES)
        given = [arrays.get(name) or 0 for name in ARRAYS]
        code: int = self.library.shim_params(self.on_hopper[made.variant], int64s(figures), int64s(given), block)
        return code, block.raw[: PARAMS_BYTES + EXTRAS_BYTES * made.options.extras]

    def error(self, code: int) -> str:
        answer: bytes = self.library.shim_error_text(code)
        return answer.decode()


def int64s(values: list[Any]) -> Any:
    return (ctypes.c_int64 * len(values))(*map(int, values))


def tuned(tuning: Tuning) -> list[int]:
    return [
        tuning.radix_threshold,
        tuning.cluster_threshold,
        tuning.sms_to_share,
        tuning.min_chunk,
        tuning.max_candidates,
    ]


@pytest.fixture(scope="module")
def times() -> dict[tuple[str, int], dict[Choice, measured.Grid]]:
    """What was measured, and what never was."""
    chance = random.Random(SEED)
    invented = {(f"measured {n}", chance.randint(1, 200)): made_up_times(chance, n % 4 + 1) for n in range(12)}
    return {**READ(), **invented}


@pytest.fixture(autouse=True)
def _known_times(times: Any, monkeypatch: pytest.MonkeyPatch, nothing_measured: None) -> None:
    monkeypatch.setattr(measured, "table", lambda: times)


def built(folder: Path, kernels: list[ExportedKernel]) -> Shim:
    (folder / "drvtopk_kernels.h").write_text(kernels_header(kernels))
    shutil.copy(ROOT / "drvtopk" / "export" / "drvtopk.h", folder)
    library = folder / "shim.so"
    cc("-std=c99", *STRICT, *LIBRARY, "-I", folder, SOURCES / "shim.c", "-o", library, "-lm")
    return Shim(library, kernels)


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory, times: Any) -> Shim:
    kernels = [
        exported(variant, arch)
        for arch in ARCHITECTURES
        for k, options in COMBINATIONS
        for variant in instantiations(arch, k, options)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "table", lambda: times)
        return built(tmp_path_factory.mktemp("shim"), kernels)


class Drawn:
    """One random planning: problem, device, and what the driver would answer."""

    def __init__(self, chance: random.Random, measured_on: list[tuple[str, int]]) -> None:
        k, options = chance.choice(COMBINATIONS)
        self.device = self._device(chance, measured_on, k, options)
        rows = chance.choice([0, 1, 2, 4, 8, 9, 16, 17, 64, 132, 133, 1000, MAX_ROWS, chance.randint(0, 600)])
        width = chance.choice(
            [0, 1, 8192, 8193, 32768, 32769, 131072, 1 << 20, MAX_WIDTH, chance.randint(0, 3_000_000)]
        )
        stride = chance.choice([None, width + chance.randint(0, 9), (width + 15) // 8 * 8])
        most = MAX_STRIDE // max(rows, 1)
        stride = most if (width if stride is None else stride) > most else stride
        self.hint = chance.choice([None, None, 0, 8192, 32768, 32769, chance.randint(0, 3_000_000)])
        self.problem = Problem(
            rows=rows,
            width=width,
            k=k,
            stride=stride,
            offset=chance.choice([0, 0, 0, chance.randint(0, 9), 2**62]),
            max_seq_len=self.hint,
            waits=chance.choice(["allowed", "allowed", "never"]),
            sm_budget=chance.choice([None, None, 1, 8, 66, chance.randint(1, 300), MAX_ROWS]),
            options=options,
            pdl=chance.random() < 0.3,
        )
        self.how: dict[str, Any] = {"route": chance.choice(["auto"] * 6 + [*ROUTES])}
        if chance.random() < 0.1:
            self.how["chunk"] = chance.choice([1, 4096, 30_000, 8 * chance.randint(1, 9000), MAX_WIDTH])
        if self.how["route"] == "clustered" and chance.random() < 0.3:
            self.how["group"] = chance.choice(CLUSTERS)
        if chance.random() < 0.3:
            self.how["tuning"] = Tuning(
                sms_to_share=chance.choice([1, 8, 16, 132, MAX_WIDTH]),
                min_chunk=chance.choice([1, 999, 4096, 100_000, MAX_WIDTH]),
                max_candidates=chance.choice([1, 1000, 8192, MAX_COUNTED // 4]),
            )
        self.registers = chance.choice([32, 32, 40, 64, 64, 127])
        self.salt = chance.random() if chance.random() < 0.2 else None  # answers that no calculator gives
        self.asked: list[tuple[str, Variant, int]] = []

    @staticmethod
    def _device(chance: random.Random, measured_on: list[tuple[str, int]], k: int, options: Options) -> DeviceInfo:
        device = chance.choice(list(KNOWN_DEVICES.values()))
        kind = chance.random()
        if kind < 0.3:
            return device
        if kind < 0.65:
            name, sms = chance.choice(measured_on)
            arch = chance.choice(["sm_90a", "sm_90a", "sm_100a", "sm_89"])
            return replace(KNOWN_DEVICES["h200"], name=name, sms=sms + (chance.random() < 0.1), arch=arch)
        smem = chance.choice([chance.randint(1, 227 * 1024), chance.randint(48, 227) * 1024])
        per_sm = chance.choice([smem + 1024, smem, 233472])
        if chance.random() < 0.4:  # about as many candidates as where the planner's rules change, with two blocks an SM
            fixed = Variant(route="filtered", k=k, vec_size=1, options=options).fixed_smem_bytes
            candidates = chance.choice([k, 2 * k]) - chance.randint(-1, 7)
            per_sm = 2 * (spec.align(fixed + chance.choice([8, 20]) * candidates, 128) + 1024)
            smem = chance.choice([per_sm, 232448])
        return replace(
            device,
            name="drawn",
            sms=chance.choice([1, 2, chance.randint(1, 300)]),
            smem_optin=smem,
            smem_per_sm=per_sm,
            max_threads_per_sm=chance.choice([512, 1024, 1536, 2048]),
        )

    def _random(self, variant: Variant, smem_bytes: int, most: int) -> int:
        return random.Random(f"{self.salt} {variant} {smem_bytes}").randint(0, most)

    def occupancy(self, variant: Variant, smem_bytes: int) -> int:
        if smem_bytes > self.device.smem_optin:
            return 0  # which the C planner knows without asking
        self.asked.append(("occupancy", variant, smem_bytes))
        if self.salt is not None:
            return self._random(variant, smem_bytes, 3)
        kernel = KernelInfo(registers=self.registers, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
        return calculated_occupancy(kernel, self.device, smem_bytes, variant.threads)

    def clusters(self, variant: Variant, smem_bytes: int) -> int:
        self.asked.append(("clusters", variant, smem_bytes))
        if self.salt is not None:
            return self._random(variant, smem_bytes, 20)
        return calculated_clusters(self.device, variant.cluster, 65536 // (self.registers * variant.threads))

    @property
    def given(self) -> dict[str, Any]:
        """The problem as the caller says it, the hint not rounded."""
        return asdict(self.problem) | {"max_seq_len": self.problem.width if self.hint is None else self.hint}

    def answers(self) -> list[tuple[str, Variant, int]]:
        """What was asked since the last look."""
        asked, self.asked = self.asked, []
        return asked


def constraint(said: dict[str, Any], device: DeviceInfo) -> str:
    """Python's sentence, from the figures of what was rejected in C."""
    if said["reason"] == "waits_forbidden":
        return "blocks of a row would wait for each other, which the caller forbids"
    rejected = Rejected(**said["rejected"])
    if rejected.route == "filtered":
        return f"needs {rejected.smem_bytes} bytes of shared memory and none fits an SM"
    return rejected.constraint(device.smem_optin)


@pytest.mark.exhaustive("plans")
@pytest.mark.parametrize("part", range(4))
def test_the_c_planner_makes_the_plans_of_python(shim: Shim, times: Any, part: int) -> None:
    chance = random.Random(SEED + part)
    seen: dict[str, int] = {}
    reasons: Counter[Kind] = Counter()
    for number in range(5_000):
        drawn = Drawn(chance, list(times))
        tuning = drawn.how.get("tuning", DEFAULT_TUNING)
        about = f"drawn {number}: {drawn.problem} {drawn.device} {drawn.how}"
        try:
            made = plan(drawn.problem, drawn.device, drawn.occupancy, clusters=drawn.clusters, **drawn.how)
        except PlanError as error:
            asked = drawn.answers()
            code, said = shim.plan(drawn.given, drawn.device, drawn.occupancy, drawn.clusters, **drawn.how)
            assert shim.error(code).startswith("the route does not fit"), f"{about}: {code} {said}"
            assert error.constraint.endswith(constraint(said, drawn.device)), about
            assert (said["kernel"], said["grid"], said["missing"]) == ("", 0, 0), about
            assert drawn.answers() == asked, about
            seen["refused"] = seen.get("refused", 0) + 1
            continue
        asked = drawn.answers()
        code, said = shim.plan(drawn.given, drawn.device, drawn.occupancy, drawn.clusters, **drawn.how)
        assert code == 0, f"{about}: {said}"
        assert said == as_printed(made), about
        assert drawn.answers() == asked, about
        kind = "fallback" if made.rejected else "cooperative" if made.cooperative else made.route
        seen[kind] = seen.get(kind, 0) + 1
        reasons[made.reason.kind] += 1
        if made.cooperative or made.route == "clustered":
            follows: Plan | str
            try:
                follows = after_refusal(made, drawn.problem, drawn.device, drawn.occupancy)
            except PlanError as error:
                follows = error.constraint
            code, said = shim.plan(
                drawn.problem,
                drawn.device,
                drawn.occupancy,
                drawn.clusters,
                refused=True,
                **{**drawn.how, "tuning": tuning},
            )
            if isinstance(follows, str):
                assert code and follows.endswith(constraint(said, drawn.device)), about
            else:
                assert said == as_printed(follows), about
            drawn.answers()
    least = {"refused", "fallback", "cooperative", "persistent", "filtered", "clustered"}
    assert all(seen.get(kind, 0) > 25 for kind in least), seen
    assert all(reasons[kind] > 10 for kind in set(Kind) - {Kind.REFUSED}), reasons


def launched(said: dict[str, Any]) -> dict[str, Any]:
    """A plan without what decided it: what goes out."""
    return {
        name: value for name, value in said.items() if name not in ("reason", "rejected", "missing", "first_missing")
    }


def test_what_is_not_exported_does_not_fit_and_is_named(tmp_path: Path, times: Any) -> None:
    chance = random.Random(SEED)
    some = [v for v in instantiations("sm_90a", 1024, PLAIN) if chance.random() < 0.4]
    partial = built(tmp_path, [exported(variant, "sm_90a") for variant in some])
    outcomes = {"as planned": 0, "another": 0, "nothing": 0, "beyond Python": 0}
    for number in range(3000):
        drawn = Drawn(chance, list(times))
        drawn.device = replace(drawn.device, arch="sm_90a")
        drawn.problem = replace(drawn.problem, k=1024, options=PLAIN)
        drawn.how.pop("tuning", None)
        about = f"drawn {number}: {drawn.problem} {drawn.device} {drawn.how}"
        missing: list[str] = []

        def occupancy(variant: Variant, smem_bytes: int, *, drawn: Drawn = drawn, missing: list[str] = missing) -> int:
            if variant not in some:
                missing.append(str(variant))
                return 0
            return drawn.occupancy(variant, smem_bytes)

        code, said = partial.plan(drawn.problem, drawn.device, drawn.occupancy, drawn.clusters, **drawn.how)
        try:
            made = plan(drawn.problem, drawn.device, occupancy, clusters=drawn.clusters, **drawn.how)
        except PlanError as error:
            if not missing:
                assert error.constraint.endswith(constraint(said, drawn.device)), about
            elif code:
                assert shim_refused(partial, code), about
                assert said["first_missing"] in missing, f"{about}: {said}"
                outcomes["nothing"] += 1
            else:  # Python raised for the route filtered; here another is taken
                assert said["kernel"] in map(str, some), about
                assert drawn.how["route"] == "auto" and said["missing"], about
                outcomes["beyond Python"] += 1
            continue
        assert code == 0, f"{about}: {said}"
        assert launched(said) == launched(as_printed(made)), about
        assert said["missing"] == len(set(missing)), f"{about}: {said}"
        assert said["first_missing"] == (missing[0] if missing else ""), f"{about}: {said}"
        outcomes["another" if missing else "as planned"] += 1
    assert all(count > 30 for count in outcomes.values()), outcomes


def test_a_kernel_that_is_wanted_twice_is_missing_once(tmp_path: Path) -> None:
    alone = built(tmp_path, [exported(Variant(route="persistent", k=1024, vec_size=4), "sm_90a")])
    problem = Problem(rows=200, width=40_000, k=1024)
    device = replace(KNOWN_DEVICES["h200"], name="never measured")
    code, said = alone.plan(problem, device, lambda v, smem: 2, lambda v, smem: 60)
    assert (code, said["kernel"], said["reason"]) == (0, "persistent<1024,4>", "few_rows")
    assert said["missing"] == 1 + len(CLUSTERS), "the model and the rule for many rows both name filtered"


def shim_refused(shim: Shim, code: int) -> bool:
    return shim.error(code).startswith(("the kernels that", "the route does not fit"))


def nothing_asked(variant: Variant, smem_bytes: int) -> int:
    raise AssertionError("a bad argument needs no driver")


GOOD: dict[str, Any] = {
    "rows": 4,
    "width": 1000,
    "k": 64,
    "stride": 1000,
    "offset": 0,
    "max_seq_len": 1000,
    "waits": "allowed",
    "sm_budget": None,
    "options": PLAIN,
    "pdl": False,
}
BAD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    *(("rows", {"rows": value}, {}) for value in (-1, MAX_ROWS + 1, -(2**63))),
    *(("width", {"width": value}, {}) for value in (-1, MAX_WIDTH + 1, 2**63 - 1)),
    *(("k", {"k": value}, {}) for value in (0, -1, 4097, 2**32 + 64)),
    *(("stride", {"stride": value}, {}) for value in (-1, MAX_STRIDE // 4 + 1, 2**63 - 1)),
    *(("offset", {"offset": value}, {}) for value in (-1, 2**62 + 1)),
    *(("max_seq_len", {"max_seq_len": value}, {}) for value in (-1, MAX_WIDTH + 1)),
    *(("sm_budget", {"sm_budget": value}, {}) for value in (-1, MAX_ROWS + 1)),
    ("route", {}, {"route": "fastest"}),
    *(("chunk", {}, {"chunk": value}) for value in (-1, MAX_WIDTH + 1)),
    *(("group", {}, {"route": "clustered", "group": value}) for value in (-8, 1, 3, 32)),
    ("group", {}, {"route": "auto", "group": 8}),
    ("rows", {"rows": -1, "k": 0}, {"route": "fastest"}),
]


@pytest.mark.parametrize(("name", "problem", "how"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments_are_named_as_python_names_them(
    shim: Shim, name: str, problem: dict[str, Any], how: dict[str, Any]
) -> None:
    device = KNOWN_DEVICES["h200"]
    with pytest.raises(InvalidArgument) as refused:
        plan(Problem(**{**GOOD, **problem}), device, nothing_asked, **how)
    assert refused.value.argument == name
    code, said = shim.plan({**GOOD, **problem}, device, nothing_asked, nothing_asked, **how)
    assert shim.error(code).startswith(f"{name}: allowed is"), said
    assert (said["kernel"], said["reason"], said["rejected"], said["missing"]) == ("", "none", None, 0)


def test_what_only_c_can_get_wrong(shim: Shim) -> None:
    problem, device = Problem(rows=4, width=50_000, k=64), KNOWN_DEVICES["h200"]

    def refused(device: DeviceInfo = device, answer: int = 1, **how: Any) -> str:
        code, said = shim.plan(problem, device, lambda variant, smem: answer, lambda variant, smem: answer, **how)
        assert code and (said["kernel"], said["reason"]) == ("", "none")
        return shim.error(code)

    for limit in ("sms", "smem_optin", "smem_per_sm", "max_threads_per_sm"):
        broken = replace(device)
        object.__setattr__(broken, limit, 0)  # which Python's DeviceInfo refuses
        assert refused(broken).startswith("device: ")
    assert "no kernel is exported for device.arch" in refused(replace(device, arch="sm_75"))
    assert "question to the driver failed" in refused(answer=-1)
    assert "question to the driver failed" in refused(answer=2**30)
    for tuning in (Tuning(radix_threshold=4096), Tuning(cluster_threshold=4096)):
        assert refused(tuning=tuning).startswith("tuning: "), "those are compiled in"
    zero = replace(DEFAULT_TUNING)
    object.__setattr__(zero, "min_chunk", 0)
    assert refused(tuning=zero).startswith("tuning: ")
    code, _ = shim.plan({**GOOD, "k": 65}, device, nothing_asked, nothing_asked)
    assert shim.error(code) == "no kernel is exported with this k and these options"
    texts = [shim.error(code) for code in range(-4, 40)]
    assert texts.count("unknown error") == 12 and len(set(texts)) == 33, "each error has a text of its own"


class Launched:
    """The parameter block of every launch that an engine without a device made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.blocks: list[int] = []
        fake = FakeDriver()
        for call, at in (("cuLaunchKernel", 9), ("cuLaunchCooperativeKernel", 9), ("cuLaunchKernelEx", 2)):
            fake.replace[call] = partial(self._launch, at)
        info = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
        compiled = SimpleNamespace(cubin=b"cubin", info=info)
        monkeypatch.setattr(engine, "compile_variant", lambda *args, **more: compiled)
        monkeypatch.setattr(engine, "nvrtc_version", lambda: (12, 9))
        driver = Driver(fake)
        self.engine = Engine(driver, driver.context_device(0x77), cache=Cache(None))

    def _launch(self, at: int, *args: Any) -> tuple[int]:
        self.blocks.append(args[at])
        return (0,)

    def block(self, size: int) -> bytes:
        """The last launch's."""
        pointer = ctypes.cast(self.blocks[-1], ctypes.POINTER(ctypes.c_void_p))[0]
        assert pointer is not None
        return ctypes.string_at(pointer, size)


def test_parameter_blocks_are_those_of_prepared_calls(shim: Shim, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(SEED)
    host = Launched(monkeypatch)
    refused: dict[str, int] = {}
    filled = 0
    for (k, options), route, rows, width in itertools.product(
        COMBINATIONS, ("auto", *ROUTES), (1, 6), (0, 1000, 80_000)
    ):
        try:
            prepared = host.engine.prepare(Problem(rows=rows, width=width, k=k, options=options), route=route)
        except PlanError:
            continue
        for _ in range(60 if options.page_table else 12):
            arrays = {name: 4096 * chance.randint(1, 1 << 40) for name in ARRAYS[:4]}
            arrays |= {name: 4096 * chance.randint(1, 99) for name in ARRAYS[4:7] if getattr(options, name)}
            if chance.random() < 0.5:
                arrays["lengths"] = 0
            if chance.random() < 0.5:
                arrays |= {"out_stride": k + chance.randint(0, 9), "values_stride": k + chance.randint(0, 9)}
            if options.page_table:
                arrays |= {
                    "page_table_stride": chance.randint(0, 2**40),
                    "page_size": chance.choice([1, 64, 2**31 - 1]),
                }
                arrays["rows_per_table"] = chance.randint(1, rows)
            if chance.random() < 0.6:  # one thing wrong, or at least strange
                name = chance.choice(ARRAYS)
                arrays[name] = chance.choice([1, 2, 4, 8, 16, 64, 0 if name in ARRAYS[:7] else -1, 2**31])
            asked = {name: value for name, value in arrays.items() if name not in ARRAYS[:4]}
            if not options.values:
                asked.pop("values_stride", None)
            if not options.page_table:  # what the page table alone would look at
                for name in ("page_table_stride", "page_size", "rows_per_table"):
                    asked.pop(name, None)
            code, block = shim.params(prepared.plan, {**{n: arrays[n] for n in ARRAYS[:4]}, **asked})
            try:
                prepared.launch(*(arrays[name] for name in ARRAYS[:4]), **asked)
            except InvalidArgument as error:
                assert shim.error(code).startswith(f"{error.argument}: allowed is"), f"{error} but {shim.error(code)}"
                refused[error.argument] = refused.get(error.argument, 0) + 1
                continue
            assert code == 0, f"{shim.error(code)}: {arrays} {prepared.plan}"
            assert block == host.block(len(block)), f"{arrays} {prepared.plan}"
            filled += 1
    assert filled > 300 and set(refused) == set(ARRAYS), refused
    code, _ = shim.params(replace(prepared.plan, problem=replace(prepared.plan.problem, rows=0)), {})
    assert code == 0, "without rows nothing is launched, and no address needed"


def test_the_table_says_what_a_launch_needs(shim: Shim) -> None:
    text = kernels_header(shim.kernels[:300])
    rows = [line for line in text.splitlines() if line.startswith("    {DRVTOPK_ROUTE")]
    assert len(rows) == 300
    assert '#define DRVTOPK_VERSION "' in text
    for kernel, row in zip(shim.kernels, rows, strict=False):
        assert f'"{kernel.variant}", "{kernel.variant.entry}", "{kernel.arch}", "{kernel.file}"' in row
    with pytest.raises(InvalidArgument, match="at least one"):
        kernels_header([])
    with pytest.raises(InvalidArgument, match="tunings"):
        kernels_header([exported(Variant(route="filtered", k=1, vec_size=1, tuning=t), "sm_80") for t in TWO_TUNINGS])


TWO_TUNINGS = (DEFAULT_TUNING, Tuning(min_chunk=1))


def test_a_header_without_measured_times_and_with_strange_names_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = replace(
        exported(Variant(route="filtered", k=64, vec_size=1, residency=1), "sm_80"), file='a "b"\\??/\u00e9\n.cubin'
    )
    strange = {('GPU "x"\\', 7): {Choice("filtered"): {1: {10: 2.0}}}}
    for number, found in enumerate(({}, strange)):
        monkeypatch.setattr(measured, "table", lambda found=found: found)
        folder = tmp_path / str(number)
        folder.mkdir()
        made = built(folder, [kernel])
        device = replace(KNOWN_DEVICES["a100"], name='GPU "x"\\', sms=7)
        code, said = made.plan(Problem(rows=2, width=4097, k=64), device, lambda v, smem: 2, lambda v, smem: 2)
        assert code == 0 and said["kernel"] == "filtered<64,1,alone>", said


@pytest.mark.parametrize(
    ("compiler", "language"),
    [("cc", "-std=c99"), ("cc", "-std=c11"), ("cc", "-std=c17"), ("c++", "-std=c++17"), ("c++", "-std=c++20")],
)
def test_the_headers_compile_without_a_warning(tmp_path: Path, shim: Shim, compiler: str, language: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    (tmp_path / "drvtopk_kernels.h").write_text(kernels_header(shim.kernels[:50]))
    shutil.copy(ROOT / "drvtopk" / "export" / "drvtopk.h", tmp_path)
    source = tmp_path / ("main.cpp" if compiler == "c++" else "main.c")
    source.write_text('#include "drvtopk_kernels.h"\nint main(void) { return drvtopk_exported.kernel_count != 50; }\n')
    program = tmp_path / "main"
    more = ("-Wshadow", "-Wconversion", "-Wundef", "-O2")
    cc(language, *STRICT, *more, "-I", tmp_path, source, "-o", program, "-lm", compiler=compiler)
    assert subprocess.run([program]).returncode == 0
    alone = tmp_path / f"alone{source.suffix}"
    alone.write_text('#include "drvtopk.h"\n')
    done = subprocess.run([compiler, "-c", "-I", tmp_path, alone, "-o", program], capture_output=True, text=True)
    assert done.returncode != 0 and "include drvtopk_kernels.h" in done.stderr


def test_the_parameter_block_is_laid_out_as_the_kernels_are_told(tmp_path: Path, shim: Shim) -> None:
    lines = ['#include "drvtopk_kernels.h"']
    for kind, fields in (("drvtopk_params", spec.PARAMS), ("drvtopk_extended_params", (*spec.PARAMS, *spec.EXTRAS))):
        lines.append(f'_Static_assert(sizeof({kind}) == {spec.packed(fields).size}, "size");')
        for at, (name, _) in enumerate(fields):
            member = f"plain.{name}" if (name, _) in spec.PARAMS and kind != "drvtopk_params" else name
            where = spec.packed(fields[:at]).size
            lines.append(f'_Static_assert(offsetof({kind}, {member}) == {where}, "{name}");')
    (tmp_path / "drvtopk_kernels.h").write_text(kernels_header(shim.kernels[:1]))
    shutil.copy(ROOT / "drvtopk" / "export" / "drvtopk.h", tmp_path)
    (tmp_path / "layout.c").write_text("\n".join(lines) + "\n")
    cc("-std=c11", "-Wall", "-Werror", "-I", tmp_path, "-c", tmp_path / "layout.c", "-o", tmp_path / "layout.o")


def compiles(folder: Path, header: str) -> bool:
    (folder / "drvtopk_kernels.h").write_text(header)
    shutil.copy(ROOT / "drvtopk" / "export" / "drvtopk.h", folder)
    (folder / "main.c").write_text('#include "drvtopk_kernels.h"\n')
    command = ("cc", "-std=c99", "-I", folder, "-c", folder / "main.c", "-o", folder / "main.o")
    return subprocess.run(command, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "field", ["uint64_t workspace", "int64_t out_stride", "uint32_t group", "int64_t values_stride"]
)
def test_a_parameter_block_of_another_layout_does_not_compile(tmp_path: Path, shim: Shim, field: str) -> None:
    text = kernels_header(shim.kernels[:1])
    assert text.count(f" {field};") == 1 and compiles(tmp_path, text)
    assert not compiles(tmp_path, text.replace(f" {field};", f" {field}; uint64_t more;"))


def test_the_planner_in_c_stays_short() -> None:
    text = (ROOT / "drvtopk" / "export" / "drvtopk.h").read_text()
    assert len(text.splitlines()) <= 750
    assert not re.search(r"typedef struct drvtopk_(extended_)?params\b", text), "these are written from spec"


CUDA_INCLUDES = [Path(os.environ.get(name, "/nowhere")) / "include" for name in ("CUDA_HOME", "CUDA_PATH")]
CUDA_INCLUDES.append(Path("/usr/local/cuda/include"))


def cuda_include() -> Path:
    found = next((folder for folder in CUDA_INCLUDES if (folder / "cuda.h").exists()), None)
    if found is None:
        pytest.skip("no cuda.h")
    return found


def test_what_stands_in_for_cuda_h_is_what_cuda_h_says(tmp_path: Path) -> None:
    include = cuda_include()
    numbers = re.findall(r"\b(CU(?:DA)?_\w+) = (\d+)", (SOURCES / "cuda_min.h").read_text())
    assert len(numbers) > 20
    (tmp_path / "numbers.c").write_text(
        "#include <cuda.h>\n" + "".join(f'_Static_assert({name} == {n}, "{name}");\n' for name, n in numbers)
    )
    cc("-std=c11", "-isystem", include, "-c", tmp_path / "numbers.c", "-o", tmp_path / "numbers.o")
    members = {
        "CUlaunchConfig": ("gridDimX", "gridDimZ", "blockDimX", "sharedMemBytes", "hStream", "attrs", "numAttrs"),
        "CUlaunchAttribute": ("id", "value", "value.clusterDim.z", "value.programmaticStreamSerializationAllowed"),
    }
    terms = [f"sizeof({kind})" for kind in (*members, "CUdeviceptr", "CUdevice", "CUstream", "CUresult")]
    terms += [f"offsetof({kind}, {name})" for kind, names in members.items() for name in names]
    said = []
    for header, folder in (("<cuda.h>", include), ('"cuda_min.h"', SOURCES)):
        prints = "".join(f'printf("%zu\\n", {term});' for term in terms)
        (tmp_path / "sizes.c").write_text(
            f"#include {header}\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{ {prints} return 0; }}\n"
        )
        cc("-std=c11", "-isystem", folder, tmp_path / "sizes.c", "-o", tmp_path / "sizes")
        said.append(subprocess.run([tmp_path / "sizes"], capture_output=True, text=True).stdout)
    assert said[0] == said[1] and len(said[0].split()) == len(terms)


def test_the_host_compiles_with_the_real_header_too(host: Host, tmp_path: Path) -> None:
    build(host.folder, tmp_path / "host", "-O3", "-isystem", str(cuda_include()))


# The host: a program of its own, and a driver that is not there


K = 64
HOPPER = replace(KNOWN_DEVICES["h200"], name="NVIDIA H200")
EXTRAS = Options(values=True, row_starts=True)
EXPORTED = [
    Variant(route="persistent", k=K, vec_size=4),
    *(Variant(route="filtered", k=K, vec_size=vec, residency=1) for vec in (1, 4)),
    Variant(route="filtered", k=K, vec_size=4, residency=1, pdl=True),
    *(Variant(route="clustered", k=K, vec_size=4, residency=1, cluster=size) for size in (8, 16)),
    *(Variant(route="filtered", k=K, vec_size=4, residency=1, options=o) for o in (EXTRAS, PLAIN.made_deterministic())),
]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory, compiled_before: Cache, tiny_kernels: None) -> Host:
    folder = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "table", READ)
        export_kernels(folder, {"sm_90a": EXPORTED}, cache=compiled_before)
    build(folder, folder / "host", *undefined_is_fatal(folder))
    fake = folder / "libfake_cuda.so"
    cc("-std=c11", *STRICT, *LIBRARY, "-fvisibility=hidden", SOURCES / "fake_cuda.c", "-o", fake)
    return Host(folder, folder / "host", {"DRVTOPK_LIBCUDA": str(fake)})


def run(host: Host, x: npt.NDArray[Any], folder: Path, **how: Any) -> Ran:
    return host.run(x, folder, **{"k": K, **how})


def planned_by_python(problem: Problem, **how: Any) -> dict[str, Any]:
    """The plan for the fake driver's device, with its answers, where every kernel is exported."""
    kernel = KernelInfo(registers=32, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)

    def occupancy(variant: Variant, smem_bytes: int) -> int:
        return calculated_occupancy(kernel, HOPPER, smem_bytes, variant.threads)

    def clusters(variant: Variant, smem_bytes: int) -> int:
        return HOPPER.sms * occupancy(variant, smem_bytes) // variant.cluster

    refused = how.pop("refused", False)
    made = plan(problem, HOPPER, occupancy, clusters=clusters, **how)
    if refused:
        made = after_refusal(made, problem, HOPPER, occupancy)
    return as_printed(made)


def logits(rows: int, width: int) -> npt.NDArray[np.float32]:
    """Normal values with ties, NaN of both signs, infinities and zeros of both signs among them."""
    random = np.random.default_rng(rows * 1_000_003 + width)
    x = random.standard_normal((rows, width)).astype(np.float32)
    x[random.random(x.shape) < 0.2] = 1.5
    for value in (np.nan, -np.nan, np.inf, -np.inf, 0.0, -0.0):
        x[random.random(x.shape) < 0.01] = value
    return x


SHAPES: list[tuple[str, tuple[int, int], dict[str, Any], str]] = [
    ("filtered", (3, 5000), {}, "cuLaunchKernel"),
    ("filtered", (3, 5000), {"pdl": 1}, "cuLaunchKernelEx"),
    ("filtered", (1, 1), {"stride": 4, "route": "auto"}, "cuLaunchKernel"),
    ("filtered", (5, 1003), {}, "cuLaunchKernel"),
    ("filtered", (5, 1000), {"offset": 1, "stride": 1003}, "cuLaunchKernel"),
    ("filtered", (2, 0), {}, "cuLaunchKernel"),
    ("filtered", (4, 2000), {"sm_budget": 5, "out_stride": 70}, "cuLaunchKernel"),
    ("persistent", (2, 40_000), {}, "cuLaunchCooperativeKernel"),
    ("persistent", (7, 40_000), {"chunk": 4096, "stride": 40_008, "sm_budget": 20}, "cuLaunchCooperativeKernel"),
    ("persistent", (2, 40_000), {"max_seq_len": 9000}, "cuLaunchKernel"),
    ("clustered", (2, 40_000), {"group": 8}, "cuLaunchKernel"),
    ("clustered", (2, 40_000), {}, "cuLaunchKernel"),
    ("auto", (2, 131_072), {}, "cuLaunchKernel"),
    ("auto", (2, 131_072), {"waits_never": 1, "max_seq_len": 1000}, "cuLaunchKernel"),
]


@pytest.mark.parametrize(("route", "shape", "given", "call"), SHAPES, ids=lambda value: str(value).replace(" ", ""))
@pytest.mark.parametrize("varied", [False, True], ids=["whole", "lengths"])
def test_a_host_in_c_selects_as_python_plans(
    host: Host, tmp_path: Path, route: str, shape: tuple[int, int], given: dict[str, Any], call: str, varied: bool
) -> None:
    x = logits(*shape)
    random = np.random.default_rng(5)
    lengths = random.choice([-3, 0, 1, K, shape[1] // 2, shape[1], 2**31 - 1], shape[0]) if varied else None
    ran = run(host, x, tmp_path, lengths=lengths, **{"route": route, **given})
    names = ("stride", "offset", "max_seq_len", "sm_budget")
    asked: dict[str, Any] = {name: given[name] for name in names if name in given}
    problem = Problem(
        rows=shape[0],
        width=shape[1],
        k=K,
        waits="never" if given.get("waits_never") else "allowed",
        pdl=bool(given.get("pdl")),
        **asked,
    )
    how: dict[str, Any] = {name: given[name] for name in ("chunk", "group") if name in given}
    assert ran.plan == planned_by_python(problem, route=given.get("route", route), **how)
    assert ran.calls == [call]
    assert find_errors(x, K, lengths, ran.indices) == []
    expected = drvtopk.topk_reference(x, K, lengths)
    for row, (ours, theirs) in enumerate(zip(ran.indices, expected, strict=True)):
        assert np.array_equal(ours == -1, theirs == -1)
        keys = ordered_keys(x[row])
        assert np.array_equal(np.sort(keys[ours[ours >= 0]]), np.sort(keys[theirs[theirs >= 0]]))


def test_a_refused_cooperative_launch_becomes_the_fallback(host: Host, tmp_path: Path) -> None:
    x = logits(2, 40_000)
    ran = run(host, x, tmp_path, route="persistent", fault="refuse", repeat=3)
    problem = Problem(rows=2, width=40_000, k=K)
    first = planned_by_python(problem, route="persistent")
    assert ran.calls == ["refused", *["cuLaunchKernel"] * 3]
    assert ran.plan["reason"] == "refused"
    assert ran.plan["rejected"] == {name: first[name] for name in ran.plan["rejected"]}
    assert launched(ran.plan) == launched(planned_by_python(problem, route="filtered"))
    assert find_errors(x, K, None, ran.indices) == []


def test_a_refused_launch_in_clusters_becomes_the_fallback(host: Host, tmp_path: Path) -> None:
    x = logits(2, 40_000)
    ran = run(host, x, tmp_path, route="clustered", fault="refuse", repeat=3)
    problem = Problem(rows=2, width=40_000, k=K)
    assert ran.calls == ["refused", *["cuLaunchKernel"] * 3]
    assert ran.plan == planned_by_python(problem, route="clustered", refused=True)
    rejected = ran.plan["rejected"]
    assert (ran.plan["reason"], rejected["route"], rejected["group"]) == ("refused", "clustered", 16)
    assert launched(ran.plan) == launched(planned_by_python(problem, route="filtered"))
    assert find_errors(x, K, None, ran.indices) == []


def test_a_cluster_size_that_the_driver_knows_nothing_of_does_not_fit(host: Host, tmp_path: Path) -> None:
    x = logits(2, 131_072)
    ran = run(host, x, tmp_path, fault="sizes")
    assert ran.plan["route"] in ("filtered", "persistent") and find_errors(x, K, None, ran.indices) == []
    named = run(host, x, tmp_path, fault="sizes", route="clustered", group=8)
    assert named.code == 3 and "clustered, 8 blocks a row" in named.said


def test_values_and_row_starts_reach_the_kernel(host: Host, tmp_path: Path) -> None:
    x = logits(6, 3000)
    lengths, starts = [3000, 10, 0, 500, 100, 64], [0, 2995, 17, 1500, -4, 9999]
    ran = run(host, x, tmp_path, route="filtered", lengths=lengths, row_starts=starts, values=True)
    assert ran.plan["kernel"] == "filtered_values_row_starts<64,4,alone>"
    found, counts = ran.indices, np.array(lengths)
    assert find_errors(x, K, counts, found, options=EXTRAS, row_starts=np.array(starts), values=ran.values) == []


def test_what_is_deterministic_is_the_same_array_as_in_python(host: Host, tmp_path: Path) -> None:
    x = logits(6, 3000)
    lengths = [3000, 10, 0, 500, 100, 64]
    ran = run(host, x, tmp_path, route="filtered", lengths=lengths, order=1, tie_break=1)
    assert ran.plan["kernel"] == "filtered_by_index_smallest<64,4,alone>"
    assert np.array_equal(ran.indices, drvtopk.topk_reference(x, K, np.array(lengths), deterministic=True))


def test_no_rows_launch_nothing(host: Host, tmp_path: Path) -> None:
    ran = run(host, logits(0, 100), tmp_path)
    assert ran.plan["grid"] == 0 and ran.calls == [] and ran.indices.size == 0


def test_what_is_not_exported_is_counted_in_the_plan_that_goes_out_instead(host: Host, tmp_path: Path) -> None:
    x = logits(64, 40_000)
    ran = run(host, x, tmp_path)  # clusters with two blocks an SM would be best
    assert ran.plan["route"] == "filtered" and ran.plan["missing"] > 0
    assert ran.plan["first_missing"].startswith("clustered<64,4,x")
    assert find_errors(x, K, None, ran.indices) == []


FAILURES: list[tuple[int, str, dict[str, Any]]] = [
    (1, "CUDA_ERROR_OUT_OF_MEMORY", {"fault": "memory"}),
    (1, "cuStreamSynchronize returned 700", {"fault": "late"}),
    (1, "memory was written", {"fault": "behind"}),
    (1, "no CUDA driver", {"environment": {"DRVTOPK_LIBCUDA": "/nowhere/libcuda.so.1"}}),
    (1, "cannot read", {"cubins": Path("/nowhere")}),
    (2, "unknown argument: typo=1", {"arguments": ("typo=1",)}),
    (2, "not a number: chunk", {"chunk": "many"}),
    (2, "no such route: fastest", {"route": "fastest"}),
    (2, "not the size that the arguments say", {"lengths": [1, 2, 3]}),
    (2, "not the size that the arguments say", {"rows": 400}),
    (3, "no kernel is exported with this k", {"k": 65}),
    (3, "k: allowed is 1..4096", {"k": -1}),
    (3, "rows: allowed is", {"rows": -1}),
    (3, "stride: allowed is", {"arguments": ("stride=-1",)}),
    (3, "group: allowed is", {"group": 8, "route": "auto"}),
    (3, "not exported: filtered<64,2,alone>", {"stride": 3002, "route": "filtered"}),
    (3, "not exported: clustered<64,4,x4,alone>", {"route": "clustered", "group": 4}),
    (3, "does not fit this device: waits_forbidden", {"route": "clustered", "waits_never": 1}),
    (3, "no kernel is exported for device.arch", {"environment": {"FAKE_CUDA_CC": "89"}}),
    (3, "does_not_fit, filtered, 1 blocks a row", {"fault": "full"}),
    (3, "does_not_fit, filtered, 1 blocks a row", {"environment": {"FAKE_CUDA_OPTIN": "8192"}}),
]


@pytest.mark.parametrize(("code", "said", "how"), FAILURES, ids=lambda value: str(value)[:40])
def test_a_host_that_cannot_says_why(host: Host, tmp_path: Path, code: int, said: str, how: dict[str, Any]) -> None:
    ran = run(host, logits(2, 3000), tmp_path, **how)
    assert (ran.code, said in ran.said) == (code, True), f"{ran.code} {ran.said}"
    assert not (tmp_path / "out").exists() or code == 1


def test_a_wrong_selection_would_be_seen(host: Host, tmp_path: Path) -> None:
    x = logits(3, 5000)
    assert find_errors(x, K, None, run(host, x, tmp_path, fault="missed").indices)


def test_a_damaged_cubin_is_refused(host: Host, tmp_path: Path) -> None:
    for file in host.folder.glob("*.cubin"):
        (tmp_path / file.name).write_bytes(b"not a cubin, and longer than its header")
    ran = run(host, logits(3, 5000), tmp_path, cubins=tmp_path)
    assert ran.code == 1 and "cuModuleLoadData returned 200" in ran.said
