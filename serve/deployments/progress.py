"""Whether an engine that has work gets on with it. Pure: the clock is an argument."""

from collections.abc import Callable, Mapping

from blip3o.errors import Blip3oError

_NO_PROGRESS = ("cancelled", "rejected", "late")  # totals that grow while the engine is stuck


class StuckError(Blip3oError):
    """The engine has work and has finished no piece of it for too long."""


class Progress:
    """Watches an engine's totals; every check is one look at them."""

    def __init__(self, limit_s: float, clock: Callable[[], float]) -> None:
        """Work may stand still for `limit_s` seconds of `clock`."""
        self._limit_s = limit_s
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._since = clock()

    def check(self, totals: Mapping[str, int], *, has_work: bool) -> None:
        """Raises `StuckError` if nothing was finished since a check `limit_s` seconds ago, and there was work since."""
        now = self._clock()
        done = {name: count for name, count in totals.items() if name not in _NO_PROGRESS}
        if done != self._seen or not has_work:
            self._seen, self._since = done, now
        if (age_s := now - self._since) > self._limit_s:
            raise StuckError(f"the engine has finished no step for {age_s:.0f} s, and has work")
