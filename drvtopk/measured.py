"""How long each route takes, as measured on a GPU (`measured.json`, written by tools/tune.py) or as a model guesses.

Times are microseconds a launch at k 1024, float32, in a graph, L2 cold. The planner compares them with each other only.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from functools import cache

from drvtopk.choice import CHOICES, Choice
from drvtopk.source import shipped
from drvtopk.spec import DEFAULT_TUNING, DeviceInfo

Grid = Mapping[int, Mapping[int, float]]  # rows -> length -> microseconds
FILTERED, PERSISTENT = Choice("filtered"), Choice("persistent")


@cache
def table() -> dict[tuple[str, int], dict[Choice, Grid]]:
    """(device name, SMs) -> choice -> times. Raises InvalidArgument for a choice that does not exist."""
    found: dict[tuple[str, int], dict[Choice, Grid]] = {}
    file = shipped("measured.json")
    if not file.is_file():
        return found
    import json  # not before it is needed

    for device in json.loads(file.read_text())["devices"]:
        times: dict[Choice, Grid] = {
            Choice.parse(name): {
                int(rows): {int(n): float(us) for n, us in line.items()} for rows, line in grid.items()
            }
            for name, grid in device["times"].items()
        }
        for name in device["names"]:
            found[name, device["sms"]] = times
    return found


def measured_times(device: DeviceInfo, rows: int, length: int) -> dict[Choice, float]:
    """Choice -> microseconds for `rows` rows of `length`, between the shapes that were measured on this device.

    Log-linear in rows and length; beyond the measured shapes as at their end. Empty where the device was not measured;
    a choice that was not measured at each of the shapes around is left out.
    """
    grids = table().get((device.name, device.sms), {})
    if not grids:
        return {}
    fewer, more, share = _neighbours(sorted({r for grid in grids.values() for r in grid}), rows)
    lengths = sorted({n for grid in grids.values() for line in grid.values() for n in line})
    below, above, part = _neighbours(lengths, length)
    found = {}
    for choice, grid in grids.items():
        corners = [grid.get(r, {}).get(n) for r in (fewer, more) for n in (below, above)]
        if all(corners):
            first, second, third, fourth = (math.log(us) for us in corners if us is not None)
            low, high = first * (1 - part) + second * part, third * (1 - part) + fourth * part
            found[choice] = math.exp(low * (1 - share) + high * share)
    return found


def _neighbours(known: list[int], value: int) -> tuple[int, int, float]:
    """The known numbers around a value, and how far it is from the first to the second, by their logarithms."""
    at = bisect_right(known, value)
    if at == 0:
        return known[0], known[0], 0.0
    if at == len(known) or known[at - 1] == value:  # at a known one no other is asked, which may not be known
        return known[at - 1], known[at - 1], 0.0
    low, high = known[at - 1], known[at]
    return low, high, math.log(value / low) / math.log(high / low)


# What the model is made of: microseconds before and after a row is read (`short`: up to SHORT elements, which the
# registers of one block hold), and bytes a microsecond that one SM reads (of which all together get but a part),
# roughly as H200 and H100 have them.
FIXED = {"short": 3.5, "filtered": 6.0, "clustered": 5.2, "persistent": 10.5}
SHORT = DEFAULT_TUNING.short_max
SM_BYTES = 50_000.0
DEVICE_BYTES_OF_AN_SM = 28_000.0


def modelled_times(device: DeviceInfo, rows: int, length: int, sms_to_share: int) -> dict[Choice, float]:
    """The same for a device that was never measured, from its SMs and clusters: good for comparing only."""
    size = 4.0 * length

    def time(fixed: float, blocks_of_a_row: int, slots: int) -> float:
        waves = -(-rows * blocks_of_a_row // max(slots, 1))
        busy = min(rows * blocks_of_a_row, slots)
        rate = min(SM_BYTES, DEVICE_BYTES_OF_AN_SM * device.sms / max(busy, 1))
        return waves * (fixed + size / blocks_of_a_row / rate)

    found = {FILTERED: time(FIXED["short" if length <= SHORT else "filtered"], 1, device.sms)}
    for choice in CHOICES:
        if 1 < choice.cluster <= device.max_cluster:
            # SMs come in twos, so a cluster of two finds its place everywhere; larger ones leave some SMs over.
            room = device.sms if choice.cluster == 2 else device.sms * 7 // 8
            found[choice] = time(FIXED["clustered"], choice.cluster, room // choice.cluster * choice.cluster)
    if rows * sms_to_share <= device.sms:
        found[PERSISTENT] = time(FIXED["persistent"], device.sms // max(rows, 1), device.sms)
    return found
