"""The split layout on Ray Serve: a deployment for each stage of images, and the coordinator in front of them.

A stage's replica has the queue, the health check and the reports of a whole one, so Serve replaces and scales each
stage by itself. Conversations have a `Generator` of their own. The coordinator has the name and the methods of a
`Generator`: the HTTP API sees no difference. It imports no torch.
"""

import asyncio
import functools
import operator
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

import numpy as np
from PIL import Image
from ray.serve.handle import DeploymentHandle

from serve.config.options import ReplicaConfig
from serve.deployments.handles import HandleBackend
from serve.deployments.replica import Replica, open_pipeline, replica_name
from serve.deployments.replies import Answering, error_as_value, errors_as_values
from serve.protocol import GenerateRequest, ReplicaMetrics, UnavailableError
from serve.split.coordinator import SplitBackend
from serve.split.messages import Conditioned, DecodeRequest, DenoisedRow, DenoiseRequest

_TIMEOUT_S = 3  # for stages to answer a coordinator, which has `TIMEOUT_S` to answer the HTTP API
_WARM_UP = GenerateRequest(prompt="a circle", seeds=(0,), num_inference_steps=1, guidance_scale=1.0)


class Condition(Replica):
    """Reads prompts."""

    def __init__(self, config: ReplicaConfig) -> None:
        """Loads what it needs and reads a prompt: Serve sends no request before."""
        from serve.split.engines import ConditionEngine

        engine = ConditionEngine(open_pipeline(config, "condition"), max_waiting=config.max_waiting)
        self._begin(engine, stuck_after_s=config.stuck_after_s)
        self._stage = engine
        engine.condition(_WARM_UP).result()

    async def condition(self, request: GenerateRequest) -> Conditioned | Exception:
        """The states of a request's prompts, or the error."""
        from serve.split.local import read_prompts

        return await error_as_value(read_prompts(self._stage, request))


class Denoise(Replica):
    """Denoises rows."""

    def __init__(self, config: ReplicaConfig) -> None:
        """Loads what it needs and makes a step at each width that it may run at: Serve sends no request before."""
        from serve.split.engines import DenoiseEngine

        engine = DenoiseEngine(open_pipeline(config, "denoise"), max_waiting=config.max_waiting)
        self._begin(engine, stuck_after_s=config.stuck_after_s)
        self._stage = engine
        for message in engine.warm_up_requests():
            engine.denoise(message).result()

    async def denoise(self, request: DenoiseRequest) -> AsyncIterator[DenoisedRow | Exception]:
        """A request's rows as they are done, or the error."""
        from serve.split.local import denoise

        async for row in errors_as_values(denoise(self._stage, request)):
            yield row


class Decode(Replica):
    """Makes pixels."""

    def __init__(self, config: ReplicaConfig) -> None:
        """Loads what it needs and decodes an image: Serve sends no request before."""
        from serve.split.engines import DecodeEngine

        pipeline = open_pipeline(config, "decode")
        engine = DecodeEngine(pipeline)
        self._begin(engine, stuck_after_s=config.stuck_after_s)
        self._stage = engine
        features = np.zeros(pipeline.model.latent_shape, np.float32)
        engine.decode(DecodeRequest(features=features, seed=0)).result()

    async def decode(self, request: DecodeRequest) -> Image.Image | Exception | None:
        """The pixels of a row, None for a preview that finds no room, or the error."""
        from serve.split.local import decode

        return await error_as_value(decode(self._stage, request))


class _StageHandle(HandleBackend):
    """The replicas of one stage; a request whose replica is lost goes to another one, once."""

    async def ask(self, method: str, request: object) -> object:
        """The reply of a replica."""
        return await self._call(method, request)

    async def denoise(self, request: DenoiseRequest) -> AsyncGenerator[DenoisedRow, None]:
        """Rows, each once, however many replicas have worked on them."""
        seen: set[tuple[int, int | None]] = set()
        async with aclosing(self._stream("denoise", request, repeatable=True)) as events:  # type: ignore[type-var]
            async for _, event in events:
                row = cast(DenoisedRow, event)
                if (row.image, row.partial) not in seen:
                    seen.add((row.image, row.partial))
                    yield row

    async def check(self) -> None:
        """Raises `UnavailableError` if no replica is well."""
        if not (await self._ask_all("check_health", until_first=True)).values:
            raise UnavailableError("no replica of a stage of the model answers: try again")


class HandleStages:
    """The stages behind deployment handles."""

    def __init__(
        self,
        condition: DeploymentHandle,
        denoise: DeploymentHandle,
        decode: DeploymentHandle,
        chat: DeploymentHandle,
    ) -> None:
        self._condition = _StageHandle(condition, timeout_s=_TIMEOUT_S)
        self._denoise = _StageHandle(denoise, timeout_s=_TIMEOUT_S)
        self._decode = _StageHandle(decode, timeout_s=_TIMEOUT_S)
        self.chat = HandleBackend(chat, timeout_s=_TIMEOUT_S)

    async def check(self) -> None:
        """Raises `UnavailableError` if a stage has no replica that answers."""
        await asyncio.gather(*(stage.check() for stage in self._all))

    async def metrics(self) -> ReplicaMetrics:
        """Those of the replicas of all stages."""
        found = await asyncio.gather(*(stage.metrics() for stage in self._all))
        return functools.reduce(operator.add, found)

    @property
    def _all(self) -> tuple[HandleBackend, ...]:
        return self._condition, self._denoise, self._decode, self.chat

    async def condition(self, request: GenerateRequest) -> Conditioned:
        """Reads a request's prompts."""
        return cast(Conditioned, await self._condition.ask("condition", request))

    def denoise(self, request: DenoiseRequest) -> AsyncGenerator[DenoisedRow, None]:
        """Denoises a request's images."""
        return self._denoise.denoise(request)

    async def decode(self, request: DecodeRequest) -> Image.Image | None:
        """Makes the pixels of a row; those for which no replica has room wait here."""
        return cast(Image.Image | None, await self._decode.ask("decode", request))


class Coordinator(Answering):
    """Takes requests through the stages."""

    def __init__(
        self,
        condition: DeploymentHandle,
        denoise: DeploymentHandle,
        decode: DeploymentHandle,
        chat: DeploymentHandle,
        config: ReplicaConfig,
    ) -> None:
        stages = HandleStages(condition, denoise, decode, chat)
        self._backend = SplitBackend(
            stages, name=replica_name(), max_waiting=config.max_waiting, preview_rows=config.batch_size
        )

    async def metrics(self) -> ReplicaMetrics:
        """What this coordinator and the replicas of all stages have counted: any coordinator knows the latter."""
        return await self._backend.metrics()
