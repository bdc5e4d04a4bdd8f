"""The judge's client against a small real server: what it sends, what it tries again, and what it gives up on."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blip3o.errors import ConfigError, ServiceError
from blip3o.evaluate.judge import JudgeClient
from blip3o.evaluate.suite import Item, Judge
from blip3o.evaluate.suites.wise import WISE


def completion(text):
    return {"choices": [{"message": {"role": "assistant", "content": text}}]}


class Endpoint(ThreadingHTTPServer):
    """Gives the `answers` one after another, (status, body) each, and keeps what it was sent."""

    def __init__(self, answers):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.received = list(answers), []

    def client(self, **more):
        url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        return JudgeClient(base_url=url, model="eye", prompt_version="1", first_pause_s=0, **more)


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.received.append((self.path, self.headers, body))
        status, answer = self.server.answers.pop(0)
        if status is None:  # hang up without a word
            return
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Says nothing."""


@pytest.fixture
def endpoint():
    started = []

    def start(*answers):
        server = Endpoint(answers)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_it_sends_images_then_text_and_asks_for_no_variation(endpoint, monkeypatch):
    monkeypatch.setenv("BLIP3O_JUDGE_API_KEY", "secret")
    server = endpoint((200, completion(" Score: 1\n")))
    assert server.client().ask("grade it", [b"png-1", b"png-2"]) == " Score: 1\n"
    [(path, headers, body)] = server.received
    assert (path, headers["Authorization"]) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["temperature"]) == ("eye", 0)
    *images, text = body["messages"][0]["content"]
    assert [part["image_url"]["url"] for part in images] == [
        f"data:image/png;base64,{base64.b64encode(png).decode()}" for png in (b"png-1", b"png-2")
    ]
    assert text == {"type": "text", "text": "grade it"}
    assert server.client().judge == Judge(id="eye", version="1")


def test_what_may_pass_is_tried_again(endpoint):
    server = endpoint((503, {"error": "loading"}), (None, None), (200, completion("fine")))
    assert server.client().ask("x", []) == "fine"
    assert len(server.received) == 3


def test_three_failures_are_the_end_and_no_judgement(endpoint):
    server = endpoint(*[(429, {"error": "slow down"})] * 4)
    with pytest.raises(ServiceError, match="failed 3 times .HTTP 429: .*slow down"):
        server.client().ask("x", [])
    assert len(server.received) == 3


def test_an_endpoint_that_is_not_there_is_named(endpoint):
    server = endpoint()
    client = server.client()
    server.shutdown()
    server.server_close()
    with pytest.raises(ServiceError, match="judge again to go on"):
        client.ask("x", [])


def test_a_refusal_is_not_tried_again(endpoint):
    server = endpoint((401, {"error": "no such key"}))
    with pytest.raises(ConfigError, match="HTTP 401: .*no such key"):
        server.client().ask("x", [])
    assert len(server.received) == 1


@pytest.mark.parametrize("answer", [b"<html>", {"choices": []}, {}, [], completion(7)])
def test_an_answer_of_another_kind_is_an_error(endpoint, answer):
    with pytest.raises(ServiceError, match="no chat completion|no text"):
        endpoint((200, answer)).client().ask("x", [])


def test_garbage_and_silence_are_counted_and_never_scored(endpoint):
    server = endpoint((200, completion("lovely picture!")), (200, completion(None)))
    items = [Item(key=str(n), prompt="p", record={"Explanation": "e"}, samples=1) for n in (1, 2)]
    found = [WISE.judgement(item, 0, server.client().ask(WISE.question(item), [b"png"])) for item in items]
    score = WISE.score(items, found, server.client().judge)
    assert (score.coverage.n_scored, score.coverage.n_parse_failed, score.overall) == (0, 2, None)
    assert score.categories["culture"] is None
    assert [one.reply for one in found] == ["lovely picture!", ""]
