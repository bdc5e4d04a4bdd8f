"""The HTTP API: OpenAI's routes on top of any `Backend`, and the web page. Imports neither Ray nor torch.

`serve.http` has its parts. A client that disconnects cancels its request.
"""

from collections.abc import Callable, Mapping

from fastapi import APIRouter, Depends, FastAPI
from fastapi.routing import APIRoute
from starlette.middleware.cors import CORSMiddleware

from serve.http.config import HttpConfig
from serve.http.errors import ID, add_error_handlers
from serve.http.face import Face
from serve.http.files import HEADER
from serve.http.routes.chat import ChatRoute
from serve.http.routes.images import ImageRoutes
from serve.http.routes.metrics import MetricsRoute, OwnSources, Sources
from serve.http.routes.models import ModelRoutes
from serve.http.routes.openapi import add_docs
from serve.http.routes.responses import ResponsesRoute
from serve.http.safety.middleware import RequestMiddleware, log_access
from serve.page.routes import page_router
from serve.protocol import Backend

REQUEST_TIMEOUT_S = 300.0


def build_api(backend: Backend, model_name: str, config: HttpConfig | None = None) -> FastAPI:
    """The FastAPI app that serves a backend under a model name. Raises as `build_models_api`."""
    return build_models_api({model_name: backend}, config or HttpConfig())


def build_models_api(
    backends: Mapping[str, Backend],
    config: HttpConfig,
    *,
    request_timeout_s: float = REQUEST_TIMEOUT_S,
    processes: Callable[[], int] = lambda: 1,
    sources: Sources | None = None,
) -> FastAPI:
    """The FastAPI app that serves backends by the names of their models. The first one is the default.

    `processes` is how many there are of it, behind one address. `sources` are those of the metrics, if there are others
    than this process and `backends`.

    Raises `ConfigError` if API keys or the content filter are not as configured.
    """
    api = FastAPI(title="blip3o", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    add_error_handlers(api)
    face = Face(backends, config, request_timeout_s=request_timeout_s, processes=processes)
    keyed, open_to_all = APIRouter(dependencies=[Depends(face.admit)]), APIRouter()
    sources = sources or OwnSources(backends)
    MetricsRoute(sources).add_to(open_to_all)
    ImageRoutes(face).add_to(keyed, open_to_all)
    ModelRoutes(face).add_to(keyed, open_to_all)
    ChatRoute(face).add_to(keyed)
    ResponsesRoute(face).add_to(keyed)
    add_docs(open_to_all)
    described = [
        route.path for router in (keyed, open_to_all) for route in router.routes if isinstance(route, APIRoute)
    ]
    api.state.paths = sorted({"/", *described})
    for router in (keyed, open_to_all, page_router()):
        api.include_router(router)
    if config.cors_origins:
        api.add_middleware(
            CORSMiddleware,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[ID, HEADER, "retry-after"],
        )
    reports = [sources.counts.add, *([log_access] if config.access_log else [])]
    api.add_middleware(RequestMiddleware, config=config, reports=reports)
    return api
