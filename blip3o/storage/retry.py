"""Retries of failed requests to a store, with backoff and a time limit.

A store that restarts, throttles or loses connections is back within a minute or so, and a run waits that long.
A failure that lasts longer is an error that says so. Nothing else is retried: a missing file stays missing.
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
# What pyarrow's messages contain for transient failures.
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


def with_retries(what: str, attempt: Callable[[], T]) -> T:
    """`attempt()`, retried with growing pauses while it fails transiently.

    Patience counts from the first failure, so a long transfer that breaks off is retried as a short one is. A pause is
    at least as long as the error asks for. Raises the last error when `patience()` runs out, and any other error at
    once. `what` names the request in the log.
    """
    limit = patience()
    failing_since, pause, tries = 0.0, FIRST_PAUSE_S, 0
    while True:
        try:
            return attempt()
        except OSError as error:
            tries += 1
            failing_since = failing_since or time.monotonic()
            waited = time.monotonic() - failing_since
            if not is_transient(error):
                raise
            requested_s = error.wait_s if isinstance(error, TransientError) else 0.0
            if waited + max(pause, requested_s) > limit:
                asks = f", and asks to wait {requested_s:g} s" if requested_s else ""
                raise TransientError(f"{one_line(error)} (tried {tries} times in {waited:.0f} s{asks})") from error
            if tries == 1:
                logger.warning("%s: %s: trying again for up to %.0f s", what, one_line(error), limit)
        # Jitter: otherwise many readers of one store would all return at the same moment. Not the run's randomness.
        time.sleep(max(pause * random.uniform(0.5, 1.0), requested_s))
        pause = min(2 * pause, LONGEST_PAUSE_S)
