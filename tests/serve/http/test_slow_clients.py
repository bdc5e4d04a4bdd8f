"""Clients that are slow on purpose, or send what no client does: each loses its connection, and nobody else waits."""

import json
import queue
import socket
from contextlib import contextmanager, suppress

import anyio
import pytest
import uvicorn.protocols.http.auto

from serve.api import build_api
from serve.deployments.proxy import middlewares
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.safety.middleware import RequestMiddleware
from serve.http.safety.proxy import GuardedProtocol, ProxyHeaders
from tests.serve.client import Server, raw

IMAGES = "/v1/images/generations"
LARGE = 30_000_000  # bytes: more than the buffers of a connection hold


class Impatient(GuardedProtocol):
    """The limits, small."""

    head_bytes, head_s, stall_s, most_connections = 4096, 0.5, 0.3, 40
    lost = queue.SimpleQueue()

    def connection_lost(self, exc):
        super().connection_lost(exc)
        self.lost.put(self.client)


async def app(scope, receive, send):
    """Answers with the headers that it got, or with a large body; `/wait` reads the body first."""
    if scope["path"] == "/wait":
        while (await receive()).get("more_body"):
            pass
    large = scope["path"] == "/large"
    headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-request-id", b"of Serve")]})
    await send({"type": "http.response.body", "body": b"x" * LARGE if large else json.dumps(headers).encode()})


@pytest.fixture(scope="module")
def server():
    with Server(ProxyHeaders(app), http=Impatient) as server:
        yield server


@pytest.fixture
def connect(server):
    """Opens a connection, sends, and reads until the other side has ended it."""

    def ask(*pieces):
        with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
            try:
                for piece in pieces:
                    connection.sendall(piece)
                return b"".join(iter(lambda: connection.recv(65536), b""))
            except (ConnectionResetError, BrokenPipeError):
                return b""

    return ask


HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = b"POST /wait HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "pieces", [(), (b"GE",), (HEAD + b"X: a",), (HEAD + b"\r\n" + b"GET",), (b"\r\n",)], ids=lambda pieces: len(pieces)
)
def test_a_head_that_does_not_come_ends_the_connection(connect, pieces):
    answer = connect(*pieces)
    assert answer.count(b"200 OK") == b"".join(pieces).count(b"\r\n\r\n")


@pytest.mark.parametrize(
    "start",
    [b"GET /", HEAD + b"X: ", CHUNKED + b"0\r\nX: ", CHUNKED + b"1;x="],
    ids=["path", "header", "trailer", "chunk"],
)
def test_a_head_without_end_is_cut(connect, server, start):
    """Its time grows with the square of its size."""
    answer = connect(start, *[b"a" * 65_536] * 400)
    assert not answer or answer.startswith((b"HTTP/1.1 431 ", b"HTTP/1.1 400 "))
    assert raw("GET", server.url + "/").status == 200


def test_a_head_that_is_too_large_is_refused_with_an_error(connect):
    head, _, body = connect(HEAD + b"X: " + b"a" * 5000).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 431 ") and json.loads(body)["error"]["type"] == "invalid_request_error"


def test_a_client_may_send_a_few_requests_before_it_reads(connect):
    last = HEAD + b"Connection: close\r\n\r\n"
    assert connect((HEAD + b"\r\n") * 9 + last).count(b"200 OK") == 10
    assert connect((HEAD + b"\r\n") * 99 + last).count(b"200 OK") < 10


def test_bodies_in_small_chunks_and_large_ones_are_read(connect, server):
    small = b"1\r\nx\r\n" * 9000 + b"0\r\n\r\n"
    close = CHUNKED.replace(b"Host: x", b"Host: x\r\nConnection: close")
    assert connect(close + small).startswith(b"HTTP/1.1 200 ")
    assert raw("POST", server.url + "/wait", b" " * 3_000_000).status == 200
    assert connect(HEAD + b"\r\n", HEAD + b"Connection: close\r\n\r\n").count(b"200 OK") == 2


