"""By what rules a host without this package plans and launches exported kernels: the manifest's text and numbers.

Formulae are Python expressions, in the order in which they are worked out, each of what stands before it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from drvtopk import measured, spec
from drvtopk.spec import Tuning

DEVICE_ATTRIBUTES: Mapping[str, str] = {
    "sms": "CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, or the SMs of the green context that is current "
    "(cuCtxGetDevResource) or that the stream belongs to (cuStreamGetGreenCtx, cuGreenCtxGetDevResource)",
    "smem_optin": "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
    "smem_per_sm": "CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR",
    "smem_reserved": "CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK",
    "max_threads_per_sm": "CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR",
    "max_blocks_per_sm": "CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR",
    "regs_per_sm": "CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR",
    "arch": "sm_{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR}{.._MINOR}, and 'a' behind it from 9.0 on",
    "name": "cuDeviceGetName",
}

GIVEN: Mapping[str, str] = {
    "rows, width, k, stride, offset, max_seq_len, sm_budget, waits, pdl": "the problem, in elements; offset is the "
    "base address in elements modulo 8; max_seq_len is width and sm_budget None unless given; width 0..2^31-1",
    "route, cluster": "what is tried (see choice); cluster is the blocks of a hardware cluster, 1 without",
    "given_chunk": "elements, None unless the caller names a chunk",
    "vec_sizes, row_starts": "of the options: loads in elements, ascending; whether there are row_starts",
    "fixed_smem_bytes, candidate_bytes, members": "of the kernel (kernels[..]); the same for all vec_sizes",
    "align(n, to)": "n rounded up to a multiple of to",
    "occupancy": "asked after smem_bytes is known: cuOccupancyMaxActiveBlocksPerMultiprocessor of this very function "
    "with threads and smem_bytes, after its limit was raised (launch.before_asking)",
    "clusters": "asked after the occupancy, if that is not 0: cuOccupancyMaxActiveClusters of this very function, "
    "with the stream in the configuration where it belongs to a green context; 0 where that answers 912 "
    "(CUDA_ERROR_INVALID_CLUSTER_SIZE)",
}

FORMULAE: Mapping[str, str] = {
    "longest": "min(1 << (max_seq_len - 1).bit_length() if max_seq_len else 0, width)",
    "sms": "sms if sm_budget is None else min(sms, sm_budget)",
    "needs_cooperation": "route == 'persistent' and longest > radix_threshold",
    "widest": "vec_sizes[-1]",
    "wide_blocks": "max(1, max_threads_per_sm // 1024)",
    "wide_budget": "min(smem_optin, (smem_per_sm // min(2, wide_blocks) - smem_reserved) // 128 * 128)",
    "free": "sms * wide_blocks - (sms if wide_blocks > 1 else 1)",
    "even": "align(-(-width // max(1, free // max(rows, 1))), widest)",
    "largest": "max(widest, (wide_budget - fixed_smem_bytes) // 4 // widest * widest)",
    "planned_chunk": "max(min(even, largest), min(align(min_chunk, widest), largest)) if needs_cooperation "
    "else align(max(width, 1), 4)",
    "shared_chunk": "planned_chunk if given_chunk is None else given_chunk",
    "group": "max(1, -(-width // shared_chunk)) if route == 'persistent' else cluster",
    "chunk": "shared_chunk if route == 'persistent' else max(-(-width // group), 1)",
    "step": "chunk if route == 'persistent' and group > 1 and not row_starts else 0",
    "vec_size": "max(v for v in vec_sizes if offset % v == (stride if rows > 1 else 0) % v == step % v == 0)",
    "residency": "2 if route == 'persistent' or rows * group > sms else 1",
    "threads": "512 if route == 'clustered' or (route == 'filtered' and residency == 2) else 1024",
    "smem_budget": "min(smem_optin, (smem_per_sm // max(1, min(2, max_threads_per_sm // threads)) - smem_reserved) "
    "// 128 * 128)",
    "beside": "min(max_candidates, (smem_budget - fixed_smem_bytes) // candidate_bytes)",
    "alone": "(smem_optin - fixed_smem_bytes) // candidate_bytes",
    "room": "max(beside, min(max_candidates, max(6144, 4 * k), alone)) "
    "if route == 'clustered' and (residency == 1 or beside < 2 * k) "
    "else min(max_candidates, alone) if threads == 512 and route == 'filtered' and beside < k else beside",
    "chunk_bytes": "align(chunk * 4, 16) if needs_cooperation else 0",
    "candidates": "max(0, room, chunk_bytes // candidate_bytes)",
    "needed": "fixed_smem_bytes + max(chunk_bytes, candidates * candidate_bytes)",
    "smem_bytes": "min(max(needed, smem_per_sm // 2), smem_optin) if route == 'clustered' and residency == 1 "
    "else needed",
    "resident_cap": "sms * occupancy",
    "headroom": "0 if not needs_cooperation else sms if occupancy > 1 else 1",
    "headroom_kept": "needs_cooperation and resident_cap - headroom >= group",
    "together": "clusters if sm_budget is None else min(clusters, resident_cap // group)",
    "groups": "max(1, min((resident_cap - (headroom if headroom_kept else 0)) // group, rows)) "
    "if route == 'persistent' else min(rows, 2147483647 // group if sm_budget is None "
    "else together if route == 'clustered' else resident_cap)",
    "grid": "groups * group if rows else 0",
    "fits": "occupancy >= 1 and (not needs_cooperation or groups * group <= resident_cap) "
    "and (route != 'clustered' or (group <= max_cluster and candidates >= k and together >= 1))",
    "group_state_bytes": "align(128 + (3 * 2080 + 2 * group + members) * 4, 128)",
    "workspace_bytes": "groups * group_state_bytes if needs_cooperation and rows else 0",
    "cooperative": "needs_cooperation",
}

CHOICE = (
    "A named route has to fit. Persistent with needs_cooperation, and clustered, wait: not where waits is 'never'.",
    "Clustered without a named size tries clusters of 16, 8, 4 and 2 blocks and takes the first that fits.",
    "Else, where the GPU has clusters (max_cluster > 1), rows > 0, longest > cluster_threshold and waiting is allowed: "
    "the routes in the order of their times, the first that fits. Times are the measured ones of this device (its name "
    "and sms), log-linear in rows and length between the measured shapes and as at their end beyond; where filtered "
    "has none there, all are the model's.",
    "Else filtered, if longest <= radix_threshold or rows * sms_to_share > sms; else persistent.",
    "Where persistent does not fit, filtered is the fallback, which always does (or the GPU is too small for this k).",
    "pdl where it is asked for and the GPU has it, of filtered and clustered only.",
)

LAUNCH: Mapping[str, str] = {
    "load": "cuModuleLoadData the cubin, cuModuleGetFunction its entry.",
    "before_asking": "cuFuncSetAttribute CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 1 where cluster > 8; "
    "then CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES to at least smem_bytes, never lowered while a plan uses the "
    "function. Only then ask for occupancy and clusters, with the smem_bytes that will be launched: before, the driver "
    "answers 0.",
    "plain": "cuLaunchKernel with grid blocks of threads threads, in x, and smem_bytes of dynamic shared memory. "
    "Nothing to launch where grid is 0.",
    "cooperative": "Where the plan is cooperative: cuLaunchCooperativeKernel and nothing else, since its blocks wait "
    "for each other; grid must not exceed resident_cap. Parameter `cooperative` is 1 then, else 0.",
    "clustered": "cuLaunchKernel: the cluster's size is compiled in; grid is a multiple of it.",
    "pdl": "If the variant has pdl: cuLaunchKernelEx with CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 1.",
    "refused": "If a cooperative launch answers 720 (CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE), or one in clusters 912 "
    "(CUDA_ERROR_INVALID_CLUSTER_SIZE) or 720, nothing was launched: plan the same problem with the route filtered, "
    "and launch that from then on. In a capture no launch is refused: with clusters the graph cannot be instantiated, "
    "with a cooperative grid that exceeds the SMs of the stream's green context its replay hangs. So ask such a stream "
    "for its SMs (cuStreamGetGreenCtx) before a cooperative launch.",
    "parameters": "One struct by value: the plain fields, and behind them the extended ones where the options have "
    "values, row_starts or page_table (parameter_bytes of the kernel). What is not used is 0.",
    "alignment": "logits to vec_size elements; out to an index; workspace to 128 bytes; int32 arrays to 4 bytes.",
    "workspace": "workspace_bytes of device memory, any contents before and after; not shared with a launch that may "
    "run at the same time. 0 where no block waits.",
    "lengths": "Read on the device, clamped to 0..width; a null pointer: every row has width elements.",
    "order": "A launch allocates, copies and synchronises nothing, and may be captured into a graph.",
}


def parameters() -> dict[str, Any]:
    """Both layouts of the parameter block: bytes, and each field's name, C type, offset and size."""
    return {
        name: {"bytes": spec.packed(fields).size, "fields": _layout(fields)}
        for name, fields in (("plain", spec.PARAMS), ("extended", (*spec.PARAMS, *spec.EXTRAS)))
    }


