"""Which driver calls are made, in which order, and what a failure at each of them becomes."""

from __future__ import annotations

import ctypes
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import drvtopk
from drvtopk import DeviceArray, api, engine
from drvtopk import driver as drv
from drvtopk.cache import Cache
from drvtopk.driver import Driver
from drvtopk.engine import Engine
from drvtopk.errors import (
    CompilerUnavailable,
    DriverError,
    DriverUnavailable,
    InvalidArgument,
    NotPrepared,
    PlanError,
    WorkspaceTooSmall,
)
from drvtopk.launch import PARAMS_BYTES
from drvtopk.plan import Problem
from drvtopk.reasons import Kind
from drvtopk.spec import CLUSTERS, KNOWN_DEVICES, ROUTES
from tests.fake_driver import FakeDriver

pytestmark = pytest.mark.usefixtures("no_compiler")

LAUNCHES = ("cuLaunchKernel", "cuLaunchKernelEx", "cuLaunchCooperativeKernel")
LONG = Problem(rows=4, width=1_000_000, k=1024)
SHORT = Problem(rows=4, width=8192, k=1024)
ADDRESSES = (1 << 20, 2 << 20, 3 << 20, 4 << 20)  # logits, lengths, out, workspace


def make(fake: FakeDriver) -> Engine:
    driver = Driver(fake)
    return Engine(driver, driver.context_device(0x77), context=0x77, context_id=0x77, cache=Cache(None))


@pytest.fixture
def fake() -> FakeDriver:
    return FakeDriver()


def test_the_limit_is_raised_before_occupancy_is_asked_of_the_function_that_is_launched(fake: FakeDriver) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    prepared.launch(*ADDRESSES)
    (launch,) = [args for name, args in fake.calls if name in LAUNCHES]
    function, smem = launch[0], launch[7]
    asked = [i for i, (name, args) in enumerate(fake.calls) if name.startswith("cuOccupancy") and args[0] == function]
    raised = [i for i, (name, args) in enumerate(fake.calls) if name == "cuFuncSetAttribute" and args[0] == function]
    assert asked and raised and raised[0] < asked[0]
    assert {fake.calls[i][1][2] for i in asked} == {smem}
    assert prepared.plan.occupancy == 2


def test_a_cooperative_grid_is_resident_and_goes_out_cooperatively(fake: FakeDriver) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    prepared.launch(*ADDRESSES)
    assert fake.names[-1] == "cuLaunchCooperativeKernel"
    assert fake.calls[-1][1][1] == prepared.plan.grid <= prepared.plan.resident_cap == 264


def test_blocks_that_do_not_wait_go_out_plainly(fake: FakeDriver) -> None:
    for route in ("auto", "filtered"):
        prepared = make(fake).prepare(SHORT, route=route)
        prepared.launch(*ADDRESSES)
        assert fake.names[-1] == "cuLaunchKernel" and not prepared.plan.cooperative


def asked_before(launch: str) -> list[str]:
    """What the driver is asked before a launch."""
    return ["cuStreamGetGreenCtx"] if launch == "cuLaunchCooperativeKernel" else []


@pytest.mark.parametrize("problem", [LONG, SHORT])
@pytest.mark.parametrize(
    ("route", "call"),
    [
        ("auto", "cuLaunchKernel"),
        ("filtered", "cuLaunchKernel"),
        ("clustered", "cuLaunchKernel"),
        ("persistent", "cuLaunchCooperativeKernel"),
    ],
)
def test_a_prepared_call_is_one_driver_call(fake: FakeDriver, problem: Problem, route: str, call: str) -> None:
    """One launch, and nothing that allocates, copies or waits. A cooperative one asks its stream for its SMs before."""
    prepared = make(fake).prepare(problem, route=route)
    if route == "persistent" and problem == SHORT:
        call = "cuLaunchKernel"  # nobody waits
    fake.calls.clear()
    for _ in range(3):
        prepared.launch(*ADDRESSES, stream=5)
    assert fake.names == [*asked_before(call), call] * 3
    for _, args in [made for made in fake.calls if made[0] == call]:
        assert args[8] == 5 and args[1:7] == (prepared.plan.grid, 1, 1, prepared.plan.variant.threads, 1, 1)


