"""Hostile clients against a real Serve: its proxy holds, and whoever asks properly is served."""

import socket
import time

from benchmarks.serve_abuse.attack import Attack
from benchmarks.serve_abuse.measure import growth
from tests.serve.client import raw
from tests.serve.http.test_slow_clients import HEAD


def port_of(server):
    return int(server.url.rpartition(":")[2])


def through_the_proxy(server, data):
    with socket.create_connection(("127.0.0.1", port_of(server)), timeout=60) as connection:
        connection.sendall(data)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_the_proxy_has_limits(server):
    assert through_the_proxy(server, HEAD + b"X: " + b"a" * 200_000).startswith(b"HTTP/1.1 431 ")
    sent = HEAD.replace(b"GET /", b"GET /health") + b"X-Request-Id: \xff\r\nConnection: close\r\n\r\n"
    answer = through_the_proxy(server, sent)
    assert answer.startswith(b"HTTP/1.1 200 ") and answer.lower().count(b"x-request-id: req_") == 1


def test_under_attack_valid_requests_are_served(server):
    """`python -m benchmarks.serve_abuse` is the long form."""
    end = time.monotonic() + 120
    with Attack(port_of(server), clients=25) as attack:
        while len(attack.served) < 10 or not attack.statuses["malformed 400"] or not attack.statuses["left"]:
            assert time.monotonic() < end, attack.statuses
            assert raw("GET", server.url + "/health").status == 200
    assert not any(attack.faults.values()), attack.faults
    assert {status for status in attack.statuses if status.startswith("valid")} <= {"valid 200", "valid 429"}
    while busy := [line for line in gauges(server) if not line.endswith(" 0")]:
        assert time.monotonic() < end, busy


def gauges(server):
    """What the replicas still hold."""
    lines = raw("GET", server.url + "/metrics").text.splitlines()
    return [line for line in lines if line.startswith(("blip3o_requests_running", "blip3o_requests_waiting"))]


def test_growth_is_of_the_last_third_over_the_first():
    samples = [dict.fromkeys(("proxy", "ingress", "replica"), float(value)) for value in (1, 2, 3, 9, 4, 5, 6, 7, 8)]
    assert growth(samples)["proxy"] == {"before": 2.0, "after": 7.0}
