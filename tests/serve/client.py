"""Helpers for tests of the HTTP API: a server in a thread, an image as a data URL, requests that no SDK would send."""

import base64
import io
import json
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from PIL import Image

from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend


class Server:
    """An app on a free port of the loopback interface, in a thread."""

    def __init__(self, app, **options):
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="error", **options))
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]})

    def __enter__(self):
        self._thread.start()  # the socket listens already: a client that comes too early waits
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join()


def data_url(image, file_format="png"):
    """An image as clients send it."""
    buffer = io.BytesIO()
    image.save(buffer, format=file_format)
    return f"data:image/{file_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def opened(item):
    """The image of one `data` entry, as the bytes of its RGB pixels."""
    return Image.open(io.BytesIO(base64.b64decode(item.b64_json))).convert("RGB").tobytes()


def question(text, url=None):
    """The messages of a question, about an image if there is one."""
    picture = [{"type": "image_url", "image_url": {"url": url}}] if url else []
    return [{"role": "user", "content": [*picture, {"type": "text", "text": text}]}]


@dataclass(frozen=True)
class Answer:
    """Status, headers and body of a raw HTTP request."""

    status: int
    headers: Any
    text: str

    @property
    def json(self):
        """The body as JSON."""
        return json.loads(self.text)


JSON = {"content-type": "application/json"}


class _Silent(urllib.request.Request):
    """A request without the content type that `urllib` adds to one that has a body."""

    def add_unredirected_header(self, key, val):
        if key != "Content-type":
            super().add_unredirected_header(key, val)


def raw(method, url, body=None, headers=JSON):
    """One plain HTTP request; `body` is bytes, or JSON."""
    data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    request = _Silent(url, data=data, method=method, headers=headers)
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=60) as reply:
            return Answer(reply.status, reply.headers, reply.read().decode())
    except urllib.error.HTTPError as error:
        return Answer(error.code, error.headers, error.read().decode())


def assert_refusal(answer, status, *, code=None, param=None):
    """The answer is an error in OpenAI's form, with an id, and nothing of the server's inside."""
    assert answer.status == status, answer
    assert set(answer.json) == {"error"}
    error = answer.json["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "Traceback" not in answer.text and "/" + "serve/" not in answer.text
    assert (error["code"], error["param"]) == (code, param), error
    assert answer.headers["x-request-id"].startswith("req_")


class Watched(LocalBackend):
    """Notes the conversations that reach the engine."""

    def __init__(self, engine):
        super().__init__(engine)
        self.seen = []

    async def chat(self, request):
        self.seen.append(request)
        return await super().chat(request)

    async def stream_chat(self, request):
        self.seen.append(request)
        async for event in super().stream_chat(request):
            yield event


@contextmanager
def serving(pipeline, name="nano", config=None, backend=Watched):
    """A server whose engine runs in this process; `server.seen` are the conversations that came to it."""
    engine = Engine(pipeline)
    engine.start()
    watched = backend(engine)
    try:
        with Server(build_api(watched, name, config)) as server:
            server.seen = watched.seen
            yield server
    finally:
        engine.close()


def output(command, folder, **options):
    """What a program prints that runs in a folder."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout
