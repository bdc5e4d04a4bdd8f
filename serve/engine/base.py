"""What engines have in common: stages that share one table of requests, and how they start, stop and refuse."""

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.requests import Clock, Requests
from serve.engine.stage import Stage
from serve.metrics import EngineMetrics
from serve.protocol import DeadlineError, GenerateRequest, UnavailableError, busy

DEFAULT_MAX_WAITING = 64
DEFAULT_CACHE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Rows in slots, in the queue and at the decoder, conversations, and totals since the start.

    `seconds_ahead`: about how long until all images and replies are done. `step_age_s`: how long ago the last denoising
    step ended, if there was one and rows are in slots. `passes`: those of all stages, a token of all replies is one.
    """

    rows_running: int = 0
    rows_waiting: int = 0
    rows_decoding: int = 0
    chats_running: int = 0
    chats_waiting: int = 0
    seconds_ahead: float
    step_age_s: float | None = None
    passes: int
    totals: Mapping[str, int]

    @property
    def in_work(self) -> int:
        """Rows and conversations that have not ended."""
        return self.rows_running + self.rows_waiting + self.rows_decoding + self.chats_running + self.chats_waiting


class EngineBase(ABC):
    """A pipeline behind stages, each a thread, that advance all requests together."""

    _stages: Sequence[Stage]

    def __init__(self, pipeline: Blip3oPipeline, *, max_waiting: int, clock: Clock = time.monotonic) -> None:
        self._pipeline = pipeline
        self._max_waiting = max_waiting
        self._numbers = itertools.count()
        self._requests = Requests(clock)

    def start(self) -> None:
        """Finds the batch widths of this machine, and starts the threads."""
        self._warm_up()
        for stage in self._stages:
            stage.start()

    @abstractmethod
    def _warm_up(self) -> None:
        """Computes what several threads need: two of them would compute it at once."""

    def close(self) -> None:
        """Stops the threads after their current pass; pending requests fail with `UnavailableError`."""
        self._requests.close()
        for stage in self._stages:
            stage.join()
        self._requests.fail_all()

    def check(self) -> None:
        """Raises `UnavailableError` if a thread is not running."""
        if not (self._requests.is_open and all(stage.alive for stage in self._stages)):
            raise UnavailableError("the engine is not running: restart the server")

    @abstractmethod
    def stats(self) -> EngineStats:
        """The current load; `totals` counts images, chats, steps, and cancelled, rejected, late and failed requests."""

    @abstractmethod
    def metrics(self) -> EngineMetrics:
        """The values of `serve.metrics.METRICS`."""

    def _accept(self, *, fits: bool, seconds: float) -> None:
        if not self._requests.is_open:
            raise UnavailableError("the engine has stopped: try again")
        if not fits:
            self._requests.count("blip3o_rejected_total")
            raise busy(seconds)


def prompts_of(pipeline: Blip3oPipeline, request: GenerateRequest) -> list[tuple[int, ...]]:
    """The token ids of a request's prompt and, if it has an effect, of its negative prompt. Raises `RequestError`."""
    texts = [request.prompt]
    if request.negative_prompt.strip() and request.guidance_scale != 1:
        texts.append(request.negative_prompt)
    return [tuple(pipeline.generation_ids(text)) for text in texts]


def passes(metrics: EngineMetrics) -> int:
    """Passes of all networks."""
    return metrics.observations("blip3o_stage_seconds")


def totals(metrics: EngineMetrics) -> Mapping[str, int]:
    """What an engine has counted, by the names of `EngineStats`; without zeros."""
    late = metrics.value("blip3o_errors_total", DeadlineError.__name__)
    values = {
        "images": metrics.value("blip3o_images_total"),
        "chats": metrics.value("blip3o_request_success_total", "chat"),
        "steps": metrics.observations("blip3o_denoise_step_seconds"),
        "cancelled": metrics.value("blip3o_cancelled_total"),
        "rejected": metrics.value("blip3o_rejected_total"),
        "late": late,
        "failed": metrics.total("blip3o_errors_total") - late,
    }
    return {name: int(value) for name, value in values.items() if value}
