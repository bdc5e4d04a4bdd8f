"""The engine: the model behind four stages, each a thread with its own queue, that advance all requests together.

`condition` reads prompts, `stepping` denoises one step at a time, `decoding` makes pixels one step at a time, and
`chat` writes replies one token at a time. A stage does at most one pass of its network before it looks at its queue
again, and waits for no other stage: a conversation never waits for an image, nor the reverse, but for their share of
the processor. The same prompt and seed give the image of `Blip3oPipeline.generate`, bit for bit on CPU, whatever else
is in the batch.

A failure ends the request that caused it. A failure in a denoising step has no single cause and ends all requests in
the batch. One after which the GPU cannot be used ends the threads and all requests.
"""

import itertools
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from blip3o.errors import RequestError
from blip3o.inference.chat import MAX_REPLY_TOKENS
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.chat import ChatStage
from serve.engine.condition import ConditionStage
from serve.engine.decoding import DecodeStage
from serve.engine.requests import Chat, Clock, Generation, Requests
from serve.engine.stepping import DenoiseStage
from serve.metrics import EngineMetrics
from serve.protocol import (
    Ability,
    BusyError,
    ChatEvent,
    ChatReply,
    ChatRequest,
    DeadlineError,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    UnavailableError,
)

DEFAULT_MAX_WAITING = 64
DEFAULT_CACHE_BYTES = 64 * 2**20
_RETRY_AFTER_S = (1, 60)  # bounds of the `retry-after` of a rejected request


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """Rows in slots, in the queue and at the decoder, conversations, and totals since the start.

    `seconds_ahead`: about how long until all images are done. `step_age_s`: how long ago the last denoising step ended,
    if there was one and rows are in slots. `passes`: those of all stages, a token of all replies is one.
    """

    rows_running: int
    rows_waiting: int
    rows_decoding: int
    chats_running: int
    chats_waiting: int
    seconds_ahead: float
    step_age_s: float | None
    passes: int
    totals: Mapping[str, int]

    @property
    def in_work(self) -> int:
        """Rows and conversations that have not ended."""
        return self.rows_running + self.rows_waiting + self.rows_decoding + self.chats_running + self.chats_waiting


