"""The backend over stages: prompts → condition → denoise → decode, one row of an image after the other. Without torch.

A row goes to the decoder as soon as it is denoised, so the images of a request are decoded while others are denoised,
by as many decoders as there are. A failure of a stage ends the request that it happened to.

Rows that wait for the decoder are here, and their number is bounded: while there are too many, previews are left out,
then requests for images are refused. So a decoder that is slower than denoising ends in refused requests, not in
memory, as in the whole engine.
"""

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace

from PIL import Image

from blip3o.errors import Blip3oError, RequestError
from serve.engine.fairness import FairQueue
from serve.metrics import Recorder
from serve.protocol import (
    BusyError,
    ChatEvent,
    ChatReply,
    ChatRequest,
    DeadlineError,
    EngineError,
    FinishedImage,
    GenerateReply,
    GenerateRequest,
    ImageEvent,
    ModelInfo,
    PartialImage,
    ReplicaMetrics,
    busy,
)
from serve.split.messages import DecodeRequest, DenoisedRow, DenoiseRequest, Stages


class SplitBackend:
    """Answers requests with stages. One event loop."""

    def __init__(
        self,
        stages: Stages,
        *,
        name: str,
        max_waiting: int,
        preview_rows: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """From `max_waiting` images that are not decoded on, requests are refused; from `preview_rows` images and
        previews on, there are no more previews. `name` is this replica's in the metrics."""
        self._stages, self._name, self._clock = stages, name, clock
        self._max_waiting, self._preview_rows = max_waiting, preview_rows
        self._undecoded = _Undecoded(stages, clock)
        self._denoised: set[int] = set()  # requests that only the decoder works on
        self._info: ModelInfo | None = None
        self._recorder = Recorder()

    async def check(self) -> None:
        """Raises `UnavailableError` if a stage has no replica that answers."""
        await self._stages.check()

    async def describe(self) -> ModelInfo:
        """The model's properties. Raises `UnavailableError` if a stage has no replica that answers."""
        await self.check()
        if self._info is None:
            # The stage of conversations has no parts for images, but the bundle has, or the others had not started.
            self._info = replace(await self._stages.chat.describe(), abilities=frozenset({"chat", "generate"}))
        return self._info

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request."""
        return await self._stages.chat.chat(request)

    async def stream_chat(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """The pieces of a reply, and the reply; closing the iterator drops the request."""
        async with aclosing(self._stages.chat.stream_chat(request)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event

    async def metrics(self) -> ReplicaMetrics:
        """What is counted here, and in the stages."""
        own = self._recorder.snapshot({("blip3o_requests_running", "generate"): float(len(self._denoised))})
        return ReplicaMetrics(replicas={self._name: own}) + await self._stages.metrics()

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows in every stage."""
        return await self._answer(request, lambda event: None)

    async def stream_images(self, request: GenerateRequest) -> AsyncIterator[ImageEvent]:
        """Images as they are done, and the reply; closing the iterator frees their rows in every stage."""
        events: asyncio.Queue[ImageEvent | None] = asyncio.Queue()
        work = asyncio.create_task(self._answer(request, events.put_nowait))
        work.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield await work
        finally:
            work.cancel()

    async def _answer(self, request: GenerateRequest, send: Callable[[ImageEvent], None]) -> GenerateReply:
        """Makes the images and counts the request."""
        began = self._clock()
        try:
            reply = await self._in_time(request, send)
        except asyncio.CancelledError:
            self._recorder.add("blip3o_cancelled_total")
            raise
        except BusyError:
            self._recorder.add("blip3o_rejected_total")
            raise
        except RequestError:
            raise
        except (Blip3oError, EngineError) as error:
            self._recorder.add("blip3o_errors_total", type(error).__name__)
            raise
        self._recorder.observe("blip3o_e2e_latency_seconds", self._clock() - began, "generate")
        self._recorder.add("blip3o_request_success_total", "generate")
        return reply

    async def _in_time(self, request: GenerateRequest, send: Callable[[ImageEvent], None]) -> GenerateReply:
        """Makes the images, or raises `BusyError` before, or `DeadlineError` when the time is over."""
        limit = request.deadline_s
        is_hopeless = limit is not None and self._undecoded.rows > 0 and self._undecoded.seconds > limit
        if not self._undecoded.admits(request.owner, places=self._max_waiting) or is_hopeless:
            raise busy(self._undecoded.seconds)
        due = None if limit is None else self._clock() + limit
        try:
            async with asyncio.timeout(limit):
                return await self._make(request, send, due)
        except (TimeoutError, DeadlineError):  # that of a stage has the time that was left
            assert limit is not None, "a request without a deadline is never late"
            raise DeadlineError(limit) from None

    async def _make(
        self, request: GenerateRequest, send: Callable[[ImageEvent], None], due: float | None
    ) -> GenerateReply:
        """Takes a request through the stages."""
        read = await self._stages.condition(replace(request, deadline_s=self._left(due)))
        message = DenoiseRequest(request=replace(request, deadline_s=self._left(due)), states=read.states)
        images: dict[int, Image.Image] = {}
        previews: dict[int, list[asyncio.Task[None]]] = defaultdict(list)  # of each image, in order

        async def decode(row: DenoisedRow, earlier: list[asyncio.Task[None]]) -> None:
            message = DecodeRequest(
                features=row.features,
                seed=request.seeds[row.image],
                is_partial=row.partial is not None,
                deadline_s=self._left(due),
            )
            image = await self._undecoded.decode(message, owner=request.owner)
            if image is None:  # the decoder has no room for a preview
                return
            for each in earlier:  # another decoder has it still: it would come too late
                each.cancel()
            if row.partial is not None:
                send(PartialImage(image=image, number=row.image, partial=row.partial))
                return
            images[row.image] = image
            send(FinishedImage(image=image, number=row.image))

        try:
            async with asyncio.TaskGroup() as decoding:
                async with aclosing(self._stages.denoise(message)) as rows:
                    async for row in rows:
                        if row.partial is not None and self._undecoded.in_all >= self._preview_rows:
                            continue
                        earlier = previews[row.image]
                        task = decoding.create_task(decode(row, list(earlier)))
                        if row.partial is not None:
                            earlier.append(task)
                self._denoised.add(id(images))
        except ExceptionGroup as failed:  # the first one has cancelled the others
            raise failed.exceptions[0] from None
        finally:
            self._denoised.discard(id(images))
        return GenerateReply(
            images=tuple(images[number] for number in range(len(images))), prompt_tokens=read.prompt_tokens
        )

    def _left(self, due: float | None) -> float | None:
        return None if due is None else max(due - self._clock(), 0.001)


class _Undecoded:
    """The rows of all requests that were denoised and not decoded. Previews take no image's place."""

    def __init__(self, stages: Stages, clock: Callable[[], float]) -> None:
        self._stages, self._clock = stages, clock
        self._queue, self._numbers = FairQueue(), itertools.count()
        self._previews = 0
        self.seconds = 0.0  # from an image's arrival here to its pixels, the last one

    @property
    def rows(self) -> int:
        """How many images there are."""
        return self._queue.rows

    @property
    def in_all(self) -> int:
        """How many images and previews there are."""
        return self.rows + self._previews

    def admits(self, owner: str, *, places: int) -> bool:
        """Whether an owner may get a row more, if there are `places`."""
        return self._queue.admits(owner, 1, free=places - self.rows, places=places)

    async def decode(self, request: DecodeRequest, *, owner: str) -> Image.Image | None:
        """The pixels of a row; None for a preview for which the decoder has no room."""
        if request.is_partial:
            return await self._preview(request)
        began, number = self._clock(), next(self._numbers)
        self._queue = self._queue.add(number, owner=owner, cost=1)
        try:
            image = await self._stages.decode(request)
        finally:
            self._queue = self._queue.without(number)
        self.seconds = self._clock() - began
        return image

    async def _preview(self, request: DecodeRequest) -> Image.Image | None:
        self._previews += 1
        try:
            return await self._stages.decode(request)
        finally:
            self._previews -= 1
