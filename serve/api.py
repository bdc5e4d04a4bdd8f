"""The HTTP API: OpenAI's routes on top of any `Backend`, and the web page. Imports neither Ray nor torch.

`/v1/images/generations` generates images and `/v1/chat/completions` answers, with or without an image. Their fields are
described in `serve.schema`, `serve.fields` and docs/serving.md. A client that disconnects cancels its request.
"""

import asyncio
import base64
import io
import json
import secrets
import time
from collections.abc import Coroutine, Iterator, Mapping
from importlib.resources import files
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from PIL import Image

from blip3o.data.images.decode import decode_image
from blip3o.errors import ConfigError, DataError, PromptTooLongError, RequestError, one_line
from blip3o.inference.data_urls import read_data_url
from serve.bodies import read_body
from serve.protocol import Backend, ChatReply, ChatRequest, GenerateReply, GenerateRequest, ModelInfo, UnavailableError
from serve.replies import CLIENT_GONE, ApiError, RequestMiddleware, add_error_handlers
from serve.schema import ChatBody, ImagesBody

T = TypeVar("T")

MAX_IMAGE = 10 * 2**20  # most bytes of an image in a conversation
_RANDOM_SEEDS = 2**31
_PAGE_HEADERS = {  # the page is one file: the browser must load and run nothing else
    "content-security-policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}


def build_api(backend: Backend, model_name: str) -> FastAPI:
    """The FastAPI app that serves a backend under a model name."""
    return build_models_api({model_name: backend})


def build_models_api(models: Mapping[str, Backend]) -> FastAPI:
    """The FastAPI app that serves backends by the name of their model; a request that names none goes to the first.

    The mapping may change while the app runs. It is asked once per request, so a look-up may choose among bundles.
    """
    api = FastAPI(title="blip3o", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    api.add_middleware(RequestMiddleware)
    add_error_handlers(api)
    routes = _Routes(models)
    read = ["GET", "HEAD"]  # load balancers request only the headers
    for path, endpoint in {"/": routes.page, "/health": routes.health, "/v1/models": routes.models}.items():
        api.add_api_route(path, endpoint, methods=read)
    api.add_api_route("/v1/models/{model_id:path}", routes.model, methods=read)
    api.add_api_route("/v1/images/generations", routes.generate_images, methods=["POST"])
    api.add_api_route("/v1/chat/completions", routes.complete_chat, methods=["POST"])
    return api


class _Routes:
    def __init__(self, models: Mapping[str, Backend]) -> None:
        self._models = models
        self._created = int(time.time())

    async def page(self) -> HTMLResponse:
        """The web page."""
        return HTMLResponse(files("serve").joinpath("page.html").read_text(encoding="utf-8"), headers=_PAGE_HEADERS)

    async def health(self) -> dict[str, str]:
        """200 if the default model can answer."""
        _, backend = self._choose(None)
        await backend.check()
        return {"status": "ok"}

    async def models(self) -> dict[str, Any]:
        """All models."""
        return {"object": "list", "data": [await self.model(name) for name in list(self._models)]}

    async def model(self, model_id: str) -> dict[str, Any]:
        """The model by name, with its image size and sampler defaults."""
        name, backend = self._choose(model_id)
        info = await backend.describe()
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "blip3o",
            "size": _size(info),
            "num_inference_steps": info.num_inference_steps,
            "guidance_scale": info.guidance_scale,
            "precision": info.precision,
        }

    async def generate_images(self, request: Request) -> dict[str, Any]:
        """Generates images."""
        body = await read_body(request, ImagesBody)
        _, backend = self._choose(body.model)
        info = await backend.describe()
        if body.size not in ("auto", _size(info)):
            raise ApiError(
                400, f"size '{one_line(body.size)}' is not offered: use 'auto' or '{_size(info)}'", param="size"
            )
        seed = secrets.randbelow(_RANDOM_SEEDS) if body.seed is None else body.seed
        generation = GenerateRequest(
            prompt=body.prompt,
            seeds=tuple(range(seed, seed + body.n)),
            num_inference_steps=body.num_inference_steps or info.num_inference_steps,
            guidance_scale=info.guidance_scale if body.guidance_scale is None else body.guidance_scale,
        )
        reply = await _while_connected(request, backend.generate(generation), subject="prompt")
        data = await asyncio.to_thread(_image_items, reply, generation.seeds, body)
        return {
            "created": int(time.time()),
            "data": data,
            "background": "opaque",
            "output_format": body.output_format,
            "size": _size(info),
            "seed": seed,
            "num_inference_steps": generation.num_inference_steps,
            "guidance_scale": generation.guidance_scale,
            "usage": _image_usage(reply, info),
        }

    async def complete_chat(self, request: Request) -> Response:
        """Answers a conversation."""
        body = await read_body(request, ChatBody)
        name, backend = self._choose(body.model)
        info = await backend.describe()
        image = None if body.image is None else await asyncio.to_thread(_read_image, *body.image, info)
        conversation = ChatRequest(
            turns=body.turns, images=() if image is None else (image,), max_tokens=body.token_limit
        )
        reply = await _while_connected(request, backend.chat(conversation), subject="messages")
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": name}
        if body.stream:
            events = _chat_events(head, reply, with_usage=body.stream_options.include_usage)
            return StreamingResponse(events, media_type="text/event-stream", headers={"cache-control": "no-store"})
        return JSONResponse(_chat_completion(head, reply))

    def _choose(self, name: str | None) -> tuple[str, Backend]:
        """The model of this name, or the default one, and the backend for one request."""
        known = list(self._models)
        if not known:
            raise UnavailableError("no model is deployed yet: try again")
        chosen = known[0] if name is None else name
        if chosen not in self._models:
            names = ", ".join(f"'{each}'" for each in known)
            message = f"the model '{one_line(chosen)}' does not exist: this server has {names}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return chosen, self._models[chosen]


async def _while_connected(request: Request, work: Coroutine[Any, Any, T], *, subject: str) -> T:
    """Waits for the work, and cancels it if the client disconnects first.

    The body has been read, so the next message can only be the disconnect. Raises `ApiError` for a request that the
    model rejects; `subject` is the field at fault.
    """
    task = asyncio.create_task(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(CLIENT_GONE, "the client has disconnected")
        return task.result()
    except (RequestError, ConfigError) as error:  # the latter: a tokenizer that has no token for some of the text
        code = "context_length_exceeded" if isinstance(error, PromptTooLongError) else "invalid_value"
        raise ApiError(400, f"{subject}: {error}", param=subject, code=code) from error
    finally:
        task.cancel()
        gone.cancel()


def _size(info: ModelInfo) -> str:
    return f"{info.image_size}x{info.image_size}"


def _image_items(reply: GenerateReply, seeds: tuple[int, ...], body: ImagesBody) -> list[dict[str, Any]]:
    options = {} if body.output_format == "png" else {"quality": body.output_compression}
    items = []
    for image, seed in zip(reply.images, seeds, strict=True):
        buffer = io.BytesIO()
        image.save(buffer, format=body.output_format, **options)
        items.append({"b64_json": base64.b64encode(buffer.getvalue()).decode(), "seed": seed})
    return items


def _image_usage(reply: GenerateReply, info: ModelInfo) -> dict[str, Any]:
    generated = len(reply.images) * info.image_tokens
    return {
        "input_tokens": reply.prompt_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": reply.prompt_tokens},
        "output_tokens": generated,
        "total_tokens": reply.prompt_tokens + generated,
    }


def _read_image(path: str, url: str, info: ModelInfo) -> Image.Image:
    """The image of a `data:` URL, resized to the model's input so that no larger one is sent to the replica.

    Raises `ApiError` with `path`, the path of the URL in the request.
    """

    def refuse(message: str) -> ApiError:
        return ApiError(400, f"{path}: {message}", param=path, code="invalid_image")

    if info.vision_size == 0:
        raise refuse("this model reads only text: send no image_url")
    try:
        data = read_data_url(url)
    except RequestError as error:
        raise refuse(f"image_url {error}") from error
    if len(data) > MAX_IMAGE:
        raise refuse(f"the image has {len(data)} bytes, at most {MAX_IMAGE} are read: send a smaller one")
    try:
        return Image.fromarray(decode_image(data, info.vision_size, info.vision_resize))
    except DataError as error:
        raise refuse(
            f"image_url holds no image that can be read ({one_line(error)}): send PNG, JPEG or WebP"
        ) from error


def _chat_usage(reply: ChatReply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.reply_tokens,
        "total_tokens": reply.prompt_tokens + reply.reply_tokens,
    }


def _chat_completion(head: dict[str, Any], reply: ChatReply) -> dict[str, Any]:
    message = {"role": "assistant", "content": reply.text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason, "logprobs": None}
    return {**head, "object": "chat.completion", "choices": [choice], "usage": _chat_usage(reply)}


def _chat_events(head: dict[str, Any], reply: ChatReply, *, with_usage: bool) -> Iterator[str]:
    """The reply as server-sent events: its text in one chunk, the finish reason, and the usage if requested."""
    delta = {"role": "assistant", "content": reply.text}
    choices: list[list[dict[str, Any]]] = [
        [{"index": 0, "delta": delta, "finish_reason": None}],
        [{"index": 0, "delta": {}, "finish_reason": reply.finish_reason}],
    ]
    chunks = [{**head, "object": "chat.completion.chunk", "choices": each} for each in choices]
    if with_usage:
        chunks.append({**head, "object": "chat.completion.chunk", "choices": [], "usage": _chat_usage(reply)})
    for chunk in chunks:
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
