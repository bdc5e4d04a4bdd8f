"""What one process of the HTTP API counts: requests by route and status, and how long they took."""

from collections.abc import Mapping

from serve.http.safety.middleware import Record
from serve.metrics import EngineMetrics, Recorder

RouteMetrics = Mapping[str, EngineMetrics]  # by the route's path
_NO_ROUTE = "other"  # a path that no route has: of those there is no end


class HttpCounts:
    """The counts since the process has started."""

    def __init__(self) -> None:
        self._routes: dict[str, Recorder] = {}

    def add(self, record: Record) -> None:
        """Counts a request."""
        recorder = self._routes.setdefault(record.route or _NO_ROUTE, Recorder(scope="route"))
        recorder.add("blip3o_http_requests_total", str(record.status))
        recorder.observe("blip3o_http_request_seconds", record.seconds)
        if record.first_event_s is not None:
            recorder.observe("blip3o_http_first_event_seconds", record.first_event_s)

    def snapshot(self) -> RouteMetrics:
        """The counts now."""
        return {route: recorder.snapshot({}) for route, recorder in sorted(self._routes.items())}
