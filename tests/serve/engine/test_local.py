"""The backend in this process: streams end with the reply, in order, and closing one frees its rows."""

import asyncio

import pytest

from blip3o.data.text.templates import Turn
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.protocol import ChatDelta, ChatReply, ChatRequest, FinishedImage, GenerateReply, GenerateRequest

REQUEST = GenerateRequest(prompt="a red circle", seeds=(1, 2, 3), num_inference_steps=2, guidance_scale=2.0)


@pytest.fixture
def engine(pipeline):
    engine = Engine(pipeline)
    yield engine
    engine.close()


async def _all(events):
    return [event async for event in events]


def test_a_stream_of_images_has_each_one_and_then_the_reply(engine):
    engine.start()
    *finished, reply = asyncio.run(_all(LocalBackend(engine).stream_images(REQUEST)))
    assert {type(event) for event in finished} == {FinishedImage} and type(reply) is GenerateReply
    assert {event.number: event.image for event in finished} == dict(enumerate(reply.images))


def test_a_stream_of_text_is_the_reply(engine):
    engine.start()
    request = ChatRequest(
        turns=(Turn(role="user", text="What colour is it?"),), images=(), max_tokens=6, temperature=1.0, seed=1
    )
    *deltas, reply = asyncio.run(_all(LocalBackend(engine).stream_chat(request)))
    assert {type(event) for event in deltas} == {ChatDelta} and type(reply) is ChatReply
    assert "".join(delta.text for delta in deltas) == reply.text


def test_closing_a_stream_frees_the_rows(engine):
    async def leave():
        events = LocalBackend(engine).stream_images(REQUEST)
        waiting = asyncio.ensure_future(anext(events))
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(leave())  # the engine has not started, so no image can come
    assert engine.stats().rows_waiting == 0
    assert engine.metrics().value("blip3o_cancelled_total") == 1
