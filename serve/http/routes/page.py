"""The web page."""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import HTMLResponse

_HEADERS = {  # the page is one file: the browser must load and run nothing else
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


async def page() -> HTMLResponse:
    """The web page."""
    return HTMLResponse(files("serve").joinpath("page.html").read_text(encoding="utf-8"), headers=_HEADERS)


def add_page(open_to_all: APIRouter) -> None:
    """Adds the page at `/`."""
    open_to_all.add_api_route("/", page, methods=["GET", "HEAD"])
