"""A plan as a person wants to read it: a few plain sentences, each worked out from the plan's own fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from drvtopk.planned import Plan, Rejected
from drvtopk.problem import Problem
from drvtopk.reasons import Kind


class _Prepared(Protocol):
    @property
    def plan(self) -> Plan: ...
    @property
    def problem(self) -> Problem: ...


def explain(plan: Plan | _Prepared, *, problem: Problem | None = None) -> str:
    """What is launched and why, what waits for what, what it costs, what was rejected, and what would change it.

    Takes a plan, or what `prepare` made. `problem` is what was asked: unless given, what was planned or prepared.
    A line for each thing, of plain sentences behind a word that says what it is about.
    """
    p = plan if isinstance(plan, Plan) else plan.plan
    asked = plan.problem if problem is None else problem
    lines = [_headline(p), f"Why: {p.why}.", f"Grid: {_grid(p)}", f"Loads: {_loads(p, asked)}"]
    lines += [f"Memory: {_memory(p)}", f"Waiting: {_waiting(p)}", f"Workspace: {_workspace(p)}"]
    if p.rejected is not None:
        lines.append(f"Rejected: {_rejected(p, p.rejected, asked)}")
    lines += [f"Hint: {hint}" for hint in _hints(p, asked)]
    return "\n".join(lines)


def _of(count: int, noun: str) -> str:
    """'1 row', '4,096 rows'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _headline(p: Plan) -> str:
    values = f"{p.width:,} {p.options.dtype} values"
    return f"{_of(p.rows, 'row')} of {values}, k {p.k:,}, on {p.device} ({_of(p.sms, 'SM')}): {p.route}."


def _grid(p: Plan) -> str:
    if not p.grid:
        return "none, as there are no rows."
    total = f"{_of(p.grid, 'block')} of {p.block:,} threads"
    fit = f"{p.resident_cap:,} fit at once ({_of(p.sms, 'SM')} x {p.occupancy})"
    if p.route == "clustered":
        rows = "one for each row" if p.groups == p.rows else f"{_of(p.groups, 'cluster')} for {_of(p.rows, 'row')}"
        return f"clusters of {p.group} blocks, {rows}: {total}; {fit}."
    if p.group > 1:
        flight = f"{_of(p.groups, 'row')} {'is' if p.groups == 1 else 'are'} in flight"
        shared = f"{p.group:,} blocks share a row, {p.chunk:,} values each, and {flight}"
        left = f", and {p.headroom:,} are left to others" if p.headroom_kept else ""
        return f"{shared}: {total}; {fit}{left}."
    if p.groups == p.rows:
        return f"a block for each row: {total}; {fit}."
    return f"a block takes every {_ordinal(p.groups)} row: {total}; {fit}."


def _ordinal(number: int) -> str:
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{number:,}{'th' if number // 10 % 10 == 1 else endings.get(number % 10, 'th')}"


def _narrowed_by(p: Plan, problem: Problem) -> str:
    """What keeps loads from being twice as wide."""
    twice = 2 * p.vec_size
    if p.rows > 1 and p.stride % twice:
        return f"the row stride, {p.stride:,}, is no multiple of {twice}"
    if p.route == "persistent" and p.group > 1 and not p.options.row_starts and p.chunk % twice:
        return f"the chunk, {p.chunk:,}, is no multiple of {twice}"
    return f"the base address lies {problem.offset % twice} past a multiple of {twice} elements"


def _loads(p: Plan, problem: Problem) -> str:
    size = f"{_of(p.vec_size, 'value')} ({p.vec_size * p.options.item_bytes} bytes) at a time"
    widest = p.options.vec_sizes[-1]
    return f"{size}, the widest." if p.vec_size == widest else f"{size}, as {_narrowed_by(p, problem)}."


def _memory(p: Plan) -> str:
    held = "its part of the row, or in its place " if p.cooperative else ""
    room = f"room for {held}{_of(p.candidates, 'candidate')}"
    return f"{p.smem_bytes:,} bytes of shared memory a block, of {p.smem_optin:,} at most, with {room}."


def _waiting(p: Plan) -> str:
    if p.cooperative:
        said = (
            "the blocks of a row wait for each other: launched cooperatively, which starts the whole grid or refuses."
        )
    elif p.route == "clustered":
        said = "the blocks of a cluster wait for each other; the hardware starts them together."
    else:
        said = "no block waits for another."
    overlap = " It begins while its predecessor on the stream ends, and waits for that before it touches memory."
    return said + overlap * p.pdl


def _workspace(p: Plan) -> str:
    if not p.workspace_bytes:
        return "none."
    each = f"{p.workspace_bytes // p.groups:,} for each row in flight"
    return f"{p.workspace_bytes:,} bytes lent to each launch, {each}; any contents."


def _forbidden(p: Plan, problem: Problem) -> bool:
    return p.reason.kind is Kind.WAITS_FORBIDDEN or problem.waits == "never"


def _rejected(p: Plan, r: Rejected, problem: Problem) -> str:
    shape = f"{r.route}, {_of(r.group, 'block')} of {r.chunk:,} values a row with {r.smem_bytes:,} bytes each"
    if r.route == "clustered":
        return f"{shape}: the driver refused such clusters."
    if r.occupancy < 1:
        return f"{shape}: not even one such block fits an SM."
    if r.group > r.resident_cap:
        return f"{shape}: {r.resident_cap:,} fit at once."
    if _forbidden(p, problem):
        return f"{shape}: they would wait for each other, which the caller forbids."
    return f"{shape}: {r.resident_cap:,} were to fit, and the driver refused them."


def _hints(p: Plan, problem: Problem) -> Iterator[str]:
    widest, item = p.options.vec_sizes[-1], p.options.item_bytes
    if p.rows and p.vec_size < widest:
        wider = f"{'twice' if widest == 2 * p.vec_size else f'{widest // p.vec_size} times'} as wide"
        if _narrowed_by(p, problem).startswith("the chunk"):
            yield f"with chunks of a multiple of {widest} values loads may be {wider}."
        else:
            yield f"where rows begin at multiples of {widest * item} bytes, loads may be {wider}."
    if p.needs_cooperation and not p.headroom_kept:
        left = f"nothing is left to other kernels, as a row takes {p.group:,} of {p.resident_cap:,} blocks"
        yield f"{left}; route='filtered' leaves them room, and waits for nobody."
    if p.cooperative:
        shorter = f"if no row is longer than {p.tuning.radix_threshold:,}, say so by max_seq_len"
        yield f"{shorter}; then no block waits, and there is no workspace."
    if p.rejected is not None:
        if _forbidden(p, problem):
            yield "waits='allowed' lets several blocks share a long row."
        elif p.rejected.route == "clustered":
            yield "prepare(stream=...) plans for the SMs of the stream's green context; smaller clusters may fit there."
        elif p.rejected.occupancy < 1:
            yield f"a block has to do with {p.smem_optin:,} bytes of shared memory: smaller chunks would fit."
        elif p.rejected.group > p.rejected.resident_cap:
            yield "larger chunks, as far as shared memory goes, or more SMs would let the row fit."
        else:
            yield "where others hold a part of the GPU, sm_budget plans for the rest."
    if problem.sm_budget is not None:
        yield f"sm_budget={problem.sm_budget:,} caps the grid; without it more blocks may run at once."
    if problem.pdl and not p.pdl:
        reason = "the route persistent" if p.route == "persistent" else "this GPU"
        yield f"pdl was asked for, and {reason} goes without."