class Engine:
    """Serves many requests with one model.

    Any thread may call `generate` and `chat`. Cancelling their future frees the request's rows.
    """

    def __init__(
        self,
        pipeline: Blip3oPipeline,
        *,
        max_waiting: int = DEFAULT_MAX_WAITING,
        cache_bytes: int = DEFAULT_CACHE_BYTES,
        clock: Clock = time.monotonic,
    ) -> None:
        """At most `max_waiting` rows and `max_waiting` conversations wait. Requests before `start` are queued.

        `cache_bytes` bounds the cache of prompts that were read; 0 keeps none.
        """
        self._pipeline = pipeline
        self._max_waiting = max_waiting
        self._numbers = itertools.count()
        self._requests = Requests(clock)
        self._decoder = DecodeStage(pipeline, self._requests)
        self._denoiser = DenoiseStage(pipeline, self._requests, self._decoder, max_waiting=max_waiting)
        self._condition = ConditionStage(pipeline, self._requests, self._order, cache_bytes=cache_bytes)
        self._chats = ChatStage(pipeline, self._requests)
        self._stages = (self._condition, self._denoiser, self._decoder, self._chats)

    def start(self) -> None:
        """Finds the batch widths of this machine, and starts the threads."""
        self._warm_up()
        for stage in self._stages:
            stage.start()

    def _warm_up(self) -> None:
        pipeline = self._pipeline
        if "generate" in self._abilities:
            # Before the threads, as two of them would compute what both need.
            _ = pipeline.prompt_widths, pipeline.denoiser_widths, pipeline.null_features, pipeline.decode_widths

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
        """The current load; `totals` counts images, chats, steps, and cancelled, rejected, late and failed requests."""
        metrics = self.metrics()
        late = metrics.value("blip3o_errors_total", DeadlineError.__name__)
        totals = {
            "images": metrics.value("blip3o_images_total"),
            "chats": metrics.value("blip3o_request_success_total", "chat"),
            "steps": metrics.observations("blip3o_denoise_step_seconds"),
            "cancelled": metrics.value("blip3o_cancelled_total"),
            "rejected": metrics.value("blip3o_rejected_total"),
            "late": late,
            "failed": metrics.total("blip3o_errors_total") - late,
        }
        with self._requests.changed:
            self._denoiser.drop_ended()
            schedule, stepped_at = self._denoiser.schedule, self._denoiser.stepped_at
            running = bool(schedule.running) and stepped_at is not None
            return EngineStats(
                rows_running=len(schedule.running),
                rows_waiting=schedule.waiting,
                rows_decoding=self._decoder.rows,
                chats_running=self._chats.running,
                chats_waiting=self._chats.waiting,
                seconds_ahead=self._denoiser.seconds_ahead(),
                step_age_s=self._requests.clock() - stepped_at if running and stepped_at is not None else None,
                passes=metrics.observations("blip3o_stage_seconds"),
                totals={name: int(value) for name, value in totals.items() if value},
            )

    def metrics(self) -> EngineMetrics:
        """The values of `serve.metrics.METRICS`."""
        with self._requests.changed:
            self._denoiser.drop_ended()
            waiting = self._denoiser.schedule.queue.requests
            rows = {row.request for row in self._denoiser.schedule.running}
            gauges = {
                ("blip3o_requests_running", "generate"): len(self._requests.generations.keys() - (waiting - rows)),
                ("blip3o_requests_waiting", "generate"): len(waiting - rows),
                ("blip3o_requests_running", "chat"): self._chats.running,
                ("blip3o_requests_waiting", "chat"): self._chats.waiting,
            }
            return self._requests.metrics({name: float(value) for name, value in gauges.items()})

    def generate(
        self, request: GenerateRequest, on_event: Callable[[ImageEvent], None] | None = None
    ) -> "Future[GenerateReply]":
        """Queues a request for images. `on_event` gets previews, and each image as soon as it is done, in a thread.

        Raises `RequestError` if the prompt is too long or the bundle cannot generate images, `BusyError` if the queue
        is full, or so long that the request would miss its deadline, `UnavailableError` after `close`.
        """
        self._pipeline.require_generation()
        texts = [request.prompt]
        if request.negative_prompt.strip() and request.guidance_scale != 1:
            texts.append(request.negative_prompt)
        prompts = [tuple(self._pipeline.generation_ids(text)) for text in texts]
        with self._requests.changed:
            self._denoiser.drop_ended()
            fits = len(request.seeds) <= self._denoiser.schedule.free_capacity
            # Estimates come from the last step: without work, a slow one would refuse all later requests.
            is_idle = not self._requests.generations
            in_time = (
                is_idle or request.deadline_s is None or self._denoiser.seconds_until(request) <= request.deadline_s
            )
            self._accept(fits=fits and in_time, seconds=self._denoiser.seconds_ahead())
            generation = Generation(
                number=next(self._numbers),
                request=request,
                prompts=prompts,
                began=self._requests.clock(),
                on_event=on_event,
            )
            self._denoiser.submit(generation)
            self._requests.add(generation)
        return generation.future

    def chat(self, request: ChatRequest, on_event: Callable[[ChatEvent], None] | None = None) -> "Future[ChatReply]":
        """Queues a conversation. `on_event` gets the pieces of the reply, in a thread. Raises as `generate` does."""
        if len(request.images) > 1:
            raise RequestError(f"the conversation has {len(request.images)} images: this model reads one")
        if request.max_tokens > MAX_REPLY_TOKENS:
            raise RequestError(f"max_tokens is {request.max_tokens}: at most {MAX_REPLY_TOKENS} are written")
        prompt_tokens = len(self._pipeline.chat_ids(request.turns, with_image=bool(request.images)))
        with self._requests.changed:
            seconds = self._chats.seconds_ahead()
            has_row = len(self._requests.chats) < self._pipeline.batch_size
            in_time = has_row or request.deadline_s is None or seconds <= request.deadline_s
            self._accept(fits=self._chats.waiting < self._max_waiting and in_time, seconds=seconds)
            chat = Chat(
                number=next(self._numbers),
                request=request,
                prompt_tokens=prompt_tokens,
                began=self._requests.clock(),
                on_event=on_event,
            )
            self._chats.submit(chat)
            self._requests.add(chat)
        return chat.future

    def _accept(self, *, fits: bool, seconds: float) -> None:
        if not self._requests.is_open:
            raise UnavailableError("the engine has stopped: try again")
        if not fits:
            self._requests.count("blip3o_rejected_total")
            least, most = _RETRY_AFTER_S
            raise BusyError(min(max(math.ceil(seconds), least), most))

    def _order(self) -> list[int]:
        """The requests with rows in the queue, those first that get a slot first."""
        self._denoiser.drop_ended()
        return [entry.request for entry in self._denoiser.schedule.queue.order]
