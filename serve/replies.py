"""Errors and identities on the wire: every refusal has OpenAI's body and every reply an `x-request-id`.

Nothing of the server's inside (paths, tracebacks) reaches a client; defects are logged under the id that it sees.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException, RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from blip3o.errors import RequestError
from serve.messages import BusyError, EngineError, UnavailableError

logger = logging.getLogger(__name__)

MAX_BODY = 32 * 2**20  # bytes
_ID = "x-request-id"


class ApiError(Exception):
    """A refusal by the HTTP face itself."""

    def __init__(self, status: int, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


def error_body(status: int, message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The body of a refusal, in OpenAI's form; its type follows from the status."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


class _Refusal(JSONResponse):
    """In ASCII, with escapes: a message may quote what no encoding takes, as half a surrogate pair."""

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
    """Makes every error of an app leave in OpenAI's form."""

    @api.exception_handler(ApiError)
    async def _api(request: Request, error: ApiError) -> JSONResponse:
        return _refuse(error.status, error.message, param=error.param, code=error.code)

    @api.exception_handler(RequestError)
    async def _request(request: Request, error: RequestError) -> JSONResponse:
        return _refuse(400, str(error), code="invalid_value")

    @api.exception_handler(BusyError)
    async def _busy(request: Request, error: BusyError) -> JSONResponse:
        return _refuse(429, str(error), code="queue_full", headers={"retry-after": str(error.retry_after_s)})

    @api.exception_handler(UnavailableError)
    async def _unavailable(request: Request, error: UnavailableError) -> JSONResponse:
        return _refuse(503, str(error), code="unavailable")

    @api.exception_handler(EngineError)
    async def _engine(request: Request, error: EngineError) -> JSONResponse:
        return _refuse(500, str(error), code="internal_error")

    @api.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        fault = error.errors()[0]
        code = _CODES.get(fault["type"], "invalid_value")
        return _refuse(400, _fault_message(fault, code), param=_fault_param(fault, code), code=code)

    @api.exception_handler(StarletteHTTPException)
    async def _http(request: Request, error: StarletteHTTPException) -> JSONResponse:
        message = f"{request.method} {request.url.path}: {error.detail}"
        return _refuse(error.status_code, message, headers=error.headers)

    @api.exception_handler(Exception)
    async def _defect(request: Request, error: Exception) -> JSONResponse:
        identity = request.state.request_id
        logger.error("request %s failed", identity, exc_info=error)
        # This handler, unlike the others, answers from outside of our middleware.
        return _refuse(500, "the server failed on this request", code="internal_error", headers={_ID: identity})


_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "json_invalid": "invalid_json",
}
_MESSAGES = {"unknown_parameter": "this parameter is unknown here", "invalid_json": "the body is not valid JSON"}


def _fault_param(fault: Mapping[str, Any], code: str) -> str | None:
    """The dotted path of the field at fault: `messages.0.role`."""
    return None if code == "invalid_json" else ".".join(str(part) for part in fault["loc"][1:]) or None


def _fault_message(fault: Mapping[str, Any], code: str) -> str:
    param = _fault_param(fault, code)
    text = _MESSAGES.get(code) or fault["msg"].removeprefix("Value error, ")
    return f"{param}: {text}" if param else text


class Edge:
    """The outermost layer: gives each request an id, and stops reading a body that is too large."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        identity = f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = identity
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
