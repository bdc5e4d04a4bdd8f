"""The stock `openai` client against a real server with a real engine: every route, streams, errors, retries."""

import base64
import io
import json
import threading
import time
import urllib.request
from types import SimpleNamespace

import openai
import pytest
from PIL import Image

from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from serve.http.files import HEADER
from tests.serve.client import Server, Watched, data_url, opened, question, raw, serving

NAME = "nano"
PROMPT = "a red circle"
PICTURE = Image.radial_gradient("L").convert("RGB")
SAMPLING = {"seed": 5, "num_inference_steps": 4, "guidance_scale": 2.0}


def png(image=PICTURE):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def provenance(data):
    """What made an image, as its file says."""
    image = Image.open(io.BytesIO(data))
    return json.loads(image.info.get("blip3o") or image.getexif()[0x010E])


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference, NAME, backend=Watched) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def generate(client, **options):
    extra = SAMPLING | options.pop("extra_body", {})
    return client.images.generate(prompt=PROMPT, model=NAME, extra_body=extra, **options)


@pytest.mark.parametrize("n", [1, 3])
def test_a_stream_has_the_images_of_the_reply(client, reference, n):
    events = list(generate(client, n=n, stream=True, partial_images=2))
    done = [event for event in events if event.type == "image_generation.completed"]
    previews = [event for event in events if event.type == "image_generation.partial_image"]
    whole = generate(client, n=n)
    assert sorted((e.index, e.b64_json) for e in done) == [(i, d.b64_json) for i, d in enumerate(whole.data)]
    assert [event.seed for event in sorted(done, key=lambda event: event.index)] == [5 + i for i in range(n)]
    assert sum(event.usage.total_tokens for event in done) == whole.usage.total_tokens
    for number in range(n):
        own = [event for event in previews if event.index == number]
        # The engine leaves out a preview while its decoder is at work, as it may be for another image.
        indices = [event.partial_image_index for event in own]
        assert indices == [0, 1] if n == 1 else indices in ([], [0], [1], [0, 1])
        assert len({event.b64_json for event in own}) == len(own)
        places = [i for i, event in enumerate(events) if event.index == number]
        assert events[places[-1]].type == "image_generation.completed"
    for event in events:
        assert Image.open(io.BytesIO(base64.b64decode(event.b64_json))).size == (32, 32)
        assert (event.size, event.quality, event.background) == ("32x32", "medium", "opaque")
        assert (event.output_format, type(event.created_at)) == ("png", int)


def test_a_stream_without_previews_has_only_the_image(client):
    events = list(generate(client, stream=True))
    assert [event.type for event in events] == ["image_generation.completed"]


def test_a_link_has_the_image(client, server):
    whole, linked = generate(client, n=2), generate(client, n=2, response_format="url")
    for item, link in zip(whole.data, linked.data, strict=True):
        assert link.url.startswith(f"{server.url}/v1/images/") and link.b64_json is None
        with urllib.request.urlopen(link.url) as reply:
            assert reply.read() == base64.b64decode(item.b64_json)
            assert reply.headers["content-type"] == "image/png"


def test_quality_is_a_number_of_steps_and_steps_come_first(client, reference):
    steps = reference.model.config.sampler.num_inference_steps
    for quality, factor in {"low": 0.5, "standard": 1, "hd": 2, "max": 4}.items():
        reply = client.images.generate(prompt=PROMPT, quality=quality, extra_body={"seed": 1})
        assert reply.num_inference_steps == round(factor * steps)
        [expected] = reference.generate([PROMPT], seed=[1], num_inference_steps=round(factor * steps))
        assert opened(reply.data[0]) == expected.tobytes()
    reply = client.images.generate(prompt=PROMPT, quality="max", extra_body={"num_inference_steps": 3})
    assert (reply.num_inference_steps, reply.quality) == (3, "max")


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_an_image_says_what_made_it_and_is_made_again_by_that(client, reference, file_format):
    asked = {"prompt": PROMPT, "output_format": file_format}
    reply = client.images.with_raw_response.generate(**asked, extra_body={"guidance_scale": 3.0})
    first = reply.parse()
    made_by = provenance(base64.b64decode(first.data[0].b64_json))
    assert made_by == json.loads(reply.headers[HEADER])
    assert made_by["seed"] == first.seed == first.data[0].seed
    assert made_by["bundle"] == client.models.retrieve(NAME).bundle_sha256
    assert (made_by["guidance_scale"], made_by["solver"]) == (3.0, reference.model.config.sampler.solver)
    again = {name: made_by[name] for name in ("seed", "num_inference_steps", "guidance_scale")}
    second = client.images.generate(**asked, extra_body=again)
    assert second.data[0].b64_json == first.data[0].b64_json