@pytest.mark.parametrize("route", ["persistent", "filtered", "clustered"])
@pytest.mark.parametrize("pdl", [False, True])
def test_a_bound_call_is_the_same_driver_call_and_no_more(fake: FakeDriver, route: str, pdl: bool) -> None:
    """The same arguments, parameter block included, but for the place where that lies."""
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=pdl), route=route)
    seen: list[Any] = []

    def launch(*args: Any) -> tuple[int]:
        pointers = args[9] if len(args) > 4 else args[2]
        block = ctypes.c_uint64.from_address(pointers).value
        config = (args[0].gridDimX, args[0].sharedMemBytes, args[0].hStream) if len(args) == 4 else args[:9]
        seen.append((config, ctypes.string_at(block, PARAMS_BYTES)))
        return (0,)

    for name in LAUNCHES:
        fake.replace[name] = launch
    bound = prepared.bind(prepared.args(*ADDRESSES, out_stride=2000))
    other = prepared.bind(
        prepared.args(16 << 20, *ADDRESSES[1:])
    )  # neither changes what the other launches, nor does a launch
    prepared.launch(*ADDRESSES, 5, out_stride=2000)
    fake.calls.clear()
    prepared.launch(32 << 20, *ADDRESSES[1:])
    bound(5)
    other(5)
    bound(7)
    launches = [name for name in fake.names if name in LAUNCHES]
    assert len(launches) == 4 and len(set(launches)) == 1
    assert fake.names == [*asked_before(launches[0]), launches[0]] * 4
    first, _, same, different, elsewhere = seen
    assert same == first and different != first and elsewhere[1] == first[1] and elsewhere[0] != first[0]
    fake.replace.clear()
    fake.fail = dict.fromkeys(LAUNCHES, 700)
    with pytest.raises(DriverError, match=f"cuLaunch.* returned 700.*grid {prepared.plan.grid}"):
        bound(5)


def test_a_bound_cooperative_call_that_is_refused_falls_back(fake: FakeDriver) -> None:
    prepared = make(fake).prepare(LONG, route="auto", chunk=8192)
    bound, later = (prepared.bind(prepared.args(*ADDRESSES)) for _ in range(2))
    fake.fail["cuLaunchCooperativeKernel"] = 720
    fake.calls.clear()
    bound(5)
    bound(6)
    assert fake.names == ["cuStreamGetGreenCtx", "cuLaunchCooperativeKernel", "cuLaunchKernel", "cuLaunchKernel"]
    assert [args[8] for name, args in fake.calls if name == "cuLaunchKernel"] == [5, 6]
    assert prepared.plan.route == "filtered" and prepared.plan.reason.kind is Kind.REFUSED
    later(7)
    prepared.launch(*ADDRESSES, 8)
    asked = ["cuStreamGetGreenCtx", "cuLaunchCooperativeKernel"]  # by `later`, which was bound before
    assert fake.names[4:] == [*asked, "cuLaunchKernel", "cuLaunchKernel"]


@pytest.mark.parametrize(
    ("argument", "how"),
    [
        ("logits", {"logits": 8}),
        ("out", {"out": 0}),
        ("lengths", {"lengths": 2}),
        ("workspace", {"workspace": 0}),
        ("workspace", {"workspace": 64}),
        ("out_stride", {"out_stride": 5}),
        ("values", {"values": 64}),
    ],
)
def test_what_cannot_be_launched_cannot_be_bound(fake: FakeDriver, argument: str, how: dict[str, int]) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    names = ("logits", "lengths", "out", "workspace")
    with pytest.raises(InvalidArgument) as caught:
        prepared.args(**{**dict(zip(names, ADDRESSES, strict=True)), **how})
    assert caught.value.argument == argument
    assert not set(fake.names) & set(LAUNCHES)


