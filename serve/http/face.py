"""What all routes share: the models behind them, who asks, and how requests and replies are treated."""

import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from fastapi import Request

from blip3o.errors import one_line
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.links import Links
from serve.http.pictures import Pictures
from serve.http.safety.filters import Guard, load_filter
from serve.http.safety.keys import Access, read_keys
from serve.protocol import Backend, ModelInfo, UnavailableError


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model under its name, for one request."""

    name: str
    backend: Backend


class Face:
    """The state of an HTTP API.

    Raises `ConfigError` if its keys, the secret of its links or its content filter are not as configured.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        config: HttpConfig,
        *,
        request_timeout_s: float,
        processes: Callable[[], int] = lambda: 1,
    ) -> None:
        """`backends` may change while the API runs: each request looks its model up once. So may `processes`."""
        self.config = config
        self.request_timeout_s = request_timeout_s
        self.created = int(time.time())
        self._backends = backends
        self._access = Access(config, read_keys(config), processes=processes)
        self.links = Links(config, processes=processes)
        self.pictures = Pictures(config)
        self._filter = load_filter(config.content_filter)

    def models(self) -> list[ServedModel]:
        """All models; the first one is the default."""
        return [ServedModel(name=name, backend=self._backends[name]) for name in self._backends]

    def model(self, name: str | None) -> ServedModel:
        """A model by name, or the default. Raises `ApiError` 404, `UnavailableError` if there is no model."""
        known = list(self._backends)
        if not known:
            raise UnavailableError("no model is deployed yet: try again")
        chosen = known[0] if name is None else name
        if chosen not in known:
            named = ", ".join(f"'{each}'" for each in known)
            message = f"the model '{one_line(chosen)}' does not exist: this server has {named}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return ServedModel(name=chosen, backend=self._backends[chosen])

    async def admit(self, request: Request) -> AsyncIterator[None]:
        """The dependency of every route that needs a key: it holds for the time of the request. Raises `ApiError`."""
        request.state.owner = owner = self._access.owner(request)
        with self._access.admit(owner):
            yield

    def guard(self, request: Request) -> Guard:
        """The content filter, on behalf of a request."""
        return Guard(self._filter, request.state.owner)


def unable(info: ModelInfo, doing: str) -> ApiError:
    """The error for what a bundle cannot do, with the reason."""
    able = " and ".join(sorted(info.abilities))
    return ApiError(
        400, f"this model cannot {doing}: its bundle was not trained to (it can {able})", code="unsupported_by_model"
    )