def test_fields_that_change_nothing_change_nothing(client):
    extra = {"style": "natural", "moderation": "low", "stream_options": {}, "user": "me", "partial_images": 2}
    assert generate(client, extra_body=extra).data == generate(client).data


def test_chat_is_streamed_as_it_is_answered(client, reference):
    asked = {"model": NAME, "messages": question("hi"), "max_tokens": 6}
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    whole = client.chat.completions.create(**asked)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content == reference.chat(question("hi"), max_tokens=6)
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices


def test_images_come_out_of_chat(client):
    asked = {"model": NAME, "messages": question(PROMPT), "max_tokens": 2, "extra_body": SAMPLING}
    expected = generate(client).data[0].b64_json
    talk = client.chat.completions.create(**asked)
    for modalities, text in ((["image"], None), (["text", "image"], talk.choices[0].message.content)):
        reply = client.chat.completions.create(**asked, modalities=modalities)
        message = reply.choices[0].message
        assert message.content == text and reply.seed == 5
        [image] = message.images
        assert image["image_url"]["url"] == f"data:image/png;base64,{expected}"
        chunks = list(client.chat.completions.create(**asked, modalities=modalities, stream=True))
        deltas = [chunk.choices[0].delta for chunk in chunks]
        assert "".join(delta.content or "" for delta in deltas) == (text or "")
        assert [delta.images for delta in deltas if getattr(delta, "images", None)] == [message.images]


def test_an_image_of_an_image_is_refused_with_the_reason(client):
    picture = data_url(PICTURE)
    with pytest.raises(openai.BadRequestError, match="image of an image"):
        client.chat.completions.create(model=NAME, messages=question(PROMPT, picture), modalities=["text", "image"])
    for call in (
        lambda: client.images.edit(prompt=PROMPT, image=png(), n=1, extra_body={"seed": 1}),
        lambda: client.images.edit(prompt=PROMPT, image=[png(), png()], mask=png()),
        lambda: client.images.create_variation(image=png(), model=NAME),
    ):
        with pytest.raises(openai.BadRequestError, match="was not trained to .it can chat and generate") as caught:
            call()
        assert caught.value.code == "unsupported_by_model"


def test_a_response_is_the_answer_of_chat(client, reference):
    asked = {"model": NAME, "input": "What colour is it?", "max_output_tokens": 5}
    reply = client.responses.create(**asked)
    assert reply.output_text == reference.chat("What colour is it?", max_tokens=5)
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens
    complete = reply.usage.output_tokens < 5
    assert (reply.status, reply.incomplete_details is None) == ("completed" if complete else "incomplete", complete)
    events = list(client.responses.create(**asked, stream=True))
    assert events[-1].response.output_text == reply.output_text
    assert events[-1].response.usage == reply.usage
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == reply.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_takes_instructions_pictures_and_earlier_turns(client, reference):
    picture = data_url(PICTURE)
    items = [
        {"role": "user", "content": [{"type": "input_image", "image_url": picture, "detail": "auto"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Green.", "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "Why?"}]},
    ]
    reply = client.responses.create(model=NAME, input=items, instructions="Answer.", max_output_tokens=4)
    messages = [
        {"role": "system", "content": "Answer."},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": picture}}]},
        {"role": "assistant", "content": "Green."},
        {"role": "user", "content": "Why?"},
    ]
    assert reply.output_text == reference.chat(messages, max_tokens=4)


