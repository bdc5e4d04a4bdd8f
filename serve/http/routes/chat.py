"""`/v1/chat/completions`: text, streamed token by token, and images if `modalities` asks for them."""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.http.conversation import Conversation, Talk, listen
from serve.http.errors import ApiError
from serve.http.events import DONE, Client, event, stream, watching
from serve.http.face import Face, ServedModel
from serve.http.files import data_url
from serve.http.forms.bodies import read_body
from serve.http.forms.chat import ChatBody
from serve.http.generation import Generation, ImageFile, Wanted, plan
from serve.http.safety.filters import Guard
from serve.protocol import ChatReply, ModelInfo


@dataclass(frozen=True, kw_only=True)
class _Parts:
    """What a reply has: text, an image, or both."""

    conversation: Conversation | None
    generation: Generation | None

    @property
    def headers(self) -> dict[str, str]:
        return self.generation.headers if self.generation else {}

    @property
    def seed(self) -> dict[str, int]:
        """The seed, if anything was drawn with one."""
        if self.generation:
            return {"seed": self.generation.request.seeds[0]}
        seed = self.conversation.request.seed if self.conversation else None
        return {} if seed is None else {"seed": seed}


class ChatRoute:
    """The route for conversations."""

    def __init__(self, face: Face) -> None:
        self._face = face

    def add_to(self, keyed: APIRouter) -> None:
        """Adds the route."""
        keyed.add_api_route("/v1/chat/completions", self.complete, methods=["POST"])

    async def complete(self, request: Request) -> Response:
        """Answers a conversation."""
        body = await read_body(request, ChatBody)
        model = self._face.model(body.model)
        info = await model.backend.describe()
        guard = self._face.guard(request)
        parts = await self._parts(request, body, info, guard)
        head = _head(model, info) | parts.seed
        seconds = self._face.request_timeout_s
        if body.stream:
            events = _events(head, parts, model, guard, with_usage=body.stream_options.include_usage)
            return await stream(Client(request, subject="messages", seconds=seconds), events, parts.headers)
        with watching(request, subject="messages", seconds=seconds) as client:
            completion = await client.wait(_completion(head, parts, model, guard))
        return JSONResponse(completion, headers=parts.headers)

    async def _parts(self, request: Request, body: ChatBody, info: ModelInfo, guard: Guard) -> _Parts:
        if body.image_prompt is not None and body.pictures:
            path = body.pictures[0].path
            message = f"{path}: this model cannot make an image of an image: leave it out, or 'image' in modalities"
            raise ApiError(400, message, param=path, code="unsupported_by_model")
        conversation = generation = None
        if "text" in body.modalities:
            talk = Talk(
                turns=body.turns,
                pictures=body.pictures,
                token_limit=body.token_limit,
                subject="messages",
                stop=body.stop,
            )
            conversation = await listen(self._face, request, info, talk=talk, drawing=body, guard=guard)
        if body.image_prompt is not None:
            generation = plan(self._face, request, info, prompt=body.image_prompt, sampling=body, wanted=Wanted())
        return _Parts(conversation=conversation, generation=generation)


def _head(model: ServedModel, info: ModelInfo) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{secrets.token_hex(12)}",
        "created": int(time.time()),
        "model": model.name,
        "system_fingerprint": f"bundle_{info.bundle_sha256[:12]}",
    }


async def _completion(head: dict[str, Any], parts: _Parts, model: ServedModel, guard: Guard) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": None, "refusal": None}
    usage, reason = _Usage(), "stop"
    if parts.conversation:
        reply = await parts.conversation.run(model.backend, guard)
        message["content"], reason = reply.text, reply.finish_reason
        usage.add_reply(reply)
    if parts.generation:
        [file], prompt_tokens = await parts.generation.run(model.backend, guard)
        message["images"] = _images(parts.generation, file)
        usage.add_image(parts.generation, prompt_tokens)
    choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": usage.counts}


async def _events(
    head: dict[str, Any], parts: _Parts, model: ServedModel, guard: Guard, *, with_usage: bool
) -> AsyncGenerator[str, None]:
    """The reply as server-sent events: pieces of text, the image, the finish reason, the usage if requested."""
    head = head | {"object": "chat.completion.chunk"}
    usage, reason = _Usage(), "stop"
    delta: dict[str, Any] = {"role": "assistant", "content": ""}
    if parts.conversation:
        async with aclosing(parts.conversation.stream(model.backend, guard)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ChatReply):
                    reason = piece.finish_reason
                    usage.add_reply(piece)
                    continue
                yield _chunk(head, delta | {"content": piece})
                delta = {}
    if parts.generation:
        async with aclosing(parts.generation.stream(model.backend, guard)) as files:
            async for file in files:
                if isinstance(file, ImageFile):
                    yield _chunk(head, delta | {"images": _images(parts.generation, file.data)})
                    delta = {}
                else:
                    usage.add_image(parts.generation, file)
    yield _chunk(head, delta, reason)
    if with_usage:
        yield event({**head, "choices": [], "usage": usage.counts})
    yield DONE


def _chunk(head: dict[str, Any], delta: dict[str, Any], reason: str | None = None) -> str:
    return event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]})


def _images(generation: Generation, data: bytes) -> list[dict[str, Any]]:
    url = data_url(data, generation.style.media_type)
    return [{"type": "image_url", "image_url": {"url": url}, "index": 0}]


class _Usage:
    """Token counts of all that a reply has; an image counts its feature tokens."""

    def __init__(self) -> None:
        self.counts = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    def add_reply(self, reply: ChatReply) -> None:
        """Adds those of the text."""
        self._add(reply.prompt_tokens, reply.reply_tokens)

    def add_image(self, generation: Generation, prompt_tokens: int) -> None:
        """Adds those of the image."""
        self._add(prompt_tokens, generation.info.image_tokens)

    def _add(self, prompt: int, completion: int) -> None:
        for name, count in (("prompt", prompt), ("completion", completion), ("total", prompt + completion)):
            self.counts[f"{name}_tokens"] += count
