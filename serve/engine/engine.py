"""The engine: the model behind four stages, each a thread with its own queue, that advance all requests together.

`condition` reads prompts, `stepping` denoises one step at a time, `decoding` makes pixels one step at a time, and
`chat` writes replies one token at a time. A stage does at most one pass of its network before it looks at its queue
again, and waits for no other stage: a conversation never waits for an image, nor the reverse, but for their share of
the processor. The same prompt and seed give the image of `Blip3oPipeline.generate`, bit for bit on CPU, whatever else
is in the batch.

A failure ends the request that caused it. A failure in a denoising step has no single cause and ends all requests in
the batch. One after which the GPU cannot be used ends the threads and all requests.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future

from blip3o.errors import RequestError
from blip3o.inference.chat import MAX_REPLY_TOKENS
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
from serve.engine.chat import ChatStage
from serve.engine.condition import ConditionStage
from serve.engine.decoding import DecodeStage
from serve.engine.requests import Chat, Clock, Generation
from serve.engine.stepping import DenoiseStage
from serve.metrics import EngineMetrics
from serve.protocol import (
    Ability,
    ChatEvent,
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
)


class Engine(EngineBase):
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
        super().__init__(pipeline, max_waiting=max_waiting, clock=clock)
        self._decoder = DecodeStage(pipeline, self._requests, lambda: self._denoiser.rows_ahead)
        self._denoiser = DenoiseStage(pipeline, self._requests, self._decoder, max_waiting=max_waiting)
        self._condition = ConditionStage(pipeline, self._requests, self._order, cache_bytes=cache_bytes)
        self._chats = ChatStage(pipeline, self._requests)
        self._stages = (self._condition, self._denoiser, self._decoder, self._chats)

    def _warm_up(self) -> None:
        pipeline = self._pipeline
        _ = pipeline.reply_rows
        if "generate" in self._abilities:
            # Before the threads, as two of them would compute what both need.
            _ = pipeline.prompt_widths, pipeline.denoiser_widths, pipeline.null_features, pipeline.decode_widths

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
        """The current load."""
        metrics = self.metrics()
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
                seconds_ahead=max(self._denoiser.seconds_ahead(), self._chats.seconds_left),
                step_age_s=self._requests.clock() - stepped_at if running and stepped_at is not None else None,
                passes=passes(metrics),
                totals=totals(metrics),
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
                ("blip3o_rows", "running"): len(self._denoiser.schedule.running),
                ("blip3o_rows", "waiting"): self._denoiser.schedule.waiting,
                ("blip3o_rows", "decoding"): self._decoder.rows,
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
        prompts = prompts_of(self._pipeline, request)
        with self._requests.changed:
            self._accept(fits=self._denoiser.accepts(request), seconds=self._denoiser.seconds_ahead())
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
            has_row = len(self._requests.chats) < self._pipeline.reply_rows
            in_time = has_row or request.deadline_s is None or seconds <= request.deadline_s
            fits = self._chats.admits(request.owner, places=self._max_waiting)
            self._accept(fits=fits and in_time, seconds=seconds)
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

    def _order(self) -> list[int]:
        """The requests with rows in the queue, those first that get a slot first."""
        self._denoiser.drop_ended()
        return [entry.request for entry in self._denoiser.schedule.queue.order]
