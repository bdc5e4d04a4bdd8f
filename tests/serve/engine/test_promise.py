"""The engine's promise: the same request gives the same bytes in any company, at any width, with a cache or without,
in one engine or in one for each stage."""

import functools
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip3o.data.text.templates import Turn
from serve.engine.condition import ConditionCache
from serve.engine.engine import Engine
from serve.protocol import (
    BusyError,
    ChatDelta,
    ChatRequest,
    DeadlineError,
    FinishedImage,
    GenerateRequest,
    PartialImage,
)
from tests.serve.stages import split

TIMEOUT = 60
PROMPTS = ("a red circle", "It is green.", "a blue square")
REQUESTS = st.builds(
    GenerateRequest,
    prompt=st.sampled_from(PROMPTS),
    seeds=st.lists(st.integers(0, 3), min_size=1, max_size=3).map(tuple),
    num_inference_steps=st.integers(1, 4),
    guidance_scale=st.sampled_from([1.0, 2.3]),
    negative_prompt=st.sampled_from(["", "It is green."]),
    partial_images=st.sampled_from([0, 3]),
    owner=st.sampled_from("ab"),
    priority=st.integers(0, 1),
)
CHATS = st.builds(
    ChatRequest,
    turns=st.sampled_from(PROMPTS).map(lambda text: (Turn(role="user", text=text),)),
    images=st.just(()),
    max_tokens=st.integers(1, 6),
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 2),
)


@pytest.fixture(scope="module")
def alone(reference):
    """A function from a request to what the pipeline gives for it on its own: bytes, or a text. Each is made once."""
    known = {}

    def make(request):
        if isinstance(request, ChatRequest):
            options = {"temperature": request.temperature, "seed": request.seed}
            return reference.chat(request.turns, max_tokens=request.max_tokens, **options)
        options = {
            "num_inference_steps": request.num_inference_steps,
            "guidance_scale": request.guidance_scale,
            "negative_prompt": request.negative_prompt,
        }
        return [reference.generate(request.prompt, seed=seed, **options)[0].tobytes() for seed in request.seeds]

    def expected(request):
        key = repr(request)
        if key not in known:
            known[key] = make(request)
        return known[key]

    return expected


def _served(reference, requests, *, batch_size, **options):
    pipeline = replace(reference, batch_size=batch_size)
    engine = Engine(pipeline, max_waiting=99, **options)
    events = [[] for _ in requests]
    futures = [
        (engine.chat if isinstance(request, ChatRequest) else engine.generate)(request, seen.append)
        for request, seen in zip(requests, events, strict=True)
    ]
    engine.start()
    replies = [future.result(TIMEOUT) for future in futures]
    engine.close()
    return replies, events


def _served_by_stages(bundle, requests, *, batch_size, cache_bytes):
    with split(bundle, batch_size=batch_size, cache_bytes=cache_bytes) as stages:
        answers = stages.answer(requests)
    return [events[-1] for events in answers], [events[:-1] for events in answers]


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    requests=st.lists(REQUESTS | CHATS, min_size=1, max_size=6),
    batch_size=st.sampled_from([1, 2, 4, 8, 16]),
    cache_bytes=st.sampled_from([0, 5000, 2**20]),
    is_split=st.booleans(),
)
def test_company_width_cache_and_layout_change_no_byte(
    reference, bundle, alone, requests, batch_size, cache_bytes, is_split
):
    """A reply in text is compared at one number of rows: that of a matrix product decides its last bits."""
    requests = [each for each in requests if batch_size == 4 or isinstance(each, GenerateRequest)]
    served = functools.partial(_served_by_stages, bundle) if is_split else functools.partial(_served, reference)
    replies, events = served(requests, batch_size=batch_size, cache_bytes=cache_bytes)
    for request, reply, seen in zip(requests, replies, events, strict=True):
        if isinstance(request, ChatRequest):
            assert reply.text == alone(request) == "".join(event.text for event in seen)
            assert {type(event) for event in seen} <= {ChatDelta}
            continue
        assert [image.tobytes() for image in reply.images] == alone(request)
        finished = {event.number: event.image for event in seen if isinstance(event, FinishedImage)}
        assert finished == dict(enumerate(reply.images))
        for number in finished:  # previews come in order, before their image
            order = [
                event.partial if isinstance(event, PartialImage) else 9 for event in seen if event.number == number
            ]
            assert order == sorted(order)


