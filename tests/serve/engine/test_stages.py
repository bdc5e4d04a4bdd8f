"""The stages by themselves, without Ray: what ends a request in one of them ends it in all, and ends no other."""

import asyncio
from dataclasses import replace

import numpy as np
import pytest
import torch

from blip3o.data.text.templates import Turn
from blip3o.errors import RequestError
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.engine import Engine
from serve.protocol import (
    BusyError,
    ChatReply,
    ChatRequest,
    DeadlineError,
    EngineError,
    FinishedImage,
    GenerateReply,
    GenerateRequest,
    PartialImage,
)
from serve.split.coordinator import SplitBackend
from serve.split.engines import ConditionEngine, DecodeEngine
from serve.split.local import LocalStages
from serve.split.messages import DecodeRequest
from tests.serve.stages import TIMEOUT, split

REQUEST = GenerateRequest(prompt="a red circle", seeds=(1, 2), num_inference_steps=8, guidance_scale=2.0)
STAGES = ("condition", "denoise", "decode")


def _expected(reference, request):
    options = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale}
    return [reference.generate(request.prompt, seed=seed, **options)[0].tobytes() for seed in request.seeds]


def _bytes(reply):
    return [image.tobytes() for image in reply.images]


async def _until(condition):
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0.01)


def _start(stages, *, until=None):
    """Starts the stages before one of them, which then stands still; all, if none is given."""
    for name in STAGES[: STAGES.index(until) if until else None]:
        stages.engines[name].start()


def test_previews_are_those_of_the_whole_engine(reference, bundle):
    request = replace(REQUEST, seeds=(1,), partial_images=3)
    events, engine = [], Engine(reference)
    engine.start()
    engine.generate(request, events.append).result(TIMEOUT)
    engine.close()
    with split(bundle) as stages:
        [[*seen, reply]] = stages.answer([request])
    assert [type(event) for event in seen] == [PartialImage] * 3 + [FinishedImage] and type(reply) is GenerateReply
    assert seen == events
    assert reply.prompt_tokens == len(reference.generation_ids(request.prompt))


@pytest.mark.parametrize("stage", STAGES)
def test_a_client_that_leaves_frees_its_rows_wherever_they_are(reference, bundle, stage):
    async def leave(stages):
        backend = stages.backend()
        leaving = asyncio.create_task(backend.generate(REQUEST))
        events = backend.stream_images(REQUEST)
        closing = asyncio.create_task(anext(events))
        await _until(lambda: stages.engines[stage].stats().in_work >= 2)
        leaving.cancel()
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        await asyncio.wait([closing])
        await _until(lambda: not any(engine.stats().in_work for engine in stages.engines.values()))
        return await backend.metrics()

    with split(bundle, start=False) as stages:
        _start(stages, until=stage)
        metrics = asyncio.run(leave(stages))
        assert metrics.replicas["coordinator"].value("blip3o_cancelled_total") == 2
        for name in STAGES[STAGES.index(stage) :]:
            stages.engines[name].start()
        [[*_, reply]] = stages.answer([REQUEST])
    assert _bytes(reply) == _expected(reference, REQUEST)


def _poison_prompt(monkeypatch, stages):
    ids, read = stages.engines["condition"]._pipeline.generation_ids("poison"), Blip3oPipeline.states_of

    def states_of(self, rows):
        assert ids not in rows, "poison"
        return read(self, rows)

    monkeypatch.setattr(Blip3oPipeline, "states_of", states_of)


def _poison_row(monkeypatch, stages):
    dit = stages.engines["denoise"]._pipeline.model.dit
    forward = dit.forward

    def poisoned(*args):
        velocity = forward(*args)
        velocity[1] = torch.nan
        return velocity

    monkeypatch.setattr(dit, "forward", poisoned)


@pytest.mark.parametrize("poison", [_poison_prompt, _poison_row])
def test_a_failure_in_a_stage_ends_its_own_request(reference, bundle, monkeypatch, poison):
    good = GenerateRequest(prompt="a red circle", seeds=(1,), num_inference_steps=2, guidance_scale=1.0)
    with split(bundle, start=False) as stages:
        poison(monkeypatch, stages)
        stages.engines["condition"].start()
        stages.engines["decode"].start()

        async def ask():
            backend = stages.backend()
            asked = [backend.generate(good), backend.generate(replace(good, prompt="poison", seeds=(2, 3)))]
            tasks = [asyncio.create_task(each) for each in asked]
            rows = 1 if poison is _poison_prompt else 3
            await _until(lambda: stages.engines["denoise"].stats().rows_waiting == rows)
            stages.engines["denoise"].start()
            return await asyncio.gather(*tasks, return_exceptions=True), await backend.metrics()

        (reply, failure), metrics = asyncio.run(ask())
    assert _bytes(reply) == _expected(reference, good)
    assert isinstance(failure, EngineError)
    assert metrics.replicas["coordinator"].value("blip3o_errors_total", "EngineError") == 1
    assert metrics.replicas["coordinator"].value("blip3o_request_success_total", "generate") == 1
    assert not any(each.total("blip3o_errors_total") for name, each in metrics.replicas.items() if name in STAGES)


