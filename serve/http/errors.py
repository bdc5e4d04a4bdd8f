"""Errors of the HTTP API: each has OpenAI's body.

Clients see no internals of the server (paths, tracebacks). Bugs are logged under the request id that the client gets.
"""

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from blip3o.errors import ConfigError, PromptTooLongError, RequestError, one_line
from serve.http.ids import ID
from serve.protocol import BusyError, DeadlineError, EngineError, UnavailableError

logger = logging.getLogger(__name__)

RESTART_S = 5  # seconds in which a lost replica is likely to be replaced
CLIENT_GONE = 499  # nobody receives it: for the log


class ApiError(Exception):
    """An error raised by the HTTP API itself."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers


_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(error: ApiError) -> dict[str, Any]:
    """The body of an error in OpenAI's format; its type follows from the status."""
    kind = "server_error" if error.status >= 500 else _KINDS.get(error.status, "invalid_request_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def as_api_error(error: Exception, subject: str | None = None) -> ApiError:
    """What a client sees of an error; one that is not expected is logged by the caller.

    `subject` is the field at fault if the model rejects the request.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BusyError):
        return ApiError(429, str(error), code="queue_full", headers={"retry-after": str(error.retry_after_s)})
    if isinstance(error, UnavailableError):
        return ApiError(503, str(error), code="unavailable", headers={"retry-after": str(RESTART_S)})
    if isinstance(error, DeadlineError):  # another attempt would only add to the load
        return ApiError(503, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"})
    if isinstance(error, RequestError | ConfigError):  # the latter: a tokenizer that has no token for some of the text
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else "invalid_value"
        return ApiError(400, f"{subject}: {error}" if subject else str(error), param=subject, code=code)
    message = str(error) if isinstance(error, EngineError) else "the server failed on this request"
    return ApiError(500, message, code="internal_error")


class _Refusal(JSONResponse):
    """JSON in ASCII, with escapes: a message may quote a lone surrogate, which no encoding accepts."""

    def render(self, content: object) -> bytes:
        return json.dumps(content).encode()


def refuse(error: ApiError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response to an error."""
    return _Refusal(error_body(error), error.status, {**(error.headers or {}), **(headers or {})})


def add_error_handlers(api: FastAPI) -> None:
    """Makes an app return every error in OpenAI's format."""

    async def expected(request: Request, error: Exception) -> JSONResponse:
        return refuse(as_api_error(error))

    for kind in (ApiError, BusyError, UnavailableError, DeadlineError, EngineError):
        api.add_exception_handler(kind, expected)

    @api.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        return refuse(ApiError(error.status_code, _route_message(request, error), headers=error.headers))

    @api.exception_handler(Exception)
    async def _defect(request: Request, error: Exception) -> JSONResponse:
        identity = request.state.request_id
        logger.error("request %s failed", identity, exc_info=error)
        # Unlike the others, this handler runs outside our middleware.
        return refuse(as_api_error(error), {ID: identity})


def _route_message(request: Request, error: StarletteHTTPException) -> str:
    """The message of a routing error, with the existing routes: often, the base URL is missing `/v1`."""
    route = f"{request.method} {one_line(request.url.path)}"
    if error.status_code == 404:
        return f"{route}: there is no such route, only {', '.join(request.app.state.paths)}"
    if error.status_code == 405 and error.headers:
        return f"{route}: this route takes {error.headers['Allow']}"
    return f"{route}: {error.detail}"
