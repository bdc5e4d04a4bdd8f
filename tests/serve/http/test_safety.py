"""Keys, limits, headers, the access log and the content filter, over a real server."""

import http.client
import json
import socket

import openai
import pytest
from PIL import Image

from blip3o.errors import ConfigError
from serve.http.config import HttpConfig
from serve.http.safety.filters import load_filter
from tests.serve.client import assert_refusal, data_url, question, raw, serving
from tests.serve.prometheus import parse

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
PROMPT = {"prompt": "a red circle", "num_inference_steps": 1}
FORBIDDEN = "forbidden"
OPEN = ("/", "/health", "/ready", "/metrics", "/docs", "/openapi.json")


class Filter:
    """Refuses a word, and pictures that are all red."""

    async def check_text(self, text, *, owner):
        return f"{owner} said a word" if FORBIDDEN in text else None

    async def check_image(self, image, *, owner):
        return "it is red" if image.getcolors() == [(image.width * image.height, (255, 0, 0))] else None


@pytest.fixture(scope="module")
def server(reference):
    config = HttpConfig(
        max_body_bytes=20_000,
        max_image_bytes=5_000,
        max_image_pixels=10_000,
        read_timeout_s=0.5,
        cors_origins=("https://page.example",),
        content_filter=f"{__name__}:Filter",
        access_log=True,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP3O_API_KEYS", "ann:s3cret")
        with serving(reference, config=config) as server:
            yield server


def sent(server, body, path=IMAGES, **headers):
    headers = {"content-type": "application/json", "authorization": "Bearer s3cret"} | headers
    return raw("POST", server.url + path, body, headers)


def test_a_key_opens_what_costs_and_names_its_owner(server):
    for path in (IMAGES, CHAT, "/v1/responses", "/v1/images/edits", "/v1/images/variations"):
        assert_refusal(raw("POST", server.url + path, PROMPT), 401, code="invalid_api_key")
    for path in ("/v1/models", "/v1/models/nano"):
        assert_refusal(raw("GET", server.url + path), 401, code="invalid_api_key")
    for path in OPEN:
        assert raw("GET", server.url + path).status == 200
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="s3cret", max_retries=0) as client:
        assert client.images.generate(prompt="a red circle").data
        client.chat.completions.create(model="nano", messages=question("hi"), max_tokens=1)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    assert {request.owner for request in server.seen} == {"ann"}


def test_a_link_needs_no_key(server):
    url = sent(server, PROMPT | {"response_format": "url"}).json["data"][0]["url"]
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.request("GET", url.removeprefix(server.url))
    assert connection.getresponse().read()[:4] == b"\x89PNG"
    connection.close()
    assert raw("GET", url.replace("signature=", "signature=0")).status == 403


