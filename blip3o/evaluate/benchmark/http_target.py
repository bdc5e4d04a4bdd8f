"""A server with OpenAI's images and chat routes as an evaluation's target, with concurrent requests.

Every image is requested with its own seed, and the reply must name that seed: a server that picks its own seeds would
return other images for every request. Overload, restarts and lost connections are retried.
"""

import base64
import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from blip3o import settings, storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError, DataError, RequestError, ServiceError
from blip3o.evaluate.benchmark.work import (
    MAX_NEW_TOKENS,
    Done,
    SamplerOverrides,
    Work,
    keep_image,
    keep_reply,
    token_limit_identity,
)
from blip3o.evaluate.judges.client import data_url, fetch
from blip3o.evaluate.judges.faults import FaultKind, fault_of, parse_body
from blip3o.evaluate.judges.replies import Reply, read_completion
from blip3o.storage.retry import with_retries
from blip3o.storage.s3 import TransientError

T = TypeVar("T")

API_KEY = "BLIP3O_API_KEY"
TIMEOUT_S = 600.0  # of one request: a large model on a busy server takes long


@dataclass(frozen=True, kw_only=True)
class HttpTarget:
    """The server at `url` (with or without `/v1`), asked by `requests` threads at a time.

    `model` is its name there; if omitted, the first one that the server lists. A reply to a question has at most
    `max_new_tokens`.
    """

    url: str
    requests: int = 1
    model: str = ""
    sampler: SamplerOverrides = SamplerOverrides()
    max_new_tokens: int = MAX_NEW_TOKENS

    can_decode = False

    @property
    def what(self) -> str:
        """The server in a line."""
        return self._base

    @property
    def _base(self) -> str:
        return self.url.rstrip("/").removesuffix("/v1")

    def identity(self) -> dict[str, Any]:
        """The server's address, and what it says about its model. Raises `ServiceError` without an answer."""
        # A wrong address should fail at once, not after a minute of retries.
        listed = self._call("/v1/models", patient=False)
        if not listed.get("data"):
            raise ServiceError(f"{self._base}/v1/models names no model: is a model served there?")
        models = {each["id"]: each for each in listed["data"]}
        name = self.model or next(iter(models))
        if name not in models:
            raise ServiceError(f"{self._base}/v1/models does not name '{name}', but {', '.join(models)}")
        model = models[name]
        sampler = asdict(self.sampler)
        used = {name: model.get(name) if value is None else value for name, value in sampler.items()}
        named = {"target": "http", "url": self._base, "model": model["id"], "size": model.get("size")}
        if "precision" in model:  # of our servers
            named["precision"] = model["precision"]
        return {**named, **used, **token_limit_identity(self.max_new_tokens)}

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files; see `Target`. Raises `ServiceError` if the server is unreachable or another API."""
        if not work:
            return
        model = self.identity()["model"]
        pool = ThreadPoolExecutor(max(self.requests, 1))
        try:
            for future in as_completed([pool.submit(self._make, piece, model) for piece in work]):
                yield future.result()
        finally:  # after an error, the remaining requests are not sent
            pool.shutdown(cancel_futures=True)

    def _make(self, work: Work, model: str) -> Done:
        began = time.monotonic()
        if work.kind == "decode":
            raise ConfigError(f"{self._base} draws and chats, but decodes no features: use a bundle")
        try:
            (self._draw if work.kind == "draw" else self._ask)(work, model)
        except RequestError as error:  # the server refuses only this prompt; others may work
            return Done(uri=work.uri, seconds=0.0, fault=str(error))
        return Done(uri=work.uri, seconds=time.monotonic() - began)

    def _draw(self, work: Work, model: str) -> None:
        body = {"model": model, "prompt": work.prompt, "n": 1, "response_format": "b64_json", "seed": work.seed}
        body |= {name: value for name, value in asdict(self.sampler).items() if value is not None}
        reply = self._call("/v1/images/generations", body)
        try:
            [item] = reply["data"]
            data, seed = base64.b64decode(item["b64_json"], validate=True), item.get("seed", reply.get("seed"))
            image = open_image(data)
        except (DataError, LookupError, TypeError, ValueError) as error:  # other JSON, no image, or a truncated one
            raise ServiceError(f"{self._base} answered without one image as b64_json: {error!r}") from error
        # An image from any other seed could not be reproduced.
        if seed != work.seed:
            raise ServiceError(
                f"{self._base} was asked to draw from seed {work.seed} and names seed {seed}: its images would be "
                "others at every call; serve the model with blip3o, or evaluate the bundle"
            )
        keep_image(work, image)

    def _ask(self, work: Work, model: str) -> None:
        parts: list[dict[str, Any]] = [{"type": "text", "text": work.prompt}]
        if work.picture is not None:
            url = data_url(storage.read_bytes(work.picture))
            parts.insert(0, {"type": "image_url", "image_url": {"url": url}})
        messages = [{"role": "user", "content": parts}]
        body = {"model": model, "messages": messages, "max_tokens": self.max_new_tokens, "temperature": 0}
        reply = self._asked("/v1/chat/completions", body, self._reply)
        keep_reply(work, reply.verbatim, truncated=reply.truncated)

    def _reply(self, answer: dict[str, Any]) -> Reply:
        """The reply in a completion, even if it was truncated. Raises `RequestError` if it was refused."""
        reply = read_completion(answer, limit=self.max_new_tokens)
        if reply is None:
            raise ServiceError(f"{self._base} answered without a message that has a text")
        if reply.broken:
            raise TransientError(reply.fault)
        if reply.refused:
            raise RequestError(reply.fault)
        return reply

    def _call(self, route: str, body: dict[str, Any] | None = None, *, patient: bool = True) -> dict[str, Any]:
        """The JSON of a reply. Raises `RequestError` if the server refuses the request itself."""
        return self._asked(route, body, lambda answer: answer, patient=patient)

    def _asked(
        self, route: str, body: dict[str, Any] | None, read: Callable[[dict[str, Any]], T], *, patient: bool = True
    ) -> T:
        url = f"{self._base}{route}"
        try:
            return with_retries(url, lambda: read(_once(url, body))) if patient else read(_once(url, body))
        except OSError as error:
            raise ServiceError(f"{url} does not answer ({error}): is the server up?") from error


def key_header() -> dict[str, str]:
    """What names the user to a server that asks for keys: that of $BLIP3O_API_KEY, if it is set."""
    key = settings.get(API_KEY)
    return {"authorization": f"Bearer {key}"} if key else {}


def _once(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    try:
        status, headers, data = fetch(url, body, headers=key_header(), timeout_s=TIMEOUT_S)
    except (
        OSError,
        http.client.HTTPException,
        UnicodeError,
    ) as error:  # connection refused or reset, truncated answer, no such host
        raise TransientError(str(error) or type(error).__name__) from error
    fault = fault_of(status, headers, data, now=time.time())
    if fault is None:
        parsed = parse_body(data)
        if not isinstance(parsed, dict):
            raise ServiceError(f"{url} answered with JSON that is no object: is it an OpenAI-compatible server?")
        return parsed
    if fault.kind is FaultKind.TRANSIENT:
        raise TransientError(fault.message, wait_s=fault.wait_s or 0.0)
    if fault.kind is FaultKind.FATAL:
        raise ServiceError(f"{url} answered {fault.message}")
    raise RequestError(fault.message)