def _layout(fields: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "type": kind,
            "offset": spec.packed(fields[:at]).size,
            "bytes": spec.packed([(name, kind)]).size,
        }
        for at, (name, kind) in enumerate(fields)
    ]


def planner(tuning: Tuning, archs: Sequence[str]) -> dict[str, Any]:
    """What a plan is made from, and how."""
    return {
        "device": dict(DEVICE_ATTRIBUTES),
        "archs": {arch: {"max_cluster": spec.max_cluster(arch), "has_pdl": spec.has_pdl(arch)} for arch in archs},
        "tuning": dataclasses.asdict(tuning),
        "given": dict(GIVEN),
        "formulae": dict(FORMULAE),
        "choice": list(CHOICE),
        "model": {
            "microseconds": "waves * (fixed[route] + 4 * length / blocks_of_a_row / rate), of filtered fixed[short] "
            "where length <= short; waves = ceil(rows * blocks_of_a_row / slots), rate = min(sm_bytes, sms * "
            "device_bytes_of_an_sm / max(1, min(rows * blocks_of_a_row, slots)))",
            "blocks_of_a_row": "filtered 1; clustered its cluster; persistent sms // rows",
            "slots": "sms; clustered: (sms if cluster == 2 else sms * 7 // 8) // cluster * cluster",
            "tried": "filtered; each cluster that the GPU has; persistent where rows * sms_to_share <= sms",
            "fixed": dict(measured.FIXED),
            "short": measured.SHORT,
            "sm_bytes": measured.SM_BYTES,
            "device_bytes_of_an_sm": measured.DEVICE_BYTES_OF_AN_SM,
        },
        "measured": [
            {"name": name, "sms": sms, "microseconds": {str(choice): grid for choice, grid in times.items()}}
            for (name, sms), times in measured.table().items()
        ],
        "constants": {
            "max_k": spec.MAX_K,
            "max_rows": spec.MAX_ROWS,
            "max_width": spec.MAX_WIDTH,
            "clusters": list(spec.CLUSTERS),
            "workspace_alignment": spec.WORKSPACE_ALIGNMENT,
        },
    }
