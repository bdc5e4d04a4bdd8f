"""Images that clients send, brought to the model's input before they go anywhere; sizes are checked before decoding."""

import asyncio
from collections.abc import Sequence

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


class Pictures:
    """Reads the images of requests."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._fetcher = Fetcher(
            hosts=config.fetch_hosts, max_bytes=config.max_image_bytes, timeout_s=config.fetch_timeout_s
        )

    async def read_all(self, asked: Sequence[Picture], info: ModelInfo, guard: Guard) -> tuple[Image.Image, ...]:
        """The images of a conversation: RGB, at the size of the model's input. Raises `ApiError` with their path."""
        images = [await asyncio.to_thread(self._read, picture, info) for picture in asked]
        for picture, image in zip(asked, images, strict=True):
            await guard.image(image, picture.path)
        return tuple(images)

    def _read(self, picture: Picture, info: ModelInfo) -> Image.Image:
        if info.vision_size == 0:
            raise _refusal(picture.path, "this model reads only text: send no image")
        try:
            is_remote = self._config.fetch_hosts and picture.url.strip()[:6].lower() == "https:"
            data = self._fetcher.fetch(picture.url.strip()) if is_remote else read_data_url(picture.url)
        except RequestError as error:
            raise _refusal(picture.path, f"image_url {error}") from error
        opened = self.open(data, picture.path, at_least=info.vision_size)
        return Image.fromarray(to_square(opened, info.vision_size, info.vision_resize))

    def open(self, data: bytes, path: str, *, at_least: int | None = None) -> Image.Image:
        """An image of bytes that a client sent. Raises `ApiError` with `path`, the field's path in the request."""
        if len(data) > (most := self._config.max_image_bytes):
            raise _refusal(path, f"the image has {len(data)} bytes, at most {most} are read: send a smaller one")
        try:
            return open_image(data, at_least=at_least, max_pixels=self._config.max_image_pixels)
        except DataError as error:
            fault = f"it holds no image that can be read ({one_line(error)}): send PNG, JPEG or WebP"
            raise _refusal(path, fault) from error


def _refusal(path: str, message: str) -> ApiError:
    return ApiError(400, f"{path}: {message}", param=path, code="invalid_image")
