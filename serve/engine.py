"""The engine: one thread that owns the model and advances all requests together, one denoising step at a time.

Between two steps it drops cancelled requests, answers one batch of conversations, and admits waiting rows to free
slots. It decodes finished rows to pixels and resolves their requests. `serve.scheduler` assigns slots, `serve.denoise`
does the arithmetic. The same prompt and seed give the image of `Blip3oPipeline.generate`, bit for bit on CPU, whatever
else is in the batch.

A failure ends the request that caused it. A failure in a denoising step has no single cause and ends all requests in
the batch.
"""

import asyncio
import functools
import itertools
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from blip3o.errors import Blip3oError, BundleError
from blip3o.inference.pipeline import Blip3oPipeline
from serve.denoise import Condition, DenoiseBatch, prepare
from serve.protocol import (
    BusyError,
    ChatReply,
    ChatRequest,
    EngineError,
    GenerateReply,
    GenerateRequest,
    ModelInfo,
    UnavailableError,
)
from serve.scheduler import ChatTicket, Row, Schedule, next_chats

logger = logging.getLogger(__name__)

DEFAULT_MAX_WAITING = 64
_RETRY_AFTER_S = (1, 60)  # bounds of the `retry-after` of a rejected request


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Rows in slots and in the queue, conversations in the queue, and totals since the start."""

    rows_running: int
    rows_waiting: int
    chats_waiting: int
    totals: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class _Chat:
    number: int
    request: ChatRequest
    prompt_tokens: int
    future: "Future[ChatReply]" = field(default_factory=Future)


@dataclass(kw_only=True)
class _Generation:
    number: int
    request: GenerateRequest
    prompt_tokens: int
    future: "Future[GenerateReply]" = field(default_factory=Future)
    condition: Condition | None = None
    images: list[Image.Image] = field(default_factory=list)  # in seed order, in which rows finish


@dataclass(frozen=True, kw_only=True)
class _FinishedRow:
    number: int
    seed: int
    features: Tensor


class _HasNumber(Protocol):
    @property
    def number(self) -> int: ...


N = TypeVar("N", bound=_HasNumber)


class Engine:
    """Serves many requests with one model.

    Any thread may call `generate` and `chat`. Cancelling their future frees the request's rows.
    """

    def __init__(self, pipeline: Blip3oPipeline, *, max_waiting: int = DEFAULT_MAX_WAITING) -> None:
        """At most `max_waiting` rows and `max_waiting` conversations wait. Requests before `start` are queued.

        Raises `BundleError` if the bundle's solver cannot advance rows that are at different steps.
        """
        solver = pipeline.model.config.sampler.solver
        if solver != "euler":
            raise BundleError(
                f"the bundle samples with solver '{solver}', which advances a whole batch at once, and the server "
                "advances each row by itself: export it with model.sampler.solver=euler"
            )
        self._pipeline = pipeline
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        # Guards everything below; the arithmetic runs without it. Only the engine's thread changes the slots.
        self._changed = threading.Condition()
        self._open = True
        self._schedule = Schedule.empty(batch_size=pipeline.batch_size, max_waiting=max_waiting)
        self._generations: dict[int, _Generation] = {}
        self._chats: dict[int, _Chat] = {}
        self._totals: Counter[str] = Counter()
        self._step_seconds = 0.0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def close(self) -> None:
        """Stops the thread after its current step; pending requests fail with `UnavailableError`."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._fail_all()

    def check(self) -> None:
        """Raises `UnavailableError` if the thread is not running."""
        if not self._thread.is_alive():
            raise UnavailableError("the engine is not running: restart the server")

    def describe(self) -> ModelInfo:
        """The model's properties."""
        config = self._pipeline.model.config
        return ModelInfo(
            image_size=config.decoder.image_size,
            vision_size=config.backbone.image_size,
            vision_resize=config.backbone.image_resize,
            image_tokens=self._pipeline.model.latent_shape[0],
            num_inference_steps=config.sampler.num_inference_steps,
            guidance_scale=config.sampler.guidance_scale,
        )

    def stats(self) -> EngineStats:
        """The current load; `totals` counts images, chats, steps, and cancelled, rejected and failed requests."""
        with self._changed:
            return EngineStats(
                rows_running=len(self._schedule.running),
                rows_waiting=len(self._schedule.waiting),
                chats_waiting=len(self._chats),
                totals=dict(self._totals),
            )

    def generate(self, request: GenerateRequest) -> "Future[GenerateReply]":
        """Queues a request for images.

        Raises `RequestError` if the prompt is too long or the bundle cannot generate images, `BusyError` if the queue
        is full, `UnavailableError` after `close`.
        """
        self._pipeline.require_generation()
        prompt_tokens = len(self._pipeline.generation_ids(request.prompt))
        images = len(request.seeds)
        with self._changed:
            self._accept(fits=images <= self._schedule.free_capacity)
            generation = _Generation(number=next(self._numbers), request=request, prompt_tokens=prompt_tokens)
            self._generations[generation.number] = generation
            self._schedule = self._schedule.submit(generation.number, images=images, steps=request.num_inference_steps)
            self._changed.notify()
        return generation.future

    def chat(self, request: ChatRequest) -> "Future[ChatReply]":
        """Queues a conversation. Raises as `generate` does."""
        prompt_tokens = len(self._pipeline.chat_ids(request.turns, with_image=request.image is not None))
        with self._changed:
            self._accept(fits=len(self._chats) < self._schedule.max_waiting)
            chat = _Chat(number=next(self._numbers), request=request, prompt_tokens=prompt_tokens)
            self._chats[chat.number] = chat
            self._changed.notify()
        return chat.future

    def _accept(self, *, fits: bool) -> None:
        if not self._open:
            raise UnavailableError("the engine has stopped: try again")
        if not fits:
            self._totals["rejected"] += 1
            least, most = _RETRY_AFTER_S
            raise BusyError(min(max(math.ceil(self._schedule.steps_ahead * self._step_seconds), least), most))

    # The engine's thread runs everything below.

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._run_once()
        finally:
            with self._changed:
                self._open = False
            self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: not self._open or self._chats or not self._schedule.idle)
            return self._open

    @functools.cached_property
    def _batch(self) -> DenoiseBatch:
        """The rows in the slots; created for the first image, since a bundle may only chat."""
        return DenoiseBatch(self._pipeline)

    def _run_once(self) -> None:
        self._drop_cancelled()
        self._answer_chats()
        self._admit()
        self._step()
        self._decode_finished()

    def _drop_cancelled(self) -> None:
        with self._changed:
            pending: dict[int, _Generation | _Chat] = {**self._generations, **self._chats}
        for number, request in pending.items():
            if request.future.cancelled():
                self._remove(number)
                self._count("cancelled")

    def _answer_chats(self) -> None:
        with self._changed:
            chats = dict(self._chats)
        tickets = [
            ChatTicket(request=number, with_image=chat.request.image is not None, max_tokens=chat.request.max_tokens)
            for number, chat in chats.items()
        ]
        chosen = next_chats(tickets, batch_size=self._pipeline.batch_size)
        self._batch_then_single([chats[number] for number in chosen], self._reply)

    def _reply(self, chats: Sequence[_Chat]) -> None:
        conversations = [list(chat.request.turns) for chat in chats]
        images = [chat.request.image for chat in chats if chat.request.image is not None]
        limit = chats[0].request.max_tokens
        replies = self._pipeline.reply_ids(conversations, images=images or None, max_tokens=limit)
        for chat, ids in zip(chats, replies, strict=True):
            reply = ChatReply(
                text=self._pipeline.tokenizer.decode(ids),
                prompt_tokens=chat.prompt_tokens,
                reply_tokens=len(ids),
                complete=len(ids) < limit,
            )
            self._count("chats")
            self._resolve(chat.number, reply)

    def _admit(self) -> None:
        with self._changed:
            self._schedule = self._schedule.admit()
        requests = dict.fromkeys(row.request for row in self._schedule.unstarted.values())
        generations = [self._generations[number] for number in requests]
        self._batch_then_single(
            [generation for generation in generations if generation.condition is None], self._prepare
        )
        for slot, row in self._schedule.unstarted.items():
            generation = self._generations[row.request]
            assert generation.condition is not None  # else its request has failed, and holds no slot
            noise = self._pipeline.feature_noise(self._seed(row))
            self._batch.put(
                slot,
                noise,
                condition=generation.condition,
                num_inference_steps=row.steps,
                guidance_scale=generation.request.guidance_scale,
            )

    def _seed(self, row: Row) -> int:
        return self._generations[row.request].request.seeds[row.image]

    def _prepare(self, generations: Sequence[_Generation]) -> None:
        conditions = prepare(self._pipeline, [generation.request.prompt for generation in generations])
        for generation, condition in zip(generations, conditions, strict=True):
            generation.condition = condition

    def _step(self) -> None:
        running = self._schedule.running
        if not running:
            return
        began = time.perf_counter()
        error = _attempt(lambda: self._batch.step([None if row is None else row.done for row in self._schedule.slots]))
        if error is not None:
            for number in {row.request for row in running}:
                self._fail(number, error)
            return
        with self._changed:
            self._schedule = self._schedule.advance()
            self._step_seconds = time.perf_counter() - began
            self._totals["steps"] += 1

    def _decode_finished(self) -> None:
        finished = [
            _FinishedRow(number=row.request, seed=self._seed(row), features=self._batch.features(slot))
            for slot, row in self._schedule.finished.items()
        ]
        with self._changed:
            self._schedule = self._schedule.release()
        self._batch_then_single(finished, self._decode)

    def _decode(self, rows: Sequence[_FinishedRow]) -> None:
        # A failed image ends its whole request.
        rows = [row for row in rows if row.number in self._generations]
        if not rows:
            return
        features = torch.stack([row.features for row in rows])
        if not features.isfinite().all():
            raise EngineError("the features are not finite")
        for row, image in zip(rows, self._pipeline.decode(features, seeds=[row.seed for row in rows]), strict=True):
            self._count("images")
            generation = self._generations[row.number]
            generation.images.append(image)
            if len(generation.images) == len(generation.request.seeds):
                reply = GenerateReply(images=tuple(generation.images), prompt_tokens=generation.prompt_tokens)
                self._resolve(row.number, reply)

    def _batch_then_single(self, items: Sequence[N], action: Callable[[Sequence[N]], None]) -> None:
        """Runs `action` on all items; if it raises, on each one by itself, so that only the request at fault fails."""
        error = _attempt(lambda: action(items)) if items else None
        if error is None:
            return
        if len(items) == 1:
            self._fail(items[0].number, error)
            return
        for item in items:
            self._batch_then_single([item], action)

    def _remove(self, number: int) -> "Future[Any] | None":
        """Removes a request from schedule and queues; returns its future, or None if it was removed before."""
        with self._changed:
            self._schedule = self._schedule.without(number)
            request = self._generations.pop(number, None) or self._chats.pop(number, None)
        return request.future if request else None

    def _resolve(self, number: int, reply: GenerateReply | ChatReply) -> None:
        future = self._remove(number)
        if future and future.set_running_or_notify_cancel():
            future.set_result(reply)

    def _fail(self, number: int, error: Exception) -> None:
        future = self._remove(number)
        if not future:
            return
        if not isinstance(error, Blip3oError):
            logger.error("request %d failed", number, exc_info=error)
            error = EngineError("the model failed on this request")
        self._count("failed")
        if future.set_running_or_notify_cancel():
            future.set_exception(error)

    def _fail_all(self) -> None:
        for number in [*self._generations, *self._chats]:
            self._fail(number, UnavailableError("the engine has stopped: try again"))

    def _count(self, what: str) -> None:
        with self._changed:
            self._totals[what] += 1


def _attempt(action: Callable[[], None]) -> Exception | None:
    try:
        action()
    except Exception as error:  # noqa: BLE001 - the loop's boundary: a failed request must not end the others
        return error
    return None


class LocalBackend:
    """The backend of the HTTP API for an engine in this process."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def describe(self) -> ModelInfo:
        """The model's properties. Raises `UnavailableError` if the engine is not running."""
        self._engine.check()
        return self._engine.describe()

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows."""
        return await asyncio.wrap_future(self._engine.generate(request))

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request."""
        return await asyncio.wrap_future(self._engine.chat(request))
