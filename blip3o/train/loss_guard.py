"""The loss guard: detects steps with a bad loss or gradient, and the micro-batches that caused them."""

import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence

from blip3o.config.resilience import GuardConfig
from blip3o.errors import DataError


class BadStepError(DataError):
    """An optimizer step that must not be applied, with the numbers of the stage's micro-batches that caused it.

    All ranks raise it together. At most the weights in memory have changed by then.
    """

    def __init__(self, message: str, *, step: int, micro_batches: Sequence[int]) -> None:
        super().__init__(message)
        self.step, self.micro_batches = step, tuple(micro_batches)


class LossGuard:
    """Checks losses in the order of steps. `recent` are the last losses of a run that is resumed."""

    def __init__(self, rules: GuardConfig, recent: Sequence[float] = ()) -> None:
        self._rules = rules
        self._recent = deque(recent, maxlen=rules.window)

    @property
    def recent(self) -> list[float]:
        """The losses that the next one is compared with. Checkpoints hold them, so a resumed run decides equally."""
        return list(self._recent)

    @property
    def limit(self) -> float:
        """The loss above which a step is a spike; infinite while fewer than `guard.window` losses are known."""
        if self._rules.spike is None or len(self._recent) < self._rules.window:
            return math.inf
        return self._rules.spike * statistics.median(self._recent)

    def check(self, loss: float) -> str | None:
        """Returns the problem with a step's loss as text. A good loss is added to the window and returns None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if loss > self.limit:
            return f"the loss {loss:.4g} is a spike (the median of {len(self._recent)} before it times guard.spike is "
            f"{self.limit:.4g})"
        self._recent.append(loss)
        return None

    def bad_micro_batches(self, losses: Mapping[int, float]) -> list[int]:
        """Selects the micro-batches of a bad step that have a bad loss of their own; all of them if there are none.

        `losses` are the micro-batches' losses by number.
        """
        # `not loss <= …` rather than `loss > …`: it is also true for NaN. `nextafter` excludes infinity.
        bad = [number for number, loss in losses.items() if not loss <= min(self.limit, math.nextafter(math.inf, 0))]
        return sorted(bad or losses)
