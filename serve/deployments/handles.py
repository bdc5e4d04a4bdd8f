"""The backend of the HTTP API for replicas behind a deployment handle.

A reply is a function of its request, so a request whose replica was lost goes to another one, and its client sees
nothing but a delay. It does so once: a request that kills its replicas must not take all of them with it.
"""

import asyncio
from typing import cast

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle

from serve.protocol import (
    BusyError,
    ChatReply,
    ChatRequest,
    GenerateReply,
    GenerateRequest,
    ModelInfo,
    UnavailableError,
)

_RETRY_AFTER_S = 5  # if Serve's own queue is full; a full engine gives an estimate
_ATTEMPTS = 2


class HandleBackend:
    """The replicas behind one deployment handle."""

    def __init__(self, handle: DeploymentHandle) -> None:
        self._handle = handle

    async def describe(self) -> ModelInfo:
        """The model's properties."""
        return cast(ModelInfo, await self._call("describe"))

    async def generate(self, request: GenerateRequest) -> GenerateReply:
        """Images; cancellation frees their rows in the replica."""
        return cast(GenerateReply, await self._call("generate", request))

    async def chat(self, request: ChatRequest) -> ChatReply:
        """A reply; cancellation drops the request in the replica."""
        return cast(ChatReply, await self._call("chat", request))

    async def _call(self, method: str, *args: object) -> object:
        for _ in range(_ATTEMPTS):
            response = getattr(self._handle, method).remote(*args)
            try:
                reply = await response
            except asyncio.CancelledError:
                response.cancel()
                raise
            except BackPressureError:
                raise BusyError(_RETRY_AFTER_S) from None
            except DeploymentUnavailableError as error:
                raise UnavailableError("the model has no replica: try again") from error
            except RayActorError as error:
                lost = error
                continue
            if isinstance(reply, Exception):
                raise reply
            return reply
        raise UnavailableError("the model's replica was lost: try again") from lost
