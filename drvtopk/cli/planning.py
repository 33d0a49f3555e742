"""python -m drvtopk plan: what would be launched, and why; with overrides, a calculator."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from drvtopk.api import primary_context
from drvtopk.cache import Cache, default_folder
from drvtopk.cli.options import add_gpu, add_options, asked_gpu, in_words, options_of
from drvtopk.cli.output import add_json, print_json, print_pairs, whole
from drvtopk.compiler import compile_variant
from drvtopk.engine import current_engine
from drvtopk.errors import CompilerUnavailable, DriverUnavailable, InvalidArgument
from drvtopk.explain import explain
from drvtopk.export.prebuilt import current
from drvtopk.occupancy import Clusters, Occupancy, calculated_clusters, calculated_occupancy
from drvtopk.plan import plan
from drvtopk.planned import Plan
from drvtopk.problem import MAX_STRIDE, Problem
from drvtopk.progress import preparing
from drvtopk.spec import (
    CLUSTERS,
    KNOWN_DEVICES,
    MAX_K,
    MAX_ROWS,
    MAX_WIDTH,
    ROUTES,
    WAITS,
    DeviceInfo,
    KernelInfo,
    Variant,
)


def add(commands: Any) -> None:
    parser = commands.add_parser("plan", help="what would be launched, and why", description=__doc__)
    names = ", ".join(KNOWN_DEVICES)
    parser.add_argument("--device", default="auto", help=f"auto: the GPU of this machine; or {names}")
    add_gpu(parser)
    parser.add_argument("--rows", type=whole(0, MAX_ROWS), required=True)
    parser.add_argument("--stride", type=whole(0, MAX_STRIDE), required=True, help="elements between rows")
    parser.add_argument("--width", type=whole(0, MAX_WIDTH), help="columns of a row (default: the stride)")
    parser.add_argument("--k", type=whole(1, MAX_K), required=True)
    parser.add_argument("--route", choices=("auto", *ROUTES), default="auto")
    parser.add_argument("--max-seq-len", type=whole(0, MAX_WIDTH), help="no row is expected longer")
    parser.add_argument("--waits", choices=WAITS, default="allowed", help="never: no block may wait for another")
    parser.add_argument("--sm-budget", type=whole(1, MAX_ROWS), help="at most the blocks that so many SMs hold")
    parser.add_argument("--offset", type=whole(0, 2**62), default=0, help="base address in elements")
    parser.add_argument("--sms", type=whole(1, 10**6), help="instead of the device's SM count")
    parser.add_argument("--smem-optin", type=whole(1, 2**31 - 1), help="bytes a block may opt in to")
    parser.add_argument("--occupancy", type=whole(0, 64), help="blocks per SM, instead of the kernel's")
    parser.add_argument("--chunk", type=whole(1, MAX_WIDTH), help="elements a block holds, of the route persistent")
    parser.add_argument("--group", type=int, choices=CLUSTERS, help="blocks of a cluster, of the route clustered")
    parser.add_argument("--pdl", action="store_true", help="programmatic dependent launch, where the GPU has it")
    add_options(parser, files=False)
    add_json(parser)
    parser.set_defaults(run=run)


def find_device(name: str) -> DeviceInfo:
    """A device by its short name. Raises InvalidArgument."""
    if name not in KNOWN_DEVICES:
        raise InvalidArgument("--device", repr(name), "auto, " + ", ".join(KNOWN_DEVICES))
    return KNOWN_DEVICES[name]


class Asked:
    """Occupancy and clusters, with a record of what was asked and of which kernels, for the report."""

    def __init__(
        self, occupancy: Occupancy, info: Callable[[Variant], KernelInfo], clusters: Clusters | None = None
    ) -> None:
        self._occupancy = occupancy
        self._info = info
        self._clusters = clusters  # the driver's answer, where there is a driver
        self.kernels: list[dict[str, Any]] = []
        self.clusters: list[dict[str, Any]] = []

    def __call__(self, variant: Variant, smem_bytes: int) -> int:
        blocks = self._occupancy(variant, smem_bytes)
        asked = {"variant": str(variant), "smem_bytes": smem_bytes, "occupancy": blocks}
        self.kernels.append({**asked, **dataclasses.asdict(self._info(variant))})
        return blocks

    def resident_clusters(self, device: DeviceInfo, variant: Variant, smem_bytes: int, occupancy: int) -> int:
        """Of a kernel with this occupancy, on `device`, which may be assumed to be smaller than the driver's."""
        resident = calculated_clusters(device, variant.cluster, occupancy)
        if self._clusters is not None:
            resident = min(self._clusters(variant, smem_bytes), device.sms * occupancy // variant.cluster)
        self.clusters.append({"variant": str(variant), "smem_bytes": smem_bytes, "clusters": resident})
        return resident


def calculator(device: DeviceInfo) -> Asked:
    """The occupancy of a device that need not be here: compiles what it is asked about, and calculates."""
    cache, prebuilt = Cache(default_folder()), current()

    def info(variant: Variant) -> KernelInfo:
        found = prebuilt.find(variant, device.arch)
        if found is not None:
            return found.info
        try:
            with preparing():
                return compile_variant(variant, device.arch, cache=cache).info
        except CompilerUnavailable as error:
            raise prebuilt.unavailable(variant, device.arch, error) from error

    return Asked(
        lambda variant, smem_bytes: calculated_occupancy(info(variant), device, smem_bytes, variant.threads), info
    )


def run(arguments: argparse.Namespace) -> int:
    problem = Problem(
        rows=arguments.rows,
        width=arguments.stride if arguments.width is None else arguments.width,
        stride=arguments.stride,
        k=arguments.k,
        offset=arguments.offset,
        max_seq_len=arguments.max_seq_len,
        waits=arguments.waits,
        sm_budget=arguments.sm_budget,
        options=options_of(arguments),
        pdl=arguments.pdl,
    )
    limits = {"sms": arguments.sms, "smem_optin": arguments.smem_optin}
    if arguments.gpu is not None:
        if arguments.device != "auto":
            raise InvalidArgument("--gpu", arguments.gpu, "one of this machine's, only with --device auto")
        asked_gpu(arguments.gpu)
    if arguments.device == "auto":
        try:
            with primary_context(arguments.gpu or 0):
                engine = current_engine()
                asked = Asked(engine.occupancy, engine.kernel_info, engine.clusters)
                return _report(arguments, problem, engine.device.with_limits(**limits), asked, "driver")
        except DriverUnavailable as error:
            raise InvalidArgument("--device", f"'auto', and {error}", ", ".join(KNOWN_DEVICES)) from error
    device = find_device(arguments.device).with_limits(**limits)
    return _report(arguments, problem, device, calculator(device), "calculated from the cubin")


def _report(
    arguments: argparse.Namespace,
    problem: Problem,
    device: DeviceInfo,
    asked: Asked,
    source: str,
) -> int:
    if arguments.occupancy is not None:
        source = "given"

    latest = 0

    def occupancy(variant: Variant, smem_bytes: int) -> int:
        nonlocal latest
        if smem_bytes > device.smem_optin:  # an assumed limit, which neither the driver nor a given figure knows
            latest = 0
        else:
            latest = asked(variant, smem_bytes) if arguments.occupancy is None else int(arguments.occupancy)
        return latest

    def clusters(variant: Variant, smem_bytes: int) -> int:  # asked after the occupancy of the same
        sms = min(device.sms, problem.sm_budget or device.sms)
        return asked.resident_clusters(device.with_limits(sms=sms), variant, smem_bytes, latest)

    made = plan(
        problem,
        device,
        occupancy,
        route=arguments.route,
        chunk=arguments.chunk,
        group=arguments.group,
        clusters=clusters,
    )
    if arguments.json:
        print_json(
            {
                **made.document(),
                "offset": problem.offset,
                "fixed_smem_bytes": made.variant.fixed_smem_bytes,
                "group_state_bytes": made.variant.group_state_bytes(made.group) if made.cooperative else 0,
                "occupancy_source": source,
                "device_info": {
                    **dataclasses.asdict(device),
                    "max_cluster": device.max_cluster,
                    "has_pdl": device.has_pdl,
                },
                "kernels": asked.kernels,
                "clusters": asked.clusters,
                "asked": {
                    "device": arguments.device,
                    "route": arguments.route,
                    "waits": problem.waits,
                    "sm_budget": problem.sm_budget,
                    "deterministic": arguments.deterministic,
                    "sms": arguments.sms,
                    "smem_optin": arguments.smem_optin,
                    "occupancy": arguments.occupancy,
                    "chunk": arguments.chunk,
                    "group": arguments.group,
                    "pdl": arguments.pdl,
                },
            }
        )
    else:
        print(explain(made), end="\n\n")
        print_pairs(_for_a_person(made, source))
    return 0


def _for_a_person(made: Plan, source: str) -> Iterator[tuple[str, object]]:
    for name, value in made.document().items():
        if name == "options":
            yield name, in_words(made.options)
        elif name not in ("why", "tuning", "rejected"):
            yield name, value
        if name == "occupancy":
            yield "occupancy from", source
    if made.rejected is not None:
        yield "rejected", ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(made.rejected).items())