def test_a_body_that_is_too_large_or_too_slow_is_refused(server):
    assert_refusal(sent(server, b" " * 20_001), 413)
    answer = sent(server, b"{" + b" " * 19_999)
    assert answer.status == 400
    with socket.create_connection(("127.0.0.1", server.port)) as slow:
        head = f"POST {IMAGES} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer s3cret\r\n"
        slow.sendall(f"{head}Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode())
        assert slow.recv(100).startswith(b"HTTP/1.1 408 ")
    chunked = http.client.HTTPConnection("127.0.0.1", server.port)
    headers = {"content-type": "application/json", "authorization": "Bearer s3cret"}
    chunked.request("POST", IMAGES, (b" " * 1000 for _ in range(60)), headers)  # the length is not said
    assert chunked.getresponse().status == 413
    chunked.close()


@pytest.mark.parametrize(
    ("picture", "said"),
    [
        (Image.new("RGB", (200, 51)), "200x51 pixels, limit 10000"),  # small as a file
        (Image.effect_noise((90, 90), 99), "at most 5000 are read"),
    ],
)
def test_an_image_that_is_too_large_is_not_decoded(server, picture, said):
    answer = sent(server, {"messages": question("?", data_url(picture))}, CHAT)
    assert_refusal(answer, 400, code="invalid_image", param="messages.0.content.0.image_url.url")
    assert said in answer.json["error"]["message"]


def test_every_reply_has_the_headers_that_browsers_heed(server):
    for path in (*OPEN, "/nothing"):
        headers = raw("GET", server.url + path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-request-id"].startswith("req_")
        assert headers["referrer-policy"] == "no-referrer"
    own = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert raw("OPTIONS", server.url + IMAGES, headers=own).headers["access-control-allow-origin"] == own["origin"]
    answer = raw("OPTIONS", server.url + IMAGES, headers=own | {"origin": "https://evil.example"})
    assert answer.headers["access-control-allow-origin"] is None


def test_the_access_log_has_no_word_of_a_client(server, capfd):
    answer = sent(server, PROMPT | {"prompt": "a secret thing"}, path=IMAGES + "?q=secret")
    assert sent(server, PROMPT, path="/secret").status == 404
    lines = [json.loads(line) for line in capfd.readouterr().err.splitlines() if line.startswith("{")]
    assert "secret" not in json.dumps(lines)
    [record] = [line for line in lines if line["request_id"] == answer.headers["x-request-id"]]
    assert (record["method"], record["route"], record["status"], record["key"]) == ("POST", IMAGES, 200, "ann")
    assert record["sent_bytes"] == len(answer.text)


@pytest.mark.parametrize("stream", [False, True])
def test_the_filter_sees_prompts_and_pictures(server, stream):
    for path, name, value in (
        (IMAGES, "prompt", FORBIDDEN),
        (CHAT, "messages", question(FORBIDDEN)),
        ("/v1/responses", "input", FORBIDDEN),
    ):
        answer = sent(server, {name: value, "stream": stream}, path)
        assert_refusal(answer, 400, code="content_policy_violation", param=name)
        assert "ann said a word" in answer.json["error"]["message"]
    red = question("what?", data_url(Image.new("RGB", (8, 8), "red")))
    answer = sent(server, {"messages": red, "stream": stream}, CHAT)
    assert_refusal(answer, 400, code="content_policy_violation", param="messages.0.content.0.image_url.url")
    assert sent(server, {"messages": question("fine"), "max_tokens": 2, "stream": stream}, CHAT).status == 200


def test_the_filter_sees_what_the_model_makes(reference, monkeypatch):
    async def refuse(self, image, *, owner):
        return "no pictures"

    monkeypatch.setattr(Filter, "check_image", refuse)
    with serving(reference, config=HttpConfig(content_filter=f"{__name__}:Filter")) as server:
        for stream in (False, True):
            answer = sent(server, PROMPT | {"stream": stream})
            assert_refusal(answer, 400, code="content_policy_violation")


def test_a_filter_that_is_not_there_stops_the_start():
    for name in ("nowhere:x", f"{__name__}:Nothing", "nothing"):
        with pytest.raises(ConfigError, match="MODULE:FUNCTION"):
            load_filter(name)


def test_metrics_count_the_requests_and_what_the_engine_did(server):
    def scraped():
        return parse(raw("GET", server.url + "/metrics").text)

    raw("GET", server.url + "/x")
    before = scraped()
    assert sent(server, PROMPT | {"n": 2}).status == 200
    assert sent(server, PROMPT | {"stream": True}).status == 200
    after = scraped()

    def gained(name, **labels):
        return sum(after.values(name, **labels)) - sum(before.values(name, **labels))

    assert gained("blip3o_http_requests_total", route=IMAGES, status="200") == 2
    assert gained("blip3o_http_request_seconds_count", route=IMAGES) == 2
    assert gained("blip3o_http_first_event_seconds_count", route=IMAGES) == 1
    assert gained("blip3o_images_total", model="nano") == 3
    assert after.values("blip3o_replicas", model="nano", state="ready") == [1]
    assert after.values("blip3o_http_requests_total", route="other", status="404")
    assert not [each for each in after.series if each.value < 0]
    assert all(after.counters[key] >= value for key, value in before.counters.items())
