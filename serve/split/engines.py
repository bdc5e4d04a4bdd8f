"""Engines of one stage each, for a process of its own; that of conversations is an `Engine` with nothing but those.

They run the stages of `serve.engine` as they are, so what a request gives has the same bits as in the whole engine.
"""

import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.base import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_MAX_WAITING,
    EngineBase,
    EngineStats,
    passes,
    prompts_of,
    totals,
)
from serve.engine.condition import ConditionStage
from serve.engine.decoding import DecodeStage, FinishedRow
from serve.engine.fairness import FairQueue
from serve.engine.requests import Clock, Generation, Requests
from serve.engine.stepping import DenoiseStage
from serve.metrics import EngineMetrics
from serve.protocol import MAX_IMAGES, FinishedImage, GenerateRequest, PartialImage
from serve.split.messages import Array, Conditioned, DecodeRequest, DenoisedRow, DenoiseRequest

_OF_REQUESTS = (
    "blip3o_request_success_total",
    "blip3o_e2e_latency_seconds",
    "blip3o_cancelled_total",
    "blip3o_rejected_total",
    "blip3o_errors_total",
)


class StageEngine(EngineBase):
    """One stage of images."""

    def stats(self) -> EngineStats:
        """The current load."""
        with self._requests.changed:
            metrics = self._requests.metrics({})
            done = int(metrics.value("blip3o_request_success_total", "generate"))  # also those that the cache answered
            running, waiting, seconds = self._load()
            return EngineStats(
                rows_running=running,
                rows_waiting=waiting,
                seconds_ahead=seconds,
                passes=passes(metrics),
                totals={**totals(metrics), "requests": done},
            )

    def metrics(self) -> EngineMetrics:
        """As of `Engine`, without what the coordinator counts, once for each request."""
        with self._requests.changed:
            found = self._requests.metrics({name: float(value) for name, value in self._gauges().items()})
        return EngineMetrics(samples={key: value for key, value in found.samples.items() if key[0] not in _OF_REQUESTS})

    @abstractmethod
    def _gauges(self) -> Mapping[tuple[str, str], int]:
        """Requests and rows that wait and run, by the names and labels of their metrics. The caller holds the lock."""

    @abstractmethod
    def _load(self) -> tuple[int, int, float]:
        """Rows in work, rows that wait, and about how long until all are done. The caller holds the lock."""

    def _generation(
        self,
        request: GenerateRequest,
        prompts: Sequence[tuple[int, ...]],
        on_event: Callable[[Any], None] | None = None,
    ) -> Generation:
        began, number = self._requests.clock(), next(self._numbers)
        return Generation(number=number, request=request, prompts=prompts, began=began, on_event=on_event)


class _PromptStage(ConditionStage):
    """Reads prompts in the order of a fair queue of its own, and replies with their states."""

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests, *, cache_bytes: int) -> None:
        super().__init__(pipeline, requests, self._in_order, cache_bytes=cache_bytes)
        # Guarded by `requests.changed`.
        self._queue = FairQueue()
        self._seconds = 0.0  # of a request, by those that were read last

    def submit(self, generation: Generation) -> None:
        """Queues a request. The caller holds the lock."""
        request = generation.request
        self._queue = self._queue.add(generation.number, owner=request.owner, priority=request.priority, cost=1)

    def admits(self, owner: str, *, places: int) -> bool:
        """Whether an owner's request may wait, if `places` may. The caller holds the lock."""
        return self._queue.admits(owner, 1, free=places - len(self._in_order()), places=places)

    def seconds_ahead(self) -> float:
        """About how long until all prompts are read. The caller holds the lock."""
        return len(self._in_order()) * self._seconds

    def _in_order(self) -> list[int]:
        for number in self._queue.requests - self._requests.generations.keys():
            self._queue = self._queue.without(number)
        return [entry.request for entry in self._queue.order]

    def _read(self, generations: Sequence[Generation]) -> None:
        began = time.perf_counter()
        super()._read(generations)
        seconds = (time.perf_counter() - began) / len(generations)
        with self._requests.changed:
            self._seconds = seconds
            for each in generations:
                # Those that have ended meanwhile were served too.
                for entry in [entry for entry in self._queue.entries if entry.request == each.number]:
                    self._queue = self._queue.take(entry)
        for each in generations:
            assert each.states is not None, "they were read"
            states = tuple(state.float().numpy() for state in each.states)
            self._requests.resolve(each.number, Conditioned(states=states, prompt_tokens=len(each.prompts[0])))


