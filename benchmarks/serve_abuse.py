"""Attacks a server with many clients at once: `python -m benchmarks.serve_abuse`.

Of 50 clients, 22 ask for images and conversations, as many rows as fill the queue of the replica five times; the others
send malformed requests, leave before the reply, send a head or a body byte by byte, send nothing, or do not read what
they asked for. After a warm-up, the memory of the proxy, the ingress and the replica is read every second. `ratio` is
the largest of their growths, last third over first third: 1 is flat. What no server should answer is counted: 5xx other
than 503, and 429 without `Retry-After`.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_failures import write_nano
from blip3o import log, settings
from cluster.ports import LOOPBACK, free_ports
from jobs.serve import start

CLIENTS, SECONDS, WARM_UP_S = 50, 60.0, 30.0
MAX_WAITING, BATCH = 10, 4  # rows of the replica: 50 clients want five times as many
PROCESSES = {"proxy": "ray::ProxyActor", "ingress": "Ingress", "replica": "Generator"}
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


def memory() -> dict[str, float]:
    """Resident memory of this program's proxy, ingress and replica, MiB: the most of each kind."""
    found: dict[str, float] = {}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            for kind in (kind for kind, mark in PROCESSES.items() if mark in line):
                found[kind] = max(found.get(kind, 0.0), process.memory_info().rss / 2**20)
    return found


def watch(seconds: float) -> list[dict[str, float]]:
    """The memory, once a second."""
    samples = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        samples.append(memory())
        time.sleep(1)
    return samples


def growth(samples: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """By process: the median of the first third and of the last third, MiB."""
    third = max(1, len(samples) // 3)
    return {
        kind: {
            "before": round(statistics.median(sample[kind] for sample in samples[:third]), 1),
            "after": round(statistics.median(sample[kind] for sample in samples[-third:]), 1),
        }
        for kind in PROCESSES
    }


def main(argv: list[str] | None = None) -> int:
    """Prints what the clients were answered, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--warm-up", type=float, default=WARM_UP_S)
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_nano(f"{folder}/bundle")
        server = start(bundle, port=port, options={"max_waiting": MAX_WAITING, "batch_size": BATCH})
        try:
            with Attack(port, clients=chosen.clients) as attack:
                watch(chosen.warm_up)
                samples = watch(chosen.seconds)
        finally:
            server.stop()
    found = growth(samples)
    worst = max(found.values(), key=lambda each: each["after"] / each["before"])
    faults = {what: count for what, count in attack.faults.items() if count}
    for what, count in sorted(attack.statuses.items()):
        print(f"{what}: {count}")
    keep(
        "serve_abuse",
        {
            "ratio": round(worst["after"] / worst["before"], 3),
            "ours": worst["after"],
            "other": worst["before"],
            "unit": "MiB",
            "n": len(samples),
            "memory": found,
            "served": len(attack.served),
            "median_s": round(statistics.median(attack.served), 2) if attack.served else None,
            "faults": faults,
            "replies": dict(sorted(attack.statuses.items())),
        },
        chosen.results,
    )
    return 1 if faults or not attack.served else 0


if __name__ == "__main__":
    sys.exit(main())
