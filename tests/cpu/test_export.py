"""Exports: what a folder holds, that its rules are the planner's, and that a reader never sees half of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import drvtopk
from drvtopk import engine, records, source, spec
from drvtopk.__main__ import main
from drvtopk.cache import Cache
from drvtopk.choice import Choice
from drvtopk.compiler import definitions, nvrtc_version
from drvtopk.errors import CompileError, InvalidArgument, PlanError
from drvtopk.export import ExportedKernel, export_kernels, manifest, rules
from drvtopk.export import write as export
from drvtopk.plan import Problem, calculated_clusters, calculated_occupancy, plan
from drvtopk.spec import CLUSTERS, KNOWN_DEVICES, ROUTES, KernelInfo, Options, Tuning, Variant, instantiations

pytestmark = pytest.mark.usefixtures("tiny_kernels")

ROOT = Path(__file__).resolve().parents[2]
ARCH = "sm_90a"
FEW = instantiations(ARCH, (64,), (4,), ("filtered",))
OTHERS = instantiations(ARCH, (64,), (4,), ("persistent",))
EXTENDED = instantiations("sm_80", (8,), (2,), ("filtered",), Options(values=True, order="index"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, compiled_before: Cache, tiny_kernels: None) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    export_kernels(folder, {ARCH: [*FEW, *OTHERS], "sm_80": EXTENDED}, cache=compiled_before)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def document(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "manifest.json").read_text())
    assert isinstance(found, dict)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_a_folder_holds_cubins_headers_and_a_manifest_and_nothing_else(exported: Path) -> None:
    found = document(exported)
    files = {record["file"] for record in found["kernels"]}
    assert {file.name for file in exported.iterdir()} == {*files, "manifest.json", "drvtopk.h", "drvtopk_kernels.h"}
    assert len(files) == len(FEW) + len(OTHERS) + len(EXTENDED)
    assert (exported / "drvtopk.h").read_bytes() == (ROOT / "drvtopk" / "export" / "drvtopk.h").read_bytes()
    assert (found["format"], found["drvtopk"], found["nvrtc"]) == (1, drvtopk.__version__, list(nvrtc_version()))
    assert found["sources"] == source.sources_digest() and re.fullmatch("[0-9a-f]{64}", found["sources"])
    header = (exported / "drvtopk_kernels.h").read_text()
    for record in found["kernels"]:
        cubin = (exported / record["file"]).read_bytes()
        assert cubin.startswith(b"\x7fELF") and len(cubin) == record["cubin_bytes"]
        assert hashlib.sha256(cubin).hexdigest() == record["sha256"]
        assert f"\0.text.{record['entry']}\0".encode() in cubin
        assert record["file"] in header and record["sha256"] in header


def test_a_record_says_everything_of_its_kernel(exported: Path) -> None:
    for record, variant in zip(document(exported)["kernels"], [*FEW, *OTHERS, *EXTENDED], strict=True):
        assert record["variant"] == json.loads(json.dumps(dataclasses.asdict(variant)))
        assert {field.name for field in dataclasses.fields(KernelInfo)} - {"seconds"} <= set(record)
        for name in ("entry", "threads", "fixed_smem_bytes", "candidate_bytes"):
            assert record[name] == getattr(variant, name)
        assert record["name"] == str(variant) and record["definitions"] == definitions(variant, record["arch"])
        assert record["parameter_bytes"] == (128 if variant.options.extras else 80)
        members = record["members"]
        for group in (1, 7, 264):
            state = eval(rules.FORMULAE["group_state_bytes"], {"align": spec.align, "members": members, "group": group})
            assert state == variant.group_state_bytes(group)


def test_a_manifest_gives_the_kernels_back(exported: Path) -> None:
    found = manifest.read(exported)
    assert list(found.kernels) == [*((ARCH, v) for v in [*FEW, *OTHERS]), *(("sm_80", v) for v in EXTENDED)]
    for (arch, variant), kernel in found.kernels.items():
        assert isinstance(kernel, ExportedKernel) and (kernel.arch, kernel.variant) == (arch, variant)
        assert kernel.info.registers > 0 and kernel.info.seconds == 0
    assert list(found.definitions) == list(found.kernels)


# The layout of the parameter block

SIZES = {"i64": 8, "u32": 4}


def fields_of_params() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(plain, behind them) as cuda_src/params.cuh declares them."""
    text = (ROOT / "cuda_src" / "params.cuh").read_text()
    body = re.sub(r"//[^\n]*", "", text.split("struct Params {")[1].split("\n};")[0])
    plain, more = body.split("#if DRVTOPK_EXTRAS")

    def fields(part: str) -> list[tuple[str, str]]:
        declared = [
            line.strip().rstrip(";").rpartition(" ") for line in part.splitlines() if line.strip().endswith(";")
        ]
        return [(name, kind) for kind, _, name in declared]

    return fields(plain), fields(more)


