"""Images that clients send, brought to the model's input before they go anywhere; sizes are checked before decoding.

A process decodes few at a time, so that many large ones cannot exhaust its memory: the others wait, and there is a
limit to those that do.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from PIL import Image

from blip3o.data.images.decode import open_image, to_square
from blip3o.errors import DataError, RequestError, one_line
from blip3o.inference.data_urls import read_data_url
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.forms.messages import Picture
from serve.http.safety.fetching import Fetcher
from serve.http.safety.filters import Guard
from serve.protocol import ModelInfo

T = TypeVar("T")

_FETCHES = 8  # at a time; a thread each, which a resolver of names may hold for longer than a fetch may take
_WAITING = 32  # for each that is decoded


class Pictures:
    """Reads the images of requests."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._fetcher = Fetcher(
            hosts=config.fetch_hosts, max_bytes=config.max_image_bytes, timeout_s=config.fetch_timeout_s
        )
        self._fetches = ThreadPoolExecutor(_FETCHES, thread_name_prefix="fetch")
        # A decode cannot be interrupted, so a client that leaves must not let the next one in: each has a thread.
        self._decodes = ThreadPoolExecutor(config.decoding_images, thread_name_prefix="decode")
        self._decoding: set[Future[Any]] = set()

    async def read_all(self, asked: Sequence[Picture], info: ModelInfo, guard: Guard) -> tuple[Image.Image, ...]:
        """The images of a conversation: RGB, at the size of the model's input. Raises `ApiError` with their path."""
        images = [await self._read(picture, info) for picture in asked]
        for picture, image in zip(asked, images, strict=True):
            await guard.image(image, picture.path)
        return tuple(images)

    async def check(self, data: bytes, path: str) -> None:
        """Decodes an image that a client sent. Raises as `read_all`."""
        await self._in_turn(lambda: self._open(data, path))

    async def _read(self, picture: Picture, info: ModelInfo) -> Image.Image:
        if info.vision_size == 0:
            raise _refusal(picture.path, "this model reads only text: send no image")
        is_remote = self._config.fetch_hosts and picture.url.strip()[:6].lower() == "https:"
        fetched = await self._fetch(picture) if is_remote else None
        return await self._in_turn(lambda: self._square(picture, fetched, info))

    async def _fetch(self, picture: Picture) -> bytes:
        """The bytes behind a URL, in time: a resolver of names has a limit of its own, which may be a longer one."""
        url, loop = picture.url.strip(), asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._config.fetch_timeout_s):
                return await loop.run_in_executor(self._fetches, self._fetcher.fetch, url)
        except RequestError as error:
            raise _refusal(picture.path, f"image_url {error}") from error
        except TimeoutError:
            message = f"image_url did not arrive within {self._config.fetch_timeout_s:g} s: send it as a data URL"
            raise _refusal(picture.path, message) from None

    async def _in_turn(self, decode: Callable[[], T]) -> T:
        """Decodes when it is its turn. Raises `ApiError` 429 if too many wait already."""
        if len(self._decoding) >= _WAITING * self._config.decoding_images:
            message = "this server has many images to read: try again in 1 s"
            raise ApiError(429, message, code="server_busy", headers={"retry-after": "1"})
        job = [decode]
        future = self._decodes.submit(lambda: job[0]())
        self._decoding.add(future)
        future.add_done_callback(self._decoding.discard)
        # A job whose client has left stays in the queue of the threads: not its image.
        future.add_done_callback(lambda _: job.clear())
        return await asyncio.wrap_future(future)

    def _square(self, picture: Picture, fetched: bytes | None, info: ModelInfo) -> Image.Image:
        try:
            data = read_data_url(picture.url) if fetched is None else fetched
        except RequestError as error:
            raise _refusal(picture.path, f"image_url {error}") from error
        opened = self._open(data, picture.path, at_least=info.vision_size)
        return Image.fromarray(to_square(opened, info.vision_size, info.vision_resize))

    def _open(self, data: bytes, path: str, *, at_least: int | None = None) -> Image.Image:
        if len(data) > (most := self._config.max_image_bytes):
            raise _refusal(path, f"the image has {len(data)} bytes, at most {most} are read: send a smaller one")
        try:
            return open_image(data, at_least=at_least, max_pixels=self._config.max_image_pixels)
        except DataError as error:
            fault = f"it holds no image that can be read ({one_line(error)}): send PNG, JPEG or WebP"
            raise _refusal(path, fault) from error


def _refusal(path: str, message: str) -> ApiError:
    return ApiError(400, f"{path}: {message}", param=path, code="invalid_image")
