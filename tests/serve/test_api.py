"""The real `openai` client against a real local server with an engine; and requests that it would never send."""

import http.client
import itertools
import json
import threading

import openai
import pytest
from PIL import Image

from blip3o.config.resize import ResizeConfig
from blip3o.data.images.decode import to_square
from blip3o.errors import ConfigError, PromptTooLongError, RequestError, StorageError
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from serve.protocol import BusyError, ChatDelta, DeadlineError, EngineError, UnavailableError
from tests.serve.client import Server, assert_refusal, data_url, opened, question, raw, serving

NAME = "nano"
IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
PICTURE = Image.radial_gradient("L").convert("RGB")


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference, NAME) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_image_is_the_pipelines(client, reference):
    reply = client.images.generate(
        prompt="a red circle",
        model=NAME,
        response_format="b64_json",
        extra_body={"seed": 5, "num_inference_steps": 3, "guidance_scale": 2.0},
    )
    [expected] = reference.generate(["a red circle"], seed=[5], num_inference_steps=3, guidance_scale=2.0)
    assert opened(reply.data[0]) == expected.tobytes()
    assert isinstance(reply.created, int)
    assert (reply.size, reply.output_format, reply.background) == ("32x32", "png", "opaque")
    assert (reply.seed, reply.num_inference_steps, reply.guidance_scale) == (5, 3, 2.0)
    prompt_tokens = len(reference.generation_ids("a red circle"))
    assert reply.usage.input_tokens == reply.usage.input_tokens_details.text_tokens == prompt_tokens
    assert reply.usage.output_tokens == reference.model.config.encoder.num_tokens
    assert reply.usage.total_tokens == reply.usage.input_tokens + reply.usage.output_tokens


def test_the_defaults_are_the_bundles(client, reference):
    reply = client.images.generate(prompt="a red circle", extra_body={"seed": 1})
    assert opened(reply.data[0]) == reference.generate(["a red circle"], seed=[1])[0].tobytes()
    sampler = reference.model.config.sampler
    assert (reply.num_inference_steps, reply.guidance_scale) == (sampler.num_inference_steps, sampler.guidance_scale)


def test_n_images_are_those_of_the_next_seeds(client, reference):
    reply = client.images.generate(prompt="a red circle", n=3, size="32x32", extra_body={"seed": 8})
    expected = reference.generate(["a red circle"] * 3, seed=[8, 9, 10])
    assert [opened(item) for item in reply.data] == [image.tobytes() for image in expected]
    assert [item.seed for item in reply.data] == [8, 9, 10]


def test_without_a_seed_two_calls_differ_and_name_theirs(client, reference):
    replies = [client.images.generate(prompt="a red circle") for _ in range(2)]
    assert replies[0].seed != replies[1].seed
    for reply in replies:
        assert opened(reply.data[0]) == reference.generate(["a red circle"], seed=[reply.seed])[0].tobytes()


@pytest.mark.parametrize("file_format", ["png", "jpeg", "webp"])
def test_images_have_the_requested_format(client, file_format):
    import base64
    import io

    reply = client.images.generate(prompt="a red circle", output_format=file_format)
    image = Image.open(io.BytesIO(base64.b64decode(reply.data[0].b64_json)))
    assert (image.format, image.size, reply.output_format) == (file_format.upper(), (32, 32), file_format)


def test_a_question_is_answered_as_by_the_pipeline(client, reference):
    from blip3o.data.text.templates import Turn

    turns = [Turn(role="user", text="What colour is it?")]
    for image in (None, PICTURE):
        messages = question("What colour is it?", image and data_url(image))
        reply = client.chat.completions.create(model=NAME, messages=messages, max_tokens=5, temperature=0)
        choice = reply.choices[0]
        assert choice.message.content == reference.chat(messages, max_tokens=5)
        assert choice.message.role == "assistant"
        prompt_tokens = len(reference.chat_ids(turns, with_image=image is not None))
        assert reply.usage.prompt_tokens == prompt_tokens
        assert reply.usage.total_tokens == prompt_tokens + reply.usage.completion_tokens
        assert choice.finish_reason == ("length" if reply.usage.completion_tokens == 5 else "stop")
        assert (reply.object, reply.model) == ("chat.completion", NAME)


