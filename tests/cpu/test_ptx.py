"""The kernels' PTX: order, scopes, workspace accesses, arithmetic; and each line of inline PTX in `ptx.cuh`.

The CPU harness replaces `ptx.cuh` and the compiler. These tests read the PTX that NVRTC emits, which needs no GPU.
Planted changes show that each check can fail.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise

import pytest

from drvtopk import compiler
from drvtopk.errors import InvalidArgument
from drvtopk.source import kernel_sources
from drvtopk.spec import EXTRAS, PARAMS, Options, Variant

Edit = tuple[str, str, str]  # file, text, what it is replaced by

# -- the instructions of ptx.cuh ---------------------------------------------------------------------------------------

FLOOR = (8, 7)  # the PTX ISA of NVRTC 12.8; a host may have loaded one older than ours


@dataclass(frozen=True, slots=True)
class Needs:
    """What one instruction of `ptx.cuh` needs of the PTX ISA, the GPU, and its asm statement."""

    ptx: tuple[int, int]
    """The first version of the PTX ISA that has it."""
    sm: int
    """The first architecture that has it."""
    keeps: str
    """Of its asm statement. "order": volatile with a "memory" clobber; "place": volatile; "nothing": neither."""


INSTRUCTIONS = {
    "": Needs((1, 0), 10, "nothing"),  # ptx::opaque
    "ld.acquire.gpu.global.u32": Needs((6, 0), 70, "order"),
    "ld.relaxed.gpu.global.u32": Needs((6, 0), 70, "order"),
    "st.release.gpu.global.u32": Needs((6, 0), 70, "order"),
    "st.relaxed.gpu.global.u32": Needs((6, 0), 70, "order"),
    "red.relaxed.gpu.global.add.u32": Needs((6, 0), 70, "order"),
    "red.release.gpu.global.add.u32": Needs((6, 0), 70, "order"),
    "atom.relaxed.gpu.global.add.u32": Needs((6, 0), 70, "order"),
    "shfl.sync.up.b32": Needs((6, 0), 30, "place"),
    "nanosleep.u32": Needs((6, 3), 70, "place"),
    "add.u32": Needs((1, 0), 10, "nothing"),
    "selp.u32": Needs((1, 0), 10, "nothing"),
    "mov.u32 %nsmid": Needs((2, 0), 20, "nothing"),
    "max.bf16x2": Needs((7, 0), 80, "nothing"),
    "max.NaN.bf16x2": Needs((7, 0), 80, "nothing"),
    "griddepcontrol.wait": Needs((7, 8), 90, "order"),
    "griddepcontrol.launch_dependents": Needs((7, 8), 90, "order"),
    "mov.u32 %cluster_ctarank": Needs((7, 8), 90, "nothing"),
    "barrier.cluster.arrive.release.aligned": Needs((8, 0), 90, "order"),
    "barrier.cluster.arrive.relaxed.aligned": Needs((8, 0), 90, "order"),
    "barrier.cluster.wait.acquire.aligned": Needs((8, 0), 90, "order"),
    "mapa.shared::cluster.u32": Needs((7, 8), 90, "nothing"),
    "ld.shared::cluster.u32": Needs((7, 8), 90, "order"),
    "st.shared::cluster.u32": Needs((7, 8), 90, "order"),
    "red.relaxed.cluster.shared::cluster.add.u32": Needs((7, 8), 90, "order"),
    "atom.relaxed.cluster.shared::cluster.add.u32": Needs((7, 8), 90, "order"),
    "mbarrier.init.shared::cta.b64": Needs((7, 8), 80, "order"),
    "fence.mbarrier_init.release.cluster": Needs((8, 0), 90, "order"),
    "mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64": Needs((8, 6), 90, "order"),
    "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64": Needs((8, 0), 90, "order"),
    "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.u32": Needs((8, 1), 90, "order"),
}
SPECIAL = {name.partition("%")[2] for name in INSTRUCTIONS if "%" in name}
FENCES = {name for name in INSTRUCTIONS if name.startswith("fence")}

# The pointers of Params and the opcodes that may access what they point at. The inputs do not change while a kernel
# runs, so `.nc` is right for them. The output is never read. The workspace is written by several blocks at once.
READ = re.compile(r"ld\.global(\.nc)?(\.v[248])?\.[busf]\d+")
WRITTEN = re.compile(r"st\.global(\.v[248])?\.[busf]\d+")
ORDERED = re.compile("|".join(re.escape(name) for name in INSTRUCTIONS if ".gpu.global." in name))
USES = {
    "logits": READ,
    "lengths": READ,
    "row_starts": READ,
    "page_table": READ,
    "out": WRITTEN,
    "values": WRITTEN,
    "workspace": ORDERED,
}

# On floats. `div.approx.f32` is the `__fdividef` of keys.cuh: any positive scale gives bins in order. `add`, `sub` and
# `mul` without a rounding mode round to nearest, or ptxas makes an `fma` of two.
FLOAT = re.compile(
    r"(add|sub|mul|mad|fma|div|rcp|sqrt|rsqrt|sin|cos|tanh|ex2|lg2)\..*\b(f16|f16x2|bf16|bf16x2|f32|f64)"
)
ARITHMETIC = {"add.f32", "sub.f32", "mul.f32", "fma.rn.f32", "div.rn.f32", "div.approx.f32", "sqrt.rn.f32"}


# -- PTX as blocks of instructions -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line: `@%p1 ld.shared.u32 %r1, [%r2+4];`"""

    text: str
    guard: str
    opcode: str
    operands: tuple[str, ...]

    @property
    def name(self) -> str:
        """As INSTRUCTIONS has it: the opcode, and the special register that it reads."""
        special = self.operands[-1][1:] if self.operands else ""
        return f"{self.opcode} %{special}" if special in SPECIAL else self.opcode

    @property
    def parts(self) -> list[str]:
        return self.opcode.split(".")

    @property
    def accesses(self) -> bool:
        """Whether it reads, writes or fetches memory by address."""
        return self.parts[0] in {"ld", "ldu", "st", "atom", "red", "cp", "prefetch", "prefetchu", "discard", "multimem"}

    @property
    def touches_global(self) -> bool:
        """Whether it may access global memory. Generic addresses may point there."""
        spaces = {part.partition("::")[0] for part in self.parts} & {"global", "shared", "local", "param", "const"}
        return self.accesses and (not spaces or "global" in spaces)

    @property
    def writes(self) -> bool:
        return self.accesses and self.parts[0] not in {"ld", "ldu", "prefetch", "prefetchu"}

    @property
    def address(self) -> str:
        """What stands in the first brackets."""
        return next((operand[1:-1] for operand in self.operands if operand.startswith("[")), "")