def test_rows_that_wait_for_the_decoder_are_bounded_and_late_ones_end(reference, bundle):
    """While it stands still, previews are left out, new requests are refused, and those with a deadline end."""
    with split(bundle, max_waiting=12, start=False) as stages:
        _start(stages, until="decode")

        async def ask():
            backend = stages.backend()
            late = asyncio.create_task(backend.generate(replace(REQUEST, deadline_s=0.5)))
            with pytest.raises(DeadlineError, match=r"not done within its 0.5 s"):
                await late
            held = [
                asyncio.create_task(backend.generate(replace(REQUEST, seeds=seeds, partial_images=3)))
                for seeds in (tuple(range(10)), (1, 2, 3))
            ]
            await _until(lambda: backend._undecoded.rows >= 12)
            with pytest.raises(BusyError) as refused:
                await backend.generate(REQUEST)
            assert refused.value.retry_after_s >= 1
            rows = backend._undecoded.in_all
            stages.engines["decode"].start()
            return await held[0], rows

        reply, rows = asyncio.run(ask())
    assert rows <= 13 + 12  # of 39 previews
    assert _bytes(reply) == _expected(reference, replace(REQUEST, seeds=tuple(range(10))))


def test_what_a_client_did_wrong_is_an_error_of_its_stage(bundle):
    long = ChatRequest(turns=(Turn(role="user", text="a red circle " * 50),), images=(), max_tokens=4)
    with split(bundle) as stages:
        [[image], [chat], [*_, reply]] = stages.answer(
            [replace(REQUEST, prompt=" "), long, replace(long, turns=(Turn(role="user", text="hi"),))]
        )
    assert isinstance(image, RequestError) and isinstance(chat, RequestError) and isinstance(reply, ChatReply)


def test_prompts_are_read_in_the_order_of_a_fair_queue(bundle):
    with split(bundle, batch_size=1, start=False) as stages:
        engine: ConditionEngine = stages.engines["condition"]
        order = []
        asked = [("a", 0), ("a", 0), ("a", 0), ("b", 0), ("c", 1)]
        futures = [
            engine.condition(replace(REQUEST, prompt=f"a red circle {'a' * n}", owner=owner, priority=priority))
            for n, (owner, priority) in enumerate(asked)
        ]
        for number, future in enumerate(futures):
            future.add_done_callback(lambda _, number=number: order.append(number))
        assert engine.stats().rows_waiting == 5
        engine.start()
        for future in futures:
            future.result(TIMEOUT)
        assert order == [4, 0, 3, 1, 2]
        assert engine.stats().in_work == 0


class _LatePreviews(LocalStages):
    """A decoder that makes no preview before its image is done."""

    async def decode(self, request):
        if request.is_partial:
            await asyncio.Event().wait()
        return await super().decode(request)


class _NoPreviews(LocalStages):
    """A decoder that has no room for previews."""

    async def decode(self, request):
        return None if request.is_partial else await super().decode(request)


@pytest.mark.parametrize("kind", [_LatePreviews, _NoPreviews])
def test_an_image_waits_for_no_preview(bundle, kind):
    async def ask(stages):
        backend = SplitBackend(kind(**stages.engines), name="x", max_waiting=99, preview_rows=99)
        async with asyncio.timeout(TIMEOUT):
            return [type(event) async for event in backend.stream_images(replace(REQUEST, partial_images=2))]

    with split(bundle) as stages:
        assert asyncio.run(ask(stages)) == [FinishedImage, FinishedImage, GenerateReply]


def test_previews_that_find_no_room_end_at_once(bundle, monkeypatch):
    """Each holds a place at its decoder: images would wait behind those that nobody makes."""
    with split(bundle, start=False) as stages:
        engine: DecodeEngine = stages.engines["decode"]
        pipeline = engine._pipeline
        monkeypatch.setattr(pipeline.model.decoder, "previews", False, raising=False)  # takes all steps of an image
        features = np.zeros(pipeline.model.latent_shape, np.float32)
        image = DecodeRequest(features=features, seed=0)
        previews = [engine.decode(replace(image, is_partial=True)) for _ in range(pipeline.decode_rows + 2)]
        assert [preview.done() for preview in previews] == [False] * pipeline.decode_rows + [True] * 2
        with torch.inference_mode():
            engine._stage.work()
            images = [engine.decode(image) for _ in range(pipeline.decode_rows)]
            engine._stage.work()  # they take the rows of the previews
        assert [preview.result(0) for preview in previews] == [None] * len(previews)
        images += [engine.decode(image) for _ in range(engine.capacity)]
        previews = [engine.decode(replace(image, is_partial=True)) for _ in range(pipeline.decode_rows + 1)]
        assert previews[-1].result(0) is None
        with pytest.raises(BusyError):
            engine.decode(image)
        assert not any(each.done() for each in images)


def test_previews_refuse_no_request(bundle):
    """Those of a slow decoder fill up what there is for previews, and a request for images still gets in."""

    async def ask(stages):
        backend = SplitBackend(_LatePreviews(**stages.engines), name="x", max_waiting=10, preview_rows=12)
        waiting = [
            asyncio.create_task(backend._undecoded.decode(row, owner=""))
            for row in [DecodeRequest(features=np.zeros(1), seed=0, is_partial=True)] * 12
        ]
        await _until(lambda: backend._undecoded.in_all == 12)
        async with asyncio.timeout(TIMEOUT):
            reply = await backend.generate(replace(REQUEST, partial_images=2))
        for each in waiting:
            each.cancel()
        return reply

    with split(bundle) as stages:
        assert len(asyncio.run(ask(stages)).images) == 2