@pytest.fixture
def ask_about(pipeline):
    """Asks about a picture a server whose model has another vision; its answer, and the pictures that it was shown."""

    def ask(vision, picture):
        config = pipeline.model.config
        changed = config.backbone.model_copy(update={"vision": vision})
        pipeline.model.config = config.model_copy(update={"backbone": changed})
        with serving(pipeline) as server:
            answer = raw("POST", server.url + CHAT, {"messages": question("What is it?", data_url(picture))})
        return answer, [request.images[0] for request in server.seen]

    return ask


@pytest.mark.parametrize("mode", ["crop", "stretch"])
def test_an_image_is_cropped_or_stretched_as_the_model_expects(ask_about, reference, mode):
    wide = PICTURE.resize((90, 40))
    vision = reference.model.config.backbone.vision.model_copy(update={"fit": ResizeConfig(mode=mode)})
    answer, [shown] = ask_about(vision, wide)
    assert answer.status == 200
    assert shown.tobytes() == to_square(wide, vision.image_size, vision.resize).tobytes()


def test_a_picture_is_refused_by_a_model_that_sees_none(ask_about):
    answer, seen = ask_about(None, PICTURE)
    assert_refusal(answer, 400, code="invalid_image", param=URL)
    assert not seen


def test_earlier_turns_count(client, reference):

    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "It is green."},
        {"role": "user", "content": "What colour?"},
    ]
    reply = client.chat.completions.create(model=NAME, messages=messages, max_completion_tokens=6)
    assert reply.choices[0].message.content == reference.chat(messages, max_tokens=6)


def test_a_streamed_reply_is_the_same_reply(client):
    asked = {"model": NAME, "messages": question("hi"), "max_tokens": 4}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_the_model_is_listed_and_found(client):
    assert [model.id for model in client.models.list()] == [NAME]
    model = client.models.retrieve(NAME)
    assert (model.id, model.object, model.owned_by, model.size) == (NAME, "model", "blip3o", "32x32")
    assert isinstance(model.created, int)