class ConditionEngine(StageEngine):
    """Reads prompts."""

    def __init__(
        self,
        pipeline: Blip3oPipeline,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        clock: Clock = time.monotonic,
    ) -> None:
        """At most `max_waiting` requests wait; `cache_bytes` bounds the cache of prompts that were read."""
        super().__init__(pipeline, max_waiting=max_waiting, clock=clock)
        self._stage = _PromptStage(pipeline, self._requests, cache_bytes=cache_bytes)
        self._stages = (self._stage,)

    def _warm_up(self) -> None:
        _ = self._pipeline.prompt_widths

    def condition(self, request: GenerateRequest) -> "Future[Conditioned]":
        """Queues a request's prompts. Raises as `Engine.generate` does."""
        prompts = prompts_of(self._pipeline, request)
        with self._requests.changed:
            fits = self._stage.admits(request.owner, places=self._max_waiting)
            self._accept(fits=fits, seconds=self._stage.seconds_ahead())
            generation = self._generation(request, prompts)
            self._stage.submit(generation)
            self._requests.add(generation)
        return generation.future

    def _load(self) -> tuple[int, int, float]:
        return 0, len(self._requests.generations), self._stage.seconds_ahead()

    def _gauges(self) -> Mapping[tuple[str, str], int]:
        waiting = self._requests.generations.values()  # none of them has a row yet
        return {
            ("blip3o_requests_waiting", "generate"): len(waiting),
            ("blip3o_rows", "waiting"): sum(len(each.request.seeds) for each in waiting),
        }


class _Sender:
    """Sends denoised rows to who asked for them, and replies when a request has no more; there is always room."""

    room = 2**31

    def __init__(self, requests: Requests) -> None:
        self._requests = requests
        self._sent: Counter[int] = Counter()  # images by request; guarded by `requests.changed`

    def put(self, rows: Sequence[FinishedRow]) -> None:
        """Sends rows."""
        with self._requests.changed:
            for number in self._sent.keys() - self._requests.generations.keys():
                del self._sent[number]
            for row in rows:
                generation = self._requests.generations.get(row.number)
                if generation is None:
                    continue
                generation.send(DenoisedRow(image=row.image, features=row.features.numpy(), partial=row.partial))
                self._sent[row.number] += row.partial is None
                if self._sent[row.number] == len(generation.request.seeds):
                    self._requests.resolve(row.number, None)

    def seconds_ahead(self, rows: int) -> float:
        """Nothing: the decoder is elsewhere, and has a queue of its own."""
        return 0.0


