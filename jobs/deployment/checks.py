"""What a bundle must do before it gets traffic: a smoke test over HTTP, and scores not below the running bundle's."""

import base64
import http.client
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from blip3o import storage
from blip3o.data.images.decode import open_image
from blip3o.errors import DataError, ServiceError, one_line
from blip3o.evaluate.benchmark.http_target import HttpTarget, key_header
from blip3o.evaluate.benchmark.plan import Plan, find_suites
from blip3o.evaluate.judges.client import fetch

_PROMPT = "a red circle"
_TIMEOUT_S = 300.0
_PATIENCE_S = 60.0  # with a server that is busy or has just lost a replica
_BUSY = (429, 503)
_RESTART_S = 10.0  # for another process of the face or a proxy, if the one that was asked is lost
_LOST = (500, 502, 504)


def smoke_test(url: str, model: str, *, instead_of: str = "") -> None:
    """Asks a model for what it says it can do: the same image twice, and an answer.

    Raises `ServiceError` if something is missing, if the images differ, or if it cannot do what the model `instead_of`
    can.
    """
    able = _abilities(url, model)
    if lost := (_abilities(url, instead_of) if instead_of else set()) - able:
        raise ServiceError(f"the new bundle cannot {', '.join(sorted(lost))}, the running one can")
    if "generate" in able:
        body = {"model": model, "prompt": _PROMPT, "seed": 1, "num_inference_steps": 2, "response_format": "b64_json"}
        images = [_image(_ask(url, "/v1/images/generations", body)) for _ in range(2)]
        if images[0] != images[1]:
            raise ServiceError(f"{model} makes two images for one prompt and seed")
    question = {"model": model, "messages": [{"role": "user", "content": _PROMPT}], "max_tokens": 4}
    reply = _ask(url, "/v1/chat/completions", question)
    if not isinstance(reply["choices"][0]["message"]["content"], str):
        raise ServiceError(f"{model} does not answer in words")


def _abilities(url: str, model: str) -> set[str]:
    return set(_ask(url, f"/v1/models/{quote(model)}", None)["abilities"])


def _image(reply: Mapping[str, Any]) -> bytes:
    """The pixels of the one image of a reply."""
    try:
        return open_image(base64.b64decode(reply["data"][0]["b64_json"])).convert("RGB").tobytes()
    except (DataError, LookupError, TypeError, ValueError) as error:
        raise ServiceError(f"the server answers without an image: {error!r}") from error


def _ask(url: str, route: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
    """The JSON of a reply. Raises `ServiceError` for an error other than overload or the loss of a process."""
    began = time.monotonic()
    while True:
        seconds = time.monotonic() - began
        try:
            status, headers, data = fetch(url + route, body, headers=key_header(), timeout_s=_TIMEOUT_S)
        except (OSError, http.client.HTTPException) as error:
            if seconds > _RESTART_S:
                raise ServiceError(f"{url}{route} does not answer: {error}") from error
            time.sleep(1)
            continue
        if status == 200:
            found: dict[str, Any] = json.loads(data)
            return found
        patience_s = _PATIENCE_S if status in _BUSY else _RESTART_S if status in _LOST else 0
        if seconds > patience_s:
            text = one_line(data.decode("utf-8", "replace"))[:300]
            raise ServiceError(f"{url}{route} answers {status}: {text}")
        time.sleep(float(headers.get("retry-after", 1)))


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Suites on which a new bundle is compared with the running one; a score may be lower by `tolerance`."""

    suites: Sequence[str]
    limit: int | None = None
    tolerance: float = 0.0
    out: str = "runs/deploy"

    def check(self, url: str, running: str, candidate: str, echo: Callable[[str], None]) -> None:
        """Scores both models, each over HTTP. Raises `ServiceError` if the candidate is worse on a suite."""
        for suite in self.suites:
            ours, best = self._score(suite, url, running)
            new, _ = self._score(suite, url, candidate)
            echo(f"{suite}: {new:.4f}, the running bundle {ours:.4f}")
            loss = new - ours if best is None else ours - new
            if loss > self.tolerance:
                raise ServiceError(
                    f"the new bundle is worse on {suite}: {new:.4f}, the running one has {ours:.4f} (--tolerance "
                    f"{self.tolerance:g})"
                )

    def _score(self, suite: str, url: str, model: str) -> tuple[float, float | None]:
        """The overall score of a model, and the best one possible; None if lower is better."""
        from blip3o.evaluate.benchmark.stages import run  # 2 s: torch

        out = storage.join(storage.normalize(self.out), f"{model}-{int(time.time())}")
        target = HttpTarget(url=url, model=model, requests=4)
        plan = Plan(out=out, suites=find_suites(suite), target=target, limit=self.limit)
        run(plan)
        score = json.loads(storage.read_bytes(plan.folder(plan.suites[0]).file("score.json")))
        if score["overall"] is None:
            raise ServiceError(f"{suite} gives no score for {model}: {'; '.join(score['why_not']) or 'incomplete'}")
        return float(score["overall"]), score["best"]
