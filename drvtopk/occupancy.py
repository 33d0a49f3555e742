"""How much of an SM a block takes: resident blocks and clusters, and the shared memory that a plan gives to a block.

On a real device the driver answers for the occupancy; what is calculated here is what it answers.
"""

from __future__ import annotations

from collections.abc import Callable

from drvtopk.spec import THREADS, DeviceInfo, KernelInfo, Variant, align

Occupancy = Callable[[Variant, int], int]
"""(instantiation, dynamic shared memory in bytes) -> blocks of its `threads` resident on one SM; 0: it does not fit."""

Clusters = Callable[[Variant, int], int]
"""(instantiation, dynamic shared memory in bytes) -> its clusters resident on the device at once; 0: not even one."""


def calculated_occupancy(kernel: KernelInfo, device: DeviceInfo, smem_bytes: int, threads: int = THREADS) -> int:
    """Resident blocks per SM from a cubin's registers and a device's limits, as the CUDA Occupancy Calculator does it.

    Registers are given out per warp in units of 256, and warps live in four partitions that do not share registers;
    shared memory is given out in units of 128 bytes plus the driver's own share for each block.
    """
    smem = kernel.static_smem_bytes + smem_bytes
    if smem > device.smem_optin:
        return 0
    regs_per_warp = align(max(kernel.registers, 1) * 32, 256)
    warps = 4 * (device.regs_per_sm // 4 // regs_per_warp)
    return min(
        device.max_blocks_per_sm,
        device.max_threads_per_sm // threads,
        warps // (threads // 32),
        device.smem_per_sm // (align(smem, 128) + device.smem_reserved),
    )


_SMS_OF_A_GPC = 18  # at most, on the parts that have clusters; a cluster lies in one


def calculated_clusters(device: DeviceInfo, cluster: int, occupancy: int) -> int:
    """Resident clusters of `cluster` blocks, `occupancy` of them to an SM, as far as it can be known without a driver.

    Rather too few than too many: which SMs of a GPC are fused off differs from die to die.
    """
    if cluster > device.max_cluster:
        return 0
    full, rest = divmod(device.sms, _SMS_OF_A_GPC)
    return full * (_SMS_OF_A_GPC * occupancy // cluster) + rest * occupancy // cluster


def smem_budget(device: DeviceInfo, threads: int = THREADS) -> int:
    """Shared memory a block may take without costing the SM a second block that its threads would have had room for."""
    blocks = max(1, min(2, device.max_threads_per_sm // threads))
    return min(device.smem_optin, (device.smem_per_sm // blocks - device.smem_reserved) // 128 * 128)


def candidates_that_fit(variant: Variant, device: DeviceInfo) -> int:
    """Candidates for which a block has shared memory: without costing the SM a block, if those are enough."""
    room = smem_budget(device, variant.threads) - variant.fixed_smem_bytes
    fit = min(variant.tuning.max_candidates, room // variant.candidate_bytes)
    if variant.cluster > 1 and (variant.residency == 1 or fit < 2 * variant.k):
        # With an SM to itself a block may take more; too little room makes guesses fail (row_pass.cuh).
        room = device.smem_optin - variant.fixed_smem_bytes
        fit = max(fit, min(variant.tuning.max_candidates, max(6144, 4 * variant.k), room // variant.candidate_bytes))
    elif variant.threads < THREADS and fit < variant.k:  # rather one block on an SM than too little room
        room = device.smem_optin - variant.fixed_smem_bytes
        fit = min(variant.tuning.max_candidates, room // variant.candidate_bytes)
    return max(0, fit)