@dataclass(slots=True)
class Block:
    """A basic block, and the numbers of its successors."""

    instructions: list[Instruction]
    next: list[int]


@dataclass(frozen=True, slots=True)
class Kernel:
    version: tuple[int, int]
    sm: int
    blocks: list[Block]

    def __iter__(self) -> Iterator[Instruction]:
        return (instruction for block in self.blocks for instruction in block.instructions)


STATEMENT = re.compile(r"(@!?%?\w+\s+)?([a-z][\w.:]*)\s*(.*);")
OPERAND = re.compile(r"\[[^]]*\]|\{[^}]*\}|[^,\s]+")
REGISTER = re.compile(r"%[a-z]+\d+")


def parsed(text: str) -> Kernel:
    """The one kernel of a module without functions and branch tables."""
    version, target = re.search(r"^\.version (\d+)\.(\d+)", text, re.M), re.search(r"^\.target sm_(\d+)", text, re.M)
    assert version is not None and target is not None
    assert text.count(".entry") == 1 and ".func" not in text and ".branchtargets" not in text
    body = text[text.index("{", text.index(".entry")) :]
    blocks, labels, jumps = [Block([], [])], {}, {}
    for line in (line.partition("//")[0].strip() for line in body.splitlines()):
        if label := re.fullmatch(r"(\$?\w+):", line):
            labels[label[1]] = len(blocks)
            blocks[-1].next.append(len(blocks))
            blocks.append(Block([], []))
        elif line and line not in "{}" and not line.startswith("."):
            statement = STATEMENT.fullmatch(line)
            assert statement is not None, line
            guard, opcode, operands = (statement[1] or "").strip(), statement[2], statement[3]
            blocks[-1].instructions.append(Instruction(line, guard, opcode, tuple(OPERAND.findall(operands))))
            verb = opcode.partition(".")[0]
            if verb in {"bra", "ret", "exit", "trap"}:
                if verb == "bra":
                    jumps[len(blocks) - 1] = operands.strip()
                if guard:
                    blocks[-1].next.append(len(blocks))
                blocks.append(Block([], []))
    for block, target_label in jumps.items():
        blocks[block].next.append(labels[target_label])
    blocks[-1].next = []
    return Kernel((int(version[1]), int(version[2])), int(target[1]), blocks)


