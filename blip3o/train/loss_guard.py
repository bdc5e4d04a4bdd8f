"""The guard of a run: steps whose loss or gradient cannot be right, and the micro-batches behind them."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from blip3o.config.resilience import GuardConfig
from blip3o.errors import DataError


class BadStepError(DataError):
    """A step that must not be taken: its number, and the numbers of the stage's micro-batches that are behind it.

    Raised by all ranks alike, after nothing but the weights in memory may have changed.
    """

    def __init__(self, message: str, *, step: int, micro_batches: Sequence[int]) -> None:
        super().__init__(message)
        self.step, self.micro_batches = step, tuple(micro_batches)


class Guard:
    """Judges losses in the order of steps. `recent` are the losses before the first one, of a run that goes on."""

    def __init__(self, rules: GuardConfig, recent: Sequence[float] = ()) -> None:
        self._rules = rules
        self._recent = deque(recent, maxlen=rules.window)

    @property
    def recent(self) -> list[float]:
        """The losses that the next one is judged by: to be saved, so that a resumed run judges alike."""
        return list(self._recent)

    @property
    def limit(self) -> float:
        """The loss above which a step is a spike; infinite as long as fewer than `guard.window` losses are known."""
        if self._rules.spike is None or len(self._recent) < self._rules.window:
            return math.inf
        return self._rules.spike * statistics.median(self._recent)

    def fault(self, loss: float) -> str | None:
        """What is wrong with a step's loss; None, and the loss is remembered, if nothing is."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if loss > self.limit:
            return f"the loss {loss:.4g} is a spike (the median of {len(self._recent)} before it times guard.spike is "
            f"{self.limit:.4g})"
        self._recent.append(loss)
        return None

    def guilty(self, losses: Mapping[int, float]) -> list[int]:
        """Of the micro-batches of a bad step, by number, those whose own loss is bad; all, if none is by itself."""
        bad = [number for number, loss in losses.items() if not loss <= min(self.limit, math.nextafter(math.inf, 0))]
        return sorted(bad or losses)
