"""Host arrays to the device and back through two pinned buffers, so that copies run on a stream of the caller's.

Copies of pageable memory make the host wait for the stream, and those of the legacy default stream make every other
stream wait as well. Through pinned memory the host fills one buffer while the other is on its way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from drvtopk import forks
from drvtopk.driver import Driver

BUFFER_BYTES = 4 << 20

Bytes = npt.NDArray[np.uint8]


class Staging:
    """The pinned buffers of one context, made when they are first needed and kept; one copy at a time."""

    def __init__(self, driver: Driver, buffer_bytes: int = BUFFER_BYTES) -> None:
        self._driver = driver
        self._size = buffer_bytes
        self._lock = forks.lock()
        self._buffers: list[tuple[int, Bytes, Any]] = []

    def _ready(self) -> list[tuple[int, Bytes, Any]]:
        """(address, the same as an array, event) of each buffer."""
        while len(self._buffers) < 2:
            event = self._driver.event_create()
            try:
                address = self._driver.mem_alloc_pinned(self._size)
            except BaseException:
                self._driver.event_destroy(event)
                raise
            words = np.ctypeslib.as_array((ctypes.c_uint8 * self._size).from_address(address))
            self._buffers.append((address, words, event))
        return self._buffers

    def _pieces(self, size: int) -> Iterator[tuple[int, int, tuple[int, Bytes, Any]]]:
        """(first byte, bytes, the buffer whose turn it is)."""
        buffers = self._ready()
        for turn, first in enumerate(range(0, size, self._size)):
            yield first, min(self._size, size - first), buffers[turn % 2]

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """A C-contiguous array to device memory, in the order of `stream`; the array may change when this returns."""
        source = array.reshape(-1).view(np.uint8)
        with self._lock:
            used: list[Any] = []
            try:
                for first, count, (pinned, buffer, event) in self._pieces(array.nbytes):
                    if len(used) >= 2:
                        self._driver.event_synchronize(event)
                    buffer[:count] = source[first : first + count]
                    self._driver.copy_async(address + first, pinned, count, stream)
                    self._driver.event_record(event, stream)
                    used.append(event)
            finally:  # the buffers are free when the lock is
                for event in used[-2:]:
                    self._driver.event_synchronize(event)

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Device memory to a C-contiguous array, in the order of `stream`; returns when it is there."""
        target = array.reshape(-1).view(np.uint8)
        with self._lock:
            under_way: list[tuple[int, int, Bytes, Any]] = []
            try:
                for first, count, (pinned, buffer, event) in self._pieces(array.nbytes):
                    if len(under_way) == 2:
                        self._fetch(target, under_way.pop(0))
                    self._driver.copy_async(pinned, address + first, count, stream)
                    self._driver.event_record(event, stream)
                    under_way.append((first, count, buffer, event))
                while under_way:
                    self._fetch(target, under_way.pop(0))
            finally:
                for *_, event in under_way:
                    self._driver.event_synchronize(event)

    def _fetch(self, target: Bytes, piece: tuple[int, int, Bytes, Any]) -> None:
        first, count, buffer, event = piece
        self._driver.event_synchronize(event)
        target[first : first + count] = buffer[:count]
