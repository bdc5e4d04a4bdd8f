"""Trying again what a store failed to do, with patience and an end.

A store that restarts, throttles or loses connections is back within a minute or so; a run waits that long and goes on.
What outlasts the patience is an error that says so. Nothing else is tried twice: a missing file stays missing.
"""

import logging
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from blip3o import settings
from blip3o.errors import one_line
from blip3o.storage.s3 import TransientError

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
# What pyarrow's messages say of failures that may be over in a moment.
_TRANSIENT = re.compile(
    r"HTTP status (?:429|5\d\d)|NETWORK_CONNECTION|SLOW_DOWN|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|REQUEST_TIMEOUT|"
    r"THROTTLING|curlCode"
)


def patience() -> float:
    """Seconds for which a failing request is tried again: `BLIP3O_STORE_PATIENCE_S`, else 60."""
    return settings.number("BLIP3O_STORE_PATIENCE_S", PATIENCE_S)


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    return isinstance(error, TransientError) or (
        isinstance(error, OSError) and _TRANSIENT.search(str(error)) is not None
    )


def patiently(what: str, attempt: Callable[[], T]) -> T:
    """`attempt()`, again and again while it fails in a transient way, with growing pauses.

    A pause is as long as the error asks for. Raises the last error when `patience()` is at its end, and other errors at
    once. `what` is what the log calls it.
    """
    limit = patience()
    begun, pause, tries = time.monotonic(), FIRST_PAUSE_S, 0
    while True:
        try:
            return attempt()
        except OSError as error:
            tries += 1
            waited = time.monotonic() - begun
            if not is_transient(error):
                raise
            told = error.wait_s if isinstance(error, TransientError) else 0.0
            if waited + max(pause, told) > limit:
                asks = f", and asks to wait {told:g} s" if told else ""
                raise TransientError(f"{one_line(error)} (tried {tries} times in {waited:.0f} s{asks})") from error
            if tries == 1:
                logger.warning("%s: %s: trying again for up to %.0f s", what, one_line(error), limit)
        # Jitter, or many readers of one store would all come back in the same moment. Not the run's randomness.
        time.sleep(max(pause * random.uniform(0.5, 1.0), told))
        pause = min(2 * pause, LONGEST_PAUSE_S)