class DenoiseEngine(StageEngine):
    """Denoises rows whose prompts were read."""

    def __init__(
        self, pipeline: Blip3oPipeline, *, max_waiting: int = DEFAULT_MAX_WAITING, clock: Clock = time.monotonic
    ) -> None:
        """At most `max_waiting` rows wait for a slot."""
        super().__init__(pipeline, max_waiting=max_waiting, clock=clock)
        self._stage = DenoiseStage(pipeline, self._requests, _Sender(self._requests), max_waiting=max_waiting)
        self._stages = (self._stage,)

    def _warm_up(self) -> None:
        _ = self._pipeline.denoiser_widths

    def denoise(self, message: DenoiseRequest, on_row: Callable[[DenoisedRow], None] | None = None) -> "Future[None]":
        """Queues a request's rows. `on_row` gets them in a thread. Raises as `Engine.generate` does."""
        states = [self._state(array) for array in message.states]
        with self._requests.changed:
            self._accept(fits=self._stage.accepts(message.request), seconds=self._stage.seconds_ahead())
            generation = self._generation(message.request, [()] * len(states), on_row)
            generation.states = states
            self._stage.submit(generation)
            self._requests.add(generation)
        return generation.future

    def warm_up_requests(self) -> Iterator[DenoiseRequest]:
        """One request for each shape that a denoiser which is compiled or recorded has a program for; else two."""
        pipeline, config = self._pipeline, self._pipeline.model.config
        zeros = np.zeros((config.num_queries, config.backbone.hidden_size), np.float32)
        most = 1 if pipeline.execution == "eager" else min(pipeline.batch_size, MAX_IMAGES)
        for guidance_scale in (1.0, 2.0):
            for images in (2**power for power in range(most.bit_length())):
                request = GenerateRequest(
                    prompt="", seeds=tuple(range(images)), num_inference_steps=1, guidance_scale=guidance_scale
                )
                yield DenoiseRequest(request=request, states=(zeros,))

    def _state(self, array: Array) -> Tensor:
        return torch.tensor(array).to(self._pipeline.dtype)

    def _load(self) -> tuple[int, int, float]:
        self._stage.drop_ended()
        schedule = self._stage.schedule
        return len(schedule.running), schedule.waiting, self._stage.seconds_ahead()

    def _gauges(self) -> Mapping[tuple[str, str], int]:
        self._stage.drop_ended()
        schedule = self._stage.schedule
        running = {row.request for row in schedule.running}
        return {
            ("blip3o_requests_running", "generate"): len(running),
            ("blip3o_requests_waiting", "generate"): len(schedule.queue.requests - running),
            ("blip3o_rows", "running"): len(schedule.running),
            ("blip3o_rows", "waiting"): schedule.waiting,
        }


class _RowStage(DecodeStage):
    """Has a queue twice as long as in the whole engine: the next rows come from another process."""

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests) -> None:
        super().__init__(pipeline, requests)
        self._capacity *= 2

    @property
    def capacity(self) -> int:
        """The most rows that wait."""
        return self._capacity

    def _leave_out(self, previews: Sequence[FinishedRow]) -> None:
        """Each is a request, for which a caller waits, and holds a place at this replica."""
        for row in previews:
            self._requests.resolve(row.number, None)

    @property
    def rows(self) -> int:
        """Rows that wait or are being decoded, without those of clients that have left."""
        self._drop_ended()
        return super().rows


class DecodeEngine(StageEngine):
    """Makes pixels. Each row is a request."""

    def __init__(self, pipeline: Blip3oPipeline, *, clock: Clock = time.monotonic) -> None:
        super().__init__(pipeline, max_waiting=0, clock=clock)
        self._stage = _RowStage(pipeline, self._requests)
        self._stages = (self._stage,)

    @property
    def capacity(self) -> int:
        """The most rows that wait here."""
        return self._stage.capacity

    def _warm_up(self) -> None:
        _ = self._pipeline.null_features, self._pipeline.decode_widths

    def decode(self, message: DecodeRequest) -> "Future[Image.Image | None]":
        """Queues a row; a preview that finds no room is None.

        Raises `BusyError` if the queue of images is full, `UnavailableError` after `close`.
        """
        request = GenerateRequest(
            prompt="",
            seeds=(message.seed,),
            num_inference_steps=1,
            guidance_scale=1.0,
            deadline_s=message.deadline_s,
        )

        def reply(event: PartialImage | FinishedImage) -> None:
            self._requests.resolve(generation.number, event.image)

        generation = self._generation(request, [()], reply)
        row = FinishedRow(
            number=generation.number,
            image=0,
            seed=message.seed,
            features=torch.tensor(message.features),
            partial=0 if message.is_partial else None,
        )
        with self._requests.changed:
            self._accept(fits=message.is_partial or self._stage.room > 0, seconds=self._stage.seconds_ahead(1))
            self._requests.add(generation)
            self._stage.put([row])
        return generation.future

    def _load(self) -> tuple[int, int, float]:
        return self._stage.rows, 0, self._stage.seconds_ahead(0)

    def _gauges(self) -> Mapping[tuple[str, str], int]:
        return {("blip3o_rows", "decoding"): self._stage.rows}  # a request may have rows in several decoders
