"""Three ways to batch requests, behind one HTTP API: the same engine, the same images, another order of the work.

`steps` is the server's own: requests join and leave the batch between two denoising steps. `whole` collects requests
with `@serve.batch` and answers them together; the next ones wait until the last of them is done. `single` answers one
request after the other, as upstream's scripts do.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from ray import serve as ray_serve

from cluster.ports import LOOPBACK, free_ports
from jobs.common import join_ray, leave_ray
from serve.config.options import ReplicaConfig, ServeConfig
from serve.deployments.applications import build_model
from serve.deployments.ingress import Ingress
from serve.deployments.options import GENERATOR, generator_options, ingress_options
from serve.deployments.replica import Generator
from serve.protocol import GenerateReply, GenerateRequest

_WAIT_S = 0.02  # for more requests of a batch
FACE = "face"


class OneAtATime(Generator):
    """Makes the images of one request at a time."""

    def __init__(self, config: ReplicaConfig) -> None:
        super().__init__(config)
        self._turn = asyncio.Lock()

    async def generate(self, request: GenerateRequest) -> GenerateReply | Exception:
        """As `Generator`, in turn."""
        async with self._turn:
            return await super().generate(request)


class WholeRequests(Generator):
    """Makes the images of up to `batch_size` requests together, and takes no others before all of them are done."""

    def __init__(self, config: ReplicaConfig) -> None:
        super().__init__(config)
        batched = ray_serve.batch(max_batch_size=config.batch_size, batch_wait_timeout_s=_WAIT_S)
        self._together = batched(self._draw_all)

    async def generate(self, request: GenerateRequest) -> GenerateReply | Exception:
        """As `Generator`, with the requests that come in the same moment."""
        reply: GenerateReply | Exception = await self._together(request)
        return reply

    async def _draw_all(self, requests: list[GenerateRequest]) -> list[GenerateReply | Exception]:
        return list(await asyncio.gather(*(super(WholeRequests, self).generate(request) for request in requests)))


WAYS: dict[str, type[Generator]] = {"steps": Generator, "whole": WholeRequests, "single": OneAtATime}


def start_way(name: str, way: type[Generator], config: ServeConfig) -> None:
    """Starts replicas of a way, as an application of its own."""
    deployment = ray_serve.deployment(way, **generator_options(config))
    ray_serve.run(deployment.bind(config.replica), name=name, route_prefix=None)


def start_model(name: str, config: ServeConfig) -> None:
    """Starts a model as `blip3o serve` would, in the layout of its config."""
    ray_serve.run(build_model(config), name=name, route_prefix=None)


def start_face(config: ServeConfig, names: list[str]) -> None:
    """Starts the HTTP API, which knows each application as a model of its name."""
    options = ingress_options(config, {name: [{"application": name}] for name in names})
    face = ray_serve.deployment(ray_serve.ingress()(Ingress), **options)
    ray_serve.run(face.bind(None, config.http, config.request_timeout_s), name=FACE, route_prefix="/")


@contextmanager
def serving() -> Iterator[str]:
    """A Ray of this machine's, with Serve and nothing on it; its address."""
    join_ray()
    port = free_ports(1)[0]
    ray_serve.start(proxy_location="HeadOnly", http_options={"host": LOOPBACK, "port": port})
    try:
        yield f"http://{LOOPBACK}:{port}"
    finally:
        ray_serve.shutdown()
        leave_ray()


def running_replicas(name: str) -> int:
    """The replicas of an application that answer."""
    application = ray_serve.status().applications.get(name)
    states = application.deployments[GENERATOR].replica_states if application else {}
    return int(states.get("RUNNING", 0))
