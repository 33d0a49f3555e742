"""Every instantiation compiles for every architecture without spills, in registers that allow the planned occupancy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from drvtopk import compiler
from drvtopk.cache import Cache
from drvtopk.compiler import Compiled, compile_variant
from drvtopk.nvrtc import load, nvrtc_version, supported_archs
from drvtopk.plan import Problem, calculated_occupancy, plan
from drvtopk.records import code_bytes
from drvtopk.source import kernel_sources
from drvtopk.spec import (
    ARCHITECTURES,
    CLUSTERS,
    KNOWN_DEVICES,
    MAX_K,
    PLAIN,
    ROUTES,
    TOP_KS,
    VEC_SIZES,
    DeviceInfo,
    Options,
    Tuning,
    Variant,
    max_cluster,
    min_blocks,
)

VARIANTS = [Variant(route=r, k=k, vec_size=v) for r in ("persistent", "filtered") for k in TOP_KS for v in VEC_SIZES]
VARIANTS += [replace(v, residency=1) for v in VARIANTS if v.route == "filtered"]
# Each size of a cluster at every k, at every load and at both residencies, but not at all of them together.
CLUSTERED = [
    Variant(route="clustered", k=k, vec_size=VEC_SIZES[(i + n) % 3], cluster=size, residency=1 + (i + n // 2) % 2)
    for n, size in enumerate(CLUSTERS)
    for i, k in enumerate((*TOP_KS, MAX_K))
]
WITH_CLUSTERS = [arch for arch in ARCHITECTURES if max_cluster(arch) > 1]
# Kernels that wait for their predecessor themselves.
PDL = [Variant(route="filtered", k=1024, vec_size=4, residency=residency, pdl=True) for residency in (1, 2)]
PDL_CLUSTERS = [
    Variant(route="clustered", k=1024, vec_size=4, cluster=size, residency=residency, pdl=True)
    for size, residency in ((2, 1), (16, 2))
]
ODD_KS = (1, 500, 513, 3000, MAX_K)
LONG = 131_072  # columns: a row that a group shares


def device_of(arch: str) -> DeviceInfo:
    """A device of this architecture; sm_86 has the per-SM limits of sm_89, and no product in the table."""
    known = {d.arch: d for d in KNOWN_DEVICES.values()}
    return replace(known["sm_89" if arch == "sm_86" else arch], arch=arch)


# A few words that ptxas parks outside the loops; a register more would cost the SM its second block.
MOST_SPILLS, MOST_SPILLS_WITH_OPTIONS = 64, 160
# A cluster's kernel of two blocks an SM that sorts by value and has every other option too: ptxas parks whole batches.
MOST_SPILLS_OF_CLUSTERS_WITH_ALL = 20_000

MOST_CODE = {"persistent": 57_000, "filtered": 156_000, "clustered": 174_000}
"""Bytes of machine code of plain kernels for sm_90a, at the usual k. A launch behind other kernels fetches them anew,
so they may only become fewer."""


def most_spills(variant: Variant) -> int:
    """Bytes of spill stores and loads that a variant may have."""
    options = variant.options
    if variant.route == "clustered" and options.order == "value" and options.page_table and variant.residency == 2:
        return MOST_SPILLS_OF_CLUSTERS_WITH_ALL
    return MOST_SPILLS if options == PLAIN else MOST_SPILLS_WITH_OPTIONS


def check(variant: Variant, arch: str, compiled: Compiled) -> None:
    """Next to no spills, no static shared memory, one kernel, and as many blocks an SM as the planner counts on."""
    info, device = compiled.info, device_of(arch)
    most = most_spills(variant)
    assert info.spill_bytes <= most and info.stack_bytes <= most // 3 and info.static_smem_bytes == 0, info
    resident = min(variant.residency, min_blocks(arch, variant.threads))
    assert 16 <= info.registers <= 65536 // (variant.threads * resident), info
    assert info.cubin_bytes == len(compiled.cubin) > 1000
    code = code_bytes(compiled.cubin)
    assert 1000 < code < info.cubin_bytes
    if arch == "sm_90a" and variant.options == PLAIN and variant.k in TOP_KS and not variant.pdl:
        assert code <= MOST_CODE[variant.route], code
    # A cubin is an ELF file with one code section for each kernel.
    assert compiled.cubin.startswith(b"\x7fELF")
    assert set(re.findall(rb"\0\.text\.(\w+)", compiled.cubin)) == {variant.entry.encode()}
    assert calculated_occupancy(info, device, variant.fixed_smem_bytes, variant.threads) >= resident
    rows = 4 if variant.route == "persistent" or variant.residency == 1 else 2 * device.sms
    planned = plan(
        Problem(
            rows=rows,
            width=LONG,
            k=variant.k,
            offset=variant.vec_size % 8,  # a base that is 4, 8 or 16 bytes aligned asks for this vec_size
            options=variant.options,
            pdl=variant.pdl,
        ),
        device,
        lambda asked, smem: calculated_occupancy(info, device, smem, variant.threads) if asked == variant else 0,
        route=variant.route,
        group=variant.cluster if variant.route == "clustered" else None,
        tuning=variant.tuning,
    )
    assert planned.variant == variant
    large = variant.k > 2048  # whose members leave no room for a second block on an SM
    assert planned.occupancy >= (1 if large else resident), planned
    assert planned.cooperative == (variant.route == "persistent")


def test_nvrtc_compiles_for_most_of_the_architectures() -> None:
    assert len({a.rstrip("af") for a in ARCHITECTURES} & set(supported_archs())) >= 6


def test_every_known_device_is_of_an_architecture_that_is_compiled_here() -> None:
    assert {d.arch for d in KNOWN_DEVICES.values()} <= set(ARCHITECTURES)


def here(arch: str) -> str:
    """`arch`, if this NVRTC knows it."""
    if arch.rstrip("af") not in supported_archs():
        pytest.skip(f"NVRTC {nvrtc_version()} does not know {arch}")
    return arch


def checked(variant: Variant, arch: str, cache: Cache) -> Compiled:
    compiled = compile_variant(variant, here(arch), cache=cache)
    check(variant, arch, compiled)
    return compiled


def cases(archs: Iterable[str], variants: Iterable[Variant]) -> list[Any]:
    """(arch, variant) of all of these together."""
    return [pytest.param(arch, variant, id=f"{arch}-{variant}") for arch, variant in product(archs, variants)]


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(("arch", "variant"), cases(ARCHITECTURES, VARIANTS))
def test_every_instantiation_compiles_without_spills(arch: str, variant: Variant, compiled_before: Cache) -> None:
    checked(variant, arch, compiled_before)


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(("arch", "variant"), cases(WITH_CLUSTERS, CLUSTERED + PDL_CLUSTERS))
def test_clusters_of_every_size_compile_without_spills(arch: str, variant: Variant, compiled_before: Cache) -> None:
    """And such that begin before their predecessor ends."""
    checked(variant, arch, compiled_before)


def test_clusters_are_compiled_of_every_size_at_every_k_load_and_residency() -> None:
    assert {(v.cluster, v.residency) for v in CLUSTERED} == set(product(CLUSTERS, (1, 2)))
    assert {(v.cluster, v.k) for v in CLUSTERED} == set(product(CLUSTERS, (*TOP_KS, MAX_K)))
    assert {(v.cluster, v.vec_size) for v in CLUSTERED} == set(product(CLUSTERS, VEC_SIZES))


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(("arch", "variant"), cases(["sm_90a", "sm_100a", "sm_120a"], PDL))
def test_kernels_that_wait_for_their_predecessor_are_instantiations_of_their_own(
    arch: str, variant: Variant, compiled_before: Cache
) -> None:
    others = [v for v in (*PDL, *(replace(v, pdl=False) for v in PDL)) if v.threads == variant.threads and v != variant]
    assert len(others) == 1, "a kernel of another block size has another launch bound"
    one, other = (checked(v, arch, compiled_before) for v in (variant, *others))
    assert one.cubin != other.cubin


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(
    ("arch", "variant"),
    cases(
        ["sm_90a"],
        [
            Variant(route=route, k=k, vec_size=vec, cluster=8 if route == "clustered" else 1)
            for k in ODD_KS
            for route in ROUTES
            for vec in (1, 4)
        ],
    ),
)
def test_any_other_k_compiles_on_demand(arch: str, variant: Variant, compiled_before: Cache) -> None:
    checked(variant, arch, compiled_before)


ONE_OPTION = [
    Options(**{name: value})  # type: ignore[arg-type]
    for name, value in (
        ("dtype", "bfloat16"),
        ("dtype", "float16"),
        ("index_dtype", "int64"),
        ("values", True),
        ("row_starts", True),
        ("order", "index"),
        ("order", "value"),
        ("tie_break", "smallest"),
        ("tie_break", "largest"),
        ("nan", "highest"),
        ("page_table", True),
    )
]
ALL_OPTIONS = [
    Options(
        dtype=dtype,
        index_dtype="int64",
        values=True,
        row_starts=True,
        order=order,
        tie_break="smallest",
        nan="highest",
        page_table=True,
    )
    for dtype in ("float32", "bfloat16")
    for order in ("none", "value")
]


WITH_OPTIONS = [
    Variant(
        route=route,
        k=1024,
        vec_size=o.vec_sizes[-1],
        options=o,
        cluster=CLUSTERS[number % len(CLUSTERS)] if route == "clustered" else 1,
        residency=1 + number % 2 if route == "clustered" else 2,
    )
    for route in ROUTES
    for number, o in enumerate((PLAIN, *ONE_OPTION, *ALL_OPTIONS))
]


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(
    ("arch", "variant"),
    [
        case
        for arch in ("sm_80", "sm_90a", "sm_120a")
        for case in cases([arch], [v for v in WITH_OPTIONS if v.cluster <= max_cluster(arch)])
    ],
)
def test_options_are_instantiations_of_their_own(arch: str, variant: Variant, compiled_before: Cache) -> None:
    """Cubins differ because their kernels have names of their own, which `check` finds there."""
    checked(variant, arch, compiled_before)


def test_options_are_kernels_of_their_own_names() -> None:
    assert len({variant.entry for variant in WITH_OPTIONS}) == len(WITH_OPTIONS)


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(
    "options", [o for o in ONE_OPTION if o.dtype == "float32" and o.nan == "lowest"], ids=lambda o: o.suffix
)
def test_what_is_not_asked_for_is_not_in_the_cubin(options: Options, compiled_before: Cache) -> None:
    """A plain kernel holds no shuffle of a sort, and is smaller than any with one option more to do."""
    variant = Variant(route="persistent", k=1024, vec_size=4)
    plain, other = (
        compile_variant(v, "sm_90a", cache=compiled_before) for v in (variant, replace(variant, options=options))
    )
    assert len(plain.cubin) < len(other.cubin)
    assert plain.info.spill_bytes == 0


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize("route", ROUTES)
def test_small_thresholds_are_an_instantiation_of_their_own(route: str, compiled_before: Cache) -> None:
    usual = Variant(route=route, k=512, vec_size=4, cluster=4 if route == "clustered" else 1)
    small = replace(
        usual,
        tuning=Tuning(
            short_max=64, radix_threshold=128, cluster_threshold=100, min_chunk=64, max_candidates=512, samples=64
        ),
    )
    one, other = (compile_variant(variant, "sm_90a", cache=compiled_before) for variant in (usual, small))
    assert one.cubin != other.cubin
    check(small, "sm_90a", other)


def ptx_of(variant: Variant, arch: str) -> str:
    """What NVRTC hands to ptxas."""
    nvrtc = load()
    sources = kernel_sources()
    headers = {name: text for name, text in sources.items() if name.endswith(".cuh")}
    wanted = [o.replace(f"={arch}", f"={arch.replace('sm_', 'compute_')}") for o in compiler.options(variant, arch, ())]
    names = [name.encode() for name in headers]
    _, program = nvrtc.nvrtcCreateProgram(
        sources[f"{variant.route}.cu"], b"kernel.cu", len(names), list(headers.values()), names
    )
    try:
        (code,) = nvrtc.nvrtcCompileProgram(program, len(wanted), [option.encode() for option in wanted])
        assert int(code) == 0
        _, size = nvrtc.nvrtcGetPTXSize(program)
        text = bytearray(size)
        nvrtc.nvrtcGetPTX(program, text)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return text.decode()


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(
    "variant",
    [
        Variant(route="persistent", k=1024, vec_size=4),
        Variant(route="filtered", k=1024, vec_size=4, residency=1),
        Variant(route="filtered", k=2048, vec_size=8, residency=2, options=Options(dtype="bfloat16", values=True)),
        Variant(route="clustered", k=1024, vec_size=4, cluster=16, residency=1),
        Variant(route="clustered", k=512, vec_size=4, cluster=2, residency=2, options=Options(order="value")),
    ],
    ids=str,
)
def test_every_load_and_store_says_which_memory_it_means(variant: Variant) -> None:
    """One that does not has to find out when it runs."""
    memory = re.findall(r"^\s+(?:@!?%p\d+ )?((?:ld|st|atom|red)\.[\w.:]+)", ptx_of(variant, "sm_90a"), re.MULTILINE)
    assert len(memory) > 200
    spaces = {".global", ".shared", ".param", ".local", ".const", ".async"}
    assert {m for m in memory if not any(space in m for space in spaces)} == set()
