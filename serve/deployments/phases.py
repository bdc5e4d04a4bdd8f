"""How long the phases of a replica's start took: what to look at if its successor comes too late."""

import logging
import time

_LOG = logging.getLogger("ray.serve")  # goes to the replica's own log file


class Phases:
    """Seconds of each phase, in their order; the first one begins now."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._since = time.monotonic()

    def end(self, name: str) -> None:
        """The phase of that name is over, and the next one begins."""
        now = time.monotonic()
        self.seconds[name] = round(now - self._since, 2)
        self._since = now

    def log(self) -> None:
        """Writes them in one line."""
        each = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        _LOG.info("started in %.2f s: %s", sum(self.seconds.values()), each)