def test_passes_of_fewer_rows_than_a_batch_change_no_byte(reference, alone):
    """As on a machine on which a row's bits depend on its place in a larger batch."""
    pipeline = replace(reference)
    narrow = {"prompt_widths": (1,), "denoiser_widths": (2,), "decode_widths": (1, 2), "reply_rows": 2}
    pipeline.__dict__.update(narrow, null_features=reference.null_features)
    requests = [
        GenerateRequest(prompt=prompt, seeds=(1, 2), num_inference_steps=3, guidance_scale=guidance)
        for prompt, guidance in zip(PROMPTS, (2.3, 1.0, 2.3), strict=True)
    ]
    engine = Engine(pipeline)
    futures = [engine.generate(request) for request in requests]
    engine.start()
    for request, future in zip(requests, futures, strict=True):
        assert [image.tobytes() for image in future.result(TIMEOUT).images] == alone(request)
    engine.close()
    assert pipeline.generate(PROMPTS[0], seed=1, n=2, num_inference_steps=3, guidance_scale=2.3) == [
        *futures[0].result().images
    ]


def test_previews_come_before_their_image_and_approach_it(reference):
    request = GenerateRequest(
        prompt=PROMPTS[0], seeds=(1,), num_inference_steps=8, guidance_scale=1.0, partial_images=3
    )
    _, [events] = _served(reference, [request], batch_size=4)
    *partials, last = events
    assert [event.partial for event in partials] == [0, 1, 2] and isinstance(last, FinishedImage)
    assert len({event.image.tobytes() for event in events}) == 4
    assert {type(event) for event in partials} == {PartialImage}
    assert {event.image.size for event in partials} == {last.image.size}


def test_a_request_over_its_deadline_ends_and_one_that_cannot_be_in_time_is_refused(reference):
    now = [0.0]
    engine = Engine(reference, clock=lambda: now[0])
    request = GenerateRequest(prompt=PROMPTS[0], seeds=(1,), num_inference_steps=3, guidance_scale=1.0, deadline_s=5.0)
    late = engine.generate(request)
    patient = engine.generate(GenerateRequest(**{**vars(request), "deadline_s": None}))
    now[0] = 5.0
    engine.start()
    with pytest.raises(DeadlineError, match=r"not done within its 5 s"):
        late.result(TIMEOUT)
    patient.result(TIMEOUT)
    hasty = GenerateRequest(**{**vars(request), "deadline_s": 1e-9})
    assert engine.generate(hasty).result(TIMEOUT).images  # nothing is ahead, and the clock stands still
    engine.generate(GenerateRequest(**{**vars(request), "deadline_s": None, "num_inference_steps": 900}))
    with pytest.raises(BusyError):
        engine.generate(hasty)
    assert engine.metrics().value("blip3o_errors_total", "DeadlineError") == 1
    engine.close()


def test_the_wait_for_a_reply_counts_the_rows_that_replies_have(pipeline):
    """They may be fewer than `batch_size`."""
    pipeline.__dict__["reply_rows"] = 1
    engine = Engine(pipeline)
    engine._chats._seconds = 10.0  # as the last one took
    request = ChatRequest(turns=(Turn(role="user", text=PROMPTS[0]),), images=(), max_tokens=1, deadline_s=15.0)
    engine.chat(request)
    with pytest.raises(BusyError) as refused:
        engine.chat(request)
    assert refused.value.retry_after_s == 20
    engine.close()


def test_the_cache_keeps_what_was_used_last_within_its_bytes(reference):
    states = reference.condition(PROMPTS)
    cache = ConditionCache(most_bytes=2 * states[0].nbytes)
    for number in (0, 1):
        cache.put("x", (number,), states[number].clone())
    assert cache.get("x", (0,)) is not None and cache.get("other", (0,)) is None
    cache.put("x", (2,), states[2].clone())
    assert cache.bytes == 2 * states[0].nbytes
    assert [cache.get("x", (number,)) is not None for number in range(3)] == [True, False, True]


def test_a_prompt_is_read_once_while_it_is_in_the_cache(reference):
    request = GenerateRequest(prompt=PROMPTS[0], seeds=(1,), num_inference_steps=1, guidance_scale=1.0)
    engine = Engine(reference)
    engine.start()
    for _ in range(3):
        engine.generate(request).result(TIMEOUT)
    engine.close()
    found = engine.metrics()
    assert found.value("blip3o_cache_misses_total", "condition") == 1
    assert found.value("blip3o_cache_hits_total", "condition") == 2
