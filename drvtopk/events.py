"""What happens, for whoever listens: the log "drvtopk". Each record has an `event`, one of `EVENTS`."""

from __future__ import annotations

import logging

LOG = logging.getLogger("drvtopk")
LOG.addHandler(logging.NullHandler())  # the host decides what becomes of it; nothing is printed unless it says so

EVENTS = ("plan", "fallback", "compile", "load", "prebuilt")


def log_event(level: int, event: str, text: str, *values: object) -> None:
    """Logs one event; `text` has a %s for each value, and nothing is formatted unless somebody listens."""
    LOG.log(level, text, *values, extra={"event": event}, stacklevel=2)
