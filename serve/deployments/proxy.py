"""What Serve's HTTP proxies do until they know their routes, and all else that is loaded into them.

A proxy listens before Serve's controller has told it the routes. In between, it answers 404, which no client tries
again. `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names `middlewares`, and Serve calls it in each proxy that starts.
"""

import asyncio

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.http.errors import as_api_error, refuse
from serve.http.safety.proxy import guards
from serve.protocol import UnavailableError

_OWN_ROUTES = "/-/"  # of the proxy itself
_HEALTH = "/-/healthz"  # 503 until the proxy has routes
_PATIENCE_S, _POLL_S = 5.0, 0.05


class WaitForRoutes:
    """Holds requests to a new proxy until it has routes; answers 503 if that takes more than `patience_s` seconds."""

    def __init__(self, app: ASGIApp, patience_s: float = _PATIENCE_S) -> None:
        self._app = app
        self._patience_s = patience_s
        self._is_ready = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called for each request; the proxy's own routes, such as its health, are not held."""
        has_route = scope["type"] != "http" or _path(scope).startswith(_OWN_ROUTES)
        if has_route or await self._becomes_ready(scope, receive):
            await self._app(scope, receive, send)
        else:
            await _refuse(scope, receive, send)

    async def _becomes_ready(self, scope: Scope, receive: Receive) -> bool:
        """Whether the proxy has routes, now or in time. Once it has had some, it is not asked again."""
        now = asyncio.get_running_loop().time
        deadline = now() + self._patience_s
        while not self._is_ready:
            self._is_ready = await self._is_healthy(scope, receive)
            if not self._is_ready:
                if now() > deadline:
                    return False
                await asyncio.sleep(_POLL_S)
        return True

    async def _is_healthy(self, scope: Scope, receive: Receive) -> bool:
        """What a load balancer would be told."""
        statuses: list[int] = []

        async def note(message: Message) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        path = scope.get("root_path", "") + _HEALTH
        question = {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": b""}
        await self._app({**scope, **question}, receive, note)
        return statuses == [200]


def _path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    response = refuse(as_api_error(UnavailableError("the server is starting: try again")))
    await response(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Called by Serve before the proxy listens; the last one is the outermost, and sees every reply."""
    return [Middleware(WaitForRoutes), *guards()]
