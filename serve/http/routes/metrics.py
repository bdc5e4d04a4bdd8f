"""`/metrics` in Prometheus' text format: what the engines counted, and the requests that came over HTTP."""

from collections import Counter
from collections.abc import Iterator, Mapping

from fastapi import APIRouter
from fastapi.responses import Response

from serve.http.face import Face
from serve.http.safety.middleware import Record
from serve.metrics import METRICS, EngineMetrics, Histogram

REQUESTS = "blip3o_http_requests_total"
_MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})


class MetricsRoute:
    """The route, and the counter of the HTTP API itself."""

    def __init__(self, face: Face) -> None:
        self._face = face
        self._requests: Counter[tuple[str, str]] = Counter()

    def count(self, record: Record) -> None:
        """Counts a request by its route, not by its path, of which there is no end, and by its status."""
        self._requests[record.route or "other", str(record.status)] += 1

    def add_to(self, open_to_all: APIRouter) -> None:
        """Adds the route."""
        open_to_all.add_api_route("/metrics", self.metrics, methods=["GET", "HEAD"])

    async def metrics(self) -> Response:
        """All metrics."""
        engines = {model.name: await model.backend.metrics() for model in self._face.models()}
        lines = [*_engine_lines(engines), *self._own_lines()]
        return Response("\n".join(lines) + "\n", media_type=_MEDIA_TYPE)

    def _own_lines(self) -> Iterator[str]:
        yield f"# HELP {REQUESTS} HTTP requests that this ingress replica answered."
        yield f"# TYPE {REQUESTS} counter"
        for (route, status), count in sorted(self._requests.items()):
            yield _line(REQUESTS, {"route": route, "status": status}, count)


def _engine_lines(engines: Mapping[str, EngineMetrics]) -> Iterator[str]:
    for name, spec in METRICS.items():
        yield f"# HELP {name} {spec.help}"
        yield f"# TYPE {name} {spec.kind}"
        for model, metrics in engines.items():
            for (sample, label), value in sorted(metrics.samples.items(), key=lambda item: item[0]):
                if sample == name:
                    labels = {"model": model} | ({spec.label: label} if spec.label else {})
                    yield from _sample_lines(name, labels, value)


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
