"""Hostile clients at once: whoever asks properly is served. `python -m benchmarks.serve_abuse` is the long form."""

import time

from benchmarks.serve_abuse.attack import Attack
from benchmarks.serve_abuse.measure import growth
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.safety.proxy import GuardedProtocol
from tests.serve.client import Server, raw


def test_under_attack_valid_requests_are_served(reference):
    engine = Engine(reference, max_waiting=10)
    engine.start()
    end = time.monotonic() + 60
    with Server(build_api(LocalBackend(engine), "nano"), http=GuardedProtocol) as server:
        with Attack(server.port, clients=25) as attack:
            while len(attack.served) < 10 or not attack.statuses["malformed 400"] or not attack.statuses["left"]:
                assert time.monotonic() < end, attack.statuses
                assert raw("GET", server.url + "/health").status == 200
        assert not any(attack.faults.values()), attack.faults
        assert {status for status in attack.statuses if status.startswith("valid")} <= {"valid 200", "valid 429"}
        while engine.stats().in_work:
            assert time.monotonic() < end, engine.stats()
    engine.close()


def test_growth_is_of_the_last_third_over_the_first():
    samples = [dict.fromkeys(("proxy", "ingress", "replica"), float(value)) for value in (1, 2, 3, 9, 4, 5, 6, 7, 8)]
    assert growth(samples)["proxy"] == {"before": 2.0, "after": 7.0}
