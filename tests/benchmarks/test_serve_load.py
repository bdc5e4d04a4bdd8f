"""The comparison of ways to batch, at a tiny size, with the ways in this process instead of in Ray's."""

import argparse
import asyncio
import json

import pytest
from ray.serve.batching import _BatchQueue

from benchmarks._measure import keep
from benchmarks.serve_load import comparison, measures
from benchmarks.serve_load.bundles import write_untrained
from benchmarks.serve_load.ways import WAYS
from blip3o.errors import ServiceError
from serve.api import build_models_api
from serve.config.options import ReplicaConfig
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from serve.protocol import GenerateRequest
from tests.serve.client import Server

_CHECK = "_warn_if_max_batch_size_exceeds_max_ongoing_requests"
SIZES = {"width": 4, "rounds": 2, "requests": 8, "clients": 4, "each": 2, "parts": ["throughput", "low_load", "cache"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_untrained(str(tmp_path_factory.mktemp("nano")), "nano")


@pytest.fixture(scope="module", autouse=True)
def _outside_serve():
    """`@serve.batch` asks its replica how many requests that takes, and there is none here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_BatchQueue, _CHECK, lambda self: None)
        yield


def start(bundle, name):
    return WAYS[name](ReplicaConfig(bundle=bundle, batch_size=SIZES["width"]))


@pytest.fixture(scope="module")
def replicas(bundle):
    return {name: start(bundle, name) for name in WAYS}


class Behind(LocalBackend):
    """A replica's images, without Serve's process around it."""

    def __init__(self, replica):
        super().__init__(replica._engine)
        self.generate = replica.generate


@pytest.fixture(scope="module")
def url(replicas):
    backends = {name: Behind(replica) for name, replica in replicas.items()}
    with Server(build_models_api(backends, HttpConfig())) as server:
        yield server.url


def test_the_last_line_is_the_result(url, bundle, tmp_path, capsys):
    comparison.check_same_images(url)
    keep("serve_load", comparison.measured(url, argparse.Namespace(**SIZES), bundle), tmp_path)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    ways = result["ways"]
    assert result["ratio"] == pytest.approx(ways["steps"]["images_per_s"] / ways["single"]["images_per_s"], rel=0.02)
    assert result["ratio_batch"] == pytest.approx(result["ours"] / ways["whole"]["images_per_s"], rel=0.02)
    assert {len(way["rounds"]) for way in ways.values()} == {result["n"]} == {2}
    overhead = result["overhead"]
    assert overhead["overhead_ms"] == pytest.approx(overhead["api_ms"] - overhead["engine_ms"], abs=0.2)
    assert 0 < result["first_partial"]["share"] < 1
    # Of a known and a new prompt each time, the new one alone is read.
    assert result["cache"]["counted"] == {"hits": 4, "misses": 6}


def test_ways_are_compared_under_the_same_requests():
    calls = {name: measures.mixed_calls(name, 8, turn=1) for name in WAYS}
    bodies = {name: [{**call.body, "model": ""} for call in each] for name, each in calls.items()}
    assert bodies["steps"] == bodies["whole"] == bodies["single"]
    assert sorted(body["num_inference_steps"] for body in bodies["steps"]) == sorted(2 * measures.MIXED_STEPS)
    assert bodies["steps"] != [{**call.body, "model": ""} for call in measures.mixed_calls("steps", 8, turn=2)]


@pytest.mark.parametrize(("name", "order"), [("whole", "the long one ends before"), ("single", "as they came")])
def test_other_ways_take_nothing_before_what_they_have_is_done(bundle, name, order):
    """The first request is long; the others, short ones, come while it runs."""
    replica, ended = start(bundle, name), []  # its own: a queue belongs to one event loop

    async def draw(number, steps):
        request = GenerateRequest(prompt="a red circle", seeds=(number,), num_inference_steps=steps, guidance_scale=1.0)
        await replica.generate(request)
        ended.append(number)

    async def draw_all():
        async with asyncio.TaskGroup() as group:
            group.create_task(draw(0, 60))
            await asyncio.sleep(0.05)  # longer than a batch is waited for
            for number in (1, 2):
                group.create_task(draw(number, 1))

    asyncio.run(draw_all())
    assert ended[0] == 0, order


def test_a_burst_is_timed_until_replicas_come_and_go(url, replicas):
    def running():
        return 2 if replicas["steps"]._engine.stats().in_work else 1

    found = measures.reaction(url, "steps", running, clients=2, patience_s=60)
    assert found["failed"] == 0 and 0 <= found["up_s"] < 60 and 0 <= found["down_s"] < 60
    with pytest.raises(ServiceError, match="there were not 2 replicas within 0.1 s"):
        measures.reaction(url, "steps", lambda: 1, clients=2, patience_s=0.1)
