"""The HTTP deployment: routes requests of the API to the applications of their models. Imports no torch."""

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

from fastapi import FastAPI
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle

from serve.api import build_models_api
from serve.deployments.broadcast import ask_all
from serve.deployments.handles import HandleBackend
from serve.deployments.options import GENERATOR
from serve.http.config import HttpConfig
from serve.http.counts import HttpCounts, RouteMetrics
from serve.http.routes.metrics import ApplicationMetrics, IngressMetrics, ask_application
from serve.protocol import Backend
from serve.routing import RoutingTable, Target, Turns


class Models(Mapping[str, Backend]):
    """The backends by the model's name; each look-up is the turn of one of its applications."""

    def __init__(self, own: DeploymentHandle | None) -> None:
        """`own` is the handle of the ingress's own application, if that has replicas."""
        self._own = own
        self._targets: dict[str, tuple[Target, ...]] = {}
        self._turns: dict[str, Turns] = {}
        self._backends: dict[str, HandleBackend] = {}

    def update(self, table: RoutingTable) -> None:
        """Takes a new table for the requests that come from now on."""
        self._backends = {name: self._backends.get(name) or self._open(name) for name in table.applications}
        self._turns = {name: self._turns.get(name, Turns()) for name in table.models}
        self._targets = dict(table.models)

    def _open(self, application: str) -> HandleBackend:
        if not application:
            assert self._own is not None, "this ingress has no replicas of its own: name an application"
            return HandleBackend(self._own)
        return HandleBackend(ray_serve.get_deployment_handle(GENERATOR, application))

    @property
    def applications(self) -> list[tuple[str, str, Backend]]:
        """Each application once, after the first model that it answers for."""
        models = {target.application: name for name, targets in reversed(self._targets.items()) for target in targets}
        return [(model, name, self._backends[name]) for name, model in models.items()]

    def __getitem__(self, name: str) -> Backend:
        return self._backends[self._turns[name].next(self._targets[name])]

    def __contains__(self, name: object) -> bool:
        return name in self._targets

    def __iter__(self) -> Iterator[str]:
        return iter(self._targets)

    def __len__(self) -> int:
        return len(self._targets)


class FleetSources:
    """The sources of the metrics: all applications, and all processes of this deployment."""

    def __init__(self, models: Models) -> None:
        self.counts = HttpCounts()
        self._models = models
        self._peers: DeploymentHandle | None = None

    async def applications(self) -> list[ApplicationMetrics]:
        """Those of every application that requests may go to."""
        return await asyncio.gather(*(ask_application(*each) for each in self._models.applications))

    async def ingress(self) -> IngressMetrics:
        """Those of every process of the HTTP API."""
        context = ray_serve.get_replica_context()
        self._peers = self._peers or ray_serve.get_deployment_handle(context.deployment, context.app_name)
        replies = await ask_all(self._peers, "route_metrics")
        return IngressMetrics(processes=dict(replies.values), silent=replies.silent)


class Ingress:
    """One process of the HTTP API."""

    def __init__(self, generator: DeploymentHandle | None, http: HttpConfig, request_timeout_s: float) -> None:
        self._models = Models(generator)
        self._sources = FleetSources(self._models)
        self._http = http
        self._request_timeout_s = request_timeout_s

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Called by Serve at the start, and when the routing table has changed: no request is dropped by that."""
        self._models.update(RoutingTable.model_validate(user_config))

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Called by Serve after the constructor."""
        return build_models_api(
            self._models,
            self._http,
            request_timeout_s=self._request_timeout_s,
            processes=lambda: ray_serve.get_replica_context().world_size,
            sources=self._sources,
        )

    async def route_metrics(self) -> tuple[str, RouteMetrics]:
        """The name of this process, and what it has counted. Called by whichever process is asked for `/metrics`."""
        return ray_serve.get_replica_context().replica_id.unique_id, self._sources.counts.snapshot()