def test_a_response_is_an_image_by_its_tool(client):
    expected = generate(client).data[0].b64_json
    asked = {"model": NAME, "input": PROMPT, "tools": [{"type": "image_generation", "partial_images": 1, **SAMPLING}]}
    [item] = client.responses.create(**asked).output
    assert (item.type, item.status, item.result) == ("image_generation_call", "completed", expected)
    events = list(client.responses.create(**asked, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[3:7] == [
        f"image_generation_call.{x}" for x in ("in_progress", "generating", "partial_image", "completed")
    ]
    assert events[-1].response.output[0].result == expected
    chat = client.responses.create(**asked, tool_choice="none", max_output_tokens=2)
    assert chat.output[0].type == "message"


def test_a_model_says_what_it_can(client, reference):
    model = client.models.retrieve(NAME)
    assert model.abilities == ["chat", "generate"] and len(model.bundle_sha256) == 64
    assert model.prompt_tokens_limit == reference.max_length


def test_seeded_draws_are_repeated_and_a_random_seed_is_told(client):
    asked = {"model": NAME, "messages": question("hi"), "max_tokens": 12, "temperature": 1.5}
    seeded = [client.chat.completions.create(**asked, seed=3).choices[0].message.content for _ in range(2)]
    assert seeded[0] == seeded[1]
    first = client.chat.completions.create(**asked)
    again = client.chat.completions.create(**asked, seed=first.seed)
    assert again.choices[0].message.content == first.choices[0].message.content


def test_an_error_before_the_first_event_has_a_status(client):
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(prompt="a " * 500, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_docs_and_description_load_nothing(server):
    page = raw("GET", server.url + "/docs")
    assert "/v1/images/generations" in page.text and "http" + "://" not in page.text
    spec = raw("GET", server.url + "/openapi.json").json
    assert spec["components"]["schemas"]["ImagesBody"]["properties"]["quality"]["default"] == "auto"


class Gate:
    """Holds the denoiser of a pipeline until it is opened."""

    def __init__(self, pipeline, monkeypatch):
        self.open = threading.Event()
        original = pipeline.model.dit.forward

        def forward(*args):
            assert self.open.wait(60)
            return original(*args)

        monkeypatch.setattr(pipeline.model.dit, "forward", forward)


@pytest.fixture
def gate(pipeline, monkeypatch):
    gate = Gate(pipeline, monkeypatch)
    yield gate
    gate.open.set()


@pytest.fixture
def held(pipeline, gate):
    """A server whose denoiser waits, with ten places behind the batch; and its engine."""
    engine = Engine(pipeline, max_waiting=10)
    engine.start()
    with Server(build_api(LocalBackend(engine), NAME)) as server:
        yield server, engine
        gate.open.set()
    engine.close()


def test_the_client_waits_as_long_as_a_full_queue_says_and_is_served(held, gate, reference, monkeypatch):
    server, engine = held
    waited = []

    def wait(seconds):
        waited.append(seconds)
        gate.open.set()
        for thread in filling:
            thread.join()

    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=1) as client:
        filling = [threading.Thread(target=client.images.generate, kwargs={"prompt": "x", "n": n}) for n in (4, 10)]
        for thread in filling:
            thread.start()
        while engine.stats().in_work < 14:  # the batch and the places behind it
            client.models.list()
        with pytest.raises(openai.RateLimitError) as caught:
            client.with_options(max_retries=0).images.generate(prompt="x")
        assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
        asked = int(caught.value.response.headers["retry-after"])
        monkeypatch.setattr("openai._base_client.time", SimpleNamespace(sleep=wait, time=time.time))
        reply = client.images.with_raw_response.generate(prompt=PROMPT, extra_body=SAMPLING)
        assert waited == [asked] and reply.retries_taken == 1
        [expected] = reference.generate([PROMPT], seed=[5], num_inference_steps=4, guidance_scale=2.0)
        assert opened(reply.parse().data[0]) == expected.tobytes()


@pytest.mark.parametrize("leave", ["close", "abandon"])
def test_a_stream_that_is_closed_frees_its_rows(held, gate, leave):
    server, engine = held
    gate.open.set()
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.images.generate(
            prompt="x", n=10, stream=True, partial_images=3, extra_body={"num_inference_steps": 250}
        )
        next(iter(stream))
        assert engine.stats().in_work >= 10
        if leave == "close":
            stream.close()
    # The client has closed its connections.
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        while engine.stats().in_work:
            client.models.list()
    assert engine.stats().totals["cancelled"] == 1


@pytest.mark.parametrize(
    ("status", "kind", "call"),
    [
        (400, openai.BadRequestError, lambda client: client.images.generate(prompt="x", n=11)),
        (404, openai.NotFoundError, lambda client: client.images.generate(prompt="x", model="other")),
        (404, openai.NotFoundError, lambda client: client.embeddings.create(input="x", model=NAME)),
        (413, openai.APIStatusError, lambda client: client.images.edit(prompt="x", image=b"x" * 70_000)),
        (415, openai.APIStatusError, lambda client: client.post("/responses", cast_to=object, **GZIPPED)),
    ],
)
def test_an_error_has_its_class_its_id_and_openais_body(small_bodies, status, kind, call):
    with pytest.raises(kind) as caught:
        call(small_bodies)
    error = caught.value
    assert error.status_code == status and error.request_id.startswith("req_")
    assert error.type == "invalid_request_error" and error.body.keys() == {"message", "type", "param", "code"}


GZIPPED = {"body": {"input": "x"}, "options": {"headers": {"content-encoding": "gzip"}}}


@pytest.fixture(scope="module")
def small_bodies(reference):
    with serving(reference, NAME, HttpConfig(max_body_bytes=60_000)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            yield client
