"""`/v1/responses`: a text, or an image if the tool `image_generation` is given. Nothing is stored.

A response is made by its events, whether they are sent or not.
"""

import secrets
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.http.conversation import Conversation, Talk, listen
from serve.http.errors import ApiError
from serve.http.events import Client, event, stream, watching
from serve.http.face import Face, ServedModel
from serve.http.files import base64_of
from serve.http.forms.bodies import read_body
from serve.http.forms.responses import ImageTool, ResponsesBody
from serve.http.generation import Generation, ImageFile, Wanted, plan
from serve.http.safety.filters import Guard
from serve.protocol import Backend, ChatReply

Json = dict[str, Any]
Events = AsyncGenerator[Json, None]


class ResponsesRoute:
    """The route for responses."""

    def __init__(self, face: Face) -> None:
        self._face = face

    def add_to(self, keyed: APIRouter) -> None:
        """Adds the route."""
        keyed.add_api_route("/v1/responses", self.respond, methods=["POST"])

    async def respond(self, request: Request) -> Response:
        """Answers a conversation, or draws its last message."""
        body = await read_body(request, ResponsesBody)
        model = self._face.model(body.model)
        guard = self._face.guard(request)
        response = _Response(body, model.name)
        headers: dict[str, str] = {}
        if body.tool is None:
            conversation = await self._conversation(request, body, model, guard)
            events = _text_events(response, conversation.stream(model.backend, guard))
        else:
            generation = await self._generation(request, body, body.tool, model.backend)
            headers = generation.headers
            events = _image_events(response, generation, model.backend, guard)
        seconds = self._face.request_timeout_s
        if body.stream:
            return await stream(Client(request, subject="input", seconds=seconds), _sent(events), headers)
        with watching(request, subject="input", seconds=seconds) as client:
            return JSONResponse(await client.wait(_last(events)), headers=headers)

    async def _conversation(
        self, request: Request, body: ResponsesBody, model: ServedModel, guard: Guard
    ) -> Conversation:
        talk = Talk(turns=body.turns, pictures=body.pictures, token_limit=body.token_limit, subject="input")
        info = await model.backend.describe()
        return await listen(self._face, request, info, talk=talk, drawing=body, guard=guard)

    async def _generation(self, request: Request, body: ResponsesBody, tool: ImageTool, backend: Backend) -> Generation:
        if body.pictures:
            path = body.pictures[0].path
            message = f"{path}: this model cannot make an image of an image: leave it out, or the tool"
            raise ApiError(400, message, param=path, code="unsupported_by_model")
        wanted = Wanted(
            partial_images=tool.partial_images if body.stream else 0,
            size=tool.size,
            output_format=tool.output_format,
            output_compression=tool.output_compression,
        )
        info = await backend.describe()
        return plan(self._face, request, info, prompt=body.image_prompt, sampling=tool, wanted=wanted)


class _Response:
    """A response while it is made: numbers its events."""

    def __init__(self, body: ResponsesBody, model: str) -> None:
        self._number = 0
        self._fixed: Json = {
            "id": f"resp_{secrets.token_hex(12)}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            "error": None,
            "instructions": body.instructions,
            "metadata": {},
            "max_output_tokens": body.token_limit,
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto" if body.tool_choice == "image_generation" else body.tool_choice,
            "tools": [{"type": "image_generation"} for _ in body.tools],
            "top_p": body.top_p,
            "truncation": "disabled",
        }

    def event(self, kind: str, **data: object) -> Json:
        """The next event."""
        number, self._number = self._number, self._number + 1
        return {"type": f"response.{kind}", **data, "sequence_number": number}

    def begin(self, item: Json) -> list[Json]:
        """The events before the item is made."""
        running = self._fixed | {"status": "in_progress", "incomplete_details": None, "output": [], "usage": None}
        return [
            self.event("created", response=running),
            self.event("in_progress", response=running),
            self.event("output_item.added", output_index=0, item=item),
        ]

    def end(self, item: Json, usage: Json, *, is_complete: bool = True) -> list[Json]:
        """The events after it is made. The last one has the whole response."""
        status = "completed" if is_complete else "incomplete"
        details = None if is_complete else {"reason": "max_output_tokens"}
        whole = self._fixed | {"status": status, "incomplete_details": details, "output": [item], "usage": usage}
        return [self.event("output_item.done", output_index=0, item=item), self.event(status, response=whole)]


async def _text_events(response: _Response, pieces: AsyncGenerator[str | ChatReply, None]) -> Events:
    item: Json = {"id": f"msg_{secrets.token_hex(12)}", "type": "message", "role": "assistant"}
    place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    async with aclosing(pieces):
        piece: str | ChatReply = await anext(pieces)  # an error comes before any event
        for each in response.begin(item | {"status": "in_progress", "content": []}):
            yield each
        yield response.event("content_part.added", **place, part=part)
        while isinstance(piece, str):
            yield response.event("output_text.delta", **place, delta=piece, logprobs=[])
            piece = await anext(pieces)
    assert isinstance(piece, ChatReply)
    reply = piece
    part = part | {"text": reply.text}
    yield response.event("output_text.done", **place, text=reply.text, logprobs=[])
    yield response.event("content_part.done", **place, part=part)
    is_complete = reply.finish_reason == "stop"
    item = item | {"status": "completed" if is_complete else "incomplete", "content": [part]}
    usage = _usage(reply.prompt_tokens, reply.reply_tokens)
    for each in response.end(item, usage, is_complete=is_complete):
        yield each


async def _image_events(response: _Response, generation: Generation, backend: Backend, guard: Guard) -> Events:
    look = generation.look
    item: Json = {"id": f"ig_{secrets.token_hex(12)}", "type": "image_generation_call"}
    place = {"item_id": item["id"], "output_index": 0}
    result, prompt_tokens = "", 0
    await generation.check_prompts(guard)
    for each in response.begin(item | {"status": "in_progress", "result": None}):
        yield each
    yield response.event("image_generation_call.in_progress", **place)
    yield response.event("image_generation_call.generating", **place)
    async with aclosing(generation.stream(backend, guard)) as files:
        async for file in files:
            if not isinstance(file, ImageFile):
                prompt_tokens = file
            elif file.partial is None:
                result = base64_of(file.data)
            else:
                data = {"partial_image_b64": base64_of(file.data), "partial_image_index": file.partial, **look}
                yield response.event("image_generation_call.partial_image", **place, **data)
    yield response.event("image_generation_call.completed", **place)
    seed = generation.request.seeds[0]
    item = item | {"status": "completed", "result": result, "action": "generate", "seed": seed, **look}
    for each in response.end(item, _usage(prompt_tokens, generation.info.image_tokens)):
        yield each


def _usage(inputs: int, outputs: int) -> Json:
    return {
        "input_tokens": inputs,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": outputs,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": inputs + outputs,
    }


async def _sent(events: Events) -> AsyncGenerator[str, None]:
    """The events as they are sent."""
    async with aclosing(events):
        async for each in events:
            yield event(each, name=each["type"])


async def _last(events: Events) -> Json:
    """The response that the last event has."""
    whole: Json = {}
    async with aclosing(events):
        async for each in events:
            whole = each.get("response", whole)
    return whole
