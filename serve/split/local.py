"""Calls engines of single stages from asyncio; all of them in one process are the split layout without Ray."""

import asyncio
import functools
from collections.abc import AsyncGenerator

from PIL import Image

from serve.engine.engine import Engine
from serve.engine.local import LocalBackend, stream
from serve.protocol import GenerateRequest, ReplicaMetrics
from serve.split.engines import ConditionEngine, DecodeEngine, DenoiseEngine
from serve.split.messages import Conditioned, DecodeRequest, DenoisedRow, DenoiseRequest


async def read_prompts(engine: ConditionEngine, request: GenerateRequest) -> Conditioned:
    """The states of a request's prompts; cancellation drops it."""
    return await asyncio.wrap_future(engine.condition(request))


async def denoise(engine: DenoiseEngine, request: DenoiseRequest) -> AsyncGenerator[DenoisedRow, None]:
    """A request's rows; closing the iterator frees them."""
    async for row in stream(functools.partial(engine.denoise, request)):
        if row is not None:  # the reply
            yield row


async def decode(engine: DecodeEngine, request: DecodeRequest) -> Image.Image | None:
    """The pixels of a row, None for a preview that finds no room; cancellation drops it."""
    return await asyncio.wrap_future(engine.decode(request))


class LocalStages:
    """Stages in this process. The decoder's queue is as long as its engine allows; other rows wait in front of it."""

    def __init__(
        self, *, condition: ConditionEngine, denoise: DenoiseEngine, decode: DecodeEngine, chat: Engine
    ) -> None:
        self._condition, self._denoise, self._decode = condition, denoise, decode
        self.chat = LocalBackend(chat)
        self._room = asyncio.Semaphore(decode.capacity)

    async def check(self) -> None:
        """Raises `UnavailableError` if an engine is not running."""
        for engine in (self._condition, self._denoise, self._decode):
            engine.check()
        await self.chat.check()

    async def metrics(self) -> ReplicaMetrics:
        """Those of all stages."""
        engines = {"condition": self._condition, "denoise": self._denoise, "decode": self._decode}
        own = ReplicaMetrics(replicas={name: engine.metrics() for name, engine in engines.items()})
        return own + await self.chat.metrics()

    async def condition(self, request: GenerateRequest) -> Conditioned:
        """Reads a request's prompts."""
        return await read_prompts(self._condition, request)

    async def denoise(self, request: DenoiseRequest) -> AsyncGenerator[DenoisedRow, None]:
        """Denoises a request's images."""
        async for row in denoise(self._denoise, request):
            yield row

    async def decode(self, request: DecodeRequest) -> Image.Image | None:
        """Makes the pixels of a row."""
        async with self._room:
            return await decode(self._decode, request)