def edited(edits: tuple[Edit, ...]) -> dict[str, bytes]:
    sources = dict(kernel_sources())
    for file, text, by in edits:
        assert sources[file].count(text.encode()) == 1, (
            f"{file} has {text!r} {sources[file].count(text.encode())} times"
        )
        sources[file] = sources[file].replace(text.encode(), by.encode())
    return sources


@cache
def compiled(variant: Variant, arch: str, edits: tuple[Edit, ...] = (), extra: tuple[str, ...] = ()) -> Kernel:
    """What `compile_variant` compiles, for the virtual architecture: NVRTC then stops at PTX."""
    sources = edited(edits)
    entry = f"{variant.route}.cu"
    headers = {name: text for name, text in sources.items() if name.endswith(".cuh")}
    architecture, *rest = compiler.options(variant, arch)
    opts = (architecture.replace("=sm_", "=compute_"), *rest, *extra, *compiler._CLOSED, *compiler._uncached())
    ptx, _ = compiler._run(str(variant), sources[entry], entry, headers, opts, "PTX")
    return parsed(ptx.rstrip(b"\0").decode())


# -- the checks --------------------------------------------------------------------------------------------------------


def unfenced(kernel: Kernel) -> Iterator[str]:
    """The fence that makes an initialized mbarrier visible to the cluster follows the initialization."""
    for block in kernel.blocks:
        for one, after in pairwise([*block.instructions, None]):
            if (
                one
                and one.opcode.startswith("mbarrier.init")
                and (after is None or (after.guard, after.opcode) != (one.guard, "fence.mbarrier_init.release.cluster"))
            ):
                yield f"no fence directly after {one.text}"


def ahead_of_predecessor(kernel: Kernel) -> Iterator[str]:
    """No path accesses global memory before griddepcontrol.wait."""
    seen, left = {0}, [0]
    while left:
        block = kernel.blocks[left.pop()]
        for one in block.instructions:
            if one.opcode == "griddepcontrol.wait" and not one.guard:
                break
            if one.touches_global:
                yield f"before griddepcontrol.wait: {one.text}"
        else:
            left += (new := set(block.next) - seen)
            seen |= new


def behind_successor(kernel: Kernel) -> Iterator[str]:
    """No path writes global memory after griddepcontrol.launch_dependents."""
    seen: set[int] = set()
    left: list[int] = []

    def late(instructions: list[Instruction]) -> Iterator[str]:
        return (
            f"after griddepcontrol.launch_dependents: {i.text}" for i in instructions if i.touches_global and i.writes
        )

    for block in kernel.blocks:
        for at, one in enumerate(block.instructions):
            if one.opcode == "griddepcontrol.launch_dependents":
                yield from late(block.instructions[at:])
                left += block.next
    while left:
        if (number := left.pop()) not in seen:
            seen.add(number)
            yield from late(kernel.blocks[number].instructions)
            left += kernel.blocks[number].next