@contextmanager
def slow(port, headers):
    """A connection with small buffers that has asked for a large reply."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
        yield connection


def test_a_client_that_does_not_read_loses_its_reply(server):
    with slow(server.port, b"") as connection:
        while Impatient.lost.get(timeout=60) != connection.getsockname():
            pass
        got = 0
        with suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                got += len(piece)
    assert got < LARGE


class _Nearly(Impatient):
    """One whose client has taken most of a large reply is not behind any more, as with the last bytes of any reply."""

    stall_s = 1.0
    lost = queue.SimpleQueue()

    def connection_made(self, transport):
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=LARGE * 2 // 3, low=LARGE // 2)


def test_a_client_that_leaves_the_end_of_its_reply_loses_it():
    """With the loop of asyncio: that of uvloop does not say that a client has read, once a connection closes."""
    closing = b"Connection: close\r\n"
    with Server(app, http=_Nearly, loop="asyncio") as server, slow(server.port, closing) as connection:
        got = 0
        while got < LARGE * 2 // 3:
            piece = connection.recv(65536)
            assert piece
            got += len(piece)
        assert _Nearly.lost.get(timeout=60) == connection.getsockname()


class _Brief(GuardedProtocol):
    """Any progress is enough, and any reply takes longer than a connection may stand still."""

    stall_s, least_bytes = 0.01, 0


@pytest.mark.parametrize("header", [b"", b"Connection: close\r\n"], ids=["kept", "closed"])
def test_a_client_that_reads_gets_all_of_it_however_long_it_takes(header):
    with Server(app, http=_Brief, timeout_keep_alive=0) as server, slow(server.port, header) as connection:
        assert sum(map(len, iter(lambda: connection.recv(65536), b""))) > LARGE


def test_more_connections_than_the_process_can_hold_are_closed(server):
    idle = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(60)]
    try:
        ended = [connection for connection in idle[45:] if not connection.recv(1)]
        assert ended
    finally:
        for connection in idle:
            connection.close()


def test_serve_gets_only_headers_that_it_can_read(connect):
    names = (b"x-request-timeout-seconds", b"X-Session-Id", b"serve_multiplexed_model_id", b"X-Request-Id", b"X-Mine")
    sent = b"".join(name + b": \xff\r\n" for name in names)
    head, _, body = connect(HEAD + sent + b"Connection: close\r\n\r\n").partition(b"\r\n\r\n")
    seen = json.loads(body[body.index(b"{") : body.rindex(b"}") + 1])
    assert seen.keys() == {"host", "x-mine", "connection", "x-request-id"}
    assert head.lower().count(b"x-request-id") == 1 and seen["x-request-id"].encode() in head


async def ask(api, body, send):
    """One request to an app, by its own interface."""
    messages = [{"type": "http.request", "body": body}]

    async def receive():
        if messages:
            return messages.pop()
        await anyio.sleep_forever()

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": IMAGES, "headers": headers, "query_string": b""}
    scope |= {"server": ("127.0.0.1", 80), "scheme": "http", "client": ("127.0.0.1", 1), "http_version": "1.1"}
    await api({**scope, "root_path": "", "raw_path": IMAGES.encode()}, receive, send)


def test_a_client_that_does_not_read_frees_its_rows(reference):
    engine = Engine(reference)
    engine.start()
    api = build_api(LocalBackend(engine), "nano", HttpConfig(write_timeout_s=0.1))
    sent = []

    async def send(message):
        sent.append(message)
        if message["type"] == "http.response.body":
            await anyio.sleep_forever()

    asked = {"prompt": "x", "num_inference_steps": 250, "stream": True, "partial_images": 3, "n": 4}
    try:
        anyio.run(ask, api, json.dumps(asked).encode(), send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert engine.stats().in_work == 0
        assert engine.stats().totals["cancelled"] == 1
    finally:
        engine.close()


def test_all_bodies_together_are_bounded():
    """The second one is refused while the first is held, and not after."""
    replies = []

    async def send(message):
        replies.append(message["status"])

    async def main():
        go_on = anyio.Event()

        async def inner(scope, receive, send):
            await receive()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await go_on.wait()

        api = RequestMiddleware(inner, HttpConfig(max_body_bytes=1024, max_bodies_bytes=1500), [])
        async with anyio.create_task_group() as group:
            group.start_soon(ask, api, b" " * 1000, send)
            group.start_soon(ask, api, b" " * 400, send)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ApiError, match="try again") as caught:
                await ask(api, b" " * 1000, send)
            assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "1"})
            go_on.set()
        await ask(api, b" " * 1000, send)

    anyio.run(main)
    assert replies == [200, 200, 200]


def test_a_proxy_of_serve_speaks_by_the_guarded_protocol(monkeypatch):
    monkeypatch.setattr(uvicorn.protocols.http.auto, "AutoHTTPProtocol", uvicorn.protocols.http.auto.AutoHTTPProtocol)
    assert middlewares()[-1].cls is ProxyHeaders  # the outermost
    config = uvicorn.Config(app)
    config.load()
    assert config.http_protocol_class is GuardedProtocol