def test_the_parameters_of_the_manifest_are_those_of_the_kernels_and_of_the_engine(exported: Path) -> None:
    plain, more = fields_of_params()
    assert (list(spec.PARAMS), list(spec.EXTRAS)) == (plain, more)
    written = document(exported)["parameters"]
    for layout, fields in (("plain", plain), ("extended", plain + more)):
        at = 0
        for field, (name, kind) in zip(written[layout]["fields"], fields, strict=True):
            size = SIZES.get(kind, 8)
            at = -(-at // size) * size  # as C lays out
            assert field == {"name": name, "type": kind, "offset": at, "bytes": size}
            at += size
        assert written[layout]["bytes"] == at
    sizes = engine.PARAMS_BYTES, engine.PARAMS_BYTES + engine.EXTRAS_BYTES
    assert (written["plain"]["bytes"], written["extended"]["bytes"]) == sizes == (80, 128)
    assert engine._PARAMS.format == "<QQQQqqIIIIIIII" and engine._EXTRAS.format == "<QQQqqII"
    assert [name for name, _ in plain[: spec.VARYING]] == [
        *["logits", "lengths", "out", "workspace", "logits_stride"],
        "out_stride",
    ]


# The rules of the manifest are those of the planner

OPTIONS = [
    Options(),
    Options(dtype="bfloat16", row_starts=True),
    Options(order="value", values=True),
    Options(order="index"),
]


def worked_out(rule: dict[str, Any], problem: Problem, made: Any, asked: list[Any], device: Any, chunk: Any) -> Any:
    """Every formula of the manifest in turn, and the driver's answers where they are asked for."""
    variant = made.variant
    names: dict[str, Any] = {
        **dataclasses.asdict(device),
        **rule["tuning"],
        **{field.name: getattr(problem, field.name) for field in dataclasses.fields(problem)},
        "route": made.route,
        "cluster": made.group if made.route == "clustered" else 1,
        "given_chunk": chunk,
        "vec_sizes": problem.options.vec_sizes,
        "row_starts": problem.options.row_starts,
        "fixed_smem_bytes": variant.fixed_smem_bytes,
        "candidate_bytes": variant.candidate_bytes,
        "members": problem.k if problem.options.order != "none" else 0,
        "max_cluster": rule["archs"][device.arch]["max_cluster"],
        "align": spec.align,
    }
    for name, formula in rule["formulae"].items():
        names[name] = eval(formula, names)
        if name == "smem_bytes":
            answers = {(v, smem): answer for v, smem, answer in asked}
            names["occupancy"], names["clusters"] = answers[variant, names["smem_bytes"]]
    return names


def test_every_formula_of_the_manifest_gives_what_the_planner_gives() -> None:
    chance = random.Random(5)
    seen: dict[str, int] = {}
    for _ in range(1500):
        device = KNOWN_DEVICES[chance.choice(["h200", "a100", "l40s", "b200", "gb10"])]
        rows, width = chance.choice([0, 1, 4, 40, 133, 700]), chance.choice([0, 1, 9000, 40_000, 131_072, 3_000_001])
        problem = Problem(
            rows=rows,
            width=width,
            stride=width + chance.choice([0, 0, 1, 6]),
            k=chance.choice([1, 64, 1000, 2048, 4096]),
            offset=chance.choice([0, 0, 1, 4]),
            max_seq_len=chance.choice([None, None, 5000, 10**6]),
            sm_budget=chance.choice([None, None, 7, 60, 999]),
            options=chance.choice(OPTIONS),
        )
        tuning = chance.choice([Tuning(), Tuning(radix_threshold=10_000, min_chunk=1000, max_candidates=3000)])
        registers = chance.choice([32, 64, 128])
        kernel = KernelInfo(registers=registers, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=1)
        asked: list[Any] = []

        def occupancy(variant: Variant, smem: int) -> int:
            answer = calculated_occupancy(kernel, device, smem, variant.threads)  # noqa: B023
            sms = min(device.sms, problem.sm_budget or device.sms)  # noqa: B023
            together = calculated_clusters(device.with_limits(sms=sms), variant.cluster, answer)  # noqa: B023
            asked.append((variant, smem, (answer, together)))  # noqa: B023
            return answer

        route = chance.choice(["auto", *ROUTES])
        how: dict[str, Any] = {"tuning": tuning}
        if route == "persistent":
            how["chunk"] = chance.choice([None, 8472, 10_001])
        if route == "clustered":
            how["group"] = chance.choice(CLUSTERS)
        try:
            made = plan(problem, device, occupancy, route=route, **how)
        except PlanError:
            continue
        rule = rules.planner(tuning, [device.arch])
        found = worked_out(rule, problem, made, asked, device, how.get("chunk"))
        about = f"{problem} {device.name} {made}"
        for name in ("needs_cooperation", "group", "chunk", "vec_size", "residency", "candidates", "smem_bytes", "sms"):
            assert found[name] == getattr(made, name), f"{name}: {about}"
        for name in ("occupancy", "resident_cap", "headroom", "headroom_kept", "groups", "grid", "workspace_bytes"):
            assert found[name] == getattr(made, name), f"{name}: {about}"
        assert (found["threads"], found["cooperative"], found["fits"]) == (made.block, made.cooperative, True), about
        kind = "cooperative" if made.cooperative else made.route
        seen[kind] = seen.get(kind, 0) + 1
    assert all(seen.get(kind, 0) > 50 for kind in ("cooperative", *ROUTES)), seen


def test_device_attributes_and_rules_are_those_of_the_code(exported: Path) -> None:
    found = document(exported)
    written = (ROOT / "drvtopk" / "driver.py").read_text()
    for name, attribute in found["planner"]["device"].items():
        assert hasattr(KNOWN_DEVICES["h200"], name)
        for named in re.findall(r"CU_DEVICE_ATTRIBUTE_([A-Z_]*[A-Z])\b", attribute):
            assert f'"{named}"' in written, named
    for named in re.findall(r"\b(cu[A-Z]\w+)", " ".join(found["launch"].values())):
        assert f'"{named}"' in written, named
    for named in re.findall(r"\bCU_(?:FUNC|LAUNCH)_ATTRIBUTE_\w+", " ".join(found["launch"].values())):
        assert named in written, named
    assert found["planner"]["tuning"] == dataclasses.asdict(Tuning())
    assert found["planner"]["archs"] == {
        ARCH: {"max_cluster": 16, "has_pdl": True},
        "sm_80": {"max_cluster": 1, "has_pdl": False},
    }


def test_the_measured_times_are_written(
    tmp_path: Path, compiled_before: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = {Choice("filtered"): {4: {8192: 5.5}}, Choice("clustered", 8): {}}
    monkeypatch.setattr("drvtopk.measured.table", lambda: {("a GPU", 132): times})
    export_kernels(tmp_path, {ARCH: FEW}, cache=compiled_before)
    (found,) = document(tmp_path)["planner"]["measured"]
    assert found == {"name": "a GPU", "sms": 132, "microseconds": {"filtered": {"4": {"8192": 5.5}}, "clustered:8": {}}}


# By default an export holds whatever a plan may ask for

DRAWN = 2000


@pytest.mark.parametrize("name", ["h200", "a100", "b200", "rtx5090"])
def test_whatever_a_plan_asks_for_is_an_instantiation_of_its_k(name: str) -> None:
    chance = random.Random(name)
    device = KNOWN_DEVICES[name]
    seen: set[Variant] = set()
    for options in (Options(), Options(dtype="float16")):
        known = {
            pdl: set(instantiations(device.arch, (512,), options=options, pdl=pdl)) for pdl in (False, device.has_pdl)
        }
        for _ in range(DRAWN // 2):
            width = chance.choice([100, 9000, 40_000, 131_072, 4_000_000])
            problem = Problem(
                rows=chance.choice([1, 3, 17, 140, 999]),
                width=width,
                stride=width + chance.choice([0, 1, 2]),
                k=512,
                offset=chance.choice([0, 1, 2, 4]),
                sm_budget=chance.choice([None, 9]),
                waits=chance.choice(["allowed", "never"]),
                options=options,
                pdl=chance.random() < 0.5,
            )

            def occupancy(variant: Variant, smem: int) -> int:
                wanted = known[False] | known[problem.pdl and device.has_pdl]  # noqa: B023
                assert variant in wanted, f"{variant} of {problem}"  # noqa: B023
                seen.add(variant)
                return chance.choice([0, 1, 2])

            try:
                plan(problem, device, occupancy, route=chance.choice(["auto", "auto", *ROUTES]))
            except PlanError:
                continue
    assert {v.route for v in seen} == set(ROUTES) - ({"clustered"} if device.max_cluster == 1 else set())


# Merging, refusing, and never half


def test_a_further_export_joins_the_kernels_that_are_there(copy: Path, compiled_before: Cache) -> None:
    before = contents(copy)
    more = instantiations(ARCH, (8,), (1,), ("persistent",))
    found = export_kernels(copy, {ARCH: [*more, *FEW]}, cache=compiled_before)
    assert [kernel.variant for kernel in found.added] == more, "what was there is not compiled again"
    assert len(found.kernels) == len(FEW) + len(OTHERS) + len(EXTENDED) + 1
    after = contents(copy)
    assert all(after[name] == before[name] for name in before if name.endswith(".cubin"))
    assert len(document(copy)["kernels"]) == len(found.kernels)
    assert (copy / "drvtopk_kernels.h").read_text().count(".cubin") == len(found.kernels)


def test_the_same_export_again_changes_nothing(copy: Path) -> None:
    export_kernels(copy, {ARCH: FEW}, cache=None)  # by what is measured now: nothing, in this test
    before = contents(copy)
    found = export_kernels(copy, {ARCH: FEW}, cache=None)
    assert found.added == () and contents(copy) == before


def test_a_damaged_kernel_is_written_again(copy: Path, compiled_before: Cache) -> None:
    before = contents(copy)
    name = document(copy)["kernels"][0]["file"]
    (copy / name).write_bytes(b"torn")
    found = export_kernels(copy, {ARCH: FEW}, cache=compiled_before)
    assert [kernel.file for kernel in found.added] == [name]
    assert contents(copy)[name] == before[name]


def altered(folder: Path, **fields: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps({**document(folder), **fields}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sources": "ab" * 32}, ["ab" * 32, "sources"]),
        ({"nvrtc": [13, 1]}, ["13.1", "NVRTC"]),
        ({"format": 2}, ["format 2"]),
        ({"kernels": [{}]}, ["cannot be read"]),
        ({"kernels": 5}, ["cannot be read"]),
        ({"nvrtc": "new"}, ["cannot be read"]),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_what_may_not_be_joined_is_refused_and_left_as_it_is(
    copy: Path, fields: dict[str, Any], said: list[str]
) -> None:
    altered(copy, **fields)
    before = contents(copy)
    with pytest.raises(InvalidArgument) as refused:
        export_kernels(copy, {ARCH: instantiations(ARCH, (9,), (1,), ("filtered",))})
    assert all(word in str(refused.value) for word in [str(copy), *said])
    if "sources" in fields:
        assert source.sources_digest() in str(refused.value), "both digests are named"
    assert contents(copy) == before


def test_kernels_of_other_numbers_or_another_tuning_are_refused(copy: Path) -> None:
    before = contents(copy)
    tuned = [dataclasses.replace(FEW[0], tuning=Tuning(samples=64))]
    with pytest.raises(InvalidArgument, match="tuning"):
        export_kernels(copy, {ARCH: tuned})
    assert contents(copy) == before
    kernels = document(copy)["kernels"]
    kernels[0]["definitions"]["DRVTOPK_THREADS"] = 256
    kernels[0]["digest"] = records.digest(kernels[0])
    altered(copy, kernels=kernels)
    with pytest.raises(InvalidArgument, match="other numbers"):
        export_kernels(copy, {ARCH: FEW})


def test_nothing_to_export_is_refused(tmp_path: Path) -> None:
    nothing: list[dict[str, list[Variant]]] = [{}, {ARCH: []}]
    for wanted in nothing:
        with pytest.raises(InvalidArgument, match="wanted"):
            export_kernels(tmp_path / "none", wanted)
    assert not (tmp_path / "none").exists()


def test_the_manifest_comes_last_and_each_file_is_whole_when_it_has_its_name(
    tmp_path: Path, compiled_before: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    really = os.fsync

    def fsync(handle: int) -> None:
        names.append(",".join(sorted(f.name for f in tmp_path.iterdir() if not f.name.startswith("."))))
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    export_kernels(tmp_path, {ARCH: FEW}, cache=compiled_before)
    mine = [line for line in names if "manifest.json" not in line]
    assert mine == names, "whatever was written before the manifest had its name"
    assert len(names) == len(FEW) + 3 and names[-1].count(",") == len(FEW) + 1
    assert "manifest.json" in contents(tmp_path)


@pytest.mark.parametrize("at", range(4))
def test_a_write_that_fails_leaves_an_export_as_it_was(
    copy: Path, compiled_before: Cache, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    left = at
    really = os.fsync

    def full(handle: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(28, "No space left on device")
        really(handle)

    before = document(copy)
    more = {ARCH: instantiations(ARCH, (8,), (1,), ("persistent",))}
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            export_kernels(copy, more, cache=compiled_before)
    assert document(copy) == before
    assert not [file for file in copy.iterdir() if file.name.startswith(".new-")]
    assert all(hashlib.sha256((copy / r["file"]).read_bytes()).hexdigest() == r["sha256"] for r in before["kernels"])
    assert len(export_kernels(copy, more, cache=compiled_before).added) == 1


def test_a_kernel_that_does_not_compile_leaves_the_folder_alone(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise CompileError("filtered<9,1>", (), "no")

    before = contents(copy)
    monkeypatch.setattr("drvtopk.compiler.compile_variant", refuse)
    with pytest.raises(CompileError):
        export_kernels(copy, {ARCH: instantiations(ARCH, (9,), (1,), ("filtered",))})
    assert contents(copy) == before


EXPORT = """
import sys
from drvtopk.cache import Cache
from drvtopk.export import export_kernels
from drvtopk.spec import instantiations
from pathlib import Path
from tests import tiny
tiny.install()
folder, cache, k = sys.argv[1:]
export_kernels(folder, {"sm_90a": instantiations("sm_90a", (int(k),), (4,), ("filtered",))}, cache=Cache(Path(cache)))
"""


def test_exports_at_the_same_time_all_get_in(tmp_path: Path, compiled_before: Cache) -> None:
    assert compiled_before.folder is not None
    running = [
        subprocess.Popen([sys.executable, "-c", EXPORT, tmp_path / "out", compiled_before.folder, k], cwd=ROOT)
        for k in ("64", "65", "66")
    ]
    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    found = manifest.read(tmp_path / "out")
    assert {variant.k for _, variant in found.kernels} == {64, 65, 66} and len(found.kernels) == 6


# The command


@pytest.fixture
def own_cache(monkeypatch: pytest.MonkeyPatch, compiled_before: Cache) -> None:
    monkeypatch.setenv("DRVTOPK_CACHE", str(compiled_before.folder))


def test_the_command_exports_what_it_is_asked_for(
    own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "a" / "b")
    argv = ["export", "--arch", ARCH, "--k", "64", "--vec-size", "4", "--route", "filtered", "--out", out]
    assert main(argv) == 0
    shown = capsys.readouterr().out
    assert "filtered<64,4,alone>" in shown and shown.endswith(
        f"2 added, 2 kernels in all; to use them: DRVTOPK_CUBINS={out}\n"
    )
    assert main([*argv, "--arch", "sm_80", "--route", "persistent", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["folder"], found["sources"]) == (out, source.sources_digest())
    listed = [(kernel["variant"], kernel["arch"], kernel["added"]) for kernel in found["kernels"]]
    assert listed == [
        ("filtered<64,4,alone>", ARCH, False),
        ("filtered<64,4>", ARCH, False),
        ("persistent<64,4>", ARCH, True),
        ("filtered<64,4,alone>", "sm_80", True),
        ("filtered<64,4>", "sm_80", True),
        ("persistent<64,4>", "sm_80", True),
    ]
    assert all((tmp_path / "a" / "b" / kernel["file"]).is_file() for kernel in found["kernels"])


def test_the_command_takes_options_groups_and_dependent_launches(
    own_cache: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["export", "--arch", ARCH, "--k", "8", "--vec-size", "8", "--route", "clustered", "--group", "2", "--pdl"]
    argv += ["--dtype", "bfloat16", "--values", "--order", "value", "--out", str(tmp_path), "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert [kernel["variant"] for kernel in found["kernels"]] == [
        "clustered_bfloat16_by_value_values<8,8,x2,alone,pdl>",
        "clustered_bfloat16_by_value_values<8,8,x2,pdl>",
    ]
    assert found["options"]["dtype"] == "bfloat16"


def test_by_default_everything_of_a_k_is_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: dict[str, list[Variant]] = {}

    def only_look(folder: Path, wanted: dict[str, list[Variant]], **_: object) -> None:
        seen.update(wanted)
        raise InvalidArgument("looked", "at", "nothing")

    monkeypatch.setattr("drvtopk.cli.exporting.export_kernels", only_look)
    assert main(["export", "--arch", ARCH, "--arch", "sm_80", "--k", "77", "--out", str(tmp_path)]) == 2
    assert seen == {arch: instantiations(arch, (77,)) for arch in (ARCH, "sm_80")}
    assert [len(found) for found in seen.values()] == [33, 9]
    assert export.cubin_name(seen[ARCH][-1], ARCH) == "clustered_k77_v4_x16_sm_90a.cubin"
    assert len({export.cubin_name(v, ARCH) for v in seen[ARCH]}) == 33


@pytest.mark.parametrize(
    ("arch", "asked"), [("sm_90", "sm_90a"), ("sm_100", "sm_100a"), ("sm_100f", "sm_100a"), ("sm_120f", "sm_120a")]
)
def test_targets_that_no_device_asks_for_are_refused(tmp_path: Path, arch: str, asked: str) -> None:
    variant = Variant(route="filtered", k=64, vec_size=4)
    with pytest.raises(InvalidArgument, match=rf"^arch: got '{arch}', allowed is '{asked}': what devices"):
        export_kernels(tmp_path / "made", {"sm_80": [variant], arch: [variant]})
    assert not (tmp_path / "made").exists()
