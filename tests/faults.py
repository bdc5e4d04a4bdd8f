"""A proxy between us and a store that does to requests what networks and stores do: fails, cuts, stalls, delays.

It speaks HTTP to both sides and leaves requests as they are, so signatures stay valid. A plan decides what befalls a
request: `Plan` does so as a function of seed, method, path and byte range, and never of time.
"""

import http.client
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

LOOPBACK = "127.0.0.1"
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "expect"}
READING = ("GET", "HEAD")
# What may befall a request. `500` and `503` are answers of the store; `hang` never answers, `stall` stops in the middle
# of the body; `cut` ends the connection there; `short` is a whole answer with fewer bytes than were asked.
KINDS = ("500", "503", "reset", "hang", "stall", "cut", "short", "delay")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a plan decides by: `attempt` counts earlier requests for the same thing, from 0."""

    method: str
    path: str
    range: str
    attempt: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """For a share of all things that may be asked, the first one to `repeats` requests go wrong, each in some way.

    A thing is a method, a path that contains `match`, and a byte range.
    """

    seed: int = 0
    share: float = 1.0
    repeats: int = 1
    kinds: tuple[str, ...] = KINDS
    methods: tuple[str, ...] = READING
    match: str = ""

    def __call__(self, request: Request) -> str | None:
        if request.method not in self.methods or self.match not in request.path:
            return None
        draw = random.Random(f"{self.seed} {request.method} {request.path} {request.range}")
        failing = draw.randint(1, self.repeats) if draw.random() < self.share else 0
        fates = draw.choices(self.kinds, k=max(failing, 1))
        return fates[request.attempt] if request.attempt < failing else None


def healthy(request: Request) -> None:
    """The plan of a store without faults."""


@dataclass
class Injected:
    """What has been done so far: kinds of fault, and requests by method."""

    faults: Counter = field(default_factory=Counter)
    requests: Counter = field(default_factory=Counter)


class FaultProxy:
    """The proxy as a context manager. `plan` and `upstream` may be set at any time; `endpoint` stays."""

    def __init__(self, upstream: str, *, delay_s: float = 0.05) -> None:
        self.upstream = upstream
        self.plan: Callable[[Request], str | None] = healthy
        self.delay_s = delay_s
        self.done = Injected()
        self.closing = threading.Event()
        self._seen: Counter = Counter()
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((LOOPBACK, 0), type("Handler", (_Handler,), {"proxy": self}))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://{LOOPBACK}:{self._server.server_address[1]}"

    @property
    def environment(self) -> dict[str, str]:
        """What sends a process's requests through the proxy."""
        return {"AWS_ENDPOINT_URL": self.endpoint, "AWS_ENDPOINT_URL_S3": self.endpoint}

    def follow(self, plan: Callable[[Request], str | None]) -> None:
        """Starts a plan from its beginning: nothing has been asked before."""
        with self._lock:
            self.plan, self.done = plan, Injected()
            self._seen.clear()

    def fate(self, method: str, path: str, wanted: str) -> str | None:
        """What the plan says of a request; counted."""
        with self._lock:
            key = (method, path, wanted)
            fault = self.plan(Request(method=method, path=path, range=wanted, attempt=self._seen[key]))
            self._seen[key] += 1
            self.done.requests[method] += 1
            if fault:
                self.done.faults[fault] += 1
            return fault

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    """One connection of a client, with one of its own to the store."""

    proxy: FaultProxy
    protocol_version = "HTTP/1.1"
    upstream: http.client.HTTPConnection | None = None

    def log_message(self, *_):
        """Nobody reads a log of requests."""

    def handle(self):
        try:
            super().handle()
        except ConnectionError:  # the client gave up, as it may
            pass

    def finish(self):
        if self.upstream:
            self.upstream.close()
        try:
            super().finish()
        except ConnectionError:
            pass

    def serve(self):
        body = self._body()
        fault = self.proxy.fate(self.command, self.path, self.headers.get("Range") or "")
        if fault in ("500", "503"):
            self._answer(int(fault), [("Content-Type", "application/xml")], _error(fault))
        elif fault == "reset":
            self._reset()
        elif fault == "hang":
            self._stop_until_closed()
        else:
            if fault == "delay":
                self.proxy.closing.wait(self.proxy.delay_s)
            self._pass_on(body, fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(pieces)

    def _pass_on(self, body: bytes, fault: str | None):
        try:
            status, headers, data = self._ask(body)
        except (OSError, http.client.HTTPException):  # the store is gone: so is the connection
            return self._reset()
        if fault == "short":
            data = data[: len(data) // 2]
        self._answer(status, headers, data, keep=len(data) // 2 if fault in ("cut", "stall") else None)
        if fault == "cut":
            self._reset()
        elif fault == "stall":
            self._stop_until_closed()

    def _ask(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        """The store's answer, asked on a connection of its own: one that is kept may end between two requests."""
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=120)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            chunked = "Transfer-Encoding" in self.headers
            if chunked:
                connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders([body] if chunked else body or None, encode_chunked=chunked)
            answer = connection.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, keep: int | None = None):
        """The whole answer, or its head and `keep` bytes."""
        self.send_response_only(status)
        length = str(len(data))
        for name, value in headers:
            if self.command == "HEAD" and name.lower() == "content-length":
                length = value
            if name.lower() not in HOP_BY_HOP | {"content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:keep])
            self.wfile.flush()

    def _reset(self):
        """Ends the connection without a goodbye."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _stop_until_closed(self):
        """Says nothing more until the client gives up, or the proxy ends."""
        self.close_connection = True
        self.connection.settimeout(0.1)
        while not self.proxy.closing.is_set():
            try:
                if not self.connection.recv(1):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


def _error(status: str) -> bytes:
    code = {"500": "InternalError", "503": "SlowDown"}[status]
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
