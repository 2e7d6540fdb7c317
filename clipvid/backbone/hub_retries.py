"""Messages of the Hub client while it tries to reach the Hub again."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGER = "huggingface_hub.utils._http"


class _FirstRetry(logging.Filter):
    """Filter that replaces the messages about retries by one line."""

    def __init__(self) -> None:
        super().__init__()
        self.is_announced = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True for other messages and for the first one about a retry."""
        message = record.getMessage()
        if "thrown while requesting" not in message and not message.startswith("Retrying in"):
            return True
        if self.is_announced:
            return False
        self.is_announced = True
        record.msg, record.args = "the Hub cannot be reached, trying again for up to a minute; %s", (message,)
        return True


@contextmanager
def announce_retries_once() -> Iterator[None]:
    """Let the Hub client warn once instead of at each attempt, and without repetition by other loggers."""
    logger, first = logging.getLogger(_LOGGER), _FirstRetry()
    propagate = logger.propagate
    logger.addFilter(first)
    logger.propagate = False
    # The client's own handler belongs to a parent that other loggers share.
    handler = logging.StreamHandler()
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.removeFilter(first)
        logger.propagate = propagate
