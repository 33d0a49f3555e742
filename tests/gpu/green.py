"""Streams of green contexts: their kernels run on a part of the SMs, whatever context is current."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from drvtopk.driver import Driver
from tests.gpu.support import Gpu


@dataclass(frozen=True, slots=True, kw_only=True)
class Green:
    """A green context's stream, and the SMs that it has, which may be more than were asked for."""

    context: Any
    stream: int
    sms: int


@contextlib.contextmanager
def green_stream(gpu: Gpu, sms: int) -> Iterator[Green]:
    """At least `sms` SMs, apart from the current context, which stays current. Skips where there is no such thing."""
    api, driver = gpu.driver.api, gpu.driver
    try:
        context, found = _green_context(driver, sms)
    except Exception as error:
        pytest.skip(f"no green contexts here: {error}")
    non_blocking = int(api.CUstream_flags.CU_STREAM_NON_BLOCKING)
    stream = int(driver._call("cuGreenCtxStreamCreate", context, non_blocking, 0))
    try:
        yield Green(context=context, stream=stream, sms=found)
    finally:
        driver.stream_destroy(stream)
        driver._call("cuGreenCtxDestroy", context)


def _green_context(driver: Driver, sms: int) -> tuple[Any, int]:
    api = driver.api
    device = driver._call("cuCtxGetDevice")
    whole = driver._call("cuDeviceGetDevResource", device, api.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM)
    parts = driver._call("cuDevSmResourceSplitByCount", 1, whole, 0, sms)[0]
    description = driver._call("cuDevResourceGenerateDesc", parts, 1)
    flags = int(api.CUgreenCtxCreate_flags.CU_GREEN_CTX_DEFAULT_STREAM)
    return driver._call("cuGreenCtxCreate", description, device, flags), int(parts[0].sm.smCount)
