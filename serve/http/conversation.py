"""Answering the conversation of one HTTP request: from its form to text."""

import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from fastapi import Request

from blip3o.data.text.templates import Turn
from serve.http.face import Face
from serve.http.forms.conversations import Drawing
from serve.http.forms.messages import Picture
from serve.http.safety.filters import Guard
from serve.protocol import Backend, ChatDelta, ChatReply, ChatRequest, ModelInfo

_RANDOM_SEEDS = 2**31


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation to answer. `subject` is the field of the request that has it."""

    request: ChatRequest
    subject: str

    async def run(self, backend: Backend, guard: Guard) -> ChatReply:
        """The reply. Raises as `Backend.chat`, or `ApiError` if the content filter refuses."""
        await self._check(guard)
        reply = await backend.chat(self.request)
        await guard.text(reply.text)
        return reply

    async def stream(self, backend: Backend, guard: Guard) -> AsyncGenerator[str | ChatReply, None]:
        """The text piece by piece, or in one with a content filter, and at last the reply. Raises as `run`."""
        if guard.filter is not None:
            reply = await self.run(backend, guard)
            yield reply.text
            yield reply
            return
        async with aclosing(backend.stream_chat(self.request)) as events:  # type: ignore[type-var]
            async for event in events:
                yield event.text if isinstance(event, ChatDelta) else event

    async def _check(self, guard: Guard) -> None:
        await guard.text("\n".join(turn.text for turn in self.request.turns), self.subject)


@dataclass(frozen=True, kw_only=True)
class Talk:
    """What a form says of its conversation."""

    turns: Sequence[Turn]
    pictures: Sequence[Picture]
    token_limit: int
    subject: str
    stop: tuple[str, ...] = ()


async def listen(
    face: Face, request: Request, info: ModelInfo, *, talk: Talk, drawing: Drawing, guard: Guard
) -> Conversation:
    """The conversation of a form, with its images. Raises `ApiError` for an image that cannot be read."""
    images = await face.pictures.read_all(talk.pictures, info, guard)
    is_drawn = drawing.temperature > 0
    seed = secrets.randbelow(_RANDOM_SEEDS) if is_drawn and drawing.seed is None else drawing.seed
    asked = ChatRequest(
        turns=tuple(talk.turns),
        images=images,
        max_tokens=talk.token_limit,
        temperature=drawing.temperature,
        top_p=drawing.top_p,
        seed=seed if is_drawn else None,
        stop=talk.stop,
        owner=request.state.owner,
        deadline_s=face.request_timeout_s,
    )
    return Conversation(request=asked, subject=talk.subject)
