"""The engine: the model, and two threads that advance all requests together.

The first advances all rows by one denoising step at a time. Between two steps it drops the rows of requests that have
ended, answers one batch of conversations, and admits waiting rows to free slots. The second decodes finished rows to
pixels and resolves their requests (`serve.engine.decoding`), so that neither steps nor conversations wait for a
decoder. `serve.engine.scheduler` assigns slots, `serve.engine.denoise` does the arithmetic. The same prompt and seed
give the image of `Blip3oPipeline.generate`, bit for bit on CPU, whatever else is in the batch.

A failure ends the request that caused it. A failure in a denoising step has no single cause and ends all requests in
the batch. One after which the GPU cannot be used ends the threads and all requests.
"""

import functools
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from blip3o.errors import BundleError
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.decoding import DecodeStage, FinishedRow
from serve.engine.denoise import DenoiseBatch, prepare
from serve.engine.requests import Chat, Generation, Requests, attempt
from serve.engine.scheduler import ChatTicket, Schedule, next_chats
from serve.metrics import EngineMetrics, Sample
from serve.protocol import (
    Ability,
    BusyError,
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    UnavailableError,
)

DEFAULT_MAX_WAITING = 64
_RETRY_AFTER_S = (1, 60)  # bounds of the `retry-after` of a rejected request


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Rows in slots, in the queue and at the decoder, conversations in the queue, and totals since the start.

    `seconds_ahead`: until all rows are done, by the durations of the last step and decode.
    """

    rows_running: int
    rows_waiting: int
    rows_decoding: int
    chats_waiting: int
    seconds_ahead: float
    totals: Mapping[str, int]

    @property
    def in_work(self) -> int:
        """Rows and conversations that have not ended."""
        return self.rows_running + self.rows_waiting + self.rows_decoding + self.chats_waiting


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
        self._requests = Requests()
        self._decoder = DecodeStage(pipeline, self._requests)
        # Guarded by `_requests.changed`; the arithmetic runs without it. Only the engine's thread changes the slots.
        self._schedule = Schedule.empty(batch_size=pipeline.batch_size, max_waiting=max_waiting)
        self._step_seconds = 0.0

    def start(self) -> None:
        """Starts the threads."""
        self._decoder.start()
        self._thread.start()

    def close(self) -> None:
        """Stops the threads after their current step and decode; pending requests fail with `UnavailableError`."""
        self._requests.close()
        if self._thread.is_alive():
            self._thread.join()
        self._decoder.join()
        self._requests.fail_all()

    def check(self) -> None:
        """Raises `UnavailableError` if a thread is not running."""
        if not (self._thread.is_alive() and self._decoder.alive):
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
            precision=self._pipeline.precision,
            bundle_sha256=self._pipeline.bundle_sha256,
            solver=config.sampler.solver,
            abilities=self._abilities,
            max_images_in_chat=int(bool(self._pipeline.template.image_tokens)),
            prompt_tokens_limit=self._pipeline.max_length,
        )

    @property
    def _abilities(self) -> frozenset[Ability]:
        generates = self._pipeline.model.generates and self._pipeline.model.has("decoder")
        return frozenset({"chat", "generate"} if generates else {"chat"})

    def stats(self) -> EngineStats:
        """The current load; `totals` counts images, chats, steps, and cancelled, rejected and failed requests."""
        with self._requests.changed:
            self._drop_ended()
            return EngineStats(
                rows_running=len(self._schedule.running),
                rows_waiting=len(self._schedule.waiting),
                rows_decoding=self._decoder.rows,
                chats_waiting=len(self._requests.chats),
                seconds_ahead=self._seconds_ahead(),
                totals=dict(self._requests.totals),
            )

    def metrics(self) -> EngineMetrics:
        """The values of `serve.metrics.METRICS`."""
        stats = self.stats()
        counted = {
            "blip3o_images_total": stats.totals.get("images", 0),
            "blip3o_cancelled_total": stats.totals.get("cancelled", 0),
            "blip3o_rejected_total": stats.totals.get("rejected", 0),
        }
        samples: dict[tuple[str, str], Sample] = {(name, ""): float(value) for name, value in counted.items()}
        samples["blip3o_requests_waiting", "chat"] = float(stats.chats_waiting)
        return EngineMetrics(samples=samples)

    def generate(
        self, request: GenerateRequest, on_event: Callable[[ImageEvent], None] | None = None
    ) -> "Future[GenerateReply]":
        """Queues a request for images. `on_event` gets each image as soon as it is done, in the decoder's thread.

        Raises `RequestError` if the prompt is too long or the bundle cannot generate images, `BusyError` if the queue
        is full, `UnavailableError` after `close`.
        """
        self._pipeline.require_generation()
        prompt_tokens = len(self._pipeline.generation_ids(request.prompt))
        images = len(request.seeds)
        with self._requests.changed:
            self._accept(fits=images <= self._schedule.free_capacity)
            generation = Generation(
                number=next(self._numbers), request=request, prompt_tokens=prompt_tokens, on_event=on_event
            )
            self._schedule = self._schedule.submit(generation.number, images=images, steps=request.num_inference_steps)
            self._requests.add(generation)
        return generation.future

    def chat(self, request: ChatRequest) -> "Future[ChatReply]":
        """Queues a conversation. Raises as `generate` does."""
        prompt_tokens = len(self._pipeline.chat_ids(request.turns, with_image=bool(request.images)))
        with self._requests.changed:
            self._accept(fits=len(self._requests.chats) < self._schedule.max_waiting)
            chat = Chat(number=next(self._numbers), request=request, prompt_tokens=prompt_tokens)
            self._requests.add(chat)
        return chat.future

    def _accept(self, *, fits: bool) -> None:
        if not self._requests.is_open:
            raise UnavailableError("the engine has stopped: try again")
        if not fits:
            self._requests.count("rejected")
            least, most = _RETRY_AFTER_S
            raise BusyError(min(max(math.ceil(self._seconds_ahead()), least), most))

    def _seconds_ahead(self) -> float:
        """Until all rows are done: denoising and decoding overlap, so the slower one counts."""
        rows = len(self._schedule.running) + len(self._schedule.waiting)
        return max(self._schedule.steps_ahead * self._step_seconds, self._decoder.seconds_ahead(rows))

    # The engine's thread runs everything below.

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while self._wait_for_work():
                    self._run_once()
        finally:
            self._requests.close()
            self._decoder.join()
            self._requests.fail_all()

    def _wait_for_work(self) -> bool:
        with self._requests.changed:
            self._requests.changed.wait_for(self._has_work)
            return self._requests.is_open

    def _has_work(self) -> bool:
        self._drop_ended()
        can_hand_over = bool(self._schedule.finished) and self._decoder.room > 0
        return not self._requests.is_open or bool(self._requests.chats) or self._schedule.has_steps or can_hand_over

    @functools.cached_property
    def _batch(self) -> DenoiseBatch:
        """The rows in the slots; created for the first image, since a bundle may only chat."""
        return DenoiseBatch(self._pipeline)

    def _run_once(self) -> None:
        self._answer_chats()
        self._admit()
        self._step()
        self._hand_over()

    def _drop_ended(self) -> None:
        with self._requests.changed:
            for number in self._schedule.requests - self._requests.generations.keys():
                self._schedule = self._schedule.without(number)

    def _answer_chats(self) -> None:
        with self._requests.changed:
            chats = dict(self._requests.chats)
        tickets = [
            ChatTicket(request=number, with_image=bool(chat.request.images), max_tokens=chat.request.max_tokens)
            for number, chat in chats.items()
        ]
        chosen = next_chats(tickets, batch_size=self._pipeline.batch_size)
        self._requests.batch_then_single([chats[number] for number in chosen], self._reply)

    def _reply(self, chats: Sequence[Chat]) -> None:
        conversations = [list(chat.request.turns) for chat in chats]
        images = [image for chat in chats for image in chat.request.images]
        limit = chats[0].request.max_tokens
        replies = self._pipeline.reply_ids(conversations, images=images or None, max_tokens=limit)
        for chat, ids in zip(chats, replies, strict=True):
            reply = ChatReply(
                text=self._pipeline.tokenizer.decode(ids),
                prompt_tokens=chat.prompt_tokens,
                reply_tokens=len(ids),
                finish_reason="stop" if len(ids) < limit else "length",
            )
            self._requests.count("chats")
            self._requests.resolve(chat.number, reply)

    def _admit(self) -> None:
        with self._requests.changed:
            self._drop_ended()
            self._schedule = self._schedule.admit()
            starting = dict(self._schedule.unstarted)
            generations = {row.request: self._requests.generations[row.request] for row in starting.values()}
        new = [generation for generation in generations.values() if generation.condition is None]
        self._requests.batch_then_single(new, self._prepare)
        for slot, row in starting.items():
            generation = generations[row.request]
            if generation.condition is None:  # it has failed
                continue
            self._batch.put(
                slot,
                self._pipeline.feature_noise(generation.request.seeds[row.image]),
                condition=generation.condition,
                num_inference_steps=row.steps,
                guidance_scale=generation.request.guidance_scale,
            )
        self._drop_ended()

    def _prepare(self, generations: Sequence[Generation]) -> None:
        # The decoder's thread must not run the parts that make them: this thread does.
        _ = self._pipeline.null_features
        conditions = prepare(self._pipeline, [generation.request.prompt for generation in generations])
        for generation, condition in zip(generations, conditions, strict=True):
            generation.condition = condition

    def _step(self) -> None:
        schedule = self._schedule
        if all(done is None for done in schedule.done):
            return
        began = time.perf_counter()
        error = attempt(lambda: self._batch.step(schedule.done))
        if error is not None:
            for number in {row.request for row in schedule.running}:
                self._requests.fail(number, error)
            return
        with self._requests.changed:
            self._schedule = self._schedule.advance()
            self._step_seconds = time.perf_counter() - began
            self._requests.totals["steps"] += 1

    def _hand_over(self) -> None:
        """Gives finished rows to the decoder, the first to arrive first, as many as it has room for; frees their slots.

        A row must not wait in its slot for later ones: new rows would overtake it for as long as requests come.
        """
        with self._requests.changed:
            self._drop_ended()
            finished = list(self._schedule.finished.items())[: self._decoder.room]
            generations = self._requests.generations
            seeds = [generations[row.request].request.seeds[row.image] for _, row in finished]
        rows = [
            FinishedRow(number=row.request, image=row.image, seed=seed, features=self._batch.features(slot).cpu())
            for (slot, row), seed in zip(finished, seeds, strict=True)
        ]
        with self._requests.changed:
            self._decoder.put(rows)
            self._schedule = self._schedule.release([slot for slot, _ in finished])
