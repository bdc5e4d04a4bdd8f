"""A running server, used as a model is: what `--url` of `blip3o generate` and `blip3o chat` asks."""

import base64
import http.client
import io
import json
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from blip3o import settings
from blip3o.data.images.decode import open_image
from blip3o.errors import Blip3oError, ConfigError, RequestError, ServiceError
from serve.protocol import MAX_IMAGES

if TYPE_CHECKING:
    from PIL import Image

API_KEY = "BLIP3O_API_KEY"
_TIMEOUT_S = 600  # for a reply; the server's own limit is shorter
_REFUSED = (400, 404, 413, 422)  # the request is at fault


class RemoteModel:
    """`generate` and `chat` of a server; the arguments and results are those of `Blip3oPipeline`."""

    def __init__(self, url: str) -> None:
        """`url` is the server's address, with or without `/v1`. Raises `RequestError` if it is no HTTP address."""
        if not url.startswith(("http://", "https://")):
            raise RequestError(f"--url {url} is no address of a server: write it as in http://127.0.0.1:8000")
        self._url = url.rstrip("/").removesuffix("/v1")

    def generate(self, prompt: str, *, seed: int, n: int, **sampling: float | str | None) -> "list[Image.Image]":
        """`n` images; those after the first ten are further requests, as the seeds of all count up from `seed`.

        Raises `RequestError`, `ConfigError` without a key that the server takes, `ServiceError` if it does not answer.
        """
        images: list[Image.Image] = []
        while len(images) < n:
            count = min(MAX_IMAGES, n - len(images))
            body = {"prompt": prompt, "n": count, "seed": seed + len(images), "response_format": "b64_json", **sampling}
            reply = self._post("/v1/images/generations", body)
            images += [open_image(base64.b64decode(item["b64_json"])) for item in reply["data"]]
        return images

    def chat(self, question: str, *, image: "Image.Image | None", max_tokens: int) -> str:
        """The reply, of at most `max_tokens` tokens. Raises as `generate` does."""
        shown = [] if image is None else [{"type": "image_url", "image_url": {"url": _data_url(image)}}]
        messages = [{"role": "user", "content": [*shown, {"type": "text", "text": question}]}]
        reply = self._post("/v1/chat/completions", {"messages": messages, "max_tokens": max_tokens})
        return str(reply["choices"][0]["message"]["content"] or "")

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        headers = {"content-type": "application/json"}
        if key := settings.get(API_KEY):
            headers["authorization"] = f"Bearer {key}"
        data = json.dumps({name: value for name, value in body.items() if value is not None}).encode()
        request = urllib.request.Request(self._url + path, data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
                return dict(json.load(response))
        except urllib.error.HTTPError as error:
            raise _refusal(self._url, error.code, error.read()) from error
        except (OSError, http.client.HTTPException) as error:  # the latter: a connection that ends within the reply
            reason = getattr(error, "reason", error)
            raise ServiceError(
                f"{self._url} does not answer ({reason}): is it the address of a running `blip3o serve`?"
            ) from error
        except ValueError as error:
            raise ServiceError(f"{self._url} answers with no JSON: is it the address of a `blip3o serve`?") from error


def _refusal(url: str, status: int, body: bytes) -> Blip3oError:
    """The server's error as ours, in its words."""
    try:
        message = str(json.loads(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        return ServiceError(f"{url} answers with status {status}: is it the address of a `blip3o serve`?")
    if status in (401, 403):
        return ConfigError(f"{url} refuses the key: {message}; set {API_KEY} to one that it takes")
    return RequestError(message) if status in _REFUSED else ServiceError(f"{url}: {message}")


def _data_url(image: "Image.Image") -> str:
    """A picture as PNG, without loss: the server sees the pixels that a local model would."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
