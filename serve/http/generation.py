"""Generating the images of one HTTP request: from the fields of its form to files."""

import asyncio
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from PIL import Image

from blip3o.errors import one_line
from serve.http.errors import ApiError
from serve.http.face import Face
from serve.http.files import HEADER, FileStyle, provenance
from serve.http.forms.images import MAX_SEED, OutputFormat, Sampling, level_of
from serve.http.safety.filters import Guard
from serve.protocol import Backend, FinishedImage, GenerateReply, GenerateRequest, ModelInfo, PartialImage

_RANDOM_SEEDS = 2**31
_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_MAX_SIDE = 4096


@dataclass(frozen=True, kw_only=True)
class ImageFile:
    """An image of a request as a file; `partial` is None for a finished one."""

    data: bytes
    number: int
    partial: int | None


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Images to generate, and how they become files."""

    request: GenerateRequest
    info: ModelInfo
    style: FileStyle
    quality: str

    @property
    def headers(self) -> dict[str, str]:
        """The header with the provenance of the first image; the next ones have the next seeds."""
        return {HEADER: provenance(self.request, 0, self.info).text}

    @property
    def size(self) -> str:
        """Width and height, as in requests."""
        width, height = self.style.size or (self.info.image_size, self.info.image_size)
        return f"{width}x{height}"

    @property
    def look(self) -> dict[str, Any]:
        """What replies and events say about their images."""
        return {
            "background": "opaque",
            "output_format": self.style.file_format,
            "quality": self.quality,
            "size": self.size,
        }

    def usage(self, prompt_tokens: int, images: int) -> dict[str, Any]:
        """Token counts: those of the prompt, and the feature tokens of the images."""
        generated = images * self.info.image_tokens
        return {
            "input_tokens": prompt_tokens,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": prompt_tokens},
            "output_tokens": generated,
            "output_tokens_details": {"image_tokens": generated, "text_tokens": 0},
            "total_tokens": prompt_tokens + generated,
        }

    async def check_prompts(self, guard: Guard) -> None:
        """Asks the content filter about the prompts. Raises `ApiError`."""
        await guard.text(self.request.prompt, "prompt")
        if self.request.negative_prompt:
            await guard.text(self.request.negative_prompt, "negative_prompt")

    async def run(self, backend: Backend, guard: Guard) -> tuple[list[bytes], int]:
        """The files in the order of the seeds, and the prompt's tokens. Raises as `Backend.generate`, or `ApiError`."""
        await self.check_prompts(guard)
        reply = await backend.generate(self.request)
        files = [await self._file(image, number, guard) for number, image in enumerate(reply.images)]
        return files, reply.prompt_tokens

    async def stream(self, backend: Backend, guard: Guard) -> AsyncGenerator[ImageFile | int, None]:
        """Each file as soon as its image is there, and at last the prompt's tokens. Raises as `run`."""
        await self.check_prompts(guard)
        async with aclosing(backend.stream_images(self.request)) as events:  # type: ignore[type-var]
            async for event in events:
                if isinstance(event, GenerateReply):
                    yield event.prompt_tokens
                    continue
                assert isinstance(event, PartialImage | FinishedImage)
                data = await self._file(event.image, event.number, guard)
                partial = event.partial if isinstance(event, PartialImage) else None
                yield ImageFile(data=data, number=event.number, partial=partial)

    async def _file(self, image: Image.Image, number: int, guard: Guard) -> bytes:
        await guard.image(image)
        return await asyncio.to_thread(self.style.encode, image, provenance(self.request, number, self.info))


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a form says of the images' number and files; the defaults are those of one plain image."""

    n: int = 1
    partial_images: int = 0
    size: str = "auto"
    output_format: OutputFormat = "png"
    output_compression: int = 100


def plan(
    face: Face, request: Request, info: ModelInfo, *, prompt: str, sampling: Sampling, wanted: Wanted
) -> Generation:
    """The images that a form asks for. Raises `ApiError` for a size that is not offered."""
    seed = secrets.randbelow(_RANDOM_SEEDS) if sampling.seed is None else sampling.seed % (MAX_SEED + 1)
    asked = GenerateRequest(
        prompt=prompt,
        seeds=tuple(range(seed, seed + wanted.n)),
        num_inference_steps=sampling.steps(info.num_inference_steps),
        guidance_scale=info.guidance_scale if sampling.guidance_scale is None else sampling.guidance_scale,
        negative_prompt=sampling.negative_prompt,
        partial_images=wanted.partial_images,
        owner=request.state.owner,
        deadline_s=face.request_timeout_s,
    )
    style = FileStyle(
        file_format=wanted.output_format,
        quality=wanted.output_compression,
        size=_resampled(wanted.size, info, may_resize=face.config.resize_images),
    )
    return Generation(request=asked, info=info, style=style, quality=level_of(sampling.quality))


def _resampled(size: str, info: ModelInfo, *, may_resize: bool) -> tuple[int, int] | None:
    """The size to which images are resampled; None if it is the model's own."""
    own = f"{info.image_size}x{info.image_size}"
    if size in ("auto", own):
        return None
    found = _SIZE.fullmatch(size)
    if not may_resize or not found:
        other = f", '{own}' or another WIDTHxHEIGHT" if may_resize else f" or '{own}'"
        raise ApiError(400, f"size '{one_line(size)}' is not offered: use 'auto'{other}", param="size")
    width, height = int(found[1]), int(found[2])
    if max(width, height) > _MAX_SIDE:
        raise ApiError(400, f"size {size} is too large: at most {_MAX_SIDE} pixels a side", param="size")
    return width, height
