"""Decoding to pixels, in a thread of its own: finished rows leave their slots, and others take their place.

The queue in front of the decoder is bounded. While it is full, finished rows stay in their slots, new rows wait, and
the server's own queue fills up: a decoder that is slower than denoising ends in refused requests, not in memory.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip3o.device import own_stream
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.requests import Requests
from serve.protocol import EngineError, FinishedImage, GenerateReply


@dataclass(frozen=True, kw_only=True)
class FinishedRow:
    """The features [L, F] of image number `image` of request `number`, on the CPU."""

    number: int
    image: int
    seed: int
    features: Tensor


class DecodeStage:
    """Decodes rows in the order in which they were put, `decode_batch_size` at a time, and resolves their requests."""

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests) -> None:
        self._pipeline = pipeline
        self._requests = requests
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        # Guarded by `requests.changed`.
        self._waiting: deque[FinishedRow] = deque()
        self._capacity = max(pipeline.batch_size, pipeline.decode_rows)
        self._decoding = 0
        self._seconds = 0.0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self) -> None:
        """Waits until the thread has ended: after its current batch, once the requests are closed."""
        if self._thread.is_alive():
            self._thread.join()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

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
        """Queues rows, at most `room`."""
        with self._requests.changed:
            assert len(rows) <= self.room, f"{len(rows)} rows, room for {self.room}"
            self._waiting.extend(rows)
            self._requests.changed.notify_all()

    def _drop_ended(self) -> None:
        # A failed image ends its whole request.
        self._waiting = deque(row for row in self._waiting if row.number in self._requests.generations)

    # The thread runs everything below.

    def _run(self) -> None:
        try:
            with torch.inference_mode(), own_stream(self._pipeline.device):
                while rows := self._take():
                    began = time.perf_counter()
                    self._requests.batch_then_single(rows, self._decode)
                    with self._requests.changed:
                        self._seconds = (time.perf_counter() - began) / len(rows)
                        self._decoding = 0
        finally:
            self._requests.close()

    def _take(self) -> list[FinishedRow]:
        """The next rows of requests that have not ended; none once the requests are closed."""
        with self._requests.changed:
            while self._requests.is_open:
                self._drop_ended()
                if self._waiting:
                    count = min(len(self._waiting), self._pipeline.decode_rows)
                    self._decoding = count
                    self._requests.changed.notify_all()
                    return [self._waiting.popleft() for _ in range(count)]
                self._requests.changed.wait()
        return []

    def _decode(self, rows: Sequence[FinishedRow]) -> None:
        features = torch.stack([row.features for row in rows])
        if not features.isfinite().all():
            raise EngineError("the features are not finite")
        images = self._pipeline.decode(features, seeds=[row.seed for row in rows])
        for row, image in zip(rows, images, strict=True):
            generation = self._requests.generations.get(row.number)
            if generation is None:  # cancelled meanwhile
                continue
            self._requests.count("images")
            generation.images[row.image] = image
            if generation.on_event:
                generation.on_event(FinishedImage(image=image, number=row.image))
            if len(generation.images) == len(generation.request.seeds):
                in_order = tuple(generation.images[number] for number in range(len(generation.images)))
                reply = GenerateReply(images=in_order, prompt_tokens=generation.prompt_tokens)
                self._requests.resolve(row.number, reply)
