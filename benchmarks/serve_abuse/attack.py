"""Clients that attack a server, and what they are answered."""

import http.client
import json
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.ports import LOOPBACK

CLIENTS = 50
IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
_TIMEOUT_S = 120.0
_LONGEST_WAIT_S = 1.0  # that a client keeps of a Retry-After: the attack is to stay one
_BAD = (
    (IMAGES, b"{"),
    (IMAGES, b'{"prompt": "\\ud800"}'),
    (IMAGES, b'{"prompt": "x", "n": 99999999999999999999999}'),
    (IMAGES, b'{"prompt": "' + b"x" * 300_000 + b'"}'),
    (CHAT, b"[" * 40_000),
    (CHAT, b"\xff\xfe" * 9000),
    (CHAT, b'{"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,x"}}]}]}'),
    ("/v1/images/edits", b"--x\r\n" * 5000),
    ("/%2e%2e/%ff", b""),
)


class Attack:
    """Clients that run until `end` is called; what they were answered."""

    def __init__(self, port: int, *, clients: int = CLIENTS) -> None:
        self.statuses: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.served: list[float] = []
        self._port = port
        self._done = threading.Event()
        kinds = self._kinds(clients)
        self._threads = [threading.Thread(target=self._repeat, args=each) for each in enumerate(kinds)]

    def _kinds(self, clients: int) -> list[Callable[[random.Random], None]]:
        """Twenty-two of fifty are valid."""
        round_of = [
            *[self._valid] * 11,
            *[self._malformed] * 5,
            *[self._leave] * 4,
            *(self._slow_head, self._slow_body, self._silent, self._deaf, self._deaf),
        ]
        return [round_of[number % len(round_of)] for number in range(clients)]

    def __enter__(self) -> "Attack":
        """Starts the clients."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends them after their current request."""
        self._done.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, number: int, ask: Callable[[random.Random], None]) -> None:
        draw = random.Random(number)
        while not self._done.is_set():
            try:
                ask(draw)
            except (OSError, http.client.HTTPException) as error:
                self.statuses[type(error).__name__] += 1
                self._done.wait(0.1)

    def _post(self, path: str, body: bytes, *, valid: bool) -> None:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=_TIMEOUT_S)
        began = time.monotonic()
        try:
            connection.request("POST", path, body, {"content-type": "application/json"})
            reply = connection.getresponse()
            reply.read()
        finally:
            connection.close()
        self.statuses[f"{'valid' if valid else 'malformed'} {reply.status}"] += 1
        wait = reply.headers.get("retry-after")
        if reply.status >= 500 and reply.status != 503:
            self.faults[f"{reply.status} {path}"] += 1
        if reply.status == 429:
            self.faults["429 without Retry-After"] += wait is None
            self._done.wait(min(float(wait or 0), _LONGEST_WAIT_S))
        if valid and reply.status == 200:
            self.served.append(time.monotonic() - began)

    def _valid(self, draw: random.Random) -> None:
        if draw.random() < 0.7:
            body = {"prompt": "a red circle", "n": 4, "seed": draw.randrange(9), "num_inference_steps": 4}
            self._post(IMAGES, json.dumps(body).encode(), valid=True)
        else:
            body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
            self._post(CHAT, json.dumps(body).encode(), valid=True)

    def _malformed(self, draw: random.Random) -> None:
        self._post(*draw.choice(_BAD), valid=False)

    @contextmanager
    def _connection(self, data: bytes) -> Iterator[socket.socket]:
        """A connection on which this was sent."""
        with socket.socket() as connection:
            connection.settimeout(_TIMEOUT_S)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((LOOPBACK, self._port))
            connection.sendall(data)
            yield connection

    def _leave(self, draw: random.Random) -> None:
        """Goes before the reply."""
        with self._connection(_request({"prompt": "x", "n": 10, "stream": draw.random() < 0.5})):
            self._done.wait(draw.uniform(0, 0.5))
        self.statuses["left"] += 1

    def _slow_head(self, draw: random.Random) -> None:
        with self._connection(b"GET / HTTP/1.1\r\nX: ") as connection:
            self._trickle(connection)

    def _slow_body(self, draw: random.Random) -> None:
        head = _request({}).partition(b"\r\n\r\n")[0].replace(b"Content-Length: 2", b"Content-Length: 2000")
        with self._connection(head + b"\r\n\r\n") as connection:
            self._trickle(connection)

    def _trickle(self, connection: socket.socket) -> None:
        """Sends a byte now and then, until the server has had enough."""
        while not self._done.wait(0.2):
            connection.sendall(b" ")
        self.statuses["slow until the end"] += 1

    def _silent(self, draw: random.Random) -> None:
        with self._connection(b"") as connection:
            connection.settimeout(1)
            while not self._done.is_set():
                with suppress(TimeoutError):
                    if not connection.recv(1):
                        self.statuses["silent: closed"] += 1
                        return

    def _deaf(self, draw: random.Random) -> None:
        """Asks for a stream and does not read it."""
        with self._connection(_request({"prompt": "x", "n": 10, "stream": True, "partial_images": 3})):
            self._done.wait(5)
        self.statuses["deaf"] += 1


def _request(body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {IMAGES} HTTP/1.1\r\nHost: {LOOPBACK}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
