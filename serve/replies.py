"""Error bodies and request ids: every error has OpenAI's body, and every reply an `x-request-id`.

Clients see no internals of the server (paths, tracebacks). Bugs are logged under the request id that the client gets.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.errors import one_line
from serve.protocol import BusyError, EngineError, UnavailableError

logger = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20  # bytes
_RESTART_S = 5  # seconds in which a lost replica is likely to be replaced
CLIENT_GONE = 499  # nobody receives it: for the log
_ID = "x-request-id"


class ApiError(Exception):
    """An error raised by the HTTP API itself."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of an error in OpenAI's format; its type follows from the status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Refusal(JSONResponse):
    """JSON in ASCII, with escapes: a message may quote a lone surrogate, which no encoding accepts."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def _refuse(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    return _Refusal(error_body(status, message, param=param, code=code), status, headers)


def add_error_handlers(api: FastAPI) -> None:
    """Makes an app return every error in OpenAI's format."""

    @api.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return _refuse(error.status, error.message, param=error.param, code=error.code)

    @api.exception_handler(BusyError)
    async def _busy(request: Request, error: BusyError) -> JSONResponse:
        return _refuse(429, str(error), code="queue_full", headers={"retry-after": str(error.retry_after_s)})

    @api.exception_handler(UnavailableError)
    async def _unavailable(request: Request, error: UnavailableError) -> JSONResponse:
        return _refuse(503, str(error), code="unavailable", headers={"retry-after": str(_RESTART_S)})

    @api.exception_handler(EngineError)
    async def _engine(request: Request, error: EngineError) -> JSONResponse:
        return _refuse(500, str(error), code="internal_error")

    @api.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return _refuse(error.status_code, _route_message(request, error), headers=error.headers)

    @api.exception_handler(Exception)
    async def _defect(request: Request, error: Exception) -> JSONResponse:
        identity = request.state.request_id
        logger.error("request %s failed", identity, exc_info=error)
        # Unlike the others, this handler runs outside our middleware.
        return _refuse(500, "the server failed on this request", code="internal_error", headers={_ID: identity})


def _route_message(request: Request, error: StarletteHTTPException) -> str:
    """The message of a routing error, with the existing routes: often, the base URL is missing `/v1`."""
    route = f"{request.method} {one_line(request.url.path)}"
    if error.status_code == 404:
        paths = sorted({route.path for route in request.app.routes if isinstance(route, APIRoute)})
        return f"{route}: there is no such route, only {', '.join(paths)}"
    if error.status_code == 405 and error.headers:
        return f"{route}: this route takes {error.headers['Allow']}"
    return f"{route}: {error.detail}"


class RequestMiddleware:
    """The outermost middleware: gives each request an id, limits the size of its body, and strips trailing slashes."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = identity
        scope = {**scope, "path": scope["path"].rstrip("/") or "/"}
        seen = 0

        async def receive_bounded() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > MAX_BODY:
                raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
            return message

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (_ID.encode(), identity.encode())]}
            await send(message)

        await self._app(scope, receive_bounded, send_with_id)
