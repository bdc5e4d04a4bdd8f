"""A server with OpenAI's images and chat routes as an evaluation's target, and as many requests at a time as wanted.

Every image is asked for with its own seed, and the reply must name that seed: a server that draws from one of its own
would give other images whenever it is asked. Overload, restarts and lost connections are waited out.
"""

import base64
import http.client
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, TypeVar

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError, DataError, RequestError, ServiceError
from blip3o.evaluate.benchmark.work import MAX_NEW_TOKENS, Done, Work, keep_image, keep_reply, other_limit
from blip3o.evaluate.judges.client import data_url, fetched
from blip3o.evaluate.judges.faults import Kind, parse, trouble_of
from blip3o.evaluate.judges.replies import Reply, read_completion
from blip3o.storage.retry import with_retries
from blip3o.storage.s3 import TransientError
from jobs.evaluation.bundle_target import Sampler

T = TypeVar("T")

TIMEOUT_S = 600.0  # of one request; a large model on a busy server


@dataclass(frozen=True, kw_only=True)
class HttpTarget:
    """The server at `url` (with `/v1` or without), asked by `requests` threads at a time.

    A reply to a question has at most `max_new_tokens`.
    """

    url: str
    requests: int = 1
    sampler: Sampler = Sampler()
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
        """The server's address, and what it says of its model. Raises `ServiceError` if it does not answer at once."""
        listed = self._call("/v1/models", patient=False)
        if not listed.get("data"):
            raise ServiceError(f"{self._base}/v1/models names no model: is a model served there?")
        model = listed["data"][0]
        chosen = {"steps": self.sampler.steps, "guidance": self.sampler.guidance}
        defaults = {"steps": model.get("num_inference_steps"), "guidance": model.get("guidance_scale")}
        used = {name: defaults[name] if value is None else value for name, value in chosen.items()}
        named = {"target": "http", "url": self._base, "model": model["id"], "size": model.get("size")}
        return {**named, **used, **other_limit(self.max_new_tokens)}

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files; see `Target`. Raises `ServiceError` if the server stays away or answers otherwise."""
        if not work:
            return
        model = self.identity()["model"]
        pool = ThreadPoolExecutor(max(self.requests, 1))
        try:
            for future in as_completed([pool.submit(self._make, piece, model) for piece in work]):
                yield future.result()
        finally:  # after an error the rest need not be tried
            pool.shutdown(cancel_futures=True)

    def _make(self, work: Work, model: str) -> Done:
        began = time.monotonic()
        if work.kind == "decode":
            raise ConfigError(f"{self._base} draws and chats, but decodes no features: use a bundle")
        try:
            (self._draw if work.kind == "draw" else self._ask)(work, model)
        except RequestError as error:  # the server refuses this prompt; others may do
            return Done(uri=work.uri, seconds=0.0, fault=str(error))
        return Done(uri=work.uri, seconds=time.monotonic() - began)

    def _draw(self, work: Work, model: str) -> None:
        body = {"model": model, "prompt": work.prompt, "n": 1, "response_format": "b64_json", "seed": work.seed}
        body |= {"num_inference_steps": self.sampler.steps} if self.sampler.steps is not None else {}
        body |= {"guidance_scale": self.sampler.guidance} if self.sampler.guidance is not None else {}
        reply = self._call("/v1/images/generations", body)
        try:
            [item] = reply["data"]
            data, seed = base64.b64decode(item["b64_json"], validate=True), item.get("seed", reply.get("seed"))
            image = open_image(data)
        except (DataError, LookupError, TypeError, ValueError) as error:  # other JSON, or no image or part of one
            raise ServiceError(f"{self._base} answered without one image as b64_json: {error!r}") from error
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
        keep_reply(work, reply.said, cut=reply.cut)

    def _reply(self, answer: dict[str, Any]) -> Reply:
        """The reply in a completion, as far as its limit let it go. Raises `RequestError` where it was refused."""
        reply = read_completion(answer, limit=self.max_new_tokens)
        if reply is None:
            raise ServiceError(f"{self._base} answered without a message that has a text")
        if reply.broken:
            raise TransientError(reply.fault)
        if reply.refused:
            raise RequestError(reply.fault)
        return reply

    def _call(self, route: str, body: dict[str, Any] | None = None, *, patient: bool = True) -> dict[str, Any]:
        """The JSON of a reply. Raises `RequestError` where the server refuses the request itself."""
        return self._asked(route, body, lambda answer: answer, patient=patient)

    def _asked(
        self, route: str, body: dict[str, Any] | None, read: Callable[[dict[str, Any]], T], *, patient: bool = True
    ) -> T:
        url = f"{self._base}{route}"
        try:
            return with_retries(url, lambda: read(_once(url, body))) if patient else read(_once(url, body))
        except OSError as error:
            raise ServiceError(f"{url} does not answer ({error}): is the server up?") from error


def _once(url: str, body: dict[str, Any] | None) -> dict[str, Any]:
    try:
        status, headers, data = fetched(url, body, headers={}, timeout_s=TIMEOUT_S)
    except (OSError, http.client.HTTPException, UnicodeError) as error:  # refused, reset, cut off, no such host
        raise TransientError(str(error) or type(error).__name__) from error
    trouble = trouble_of(status, headers, data, now=time.time())
    if trouble is None:
        parsed = parse(data)
        if not isinstance(parsed, dict):
            raise ServiceError(f"{url} answered with JSON that is no object: is it an OpenAI-compatible server?")
        return parsed
    if trouble.kind is Kind.PASSES:
        raise TransientError(trouble.said, wait_s=trouble.wait_s or 0.0)
    if trouble.kind is Kind.EVERYTHING:
        raise ServiceError(f"{url} answered {trouble.said}")
    raise RequestError(trouble.said)