@pytest.mark.parametrize("group", CLUSTERS)
def test_clusters_are_asked_for_as_they_are_launched(fake: FakeDriver, group: int) -> None:
    """Limits first, leave for more than 8 blocks included, then occupancy, then clusters, all of one function."""
    prepared = make(fake).prepare(LONG, route="clustered", group=group)
    plan = prepared.plan
    assert (plan.group, plan.grid, plan.block, plan.cooperative, plan.workspace_bytes) == (
        group,
        4 * group,
        512,
        False,
        0,
    )
    prepared.launch(*ADDRESSES[:3], stream=5)
    name, launch = fake.calls[-1]
    assert name == "cuLaunchKernel" and launch[1:9] == (4 * group, 1, 1, 512, 1, 1, plan.smem_bytes, 5)
    function = launch[0]
    mine = [(name, args) for name, args in fake.calls if args and args[0] == function]
    large = ["CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED"] if group > 8 else []
    attributes = [args[1] for name, args in mine if name == "cuFuncSetAttribute"]
    assert attributes == [*large, "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES"]
    asked = [name for name, _ in mine if name.startswith(("cuFuncSet", "cuOccupancy", "cuLaunch"))]
    assert asked == [
        *["cuFuncSetAttribute"] * len(attributes),
        "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        "cuOccupancyMaxActiveClusters",
        "cuLaunchKernel",
    ]
    ((config_of, config),) = [args for name, args in fake.calls if name == "cuOccupancyMaxActiveClusters"]
    assert config_of == function and config.sharedMemBytes == plan.smem_bytes
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (group, 1, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (512, 1, 1)
    dimensions = config.attrs[0].value.clusterDim
    assert (dimensions.x, dimensions.y, dimensions.z) == (group, 1, 1)
    assert plan.clusters == fake.resident_clusters(group, plan.smem_bytes)


def test_a_cluster_that_the_driver_has_no_room_for_is_not_planned(fake: FakeDriver) -> None:
    fake.replace["cuOccupancyMaxActiveClusters"] = lambda function, config: (0, int(config.gridDimX <= 4))
    here = make(fake)
    assert here.plan(LONG, route="clustered").group == 4
    with pytest.raises(PlanError, match=r"no cluster of 8 blocks with \d+ bytes of shared memory each fits"):
        here.plan(LONG, route="clustered", group=8)
    fake.replace["cuOccupancyMaxActiveClusters"] = lambda function, config: (0, 0)
    with pytest.raises(PlanError, match="no cluster of"):
        here.plan(LONG, route="clustered")
    assert here.plan(LONG).route in ("filtered", "persistent")


def test_an_assumed_device_only_takes_clusters_away(fake: FakeDriver) -> None:
    here = make(fake)
    few = dataclasses.replace(KNOWN_DEVICES["h200"], sms=8)
    problem = dataclasses.replace(LONG, rows=100, sm_budget=8)
    plan = here.plan(problem, route="clustered", group=4, assume=few)
    assert plan.sms == 8 and plan.grid <= 8 * plan.occupancy and plan.groups < 100
    with pytest.raises(PlanError, match="no cluster of 2 blocks"):
        here.plan(LONG, route="clustered", group=2, assume=KNOWN_DEVICES["a100"])


@pytest.mark.parametrize("route", ["filtered", "clustered"])
def test_dependent_launches_go_out_with_their_attribute_on_the_stream_of_the_call(fake: FakeDriver, route: str) -> None:
    seen: list[Any] = []

    def launch(config: Any, function: int, params: int, extra: int) -> tuple[int]:
        seen.append((config.hStream, function, params, extra))  # there is one config for all launches
        return (0,)

    fake.replace["cuLaunchKernelEx"] = launch
    prepared = make(fake).prepare(dataclasses.replace(LONG, pdl=True), route=route)
    plan = prepared.plan
    assert plan.pdl and plan.variant.pdl
    fake.calls.clear()
    for stream in (5, 0, 7):
        prepared.launch(*ADDRESSES[:3], stream=stream)
    assert fake.names == ["cuLaunchKernelEx"] * 3 and [s for s, *_ in seen] == [5, 0, 7]
    config = fake.calls[0][1][0]
    assert (config.gridDimX, config.gridDimY, config.gridDimZ) == (plan.grid, 1, 1)
    assert (config.blockDimX, config.blockDimY, config.blockDimZ) == (plan.block, 1, 1)
    assert config.sharedMemBytes == plan.smem_bytes and config.numAttrs == len(config.attrs) == 1
    assert config.attrs[0].id == "CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION"
    assert config.attrs[0].value.programmaticStreamSerializationAllowed == 1
    fake.fail["cuLaunchKernelEx"] = 701
    del fake.replace["cuLaunchKernelEx"]
    with pytest.raises(DriverError, match=f"cuLaunchKernelEx returned 701.*grid {plan.grid}"):
        prepared.launch(*ADDRESSES[:3])


def test_cooperative_launches_and_older_gpus_do_without_dependent_launch(fake: FakeDriver) -> None:
    asked = dataclasses.replace(LONG, pdl=True)
    prepared = make(fake).prepare(asked, route="persistent")
    prepared.launch(*ADDRESSES)
    assert fake.names[-1] == "cuLaunchCooperativeKernel" and not prepared.plan.pdl
    fake.fail["cuLaunchCooperativeKernel"] = 720
    prepared.launch(*ADDRESSES)
    assert fake.names[-1] == "cuLaunchKernelEx" and prepared.plan.route == "filtered" and prepared.plan.pdl
    fake.attributes["COMPUTE_CAPABILITY_MAJOR"] = 8
    older = make(fake).prepare(asked, route="filtered")
    older.launch(*ADDRESSES[:3])
    assert fake.names[-1] == "cuLaunchKernel" and not older.plan.pdl


def test_the_parameter_block_is_what_the_kernels_expect(fake: FakeDriver) -> None:
    assert PARAMS_BYTES == 80
    seen: list[bytes] = []

    def launch(*args: Any) -> tuple[int]:
        import ctypes

        pointer = ctypes.cast(args[9], ctypes.POINTER(ctypes.c_void_p))[0]
        assert pointer is not None
        seen.append(ctypes.string_at(pointer, PARAMS_BYTES))
        return (0,)

    fake.replace["cuLaunchCooperativeKernel"] = launch
    prepared = make(fake).prepare(LONG, route="persistent")
    prepared.launch(*ADDRESSES, out_stride=2000)
    p = prepared.plan
    assert list(np.frombuffer(seen[0], np.uint64, 6)) == [*ADDRESSES, p.stride, 2000]
    assert list(np.frombuffer(seen[0], np.uint32, 8, 48)) == [4, 10**6, p.group, p.groups, p.chunk, p.candidates, 1, 0]


def test_no_rows_launch_nothing(fake: FakeDriver) -> None:
    for route in ("auto", "filtered"):
        prepared = make(fake).prepare(Problem(rows=0, width=100_000, k=512), route=route)
        fake.calls.clear()
        prepared.launch(0, 0, 0, 0)
        assert fake.calls == []


def test_the_sms_of_a_green_context_are_counted_not_the_die() -> None:
    fake = FakeDriver(resource_sms=32)
    plan = make(fake).plan(LONG, route="persistent")
    assert (plan.sms, plan.resident_cap) == (32, 64)
    assert plan.grid <= 64


@pytest.mark.parametrize(
    ("code", "said"), [(720, "(720, COOPERATIVE_LAUNCH_TOO_LARGE)"), (801, "(801, NOT_SUPPORTED)")]
)
def test_a_refusal_becomes_the_fallback_and_the_plan_says_so(
    fake: FakeDriver, caplog: pytest.LogCaptureFixture, code: int, said: str
) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    fake.fail["cuLaunchCooperativeKernel"] = code
    fake.calls.clear()
    prepared.launch(*ADDRESSES)
    assert fake.names == ["cuStreamGetGreenCtx", "cuLaunchCooperativeKernel", "cuLaunchKernel"]
    assert prepared.plan.route == "filtered" and not prepared.plan.cooperative
    assert prepared.plan.reason.kind is Kind.REFUSED and prepared.plan.rejected is not None
    assert said in caplog.text and said in prepared.plan.why
    fake.calls.clear()
    prepared.launch(*ADDRESSES)
    assert fake.names == ["cuLaunchKernel"], "what was refused once is not tried again"


def test_a_plan_that_oversubscribes_is_refused_by_the_driver_and_falls_back(fake: FakeDriver) -> None:
    here = make(fake)
    plan = here.plan(LONG, route="persistent")
    groups = plan.resident_cap // plan.group + 1
    one_more = dataclasses.replace(plan, groups=groups, grid=groups * plan.group)
    assert one_more.grid > plan.resident_cap
    prepared = here.prepare(LONG, plan=one_more)
    prepared.launch(*ADDRESSES)
    assert prepared.plan.route == "filtered" and prepared.plan.reason.grid == one_more.grid


@pytest.mark.parametrize("route", ["auto", *ROUTES])
def test_zero_resident_blocks_are_never_rounded_up(route: str) -> None:
    fake = FakeDriver(occupancy=lambda smem: 0)
    with pytest.raises(PlanError, match="no cluster" if route == "clustered" else "none fits"):
        make(fake).prepare(LONG, route=route)
    assert not set(fake.names) & set(LAUNCHES)


PREPARING = (
    "cuThreadExchangeStreamCaptureMode",
    "cuModuleLoadData",
    "cuModuleGetFunction",
    "cuFuncLoad",
    "cuFuncSetAttribute",
    "cuOccupancyMaxActiveBlocksPerMultiprocessor",
)


@pytest.mark.parametrize("call", PREPARING)
def test_a_failure_while_preparing_names_the_call_and_launches_nothing(fake: FakeDriver, call: str) -> None:
    here = make(fake)
    fake.fail[call] = 999
    with pytest.raises(DriverError) as caught:
        here.prepare(LONG, route="persistent")
    error = caught.value
    assert (error.call, error.code, error.name) == (call, 999, "CUDA_ERROR_999")
    assert call in str(error) and "what 999 means" in str(error)
    assert not set(fake.names) & set(LAUNCHES)
    fake.fail.clear()
    here.prepare(LONG, route="persistent").launch(*ADDRESSES)  # nothing half-done stays behind
    assert fake.names[-1] == "cuLaunchCooperativeKernel"


@pytest.mark.parametrize("call", [*PREPARING, "cuOccupancyMaxActiveClusters"])
def test_a_failure_while_preparing_clusters_leaves_nothing_half_done(fake: FakeDriver, call: str) -> None:
    here = make(fake)
    fake.fail[call] = 999
    with pytest.raises(DriverError, match=call):
        here.prepare(LONG, route="clustered", group=16)
    assert not set(fake.names) & set(LAUNCHES)
    fake.fail.clear()
    here.prepare(LONG, route="clustered", group=16).launch(*ADDRESSES[:3])
    assert fake.names[-1] == "cuLaunchKernel" and fake.calls[-1][1][0] in fake.large_clusters


@pytest.mark.parametrize(
    ("route", "call"),
    [("persistent", "cuLaunchCooperativeKernel"), ("filtered", "cuLaunchKernel"), ("clustered", "cuLaunchKernel")],
)
def test_a_failed_launch_names_our_numbers(fake: FakeDriver, route: str, call: str) -> None:
    prepared = make(fake).prepare(LONG, route=route)
    fake.fail[call] = 701
    with pytest.raises(DriverError, match=f"{call} returned 701.*grid {prepared.plan.grid}"):
        prepared.launch(*ADDRESSES)


@pytest.mark.parametrize("call", ["cuInit", "cuDeviceGetCount"])
def test_a_machine_without_a_usable_device_is_named(fake: FakeDriver, call: str) -> None:
    fake.fail[call] = 100
    with pytest.raises(DriverUnavailable, match=call):
        Driver(fake).init()


def test_bindings_without_libcuda_raise_a_named_error() -> None:
    class Missing:
        def cuInit(self, flags: int) -> tuple[int]:
            raise RuntimeError("Failure finding libcuda.so\nlong search report")

    with pytest.raises(DriverUnavailable, match=r"no CUDA driver.*libcuda\.so"):
        Driver(Missing()).init()


def test_an_nvrtc_newer_than_the_driver_is_a_named_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "nvrtc_version", lambda: (13, 0))
    fake = FakeDriver(version=12080)
    with pytest.raises(CompilerUnavailable, match=r"NVRTC 13\.0 is newer than the driver, which runs CUDA 12\.8"):
        make(fake).prepare(LONG, route="persistent")
    assert "cuModuleLoadData" not in fake.names


