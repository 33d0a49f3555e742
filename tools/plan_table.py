"""Writes the golden plan table: the plans of a range of shapes on every known device, for people to read in a diff.

No measured time decides any of them, only the model: measurements change, and the table is of the rules.

python tools/plan_table.py > tests/cpu/golden_plans.txt
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from drvtopk import measured
from drvtopk.plan import Problem, calculated_occupancy, plan
from drvtopk.spec import KNOWN_DEVICES, KernelInfo, Variant, min_blocks

SHAPES = [
    (1, 4096),
    (1, 40000),
    (3, 90000),
    (1, 32768),
    (1, 131072),
    (1, 1048576),
    (1, 8388608),
    (4, 163840),
    (8, 262144),
    (32, 65537),
    (64, 131072),
    (256, 8192),
    (256, 131072),
    (4096, 32770),
]
KS = (512, 2048)
HEADINGS = ["device", "rows", "width", "k", "route", "vec", "grid", "block", "group", "groups", "chunk", "candidates"]
HEADINGS += ["smem", "occ", "cap", "headroom", "kept", "workspace"]


def lines() -> list[str]:
    """One line a plan, with registers as the kernels are limited to, not as compiled: the table needs no compiler."""
    table = [HEADINGS]
    for device in KNOWN_DEVICES.values():

        def occupancy(variant: Variant, smem: int, device=device) -> int:  # type: ignore[no-untyped-def]
            resident = min(variant.residency, min_blocks(device.arch, variant.threads))
            registers = 65536 // variant.threads // resident
            kernel = KernelInfo(registers=registers, spill_bytes=0, stack_bytes=0, static_smem_bytes=0, cubin_bytes=0)
            return calculated_occupancy(kernel, device, smem, variant.threads)

        for rows, width in SHAPES:
            for k in KS:
                with mock.patch.object(measured, "table", dict):
                    p = plan(Problem(rows=rows, width=width, k=k), device, occupancy)
                kept = "yes" if p.headroom_kept else "no"
                row = (device.name, rows, width, k, p.route, p.vec_size, p.grid, p.block, p.group, p.groups, p.chunk)
                limits = (p.candidates, p.smem_bytes, p.occupancy, p.resident_cap, p.headroom, kept, p.workspace_bytes)
                table.append([str(cell) for cell in (*row, *limits)])
    widths = [max(len(row[i]) for row in table) for i in range(len(HEADINGS))]
    return ["  ".join(cell.rjust(w) for cell, w in zip(row, widths, strict=True)) for row in table]


if __name__ == "__main__":
    print("\n".join(lines()))
