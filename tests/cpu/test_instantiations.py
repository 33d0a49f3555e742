"""Every instantiation compiles for every architecture without spills, in registers that allow the planned occupancy."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from drvtopk import compiler
from drvtopk.cache import Cache
from drvtopk.compiler import Compiled, compile_variant
from drvtopk.plan import Problem, calculated_occupancy, plan
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
_SHAPES = [(k, vec) for k in (*TOP_KS, MAX_K) for vec in VEC_SIZES]
# Each size of a cluster at every load and every k, but not at all of both: there are too many to compile.
CLUSTERED = [
    Variant(route="clustered", k=k, vec_size=vec, cluster=cluster, residency=residency)
    for number, cluster in enumerate(CLUSTERS)
    for residency in (1, 2)
    for k, vec in _SHAPES[(number + residency) % 4 :: 5]
]
# A kernel that waits for its predecessor itself.
PDL = [
    *(Variant(route="filtered", k=1024, vec_size=4, residency=residency, pdl=True) for residency in (1, 2)),
    *(Variant(route="clustered", k=1024, vec_size=4, cluster=size, residency=1, pdl=True) for size in (2, 16)),
]
ODD_KS = (1, 500, 513, 3000, MAX_K)
LONG = 131_072  # columns: a row that a group shares


def device_of(arch: str) -> DeviceInfo:
    """A device of this architecture; sm_86 has the per-SM limits of sm_89, and no product in the table."""
    known = {d.arch: d for d in KNOWN_DEVICES.values()}
    return replace(known["sm_89" if arch == "sm_86" else arch], arch=arch)


def compile_all(variants: list[Variant], arch: str, cache: Cache) -> list[Compiled]:
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda v: compile_variant(v, arch, cache=cache), variants))


# A few words that ptxas parks outside the loops; a register more would cost the SM its second block.
MOST_SPILLS, MOST_SPILLS_WITH_OPTIONS = 40, 160


def check(variant: Variant, arch: str, compiled: Compiled) -> None:
    """Next to no spills, no static shared memory, one kernel, and as many blocks an SM as the planner counts on."""
    info, device = compiled.info, device_of(arch)
    most = MOST_SPILLS if variant.options == PLAIN else MOST_SPILLS_WITH_OPTIONS
    assert info.spill_bytes <= most and info.stack_bytes <= most // 3 and info.static_smem_bytes == 0, info
    resident = min(variant.residency, min_blocks(arch))
    assert 16 <= info.registers <= 65536 // (1024 * resident), info
    assert info.cubin_bytes == len(compiled.cubin) > 1000
    # A cubin is an ELF file with one code section for each kernel.
    assert compiled.cubin.startswith(b"\x7fELF")
    assert set(re.findall(rb"\0\.text\.(\w+)", compiled.cubin)) == {variant.entry.encode()}
    assert calculated_occupancy(info, device, variant.fixed_smem_bytes) >= resident
    rows = 4 if variant.route == "persistent" or variant.residency == 1 else 2 * device.sms
    planned = plan(
        # A base that is 4, 8 or 16 bytes aligned asks for this vec_size.
        Problem(rows=rows, width=LONG, k=variant.k, offset=variant.vec_size % 8, options=variant.options),
        device,
        lambda asked, smem: calculated_occupancy(info, device, smem) if asked == variant else 0,
        route=variant.route,
        tuning=variant.tuning,
    )
    assert planned.variant == variant
    assert planned.occupancy >= resident, planned
    assert planned.cooperative == (variant.route == "persistent")


def test_nvrtc_compiles_for_most_of_the_architectures() -> None:
    assert len({a.rstrip("af") for a in ARCHITECTURES} & set(compiler.supported_archs())) >= 6


def test_every_known_device_is_of_an_architecture_that_is_compiled_here() -> None:
    assert {d.arch for d in KNOWN_DEVICES.values()} <= set(ARCHITECTURES)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_instantiation_compiles_without_spills(arch: str, compiled_before: Cache) -> None:
    if arch.rstrip("af") not in compiler.supported_archs():
        pytest.skip(f"NVRTC {compiler.nvrtc_version()} does not know {arch}")
    for variant, compiled in zip(VARIANTS, compile_all(VARIANTS, arch, compiled_before), strict=True):
        check(variant, arch, compiled)


@pytest.mark.parametrize("k", ODD_KS)
def test_any_other_k_compiles_on_demand(k: int, compiled_before: Cache) -> None:
    variants = [Variant(route=route, k=k, vec_size=vec) for route in ROUTES for vec in (1, 4)]
    for variant, compiled in zip(variants, compile_all(variants, "sm_90a", compiled_before), strict=True):
        check(variant, "sm_90a", compiled)


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


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a", "sm_120a"])
def test_options_are_instantiations_of_their_own(arch: str, compiled_before: Cache) -> None:
    if arch.rstrip("af") not in compiler.supported_archs():
        pytest.skip(f"NVRTC {compiler.nvrtc_version()} does not know {arch}")
    for route in ROUTES:
        variants = [
            Variant(route=route, k=1024, vec_size=o.vec_sizes[-1], options=o)
            for o in (PLAIN, *ONE_OPTION, *ALL_OPTIONS)
        ]
        made = compile_all(variants, arch, compiled_before)
        for variant, compiled in zip(variants, made, strict=True):
            check(variant, arch, compiled)
        assert (
            len({variant.entry for variant in variants}) == len({compiled.cubin for compiled in made}) == len(variants)
        )


def test_what_is_not_asked_for_is_not_in_the_cubin(compiled_before: Cache) -> None:
    """A plain kernel holds no shuffle of a sort, and is smaller than any with one option more to do."""
    variants = [Variant(route="persistent", k=1024, vec_size=4, options=o) for o in (PLAIN, *ONE_OPTION)]
    plain, *others = compile_all(variants, "sm_90a", compiled_before)
    doing = [c for c, o in zip(others, ONE_OPTION, strict=True) if o.dtype == "float32" and o.nan == "lowest"]
    assert all(len(plain.cubin) < len(other.cubin) for other in doing)
    assert plain.info.spill_bytes == 0


@pytest.mark.parametrize("route", ROUTES)
def test_small_thresholds_are_an_instantiation_of_their_own(route: str, compiled_before: Cache) -> None:
    usual = Variant(route=route, k=512, vec_size=4)
    small = replace(
        usual, tuning=Tuning(short_max=64, radix_threshold=128, min_chunk=64, max_candidates=32, samples=64)
    )
    one, other = compile_all([usual, small], "sm_90a", compiled_before)
    assert one.cubin != other.cubin
    check(small, "sm_90a", other)
