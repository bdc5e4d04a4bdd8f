"""Decoding to pixels, in a thread of its own: finished rows leave their slots, and others take their place.

Images are decoded together, one evaluation of the decoder at a time; each may be at another step, so an image joins or
leaves between two evaluations, also when its request is cancelled. The queue in front is bounded. While it is full,
finished rows stay in their slots, new rows wait, and the server's own queue fills up: a decoder that is slower than
denoising ends in refused requests, not in memory.

Previews take the rows of a pass that would be padding. Beyond that, they delay an image by one evaluation in all, and
are dropped if there is no room for them.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.inference.widths import fitting, pad_rows
from blip3o.model.decoders.base import Tensors
from blip3o.model.decoders.pixel import to_pixels
from blip3o.model.flow import Trajectory
from serve.engine.requests import Requests, attempt
from serve.engine.scheduler import decoders_half
from serve.engine.stage import Stage
from serve.protocol import EngineError, FinishedImage, GenerateReply, PartialImage


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """The features [L, F] of image number `image` of request `number`, on the CPU; a preview if `partial` is given."""

    number: int
    image: int
    seed: int
    features: Tensor
    partial: int | None = None


class RowSink(Protocol):
    """Where rows go when they are denoised: the decoder of this process, or whoever sends them to another one."""

    @property
    def room(self) -> int:
        """How many finished rows may be put. The caller holds the lock; only `put` takes room away."""
        ...

    def put(self, rows: Sequence[FinishedRow]) -> None:
        """Takes rows, at most `room` finished ones; drops previews that do not fit."""
        ...

    def seconds_ahead(self, rows: int) -> float:
        """How long `rows` more rows take after those that are here. The caller holds the lock."""
        ...


@dataclass(kw_only=True, eq=False)
class _Decoding:
    """An image on its way. `has_waited`: a pass of previews has delayed it."""

    row: FinishedRow
    way: Trajectory
    prepared: Tensors
    has_waited: bool = False


class DecodeBatch:
    """Images that are decoded together, each at its own step."""

    def __init__(self, pipeline: Blip3oPipeline) -> None:
        self._pipeline, self._model = pipeline, pipeline.model
        self._null = pipeline.null_features
        self._images: list[_Decoding] = []

    @property
    def rows(self) -> list[FinishedRow]:
        """The rows that are being decoded."""
        return [image.row for image in self._images]

    @property
    def images(self) -> list[FinishedRow]:
        """Those of them that are no previews."""
        return [row for row in self.rows if row.partial is None]

    def put(self, row: FinishedRow) -> None:
        """Starts an image. Raises `EngineError` for features that are no numbers."""
        if not row.features.isfinite().all():
            raise EngineError("the features are not finite")
        decoder = self._model.decoder
        inputs = pad_rows(row.features[None].to(self._pipeline.device), self._pipeline.decode_widths[0])
        prepared = decoder.prepare(self._model.decoder_input(inputs), self._null)
        steps = 1 if row.partial is not None and decoder.previews else None
        way = decoder.start(self._pipeline.pixel_noise(row.seed), steps)
        self._images.append(_Decoding(row=row, way=way, prepared=tuple(part[:1] for part in prepared)))

    def remove(self, rows: Sequence[FinishedRow]) -> None:
        """Gives up images."""
        self._images = [image for image in self._images if not any(image.row is row for row in rows)]

    def step(self) -> None:
        """Advances images that are not done by one evaluation: all that are not previews, unless previews are due."""
        images = self._next()
        widest = self._pipeline.decode_widths[-1]
        for start in range(0, len(images), widest):
            self._evaluate(images[start : start + widest])

    def _next(self) -> list[_Decoding]:
        waiting = [image for image in self._images if not image.way.done]
        previews = [image for image in waiting if image.row.partial is not None]
        images = [image for image in waiting if image.row.partial is None]
        widest = self._pipeline.decode_widths[-1]
        padding = fitting(len(images), self._pipeline.decode_widths) - len(images) if 0 < len(images) <= widest else 0
        if previews and not padding and not any(image.has_waited for image in images):
            for image in images:
                image.has_waited = True
            return previews[:widest]
        return images + previews[:padding]

    def _evaluate(self, images: Sequence[_Decoding]) -> None:
        padded = [*images, *[images[-1]] * (fitting(len(images), self._pipeline.decode_widths) - len(images))]
        output = self._model.decoder.evaluate(
            torch.stack([image.way.point for image in padded]),
            torch.stack([image.way.level for image in padded]),
            tuple(torch.cat(parts) for parts in zip(*(image.prepared for image in padded), strict=True)),
        )
        for image, own in zip(images, output[: len(images)], strict=True):
            image.way.advance(own)

    def finished(self) -> list[tuple[FinishedRow, Image.Image]]:
        """Takes out the images that are done."""
        done = [image for image in self._images if image.way.done]
        self._images = [image for image in self._images if not image.way.done]
        return [(image.row, self._picture(image)) for image in done]

    def _picture(self, image: _Decoding) -> Image.Image:
        values = self._model.decoder.images(image.way.point[None], image.prepared)
        return Image.fromarray(to_pixels(values)[0].cpu().numpy())


class DecodeStage(Stage):
    """Decodes rows in the order in which they were put, up to `decode_rows` together, and resolves their requests."""

    name = "decode"

    def __init__(
        self, pipeline: Blip3oPipeline, requests: Requests, denoising: Callable[[], float] = lambda: math.inf
    ) -> None:
        """`denoising`: how many rows a thread of this process has yet to denoise. It is called with the lock held."""
        super().__init__(pipeline, requests)
        self._batch: DecodeBatch | None = None  # a replica that only chats has no decoder
        self._denoising = denoising
        # Guarded by `requests.changed`.
        self._waiting: deque[FinishedRow] = deque()
        self._previews: deque[FinishedRow] = deque()
        self._capacity = max(pipeline.batch_size, pipeline.decode_rows)
        self._decoding = 0
        self._later = 0  # waiting rows that are decoded when the others are done
        self._seconds = 0.0  # of an image, by those that were done last
        self._spent = 0.0  # since then; only the thread reads it

    @property
    def rows(self) -> int:
        """Rows that wait or are being decoded. The caller holds the lock."""
        return len(self._waiting) + self._decoding

    @property
    def room(self) -> int:
        """How many rows may be put. The caller holds the lock; only `put` takes room away."""
        self._drop_ended()
        return self._capacity - len(self._waiting)

    def seconds_ahead(self, rows: int) -> float:
        """How long `rows` more rows take after those that are here. The caller holds the lock."""
        return (self.rows + rows) * self._seconds

    def put(self, rows: Sequence[FinishedRow]) -> None:
        """Queues rows, at most `room` finished ones; drops previews that do not fit."""
        with self._requests.changed:
            finished = [row for row in rows if row.partial is None]
            assert len(finished) <= self.room, f"{len(finished)} rows, room for {self.room}"
            self._waiting.extend(finished)
            previews = [row for row in rows if row.partial is not None]
            room = self._pipeline.decode_rows - len(self._previews)
            self._previews.extend(previews[:room])
            self._leave_out(previews[room:])
            self._requests.changed.notify_all()

    def _leave_out(self, previews: Sequence[FinishedRow]) -> None:
        """Called with previews that are dropped, with the lock held. Nobody waits for them here."""

    def _drop_ended(self) -> None:
        # A failed image ends its whole request.
        self._waiting = deque(row for row in self._waiting if self._is_wanted(row))
        self._previews = deque(row for row in self._previews if self._is_wanted(row))

    def _is_wanted(self, row: FinishedRow) -> bool:
        generation = self._requests.generations.get(row.number)
        return generation is not None and row.image not in generation.images

    # The thread runs everything below.

    def has_work(self) -> bool:
        """Whether an image or a preview can be decoded."""
        self._drop_ended()
        return bool(self._waiting or self._previews or (self._batch and self._batch.rows))

    def work(self) -> None:
        """Takes in what fits, and advances all images by one evaluation."""
        batch = self._batch = self._batch or DecodeBatch(self._pipeline)
        began = time.perf_counter()
        for row in self._take(batch):
            self._requests.batch_then_single([row], lambda rows: batch.put(rows[0]))
        rows, images = batch.rows, len(batch.images)
        error = attempt(lambda: self._advance(batch))
        if error is not None:
            batch.remove(rows)
            for row in rows:
                self._alone(row, error, among=len(rows))
        elif rows:
            seconds = time.perf_counter() - began
            self._requests.observe("blip3o_stage_seconds", seconds, self.name)
            self._spent += seconds if images else 0.0
        with self._requests.changed:
            self._decoding = len(batch.images)
            if done := images - self._decoding:
                self._seconds, self._spent = self._spent / done, 0.0

    def _take(self, batch: DecodeBatch) -> list[FinishedRow]:
        """Drops images of requests that have ended; returns the rows that take their place."""
        with self._requests.changed:
            self._drop_ended()
            batch.remove([row for row in batch.rows if not self._is_wanted(row)])
            taken = [self._waiting.popleft() for _ in range(self._count(len(batch.images)))]
            free = self._pipeline.decode_rows - len(batch.rows) - len(taken)
            if free < 0:
                dropped = [row for row in batch.rows if row.partial is not None][free:]
                batch.remove(dropped)
                self._leave_out(dropped)
            self._decoding = len(batch.images) + len(taken)
            taken += [self._previews.popleft() for _ in range(min(len(self._previews), max(free, 0)))]
            self._requests.changed.notify_all()
            return taken

    def _count(self, images: int) -> int:
        """How many of the waiting rows to take in, next to `images` that are being decoded.

        On a CPU, threads have cores of their own. If all rows came here at once, and their clients ask for the next
        images when these are done, denoiser and decoder would take turns, and one be idle. So the decoder takes half of
        what there is in both, and the rest when that is done; from then on, both have work.
        """
        waiting = len(self._waiting)
        count = waiting
        if self._pipeline.device.type == "cpu" and (images or not self._later):
            requests = [row.number for row in self._waiting]
            widths, denoising = self._pipeline.decode_widths, self._denoising()
            half = decoders_half(requests, decoding=images, denoising=denoising, widths=widths)
            count = half if half == waiting or not self._later else 0
        self._later = waiting - count
        return min(count, self._pipeline.decode_rows - images)

    def _advance(self, batch: DecodeBatch) -> None:
        batch.step()
        for row, image in batch.finished():
            self._deliver(row, image)

    def _alone(self, row: FinishedRow, error: Exception, *, among: int) -> None:
        """Decodes a row of a batch that has failed by itself, from its start, so that only the one at fault fails."""

        def decode() -> None:
            if among == 1:
                raise error
            batch = DecodeBatch(self._pipeline)
            batch.put(row)
            while batch.rows:
                self._advance(batch)

        failure = attempt(decode)
        if failure is not None:
            self._requests.fail(row.number, failure)

    def _deliver(self, row: FinishedRow, image: Image.Image) -> None:
        with self._requests.changed:
            if not self._is_wanted(row):  # cancelled meanwhile, or a preview that comes too late
                return
            generation = self._requests.generations[row.number]
            if row.partial is not None:
                generation.send(PartialImage(image=image, number=row.image, partial=row.partial))
                return
            self._requests.count("blip3o_images_total")
            generation.images[row.image] = image
            generation.send(FinishedImage(image=image, number=row.image))
            if len(generation.images) == len(generation.request.seeds):
                in_order = tuple(generation.images[number] for number in range(len(generation.images)))
                reply = GenerateReply(images=in_order, prompt_tokens=len(generation.prompts[0]))
                self._requests.resolve(row.number, reply)
