"""An endpoint of the tests' own that answers as a script says, and a clock that never waits."""

import json
import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from blip3o.evaluate.judges.client import Clock


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One HTTP answer: `body` is JSON, or bytes as they are; `cut` bytes of it never come; None hangs up."""

    status: int | None = 200
    body: object = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0


def completion(text, reason="stop", **message):
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}}
    return Answer(body={"choices": [choice if reason is None else choice | {"finish_reason": reason}]})


def error(status, message, headers=None, **more):
    return Answer(status=status, body={"error": {"message": message, **more}}, headers=headers or {})


class Endpoint(ThreadingHTTPServer):
    """Gives what `answer(body)` says to the JSON of a request, and keeps each request in `received`."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer: Callable[[dict], Answer] = lambda body: completion("fine")
        self.received, self.lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def script(self, *answers):
        """The answers one after another, the last one again and again."""
        left = list(answers)
        self.received.clear()
        self.answer = lambda body: left.pop(0) if len(left) > 1 else left[0]
        return self

    @property
    def bodies(self):
        return [body for _, _, body in self.received]


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.received.append((self.path, self.headers, body))
            answer = self.server.answer(body)
        if answer.status is None:
            return
        data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - answer.cut])

    def log_message(self, *args):
        """Says nothing."""


@contextmanager
def serving():
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Stopped(Clock):
    """A clock that stands at `at` and keeps what it was to wait."""

    at: float = 1_800_000_000.0
    waits: list[float] = field(default_factory=list)

    def now(self):
        return self.at

    def sleep(self, seconds):
        self.waits.append(seconds)
