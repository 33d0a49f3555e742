"""Runs a Plan's own kernel on the CPU: builds the variant, sends the arrays, gives back the answer or the complaint."""

from __future__ import annotations

import atexit
import hashlib
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk import spec
from drvtopk.compiler import definitions
from drvtopk.plan import Plan
from drvtopk.source import kernel_sources
from drvtopk.spec import INDEX_DTYPES, Variant
from drvtopk.testing.inputs import canaries, surround
from drvtopk.testing.oracle import narrowed

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int32]
Words = npt.NDArray[np.uint32]

HERE = Path(__file__).parent
COMPILER = os.environ.get("CXX", "g++")
BUILDS = Path(tempfile.gettempdir()) / f"drvtopk-harness-{os.getuid()}"
_DYNAMIC = b"extern __shared__ __align__(16) unsigned char dynamic[];"
_HERE_DYNAMIC = b"unsigned char* const dynamic = machine::shared_memory();"
_MACHINE = ("machine.cpp", "shim.h", "fibers.h", "memory.h", "races.h")
_NOTHING: Array = np.empty((0, 0), np.int32)
_STATUS = {0: "done", 3: "deadlock", 4: "fault"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How one simulated launch ended."""

    status: str
    """"done", "deadlock", "fault" (a checked rule was broken), "crash" (a signal or a sanitizer) or "timeout"."""
    out: Array
    """(rows, k), int32 or int64; empty unless done."""
    values: Array
    """(rows, k) of the logits' words where the plan asks for values; empty otherwise."""
    workspace: Words
    """What the launch left there; empty unless done."""
    bytes_read: int
    """Of logits, by all loads of all threads; zero unless done."""
    report: str


def build(variant: Variant, *, sources: Mapping[str, bytes] | None = None, sanitize: bool = False) -> Path:
    """The program that runs this variant, compiled unless the same one is there already."""
    files = dict(kernel_sources() if sources is None else sources)
    files.update({path.name: path.read_bytes() for path in HERE.iterdir() if path.suffix in (".h", ".cuh", ".cpp")})
    entry = f"{variant.route}.cu"
    if files[entry].count(_DYNAMIC) != 1:
        raise ValueError(f"{entry} declares its dynamic shared memory in another way than {_DYNAMIC.decode()}")
    files[entry] = files[entry].replace(_DYNAMIC, _HERE_DYNAMIC)
    files["entry.h"] = f'#include "shim.h"\n#include "{entry}"\n#define HARNESS_ENTRY {variant.entry}\n'.encode()
    compiler = [COMPILER, "-std=c++17", "-g1", "-Wall", "-Wno-unknown-pragmas"]
    speed = "-O1" if sources is None else "-O0"  # kernels that a test changed run a few times only
    host = {name: text for name, text in files.items() if name in _MACHINE}
    numbers = [f"-D{name}={value}" for name, value in definitions(variant, "sm_90a").items()]
    threads = f"-DHARNESS_THREADS={variant.threads}"
    if sanitize:
        compiler += ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        mode = ["-O1", "-DHARNESS_SANITIZED", "-DHARNESS_STACK=65536"]
        hooks = []
    else:
        mode = ["-O2", "-DHARNESS_STACK=16384"]
        hooks = ["-fsanitize=thread"]  # compiled in, not linked: machine.cpp brings its own
    machine = _made(BUILDS, "machine.o", [*compiler, threads, *mode, "-c", "machine.cpp"], host)
    builds = BUILDS if sources is None else _builds_of_changed_kernels()
    kernel = _made(builds, "kernel.o", [*compiler, speed, *hooks, *numbers, "-c", "kernel.cpp"], files)
    return _made(builds, "program", [*compiler, str(kernel), str(machine), "-o", "program"], {})


@cache
def _builds_of_changed_kernels() -> Path:
    """A folder that goes with this process."""
    made = tempfile.TemporaryDirectory(prefix="drvtopk-harness-")
    atexit.register(made.cleanup)
    return Path(made.name)


def _made(builds: Path, output: str, command: list[str], files: Mapping[str, bytes]) -> Path:
    """What `command` makes as `output` in a folder of these files, kept in `builds` by the content of both."""
    digest = hashlib.sha256(repr((command, sorted(files.items()))).encode()).hexdigest()[:24]
    kept = builds / f"{digest}.{output}"
    if not kept.exists():
        builds.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=builds) as folder:
            for file, text in files.items():
                (Path(folder) / file).write_bytes(text)
            try:
                done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
            except FileNotFoundError:
                raise RuntimeError(f"no host C++ compiler {COMPILER!r}: name one in CXX") from None
            if done.returncode:
                raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
            (Path(folder) / output).replace(kept)
    return kept


def simulate(
    plan: Plan,
    logits: Array,
    lengths: Ints | None = None,
    *,
    row_starts: Ints | None = None,
    page_table: Ints | None = None,
    page_size: int = 1,
    workspace: Words | None = None,
    slots: int | None = None,
    seed: int = 0,
    offset: int = 0,
    out_stride: int | None = None,
    values_stride: int | None = None,
    sources: Mapping[str, bytes] | None = None,
    sanitize: bool = False,
    timeout: float = 60,
) -> Run:
    """One launch of `plan` on logits (rows, width), its rows `plan.stride` apart, on a GPU of `slots` resident blocks.

    `workspace` (uint32, plan.workspace_bytes long; zeros unless given) is what the launch finds there. The same seed
    makes the same run. Rows stand `offset` elements past an aligned address, with canaries between and before them, and
    just before and behind their windows too;
    those of the output are `out_stride` elements apart (k unless given), and those of the values `values_stride`.
    """
    rows, width = logits.shape
    if not rows:
        return _ended("done")
    options = plan.options
    if plan.stride >= width:
        logits = surround(logits, plan.k, lengths, row_starts, options.dtype, seed=seed)
    flat = narrowed(canaries(offset + (rows - 1) * plan.stride + width), options.dtype)
    for row in range(rows):
        flat[offset + row * plan.stride :][:width] = logits[row].view(flat.dtype)
    integers = [b"" if a is None else np.ascontiguousarray(a, np.int32).tobytes() for a in (lengths, row_starts)]
    table = _NOTHING
    if page_table is not None:  # a column more than there are pages, so that its stride counts
        table = np.pad(np.asarray(page_table, np.int32), ((0, 0), (0, 1)), constant_values=-7)
    out_stride = plan.k if out_stride is None else out_stride
    values_stride = plan.k if values_stride is None else values_stride
    index_bytes = INDEX_DTYPES[options.index_dtype]
    out_bytes = rows * out_stride * index_bytes
    values_bytes = rows * values_stride * options.item_bytes if options.values else 0
    if workspace is None:
        workspace = np.zeros(plan.workspace_bytes // 4, np.uint32)
    header = struct.pack(
        "<12Q19I4x",
        seed,
        flat.nbytes,
        *map(len, integers),
        table.nbytes,
        out_bytes,
        values_bytes,
        plan.workspace_bytes,
        plan.stride,
        out_stride,
        values_stride,
        table.shape[1],
        offset,
        plan.grid,
        plan.resident_cap if slots is None else slots,
        plan.smem_bytes,
        rows,
        width,
        plan.group,
        plan.groups,
        plan.chunk,
        plan.candidates,
        plan.cooperative,
        options.item_bytes,
        index_bytes,
        page_size,
        1 if page_table is None else rows // len(page_table),
        plan.vec_size,
        plan.k,
        plan.variant.cluster,
        plan.pdl,
    )
    body = [flat.tobytes(), *integers, table.tobytes(), workspace.tobytes()]
    program = build(plan.variant, sources=sources, sanitize=sanitize)
    command = [str(program), str(os.getpid())]
    try:
        done = subprocess.run(command, input=b"".join([header, *body]), capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return _ended("timeout")
    status = _STATUS.get(done.returncode, "crash")
    report = _named(done.stderr.decode(errors="replace").strip(), plan)
    if status != "done":
        return _ended(status, report)
    found, read = done.stdout[:-8], int.from_bytes(done.stdout[-8:], "little")
    upto = out_bytes + values_bytes
    return Run(
        status=status,
        out=np.frombuffer(found[:out_bytes], options.index_dtype).reshape(-1, out_stride)[:, : plan.k],
        values=np.frombuffer(found[out_bytes:upto], flat.dtype).reshape(-1, values_stride)[:, : plan.k],
        workspace=np.frombuffer(found[upto:], np.uint32),
        bytes_read=read,
        report=report,
    )


def _ended(status: str, report: str = "") -> Run:
    """A run that has no results."""
    words = np.empty(0, np.uint32)
    return Run(status=status, out=_NOTHING, values=_NOTHING, workspace=words, bytes_read=0, report=report)


def _named(report: str, plan: Plan) -> str:
    """The machine's report with words of the workspace and of shared memory by their names in cuda_src/."""
    per_group = plan.variant.group_state_bytes(plan.group) // 4

    def in_workspace(match: re.Match[str]) -> str:
        group, word = divmod(int(match[1]), per_group)
        word -= spec.WORKSPACE_ALIGNMENT // 4
        if word < 0:
            return f"arrivals of group {group}"
        if word < spec.ROUNDS * spec.ROUND_WORDS:
            return "round {}[{}] of group {}".format(*divmod(word, spec.ROUND_WORDS), group)
        which, rank = divmod(word - spec.ROUNDS * spec.ROUND_WORDS, plan.group)
        if which > 1:
            return f"member {word - spec.ROUNDS * spec.ROUND_WORDS - 2 * plan.group} of group {group}"
        return f"{('said', 'echo')[which]}({rank}) of group {group}"

    def in_shared(match: re.Match[str]) -> str:
        word = int(match[1])
        fixed = plan.variant.fixed_smem_bytes // 4
        staged = max(spec.align(plan.k, 4), plan.variant.sorted_places)
        scratch = spec.SCRATCH_BYTES // 4
        parts = (("bins", fixed - scratch - staged), ("scratch", scratch), ("staged", staged))
        for part, words in parts:
            if word < words:
                return f"shared {part}[{word}]"
            word -= words
        return f"shared rest[{word}]"

    return re.sub(r"shared (\d+)", in_shared, re.sub(r"(?<=polling )word (\d+)", in_workspace, report))
