"""The split layout in this process: an engine for each stage, each with only the parts that it loads."""

import asyncio
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from serve.config.options import STAGES
from serve.engine.engine import Engine
from serve.protocol import ChatRequest
from serve.split.coordinator import SplitBackend
from serve.split.engines import ConditionEngine, DecodeEngine, DenoiseEngine
from serve.split.loading import load_stage
from serve.split.local import LocalStages

TIMEOUT = 60
_load = functools.cache(load_stage)  # with their batch widths, once found


@dataclass(frozen=True)
class Split:
    """The engines by stage, and a backend over them for one event loop at a time."""

    engines: dict[str, Any]
    max_waiting: int

    def backend(self) -> SplitBackend:
        """A backend for the current event loop."""
        stages = LocalStages(**self.engines)
        return SplitBackend(stages, name="coordinator", max_waiting=self.max_waiting, preview_rows=self.max_waiting)

    def answer(self, requests) -> list[list[Any]]:
        """The events of each request, all asked at once; an error is the last one."""

        async def events(backend, request):
            ask = backend.stream_chat if isinstance(request, ChatRequest) else backend.stream_images
            seen: list[Any] = []
            try:
                async for event in ask(request):
                    seen.append(event)
            except Exception as error:  # noqa: BLE001 - tests look at it
                seen.append(error)
            return seen

        async def all_of_them():
            backend = self.backend()
            async with asyncio.timeout(TIMEOUT):
                return await asyncio.gather(*(events(backend, request) for request in requests))

        return asyncio.run(all_of_them())


@contextmanager
def split(uri, *, batch_size=4, max_waiting=99, cache_bytes=2**20, start=True) -> Iterator[Split]:
    """Engines of all stages of a bundle, which run unless `start` is false."""
    pipelines = {stage: _load(stage, uri, batch_size=batch_size) for stage in STAGES}
    engines = {
        "condition": ConditionEngine(pipelines["condition"], max_waiting=max_waiting, cache_bytes=cache_bytes),
        "denoise": DenoiseEngine(pipelines["denoise"], max_waiting=max_waiting),
        "decode": DecodeEngine(pipelines["decode"]),
        "chat": Engine(pipelines["chat"], max_waiting=max_waiting),
    }
    if start:
        for engine in engines.values():
            engine.start()
    try:
        yield Split(engines, max_waiting)
    finally:
        for engine in engines.values():
            engine.close()
