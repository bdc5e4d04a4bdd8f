"""`blip3o bench-serve` against a real server with an engine, and against servers that fail."""

import asyncio
import json
import os
import re
import signal
import socket
import threading
from contextlib import contextmanager

import pytest

from benchmarks.serve_load.bundles import write_untrained
from blip3o.bundle.reading import load_bundle
from jobs.cli import main
from jobs.loadtest.client import Client
from jobs.loadtest.workload import Call, parse_work
from serve.engine.local import LocalBackend
from tests.serve.client import serving

WORKS = ("image,n=2,steps=2,share=2", "image,partials=2,steps=6", "chat,tokens=3")


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    return load_bundle(write_untrained(str(tmp_path_factory.mktemp("nano")), "nano"))


@pytest.fixture(scope="module")
def server(pipeline):
    with serving(pipeline) as server:
        yield server


def ask(url, text, model=None, timeout_s=60.0):
    """One request's outcome."""
    work = parse_work(text)

    async def send():
        async with Client(url, key=None, timeout_s=timeout_s, connections=1) as client:
            call = Call(work=work, body=work.body("a red circle", 1, model))
            return await client.ask(call, asyncio.get_running_loop().time())

    return asyncio.run(send())


def test_a_request_counts_what_came_and_when(server):
    several, streamed, chat = (ask(server.url, text) for text in WORKS)
    assert (several.images, several.first, several.error) == (2, None, "")
    assert (streamed.images, streamed.error) == (1, "") and streamed.sent <= streamed.first < streamed.done
    assert 1 <= chat.tokens <= 3 and chat.images == 0 and not chat.error


@contextmanager
def answering(*pieces):
    """The URL of a server that reads a request, sends these bytes, and then closes the connection if they end so."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def answer():
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            for piece in pieces:
                connection.sendall(piece)
            if not pieces:
                done.wait(60)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        done.set()
        thread.join()
        listener.close()


OK = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops",), "502 no error of this API"),
        ((OK + b"content-length: 99\r\n\r\ndata: {}\n\n",), "ClientPayloadError"),
        ((OK + b'\r\ndata: {"error": {"code": "internal_error"}}\n\n',), "in the stream: internal_error"),
        ((OK + b"\r\ndata: {}\n\n",), "the stream ended early"),
        ((OK + b"\r\ndata: oops\n\n",), "the stream is not JSON"),
        ((OK + b"\r\ndata: [DONE]\n\n",), "incomplete reply"),
        ((b"",), "ServerDisconnectedError"),
        ((), "timeout"),
    ],
)
def test_failures_are_told_apart(pieces, error):
    with answering(*pieces) as url:
        found = ask(url, "image,partials=1", timeout_s=60 if pieces else 0.3)
    assert (found.error, found.images) == (error, 0)


def test_refusals_have_the_servers_code(server):
    assert ask(server.url, "image", model="other").error == "404 model_not_found"
    assert ask("http://127.0.0.1:1", "image").error == "ClientConnectorError"


def load(url, *more):
    works = [word for text in WORKS for word in ("--work", text)]
    return main(["bench-serve", "--url", url, "--warm-up", "0", "--seed", "3", *works, *more])


def test_a_load_test_prints_a_table_and_writes_json_and_a_page(server, tmp_path, capsys):
    files = ("--json-file", str(tmp_path / "a.json"), "--html-file", str(tmp_path / "a.html"))
    assert load(server.url + "/v1/", *files, "--requests", "9", "--clients", "3", "--alone", "1", "--rate", "500") == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 80
    result = json.loads((tmp_path / "a.json").read_text())
    outcomes = result["outcomes"]
    assert len(outcomes) == result["load"]["requests"] == 9 and result["most_at_once"] <= 3
    assert result["load"]["failed"] == result["unfinished"] == 0
    assert sum(row["requests"] for row in result["kinds"].values()) == 9
    assert {row["requests"] for row in result["alone"].values()} == {1} and len(result["alone"]) == 3
    images = sum(outcome["images"] for outcome in outcomes)
    assert result["stages"]["cache"]["condition"]["misses"] > 0
    assert result["load"]["images_per_s"] == pytest.approx(images / result["seconds"], rel=0.01)
    assert re.search(r"^all +9 +0 ", printed, re.MULTILINE) and "stage denoise: " in printed
    page = (tmp_path / "a.html").read_text()
    assert page.count("<circle") == 9 and "image n=2 steps=2" in page
    assert not re.search(r"(src|href)=|url\(|@import", page)  # loads nothing from elsewhere


class Interrupting(LocalBackend):
    """A backend to which Ctrl-C comes while it has the third request."""

    seen = ()
    count = 0

    async def generate(self, request):
        self.count += 1
        if self.count == 3:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.Event().wait()
        return await super().generate(request)


def test_ctrl_c_shows_what_there_is(pipeline, tmp_path, capsys):
    with serving(pipeline, backend=Interrupting) as server:
        alone = ("--work", "image,steps=2", "--clients", "1", "--alone", "0", "--seconds", "60")
        code = main(
            ["bench-serve", "--url", server.url, "--warm-up", "0", *alone, "--json-file", str(tmp_path / "a.json")]
        )
    assert code == 130
    assert "2 requests in" in (printed := capsys.readouterr().out) and "interrupted, 1 unfinished" in printed
    assert json.loads((tmp_path / "a.json").read_text())["interrupted"] is True


@pytest.mark.parametrize(
    ("url", "more", "message"),
    [
        ("localhost:8000", (), "is no address of a server"),
        ("http://127.0.0.1:1", (), "is http://127.0.0.1:1 a running `blip3o serve`"),
        ("http://127.0.0.1:1", ("--work", "video"), "'kind' = 'video'"),
    ],
)
def test_what_cannot_be_asked_is_one_line(url, more, message, capsys):
    assert load(url, *more) == 1
    assert message in capsys.readouterr().err
