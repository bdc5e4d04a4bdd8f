"""Images of requests are decoded a few at a time, whatever their clients do."""

import gc
import threading
import weakref
from types import SimpleNamespace

import anyio
import pytest
from PIL import Image

from blip3o.config.resize import ResizeConfig
from serve.http import pictures as reading
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.forms.messages import Picture
from serve.http.pictures import Pictures
from serve.http.safety.filters import Guard
from tests.serve.client import data_url

INFO = SimpleNamespace(vision_size=8, vision_resize=ResizeConfig())
PICTURE = Picture(path="messages.0", url=data_url(Image.new("RGB", (9, 9), "red")))


class Decoder:
    """The real one, which waits first; counts how many calls there are at a time."""

    def __init__(self, monkeypatch):
        self.open, self.began = threading.Event(), threading.Semaphore(0)
        self.running = self.most = 0
        self._lock, self._decode = threading.Lock(), reading.open_image
        monkeypatch.setattr(reading, "open_image", self)

    def __call__(self, data, **options):
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.release()
        assert self.open.wait(60)
        with self._lock:
            self.running -= 1
        return self._decode(data, **options)


async def read(pictures, done):
    [image] = await pictures.read_all([PICTURE], INFO, Guard(None, ""))
    done.append(image.size)


@pytest.mark.parametrize("leave", [False, True])
def test_few_are_decoded_at_a_time_some_wait_and_the_others_come_again(monkeypatch, leave):
    """A client that leaves does not let the next one in: its image is still in work."""
    decoder, pictures, done = Decoder(monkeypatch), Pictures(HttpConfig(decoding_images=2)), []

    async def main():
        async with anyio.create_task_group() as group:
            first = [anyio.CancelScope(), anyio.CancelScope()]
            for scope in first:
                group.start_soon(within, scope, pictures, done)
                await anyio.to_thread.run_sync(decoder.began.acquire)
            for _ in range(62):
                group.start_soon(read, pictures, done)
            await anyio.wait_all_tasks_blocked()
            for scope in first:
                if leave:
                    scope.cancel()
            with pytest.raises(ApiError, match="try again in 1 s") as caught:
                await pictures.check(b"", "image")
            assert (caught.value.status, caught.value.code) == (429, "server_busy")
            assert caught.value.headers == {"retry-after": "1"}
            decoder.open.set()

    anyio.run(main)
    assert decoder.most == 2
    assert done == [(8, 8)] * (62 if leave else 64)


def test_a_client_that_leaves_the_queue_takes_its_image_along(monkeypatch):
    """Otherwise, those that come and leave would fill the memory while one large image is decoded."""
    decoder, pictures, waiting = Decoder(monkeypatch), Pictures(HttpConfig(decoding_images=1)), []

    async def wait(scope):
        picture = Picture(path="messages.0", url=PICTURE.url)
        waiting.append(weakref.ref(picture))
        with scope:
            await pictures.read_all([picture], INFO, Guard(None, ""))

    async def main():
        async with anyio.create_task_group() as group:
            group.start_soon(read, pictures, [])
            await anyio.to_thread.run_sync(decoder.began.acquire)
            scope = anyio.CancelScope()
            group.start_soon(wait, scope)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            gc.collect()
            gone = waiting[0]() is None
            decoder.open.set()
            return gone

    assert anyio.run(main)


async def within(scope, pictures, done):
    with scope:
        await read(pictures, done)
