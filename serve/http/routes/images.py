"""`/v1/images/...`: generations, edits, variations, and the files behind links."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from serve.http.events import DONE, Client, event, stream, watching
from serve.http.face import Face, unable
from serve.http.files import base64_of
from serve.http.forms.bodies import read_body
from serve.http.forms.images import EditsForm, ImageOptions, ImagesBody, VariationsForm
from serve.http.forms.multipart import read_form
from serve.http.generation import Generation, ImageFile, Wanted, plan
from serve.http.links import PATH
from serve.http.safety.filters import Guard
from serve.protocol import Backend

_KEEP = "private, max-age=3600, immutable"


class ImageRoutes:
    """The routes for images."""

    def __init__(self, face: Face) -> None:
        self._face = face

    def add_to(self, keyed: APIRouter, open_to_all: APIRouter) -> None:
        """Adds the routes to the router of requests that need a key, and to that of the others."""
        keyed.add_api_route("/v1/images/generations", self.generations, methods=["POST"])
        keyed.add_api_route("/v1/images/edits", self.edits, methods=["POST"])
        keyed.add_api_route("/v1/images/variations", self.variations, methods=["POST"])
        open_to_all.add_api_route(PATH, self.content, methods=["GET", "HEAD"])  # its signature is the key

    async def generations(self, request: Request) -> Response:
        """Generates images from a prompt."""
        body = await read_body(request, ImagesBody)
        if body.response_format == "url":
            self._face.links.require_shared()
        model = self._face.model(body.model)
        info = await model.backend.describe()
        generation = plan(self._face, request, info, prompt=body.prompt, sampling=body, wanted=_wanted(body))
        guard = self._face.guard(request)
        seconds = self._face.request_timeout_s
        if body.stream:
            client = Client(request, subject="prompt", seconds=seconds)
            return await stream(client, _events(generation, model.backend, guard), generation.headers)
        with watching(request, subject="prompt", seconds=seconds) as client:
            files, prompt_tokens = await client.wait(generation.run(model.backend, guard))
        return JSONResponse(
            {
                "created": int(time.time()),
                "data": await self._items(request, body, generation, files),
                **generation.look,
                "seed": generation.request.seeds[0],
                "num_inference_steps": generation.request.num_inference_steps,
                "guidance_scale": generation.request.guidance_scale,
                "usage": generation.usage(prompt_tokens, len(files)),
            },
            headers=generation.headers,
        )

    async def _items(
        self, request: Request, body: ImageOptions, generation: Generation, files: list[bytes]
    ) -> list[dict[str, Any]]:
        items = []
        for data, seed in zip(files, generation.request.seeds, strict=True):
            if body.response_format == "url":
                url = await self._face.links.make(data, generation.style.file_format, str(request.base_url))
                items.append({"url": url, "seed": seed})
            else:
                items.append({"b64_json": base64_of(data), "seed": seed})
        return items

    async def content(self, name: str, expires: str = "", signature: str = "") -> Response:
        """The file behind a link."""
        data = await self._face.links.read(name, expires, signature)
        media_type = f"image/{name.rpartition('.')[2]}"
        return Response(data, media_type=media_type, headers={"cache-control": _KEEP})

    async def edits(self, request: Request) -> Response:
        """Edits images as a prompt says. No bundle can so far: the form is checked, and refused with the reason."""
        form = await read_form(request, EditsForm)
        info = await self._face.model(form.model).backend.describe()
        await self._open_all(form.image, form.mask)
        raise unable(info, "edit images")

    async def variations(self, request: Request) -> Response:
        """Generates variations of an image. As `edits`."""
        form = await read_form(request, VariationsForm)
        info = await self._face.model(form.model).backend.describe()
        await self._open_all(form.image, None)
        raise unable(info, "vary images")

    async def _open_all(self, images: tuple[bytes, ...], mask: bytes | None) -> None:
        for data, path in [*((image, "image") for image in images), *([(mask, "mask")] if mask else [])]:
            await self._face.pictures.check(data, path)


def _wanted(body: ImageOptions) -> Wanted:
    return Wanted(
        n=body.n,
        partial_images=body.partial_images if body.stream else 0,
        size=body.size,
        output_format=body.output_format,
        output_compression=body.output_compression,
    )


async def _events(generation: Generation, backend: Backend, guard: Guard) -> AsyncGenerator[str, None]:
    """OpenAI's events. The prompt's tokens are in the usage of the last image, so that the sum is that of the request.

    The last image waits for them, which follow at once.
    """
    last: ImageFile | None = None
    done = 0
    async with aclosing(generation.stream(backend, guard)) as files:
        async for file in files:
            if isinstance(file, int):
                assert last is not None
                yield _completed(generation, last, prompt_tokens=file)
            elif file.partial is not None:
                yield _event(generation, file, "image_generation.partial_image", {"partial_image_index": file.partial})
            elif (done := done + 1) == len(generation.request.seeds):
                last = file
            else:
                yield _completed(generation, file, prompt_tokens=0)
    yield DONE


def _completed(generation: Generation, file: ImageFile, *, prompt_tokens: int) -> str:
    usage = generation.usage(prompt_tokens, images=1)
    return _event(generation, file, "image_generation.completed", {"usage": usage})


def _event(generation: Generation, file: ImageFile, kind: str, more: dict[str, Any]) -> str:
    """An event, with the number of the image and its seed, which OpenAI's events do not have."""
    return event(
        {
            "type": kind,
            "b64_json": base64_of(file.data),
            "created_at": int(time.time()),
            **generation.look,
            **more,
            "index": file.number,
            "seed": generation.request.seeds[file.number],
        },
        name=kind,
    )