def test_health_and_page(server):
    assert raw("GET", server.url + "/health").json == {"status": "ok"}
    page = raw("GET", server.url + "/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text and "https://" not in page.text  # nothing is loaded from elsewhere
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_the_client_knows_the_errors(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-4o", messages=question("hi"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("gpt-4o")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="use 'auto' or '32x32'") as caught:
        client.images.generate(prompt="a red circle", size="1024x1024")
    assert caught.value.param == "size"
    assert caught.value.request_id.startswith("req_")


IMAGE_FAULTS = [
    ({}, "missing_required_parameter", "prompt"),
    ({"prompt": 3}, "invalid_value", "prompt"),
    ({"prompt": " "}, "invalid_value", "prompt"),
    ({"prompt": "a " * 500}, "context_length_exceeded", "prompt"),
    ({"prompt": "x" * 40_000}, "context_length_exceeded", "prompt"),
    ({"prompt": "a \ud800"}, "invalid_value", "prompt"),
    ({"prompt": "x", "n": 0}, "invalid_value", "n"),
    ({"prompt": "x", "n": 11}, "invalid_value", "n"),
    ({"prompt": "x", "size": "32x33"}, None, "size"),
    ({"prompt": "x", "seed": -1}, "invalid_value", "seed"),
    ({"prompt": "x", "seed": 2**60}, "invalid_value", "seed"),
    ({"prompt": "x", "num_inference_steps": 0}, "invalid_value", "num_inference_steps"),
    ({"prompt": "x", "num_inference_steps": 10_000}, "invalid_value", "num_inference_steps"),
    ({"prompt": "x", "guidance_scale": -1}, "invalid_value", "guidance_scale"),
    ({"prompt": "x", "guidance_scale": float("nan")}, "invalid_json", None),
    ({"prompt": "x", "output_format": "gif"}, "invalid_value", "output_format"),
    ({"prompt": "x", "background": "transparent"}, "invalid_value", "background"),
    ({"prompt": "x", "partial_images": 4}, "invalid_value", "partial_images"),
    ({"prompt": "x", "quality": "best"}, "invalid_value", "quality"),
    ({"prompt": "x", "response_format": "file"}, "invalid_value", "response_format"),
    ({"prompt": "x", "response_format": "url", "stream": True}, "invalid_value", "response_format"),
    ([], "invalid_value", None),
    (b"{", "invalid_json", None),
    (b"\xff\xfe", "invalid_json", None),
    (b"", "missing_required_parameter", None),
]


@pytest.mark.parametrize(("body", "code", "param"), IMAGE_FAULTS)
def test_invalid_image_requests_get_openais_error_body(server, body, code, param):
    assert_refusal(raw("POST", server.url + IMAGES, body), 400, code=code, param=param)


def test_null_means_not_given(server):
    fields = ("n", "size", "seed", "quality", "output_format", "response_format", "stream", "user", "guidance_scale")
    answer = raw("POST", server.url + IMAGES, {"prompt": "a red circle"} | dict.fromkeys(fields))
    assert answer.status == 200 and len(answer.json["data"]) == 1


def test_half_a_surrogate_pair_is_quoted_in_a_refusal(server):
    answer = raw("POST", server.url + IMAGES, {"prompt": "x", "model": "\ud800"})
    assert_refusal(answer, 404, code="model_not_found", param="model")
    assert "\ud800" in answer.json["error"]["message"]


@pytest.mark.parametrize("name", ["model", "size", "response_format", "quality"])
def test_a_long_value_is_quoted_short(server, name):
    answer = raw("POST", server.url + IMAGES, {"prompt": "x", name: "x\n" * 9000})
    assert answer.status in (400, 404) and answer.json["error"]["param"] == name
    message = answer.json["error"]["message"]
    assert len(message) < 400 and "\n" not in message


URL = "messages.0.content.0.image_url.url"


def _about(url):
    return {"messages": question("what?", url)}


CHAT_FAULTS = [
    ({}, "missing_required_parameter", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_value", "messages.0.role"),
    ({"messages": [{"role": "user", "content": 3}]}, "invalid_value", "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "invalid_value", "messages.0.role"),
    ({"messages": question("x"), "max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"messages": question("x"), "n": 2}, "invalid_value", "n"),
    ({"messages": question("x"), "tools": [{}]}, "unknown_parameter", "tools"),
    ({"messages": question("x " * 500)}, "context_length_exceeded", "messages"),
    ({"messages": question("x") + question("y", data_url(PICTURE))}, "invalid_value", "messages.1.content.0"),
    (
        {"messages": question("x", data_url(PICTURE)) + question("y", data_url(PICTURE))},
        "invalid_value",
        "messages.1.content.0",
    ),
    ({"messages": question("a \ud800")}, "invalid_value", "messages"),
    ({"messages": question("x " * 20_000)}, "context_length_exceeded", "messages"),
    (_about(3), "invalid_value", URL),
    (_about("https://www.example.com/a.png"), "invalid_image", URL),
    (_about("file:///etc/passwd"), "invalid_image", URL),
    (_about("data:image/png;base64,"), "invalid_image", URL),
    (_about("data:image/png;base64,@@@@"), "invalid_image", URL),
    (_about("data:image/png;base64,é"), "invalid_image", URL),
    (_about("data:image/png;base64,aGVsbG8="), "invalid_image", URL),
    (_about(data_url(PICTURE)[:-400]), "invalid_image", URL),
    (_about("data:image/png;base64," + "A" * (HttpConfig().max_image_bytes * 4 // 3 + 8)), "invalid_image", URL),
]


@pytest.mark.parametrize(("body", "code", "param"), CHAT_FAULTS)
def test_invalid_chat_requests_get_openais_error_body(server, body, code, param):
    assert_refusal(raw("POST", server.url + CHAT, body), 400, code=code, param=param)


def test_unknown_routes_and_methods_and_huge_bodies_too(server):
    assert_refusal(raw("GET", server.url + "/v1/nothing"), 404)
    answer = raw("GET", server.url + IMAGES)
    assert_refusal(answer, 405)
    assert answer.headers["allow"] == "POST"
    assert_refusal(raw("POST", server.url + IMAGES, b" " * (HttpConfig().max_body_bytes + 1)), 413)


class Broken:
    """A backend that fails in a given way."""

    def __init__(self, error, described):
        self._error, self._described = error, described

    async def check(self):
        if isinstance(self._error, UnavailableError):
            raise self._error

    async def describe(self):
        await self.check()
        return self._described

    async def generate(self, _):
        raise self._error

    async def chat(self, _):
        raise self._error

    async def stream_images(self, _):
        raise self._error
        yield

    async def stream_chat(self, _):
        raise self._error
        yield


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BusyError(7), 429, "queue_full"),
        (RequestError("another fault"), 400, "invalid_value"),
        (ConfigError("the tokenizer has no token for it"), 400, "invalid_value"),
        (PromptTooLongError("the prompt takes 9 tokens"), 400, "context_length_exceeded"),
        (UnavailableError("gone"), 503, "unavailable"),
        (EngineError("the model failed on this request"), 500, "internal_error"),
        (DeadlineError(2), 503, "deadline_exceeded"),
        (KeyError("/secret/path"), 500, "internal_error"),
        (StorageError("/secret/path"), 500, "internal_error"),
    ],
)
def test_backend_errors_have_their_status(reference, caplog, error, status, code):
    with Server(build_api(Broken(error, Engine(reference).describe()), NAME)) as server:
        asked = [(IMAGES, "prompt", "x"), (CHAT, "messages", question("x")), ("/v1/responses", "input", "x")]
        for (path, param, content), stream in itertools.product(asked, (False, True)):
            answer = raw("POST", server.url + path, {param: content, "stream": stream})
            assert_refusal(answer, status, code=code, param=param if status == 400 else None)
            assert "secret" not in answer.text
            assert answer.headers["retry-after"] == {429: "7", 503: "5" if code == "unavailable" else None}.get(status)
        assert raw("GET", server.url + "/ready").status == (503 if code == "unavailable" else 200)
        assert raw("GET", server.url + "/health").status == 200
    assert ("/secret/path" in caplog.text) == ("secret" in str(error))  # a bug is logged


def test_a_bug_in_a_stream_is_its_last_event(reference, caplog):
    class Breaking(Broken):
        async def stream_chat(self, _):
            yield ChatDelta(text="a")
            raise self._error

    backend = Breaking(KeyError("/secret/path"), Engine(reference).describe())
    with Server(build_api(backend, NAME)) as server:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
            chunks = client.chat.completions.create(model=NAME, messages=question("x"), stream=True)
            with pytest.raises(openai.APIError, match="^the server failed on this request$"):
                list(chunks)
    assert "/secret/path" in caplog.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_cancels_its_request(pipeline, monkeypatch, stream):
    stepping, go_on, cancelled = threading.Event(), threading.Event(), threading.Event()
    engine, original = Engine(pipeline), pipeline.model.dit.forward
    submit = engine.generate

    def forward(*args):
        stepping.set()
        assert go_on.wait(60)
        return original(*args)

    def generate(*args):
        future = submit(*args)
        future.add_done_callback(lambda future: future.cancelled() and cancelled.set())
        return future

    monkeypatch.setattr(pipeline.model.dit, "forward", forward)
    monkeypatch.setattr(engine, "generate", generate)
    engine.start()
    with Server(build_api(LocalBackend(engine), NAME)) as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        body = json.dumps({"prompt": "a red circle", "num_inference_steps": 100, "stream": stream})
        connection.request("POST", IMAGES, body, {"content-type": "application/json"})
        assert stepping.wait(60)
        connection.close()
        assert cancelled.wait(60)
        go_on.set()
        assert raw("POST", server.url + IMAGES, {"prompt": "a red circle"}).status == 200
    engine.close()
    assert engine.stats().totals["cancelled"] == 1
    assert engine.stats().totals["steps"] < 100
