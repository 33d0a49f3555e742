"""Why a launch was planned: one kind of reason for each way to come to it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(str, Enum):
    """What decided. The last three are of fallbacks, whose plan keeps the launch they stand for: `Plan.rejected`."""

    ASKED = "asked"
    """The caller named the route, or the chunk, which only `persistent` has."""
    SHORT_ROWS = "short_rows"
    """filtered: no row above `Tuning.radix_threshold` is expected."""
    MANY_ROWS = "many_rows"
    """filtered: rows x `Tuning.sms_to_share` exceeds the SMs, so a block reads each row."""
    FEW_ROWS = "few_rows"
    """persistent: long rows, few enough that blocks share each; clusters are not there to be compared with."""
    MEASURED = "measured"
    """The fastest near rows x `max_seq_len`, by the times measured on this GPU."""
    MODELLED = "modelled"
    """The fastest for rows x `max_seq_len`, by the model of a GPU."""
    WAITS_FORBIDDEN = "waits_forbidden"
    """Fallback: blocks of a row would wait for each other, and the caller said `waits="never"`."""
    DOES_NOT_FIT = "does_not_fit"
    """Fallback: the blocks of one row are not resident at once."""
    REFUSED = "refused"
    """Fallback: the driver refused the launch: 720 or 801 (cooperative), 912 or 720 (in clusters)."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why this launch: the kind, and the figure of it that the plan does not hold otherwise."""

    kind: Kind
    grid: int = 0
    """Blocks of the launch that the driver refused; 0 for every other kind, and for a launch that was not tried."""
    error: int = 0
    """What the driver answered to it; 0 before it was asked."""