def dependent_launch(kernel: Kernel, pdl: bool) -> Iterator[str]:
    said = {one.opcode for one in kernel if one.opcode.startswith("griddepcontrol")}
    wanted = {"griddepcontrol.wait", "griddepcontrol.launch_dependents"} if pdl else set()
    yield from (f"without {opcode}" for opcode in sorted(wanted - said))
    yield from (f"{opcode}, which is not asked for" for opcode in sorted(said - wanted))
    if pdl:
        yield from ahead_of_predecessor(kernel)
        yield from behind_successor(kernel)


def scopes(kernel: Kernel) -> Iterator[str]:
    """Accesses with memory ordering have .gpu scope in global and .cluster scope in shared::cluster memory. Atomics on
    either have memory ordering. Accesses to the block's own shared memory have neither ordering nor scope."""
    for one in kernel:
        parts = set(one.parts)
        ordered = bool(parts & {"acquire", "release", "acq_rel", "relaxed"})
        local = not one.touches_global and "shared::cluster" not in parts
        if "sys" in parts:
            yield f"at system scope: {one.text}"
        elif one.parts[0] in {"fence", "membar"} and one.opcode not in FENCES:
            yield f"not a fence of ptx.cuh: {one.text}"
        elif one.accesses and parts & {"volatile", "mmio"}:
            if not local:
                yield f"volatile beyond the block's shared memory: {one.text}"
        elif one.parts[0] == "mbarrier" and ordered and "cluster" not in parts:
            yield f"not at cluster scope: {one.text}"
        elif one.accesses and (ordered or one.parts[0] in {"atom", "red"}):
            wanted = "no" if local else "gpu" if one.touches_global else "cluster"
            if ordered == local or parts & {"cta", "cluster", "gpu"} != {wanted} - {"no"}:
                yield f"not at {wanted} scope: {one.text}"


def fields() -> dict[int, str]:
    """The fields of Params by their place in it."""
    found, at = {}, 0
    for name, kind in (*PARAMS, *EXTRAS):
        found[at] = name
        at += 4 if kind == "u32" else 8
    return found


PLACE = re.compile(r"(\w+_param_0|%\w+)(?:\+(-?\d+))?")


