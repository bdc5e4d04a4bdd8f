"""`/metrics` in Prometheus' text format: what all replicas and all processes of the HTTP API have counted.

Each series has the name of the process that counts it, and every process of the HTTP API gives the same ones. So it
does not matter which of them a load balancer asks, and a counter never falls: when its process ends, its series ends.
"""

import asyncio
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from fastapi import APIRouter
from fastapi.responses import Response

from serve.http.counts import HttpCounts, RouteMetrics
from serve.metrics import METRICS, SCOPES, EngineMetrics, Histogram, MetricSpec
from serve.protocol import Backend, ReplicaMetrics, UnavailableError

_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


@dataclass(frozen=True, kw_only=True)
class ApplicationMetrics:
    """The replicas of one bundle, the model that they answer for, and whether they can."""

    model: str
    application: str
    metrics: ReplicaMetrics
    is_ready: bool


@dataclass(frozen=True, kw_only=True)
class IngressMetrics:
    """What processes of the HTTP API have counted, by their names. `silent` ones did not answer in time."""

    processes: Mapping[str, RouteMetrics]
    silent: int = 0


class Sources(Protocol):
    """Where the metrics come from. `counts` are those of this process."""

    counts: HttpCounts

    async def applications(self) -> list[ApplicationMetrics]:
        """Those of every bundle behind this API."""
        ...

    async def ingress(self) -> IngressMetrics:
        """Those of every process of this API."""
        ...


async def ask_application(model: str, application: str, backend: Backend) -> ApplicationMetrics:
    """Those of a backend; of one without replicas, too."""
    metrics, refusal = await asyncio.gather(backend.metrics(), _refusal(backend))
    return ApplicationMetrics(model=model, application=application, metrics=metrics, is_ready=refusal is None)


async def _refusal(backend: Backend) -> UnavailableError | None:
    try:
        await backend.check()
    except UnavailableError as error:
        return error
    return None


class OwnSources:
    """The sources of an API that is one process, with a backend for each model."""

    def __init__(self, backends: Mapping[str, Backend]) -> None:
        self.counts = HttpCounts()
        self._backends = backends

    async def applications(self) -> list[ApplicationMetrics]:
        """Those of the backends."""
        return [await ask_application(name, "", backend) for name, backend in self._backends.items()]

    async def ingress(self) -> IngressMetrics:
        """Those of this process."""
        return IngressMetrics(processes={str(os.getpid()): self.counts.snapshot()})


class MetricsRoute:
    """The route."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def add_to(self, open_to_all: APIRouter) -> None:
        """Adds the route."""
        open_to_all.add_api_route("/metrics", self.metrics, methods=["GET", "HEAD"])

    async def metrics(self) -> Response:
        """All metrics."""
        applications, ingress = await asyncio.gather(self._sources.applications(), self._sources.ingress())
        groups = [*_of_applications(applications), *_of_ingress(ingress)]
        lines = [line for name, spec in METRICS.items() for line in _lines(name, spec, groups)]
        return Response("\n".join(lines) + "\n", media_type=_MEDIA_TYPE)


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Metrics that share the labels of their scope."""

    labels: tuple[str, ...]
    metrics: EngineMetrics


def _of_applications(applications: list[ApplicationMetrics]) -> Iterator[_Group]:
    for each in applications:
        labels = (each.model, each.application)
        yield _Group(labels=labels, metrics=_present("blip3o_replicas", each.metrics.replicas, each.metrics.silent))
        yield _Group(labels=labels, metrics=EngineMetrics(samples={("blip3o_ready", ""): float(each.is_ready)}))
        for replica, metrics in sorted(each.metrics.replicas.items()):
            yield _Group(labels=(*labels, replica), metrics=metrics)


def _of_ingress(ingress: IngressMetrics) -> Iterator[_Group]:
    yield _Group(labels=(), metrics=_present("blip3o_ingress_replicas", ingress.processes, ingress.silent))
    for process, routes in sorted(ingress.processes.items()):
        for route, metrics in routes.items():
            yield _Group(labels=(process, route), metrics=metrics)


def _present(name: str, answered: Mapping[str, object], silent: int) -> EngineMetrics:
    return EngineMetrics(samples={(name, "ready"): float(len(answered)), (name, "silent"): float(silent)})


def _lines(name: str, spec: MetricSpec, groups: list[_Group]) -> Iterator[str]:
    yield f"# HELP {name} {spec.help}"
    yield f"# TYPE {name} {spec.kind}"
    for group in groups:
        for (sample, label), value in sorted(group.metrics.samples.items(), key=lambda item: item[0]):
            if sample == name:
                labels = dict(zip(SCOPES[spec.scope], group.labels, strict=True))
                yield from _sample_lines(name, labels | ({spec.label: label} if spec.label else {}), value)


def _sample_lines(name: str, labels: Mapping[str, str], value: float | Histogram) -> Iterator[str]:
    if not isinstance(value, Histogram):
        yield _line(name, labels, value)
        return
    below = 0
    for bound, count in zip([*(f"{bound:g}" for bound in value.bounds), "+Inf"], value.counts, strict=True):
        below += count
        yield _line(f"{name}_bucket", {**labels, "le": bound}, below)
    yield _line(f"{name}_sum", labels, value.sum)
    yield _line(f"{name}_count", labels, value.count)


def _line(name: str, labels: Mapping[str, str], value: float) -> str:
    inner = ",".join(f'{label}="{text.translate(_ESCAPES)}"' for label, text in labels.items())
    return f"{name}{{{inner}}} {value:.17g}"