def test_one_engine_asks_the_same_on_the_first_and_the_100th_plan(fake: FakeDriver) -> None:
    here = make(fake)
    first = here.plan(LONG, route="persistent")
    loads = fake.names.count("cuModuleLoadData")
    for _ in range(99):
        assert here.plan(LONG, route="persistent") == first
    assert fake.names.count("cuModuleLoadData") == loads


@pytest.mark.parametrize(
    ("argument", "addresses"),
    [
        ("logits", (8, 0, 64, 128)),
        ("logits", (0, 0, 64, 128)),
        ("lengths", (16, 2, 64, 128)),
        ("out", (16, 0, 0, 128)),
        ("out", (16, 0, 66, 128)),
        ("workspace", (16, 0, 64, 0)),
        ("workspace", (16, 0, 64, 64)),
    ],
)
def test_bad_addresses_are_refused_before_anything_is_launched(
    fake: FakeDriver, argument: str, addresses: tuple[int, int, int, int]
) -> None:
    prepared = make(fake).prepare(LONG, route="persistent")
    with pytest.raises(InvalidArgument) as caught:
        prepared.launch(*addresses)
    assert caught.value.argument == argument
    assert not set(fake.names) & set(LAUNCHES)


class Device:
    """A device array that exists on paper."""

    def __init__(
        self,
        shape: tuple[int, ...],
        typestr: str = "<f4",
        *,
        address: int = 1 << 30,
        strides: tuple[int, ...] | None = None,
        readonly: bool = False,
        stream: int | None = None,
    ) -> None:
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": typestr,
            "data": (address, readonly),
            "strides": strides,
            "version": 3,
            "stream": stream,
        }