def origins(kernel: Kernel) -> dict[str, set[str]]:
    """The fields of Params that each register's value may be computed from. Ignores the order of instructions."""
    places: dict[str, int] = {}  # registers that hold the address of Params, or of a place in it
    flows: dict[str, set[str]] = defaultdict(set)
    found: dict[str, set[str]] = defaultdict(set)
    told = fields()

    def place(address: str) -> int | None:
        match = PLACE.fullmatch(address)
        start = None if match is None else 0 if match[1].endswith("_param_0") else places.get(match[1])
        return None if match is None or start is None else start + int(match[2] or 0)

    for one in kernel:
        if one.parts[0] in {"mov", "add"} and (at := place("+".join(one.operands[1:]))) is not None:
            places[one.operands[0]] = at
    for one in kernel:
        if one.opcode.startswith("ld.param"):
            at = place(one.address)
            assert at is not None, f"of which parameter? {one.text}"
            for number, register in enumerate(REGISTER.findall(one.operands[0])):
                found[register].add(told[at + number * int(one.parts[-1][1:]) // 8])
        elif one.operands and one.parts[0] not in {"ld", "st", "atom", "red", "setp", "bra"}:
            for register in REGISTER.findall(" ".join(one.operands[1:])):
                flows[register] |= set(REGISTER.findall(one.operands[0]))
    left = list(found)
    while left:
        register = left.pop()
        for further in flows[register]:
            if not found[register] <= found[further]:
                found[further] |= found[register]
                left.append(further)
    return found


def accesses(kernel: Kernel) -> Iterator[tuple[Instruction, set[str]]]:
    """Each access to global memory, and the pointers of Params that its address may come from."""
    known = origins(kernel)
    for one in kernel:
        if one.touches_global:
            registers = REGISTER.findall(one.address)
            yield one, {name for register in registers for name in known.get(register, ()) if name in USES}


def misuses(kernel: Kernel) -> Iterator[str]:
    for one, arrays in accesses(kernel):
        if not arrays:
            yield f"an address from no array: {one.text}"
        for name in sorted(arrays):
            if not USES[name].fullmatch(one.opcode):
                yield f"{name} by {one.text}"


def arithmetic(kernel: Kernel) -> Iterator[str]:
    for one in kernel:
        if ".ftz" in one.opcode or (FLOAT.fullmatch(one.opcode) and one.opcode not in ARITHMETIC):
            yield f"arithmetic: {one.text}"


def unavailable(kernel: Kernel) -> Iterator[str]:
    for one in kernel:
        needs = INSTRUCTIONS.get(one.name)
        if needs is not None and (kernel.version < needs.ptx or kernel.sm < needs.sm):
            yield f"not in PTX {kernel.version} for sm_{kernel.sm}: {one.text}"


def complaints(kernel: Kernel, pdl: bool) -> list[str]:
    checks = (unfenced, scopes, misuses, arithmetic, unavailable)
    return [*dependent_launch(kernel, pdl), *(text for check in checks for text in check(kernel))]


# -- the kernels -------------------------------------------------------------------------------------------------------

FILTERED = Variant(route="filtered", k=512, vec_size=4, pdl=True)
ONE_READING = Variant(
    route="filtered", k=512, vec_size=4, residency=1, options=Options(dtype="bfloat16", nan="highest")
)
CLUSTERED = Variant(
    route="clustered", k=512, vec_size=1, cluster=8, pdl=True, options=Options(values=True, page_table=True)
)
BY_DIGITS = Variant(
    route="clustered",
    k=64,
    vec_size=1,
    cluster=2,
    options=Options(dtype="float16", index_dtype="int64", tie_break="smallest", row_starts=True),
)
PERSISTENT = Variant(route="persistent", k=512, vec_size=4, options=Options(order="value", values=True))
KERNELS = [
    (FILTERED, "sm_90a"),
    (ONE_READING, "sm_80"),
    (CLUSTERED, "sm_90a"),
    (BY_DIGITS, "sm_100a"),
    (PERSISTENT, "sm_80"),
]


@pytest.mark.exhaustive("compiles")
@pytest.mark.parametrize(("variant", "arch"), KERNELS, ids=str)
def test_nothing_is_wrong_in_the_ptx(variant: Variant, arch: str) -> None:
    kernel = compiled(variant, arch)
    assert complaints(kernel, variant.pdl) == []


@pytest.mark.exhaustive("compiles")
def test_every_instruction_of_ptx_cuh_is_in_one_of_them() -> None:
    seen = {one.name for variant, arch in KERNELS for one in compiled(variant, arch)}
    lowest = replace(ONE_READING, options=Options(dtype="bfloat16"))
    seen |= {one.name for one in compiled(lowest, "sm_80", body("ptx::max_of_pairs(p.rows, p.width)"))}
    assert set(INSTRUCTIONS) - {""} <= seen


def test_the_workspace_is_followed_to_each_kind_of_its_accesses() -> None:
    """`misuses` would also pass a kernel whose addresses `origins` lost."""
    found = {one.name for one, arrays in accesses(compiled(PERSISTENT, "sm_80")) if arrays == {"workspace"}}
    assert found == {name for name in INSTRUCTIONS if ".gpu.global." in name}


def test_every_array_is_used() -> None:
    used = {name for variant, arch in KERNELS for _, arrays in accesses(compiled(variant, arch)) for name in arrays}
    assert used == set(USES) == {name for name, kind in (*PARAMS, *EXTRAS) if kind.endswith("*")}


# -- planted changes ---------------------------------------------------------------------------------------------------


def body(value: str) -> tuple[Edit, ...]:
    """A filtered kernel that only writes `value` for each row."""
    return (("filtered.cu", "row_alone<K, Vec, true>(row_of<Vec>(p, row), p, row, sh);", f"p.out[row] = {value};"),)


# Kernels without `row_alone`, which takes most of the compile time.
SMALL: dict[str, tuple[Edit, ...]] = {
    "filtered": body("row_of<Vec>(p, row).n"),
    "clustered": (("clustered.cu", "row_alone<K, Vec, false>(from, p, row, sh);", ""),),
    "persistent": (("persistent.cu", "row_alone<K, Vec, false>(from, p, row, sh);", ""),),
}
WAIT = "  ptx::wait_for_predecessor();\n"
BEGIN = "  ptx::let_successor_begin();\n"
LOOP = "row += gridDim.x) {\n"
FENCE = '  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");\n'
PREFETCH = '  asm volatile("prefetch.global.L2 [%0];" ::"l"(p.logits));\n'
SUM = "ptx::load_relaxed(shared_bins + b)"
TIES = "ptx::fetch_add_relaxed(handed_out + kTieWord, tied)"

PLANTED: dict[str, list[tuple[str, str, str, str]]] = {  # by route: file, text, what it is replaced by, what is said
    "filtered": [
        ("filtered.cu", WAIT, "", "without griddepcontrol.wait"),
        ("filtered.cu", WAIT, f"  if (p.rows > 1) {WAIT}", "before griddepcontrol.wait: ld.global"),
        ("filtered.cu", WAIT, f"  if (__ldg(p.lengths) < 0) return;\n{WAIT}", "before griddepcontrol.wait: ld.global"),
        ("filtered.cu", WAIT, PREFETCH + WAIT, "before griddepcontrol.wait: prefetch"),
        ("filtered.cu", WAIT, WAIT + BEGIN, "after griddepcontrol.launch_dependents: st.global"),
        (
            "filtered.cu",
            LOOP,
            f"{LOOP}  if (row % 7 == 6) {BEGIN}",
            "after griddepcontrol.launch_dependents: st.global",
        ),
        ("filtered.cu", BEGIN, "", "without griddepcontrol.launch_dependents"),
        ("filtered.cu", BEGIN, BEGIN + "  __threadfence();\n", "not a fence of ptx.cuh: "),
        ("filtered.cu", BEGIN, BEGIN + "  __threadfence_system();\n", "at system scope: "),
        ("filtered.cu", BEGIN, "  p.out[1] = p.out[0];\n" + BEGIN, "out by ld.global"),
        (
            "filtered.cu",
            BEGIN,
            f"  *reinterpret_cast<u32*>(u64{{p.rows}}) = 7;\n{BEGIN}",
            "an address from no array: st",
        ),
    ],
    "persistent": [
        ("ptx.cuh", "ld.acquire.gpu.global", "ld.acquire.cta.global", "not at gpu scope: ld.acquire.cta"),
        ("ptx.cuh", "st.release.gpu.global", "st.release.sys.global", "at system scope: st.release.sys"),
        ("ptx.cuh", "red.release.gpu.global", "red.global", "not at gpu scope: red.global"),
        ("ptx.cuh", "ld.relaxed.gpu.global", "ld.volatile.global", "volatile beyond the block's shared memory: ld"),
        ("row_group.cuh", SUM, "__ldg(shared_bins + b)", "workspace by ld.global.nc"),
        ("row_group.cuh", SUM, "shared_bins[b]", "workspace by ld.global.u32"),
        ("row_group.cuh", "ptx::store_relaxed(finished + i, 0)", "finished[i] = 0", "workspace by st.global"),
        ("row_group.cuh", TIES, "atomicAdd(handed_out + kTieWord, tied)", "workspace by atom.global"),
        ("held.cuh", "atomicAdd(&bins[opening", "atomicAdd_block(&bins[opening", "not at no scope: atom.shared.cta"),
    ],
    "clustered": [
        ("ptx.cuh", FENCE, f"  __syncwarp();\n{FENCE}", "no fence directly after mbarrier.init"),
        ("ptx.cuh", "tx.relaxed.cluster.shared", "tx.relaxed.cta.shared", "not at cluster scope: mbarrier.arrive"),
        ("ptx.cuh", "red.relaxed.cluster.shared", "red.shared", "not at cluster scope: red.shared::cluster"),
    ],
}


@pytest.mark.parametrize(
    ("route", "edit", "says"), [(route, tuple(edit), says) for route in PLANTED for *edit, says in PLANTED[route]]
)
def test_a_planted_change_is_noticed(route: str, edit: Edit, says: str) -> None:
    pdl = route != "persistent"
    variant = Variant(route=route, k=64, vec_size=1, cluster=2 if route == "clustered" else 1, pdl=pdl)
    assert complaints(compiled(variant, "sm_90a", SMALL[route]), pdl) == []
    found = complaints(compiled(variant, "sm_90a", (*SMALL[route], edit)), pdl)
    assert any(text.startswith(says) for text in found), found


def test_dependent_launch_that_is_not_asked_for_is_noticed() -> None:
    kernel = compiled(Variant(route="filtered", k=64, vec_size=1, pdl=True), "sm_90a", SMALL["filtered"])
    assert "griddepcontrol.wait, which is not asked for" in complaints(kernel, pdl=False)


def test_an_instruction_that_an_architecture_lacks_is_noticed() -> None:
    kernel = compiled(Variant(route="filtered", k=64, vec_size=1, pdl=True), "sm_80", SMALL["filtered"])
    assert any(text.endswith("for sm_80: griddepcontrol.wait;") for text in complaints(kernel, pdl=True))


# -- arithmetic --------------------------------------------------------------------------------------------------------

FLOATS = body("sqrtf(value_of(p.logits[row]) / 3.0f) * 5.0f + 7.0f")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("-ftz=true", "arithmetic: sqrt.rn.ftz.f32"),
        ("--ftz=true", "arithmetic: div.rn.ftz.f32"),
        ("-use_fast_math", "arithmetic: sqrt.approx.ftz.f32"),
        ("--use_fast_math", "arithmetic: fma.rn.ftz.f32"),
        ("-prec-div=false", "arithmetic: div.full.f32"),
        ("--prec-sqrt=false", "arithmetic: sqrt.approx.f32"),
        ("-fmad=false", "arithmetic: mul.rn.f32"),
    ],
)
def test_an_option_that_changes_arithmetic_is_refused_and_would_be_seen(
    option: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = Variant(route="filtered", k=64, vec_size=1)
    assert complaints(compiled(variant, "sm_90a", FLOATS), pdl=False) == []
    found = complaints(compiled(variant, "sm_90a", FLOATS, (option,)), pdl=False)
    assert any(text.startswith(says) for text in found), found
    monkeypatch.setattr(compiler, "_run", lambda *_: pytest.fail("it was compiled"))
    for extra in ((option,), tuple(option.split("="))):  # NVRTC takes the value as an option of its own as well
        with pytest.raises(InvalidArgument, match=re.escape(f"extra: got '{extra[0]}', allowed is any option but --")):
            compiler.compile_variant(variant, "sm_90a", extra=("-lineinfo", *extra))


# -- the text of ptx.cuh -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asm:
    """One asm statement: its instructions, named as in INSTRUCTIONS, and its qualifiers."""

    names: tuple[str, ...]
    volatile: bool
    clobbers: bool

    @property
    def keeps(self) -> str:
        return ("order" if self.clobbers else "place") if self.volatile else "nothing"


def asm_statements(text: str) -> Iterator[Asm]:
    text = re.sub(r"//.*", "", text)
    for found in re.finditer(r"\basm\b\s*(volatile\b)?\s*\(", text):
        sections, depth = [""], 1
        for token in re.findall(r'"(?:[^"\\]|\\.)*"|.', text[found.end() :], re.S):
            depth += {"(": 1, ")": -1}.get(token, 0)
            if depth == 0:
                break
            if token == ":" and depth == 1:
                sections.append("")
            else:
                sections[-1] += token
        template = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', sections[0])).replace(r"\n", " ").replace(r"\t", " ")
        names = []
        for line in template.strip(" {}").split(";"):
            words = re.sub(r"^\s*(@!?\w+\s)?", "", line).split()
            special = [f"%{name}" for name in re.findall(r"%%(\w+)", line)]
            if words and not words[0].startswith("."):
                names.append(" ".join([words[0], *special]))
        yield Asm(tuple(names) or ("",), found[1] is not None, len(sections) > 3 and '"memory"' in sections[3])


def loose(text: str) -> list[str]:
    """Instructions that are not in INSTRUCTIONS, and asm statements without the qualifiers that theirs need."""
    found = []
    for statement in asm_statements(text):
        unknown = [name for name in statement.names if name not in INSTRUCTIONS]
        found += [f"not in the table: {name}" for name in unknown]
        strength = ("nothing", "place", "order")
        wanted = max((strength.index(INSTRUCTIONS[name].keeps) for name in statement.names if not unknown), default=0)
        if strength.index(statement.keeps) < wanted:
            found.append(f"keeps {statement.keeps}, not {strength[wanted]}: {' '.join(statement.names)}")
    return found


def test_each_asm_statement_is_known_and_keeps_what_it_must() -> None:
    text = kernel_sources()["ptx.cuh"].decode()
    assert loose(text) == []
    assert {name for statement in asm_statements(text) for name in statement.names} == set(INSTRUCTIONS)
    assert len(list(asm_statements(text))) == len(re.findall(r"asm", re.sub(r"//.*", "", text)))


def test_inline_ptx_is_in_ptx_cuh_only() -> None:
    assert [name for name, text in kernel_sources().items() if re.search(rb"\b_*asm_*\b", text)] == ["ptx.cuh"]


def newer_than(version: tuple[int, int]) -> list[str]:
    return [name for name, needs in INSTRUCTIONS.items() if needs.ptx > version]


def test_the_oldest_nvrtc_has_every_instruction() -> None:
    assert newer_than(FLOOR) == []
    of_12_6 = (8, 5)
    assert newer_than(of_12_6) == ["mbarrier.arrive.expect_tx.relaxed.cluster.shared::cluster.b64"]


@pytest.mark.parametrize(
    ("text", "by", "says"),
    [
        (
            'asm volatile("griddepcontrol.wait;" ::: "memory");',
            'asm volatile("griddepcontrol.wait;");',
            "keeps place, not order: griddepcontrol.wait",
        ),
        (
            'asm volatile("st.release.gpu.global.u32',
            'asm("st.release.gpu.global.u32',
            "keeps nothing, not order: st.release.gpu.global.u32",
        ),
        (
            ': "r"(address), "r"(turn % 2)\n        : "memory");',
            ': "r"(address), "r"(turn % 2));',
            "keeps place, not order: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 selp.u32",
        ),
        ('asm volatile("nanosleep', 'asm("nanosleep', "keeps nothing, not place: nanosleep.u32"),
        ("ld.relaxed.gpu.global.u32", "ld.relaxed.gpu.global.L1::no_allocate.u32", "not in the table: ld.relaxed.gpu"),
        ("%%nsmid", "%%smid", "not in the table: mov.u32 %smid"),
        ("namespace ptx {\n", 'namespace ptx {\nasm("trap;");\n', "not in the table: trap"),
        # The sender of a bulk copy is not told when its memory has been read.
        ("st.async.weak.shared", "cp.async.bulk.shared", "not in the table: cp.async.bulk.shared"),
    ],
)
def test_a_planted_change_of_the_text_is_noticed(text: str, by: str, says: str) -> None:
    found = loose(edited((("ptx.cuh", text, by),))["ptx.cuh"].decode())
    assert any(complaint.startswith(says) for complaint in found), found
