"""Serves the page at `/` and its files below `/page/`: no build step, nothing from elsewhere, no inline code."""

from importlib.resources import files
from pathlib import PurePath

from fastapi import APIRouter
from fastapi.responses import Response

INDEX = "index.html"
_MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
# The browser runs and loads only what this server sends as files. Pictures are data: URLs, and never markup.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "cache-control": "no-cache",
}


def page_router() -> APIRouter:
    """The routes `/` and `/page/FILE`, one for each file, so that no path of a client is ever opened."""
    router = APIRouter(include_in_schema=False)
    for name, content in _read_files().items():
        path = "/" if name == INDEX else f"/page/{name}"
        router.add_api_route(path, _File(name, content).reply, methods=["GET", "HEAD"])
    return router


class _File:
    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._media_type = _MEDIA_TYPES[PurePath(name).suffix]

    async def reply(self) -> Response:
        """The file, with the headers that keep everything else out."""
        return Response(self._content, media_type=f"{self._media_type}; charset=utf-8", headers=HEADERS)


def _read_files() -> dict[str, bytes]:
    """Every file of the page by its name."""
    folder = files("serve").joinpath("page")
    return {each.name: each.read_bytes() for each in folder.iterdir() if PurePath(each.name).suffix in _MEDIA_TYPES}