@pytest.fixture
def host(fake: FakeDriver, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    """The API on the fake driver."""
    here = make(fake)
    monkeypatch.setattr(drv, "_loaded", here.driver)
    monkeypatch.setattr(engine, "_engines", {0x77: here})
    yield here


OUT = 2 << 30


def test_topk_on_device_arrays_lends_a_workspace_and_launches_on_the_stream(host: Engine, fake: FakeDriver) -> None:
    out = Device((4, 1024), "<i4", address=OUT)
    lengths = Device((4,), "<i4", address=3 << 30)
    assert api.topk(Device((4, 100_000)), 1024, lengths, out=out, stream=9, route="persistent") is out
    calls = [(n, args) for n, args in fake.calls if n.startswith(("cuMem", "cuLaunch"))]
    assert [name for name, _ in calls] == ["cuMemAllocAsync", "cuLaunchCooperativeKernel", "cuMemFreeAsync"]
    assert calls[0][1][1] == calls[1][1][8] == calls[2][1][1] == 9


def test_without_a_memory_pool_the_workspace_is_allocated_all_the_same(host: Engine, fake: FakeDriver) -> None:
    out = Device((4, 1024), "<i4", address=OUT)
    fake.fail["cuMemAllocAsync"] = 801
    api.topk(Device((4, 100_000)), 1024, out=out, stream=9, route="persistent")
    calls = [name for name in fake.names if name.startswith(("cuMem", "cuLaunch"))]
    assert calls == ["cuMemAllocAsync", "cuMemAlloc", "cuLaunchCooperativeKernel", "cuMemFree"]
    fake.fail["cuMemAllocAsync"] = 2
    with pytest.raises(DriverError, match="cuMemAllocAsync"):
        api.topk(Device((4, 100_000)), 1024, out=out, stream=9, route="persistent")


def test_topk_waits_for_the_stream_that_an_array_names(host: Engine, fake: FakeDriver) -> None:
    out = Device((4, 8), "<i4", address=OUT)
    api.topk(Device((4, 100), stream=7), 8, out=out, stream=9)
    waits = [args for name, args in fake.calls if name == "cuStreamWaitEvent"]
    assert [args[0] for args in waits] == [9]
    fake.calls.clear()
    api.topk(Device((4, 100), stream=7), 8, out=out)
    assert "cuStreamWaitEvent" not in fake.names
    assert [args[8] for name, args in fake.calls if name == "cuLaunchKernel"] == [7]


def test_an_unprepared_call_inside_a_capture_is_refused(host: Engine, fake: FakeDriver) -> None:
    logits, out = Device((4, 100_000)), Device((4, 8), "<i4", address=OUT)
    fake.capturing = True
    with pytest.raises(NotPrepared):
        api.topk(logits, 8, out=out, stream=9, route="persistent")
    assert "cuModuleLoadData" not in fake.names
    fake.capturing = False
    api.topk(logits, 8, out=out, stream=9, route="persistent")
    fake.capturing = True
    with pytest.raises(NotPrepared, match="workspace"):
        api.topk(logits, 8, out=out, stream=9, route="persistent")
    fake.calls.clear()
    api.topk(logits, 8, out=out, stream=9, route="persistent", workspace=Device((1 << 22,), "|u1", address=3 << 30))
    assert [n for n in fake.names if n.startswith(("cuLaunch", "cuMem", "cuModule", "cuFunc"))] == [
        "cuLaunchCooperativeKernel"
    ]


@pytest.mark.parametrize("pdl", [False, True])
def test_clusters_run_inside_a_capture_once_they_are_prepared(host: Engine, fake: FakeDriver, pdl: bool) -> None:
    logits, out = Device((4, 100_000)), Device((4, 8), "<i4", address=OUT)
    asked: dict[str, Any] = {"out": out, "stream": 9, "route": "clustered", "pdl": pdl}
    fake.capturing = True
    with pytest.raises(NotPrepared):
        api.topk(logits, 8, **asked)
    fake.capturing = False
    api.topk(logits, 8, **asked)
    fake.capturing = True
    fake.calls.clear()
    api.topk(logits, 8, **asked)
    assert [n for n in fake.names if n.startswith(("cuLaunch", "cuMem", "cuModule", "cuFunc", "cuOccupancy"))] == [
        "cuLaunchKernelEx" if pdl else "cuLaunchKernel"
    ]


BAD: list[tuple[str, dict[str, Any]]] = [
    ("k", {"k": 0}),
    ("k", {"k": 4097}),
    ("k", {"k": 2.5}),
    ("logits", {"logits": object()}),
    ("logits", {"logits": Device((4, 100), "<f8")}),
    ("logits", {"logits": Device((100,))}),
    ("logits", {"logits": Device((4, 100), strides=(800, 8))}),
    ("logits", {"logits": Device((4, 100), strides=(-400, 4))}),
    ("lengths", {"lengths": Device((4,), "<i8")}),
    ("lengths", {"lengths": Device((5,), "<i4")}),
    ("lengths", {"lengths": np.zeros(4, np.int32)}),
    ("lengths", {"lengths": Device((4,), "<i4", strides=(8,))}),
    ("out", {"out": Device((4, 7), "<i4", address=OUT)}),
    ("out", {"out": Device((4, 8), "<f4", address=OUT)}),
    ("out", {"out": Device((4, 8), "<i4", address=OUT, readonly=True)}),
    ("out", {"out": Device((4, 8), "<i4", address=(1 << 30) + 400)}),
    ("out", {"out": Device((4, 8), "<i4", address=OUT, strides=(16, 4))}),
    ("stream", {"stream": "seven"}),
    ("route", {"route": "fastest"}),
    ("max_seq_len", {"max_seq_len": -1}),
]


@pytest.mark.parametrize(("argument", "changed"), BAD)
def test_bad_arguments_are_named_and_nothing_is_launched(
    host: Engine, fake: FakeDriver, argument: str, changed: dict[str, Any]
) -> None:
    arguments = {"logits": Device((4, 100)), "k": 8, "out": Device((4, 8), "<i4", address=OUT), **changed}
    with pytest.raises(InvalidArgument) as caught:
        api.topk(**arguments)
    assert caught.value.argument.removesuffix("_stride") == argument
    assert not set(fake.names) & set(LAUNCHES)


def test_a_workspace_that_is_too_small_says_both_numbers(host: Engine, fake: FakeDriver) -> None:
    out = Device((4, 8), "<i4", address=OUT)
    with pytest.raises(WorkspaceTooSmall, match=r"got 1000 bytes, allowed is at least \d+ bytes"):
        small = Device((250,), "<i4", address=3 << 30)
        api.topk(Device((4, 100_000)), 8, out=out, workspace=small, route="persistent")
    assert not set(fake.names) & set(LAUNCHES)


def test_numpy_arrays_are_copied_in_and_out_and_nothing_stays_allocated(host: Engine, fake: FakeDriver) -> None:
    result = api.topk(np.zeros((4, 100_000), np.float32), 8, np.array([1, 2, 3, 2**40]), route="persistent")
    assert result.shape == (4, 8) and result.dtype == np.int32
    assert fake.names.count("cuMemAllocAsync") == fake.names.count("cuMemFreeAsync") == 4
    fake.fail["cuLaunchCooperativeKernel"] = 700
    with pytest.raises(DriverError):
        api.topk(np.zeros((4, 100_000), np.float32), 8, route="persistent")
    assert fake.names.count("cuMemAllocAsync") == fake.names.count("cuMemFreeAsync")


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("logits", {"logits": np.zeros((4, 10), np.float64)}),
        ("logits", {"logits": np.zeros(10, np.float32)}),
        ("lengths", {"lengths": np.zeros(4, np.float32)}),
        ("lengths", {"lengths": np.zeros(3, np.int32)}),
        ("lengths", {"lengths": [1, 2, 3, 4]}),
        ("out", {"out": np.zeros((4, 8), np.float32)}),
        ("out", {"out": np.zeros((4, 8), np.int64), "index_dtype": "int32"}),
        ("out", {"out": np.zeros((4, 9), np.int32)}),
        ("workspace", {"workspace": np.zeros(9)}),
    ],
)
def test_bad_numpy_arguments_are_named(
    host: Engine, fake: FakeDriver, argument: str, arguments: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        api.topk(**{"logits": np.zeros((4, 10), np.float32), "k": 8, **arguments})
    assert caught.value.argument == argument
    assert not set(fake.names) & set(LAUNCHES)


def test_what_is_prepared_is_what_was_asked_for(host: Engine) -> None:
    made = drvtopk.prepare(rows=4, width=100_000, k=8, route="clustered", pdl=True)
    assert (made.plan.route, made.plan.group, made.plan.grid, made.plan.pdl) == ("clustered", 16, 64, True)
    assert host.prepare(made.problem, route="clustered", group=4).plan.grid == 16
    assert made.problem.pdl and made.workspace_bytes == 0
    assert not drvtopk.prepare(rows=4, width=100_000, k=8).plan.pdl
    with pytest.raises(InvalidArgument, match="group"):
        host.prepare(made.problem, group=4)
    with pytest.raises(TypeError, match="group"):  # for tests and study, and of the engine only
        drvtopk.prepare(rows=4, width=100_000, k=8, group=4)  # type: ignore[call-arg]
    with pytest.raises(PlanError, match="forbids"):
        drvtopk.prepare(rows=4, width=100_000, k=8, route="clustered", waits="never")


def test_a_device_result_is_made_when_none_is_given(host: Engine, fake: FakeDriver) -> None:
    made = api.topk(Device((4, 100)), 8)
    assert isinstance(made, DeviceArray)
    assert made.__cuda_array_interface__["shape"] == (4, 8)
    assert made.numpy().shape == (4, 8)
    frees = fake.names.count("cuMemFree")
    del made
    assert fake.names.count("cuMemFree") == frees + 1
