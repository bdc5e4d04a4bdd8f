"""The content filter: a hook of the operator's, asked before and after the model.

`HttpConfig.content_filter` names a function without arguments that makes one. Each method returns why something is
refused, for the client, or None. An exception fails the request: nothing passes unseen.
"""

import importlib
from collections.abc import Callable
from typing import Protocol, cast

from PIL import Image

from blip3o.errors import ConfigError
from serve.http.errors import ApiError

BLOCKED = "content_policy_violation"


class ContentFilter(Protocol):
    """What a content filter does. `owner` is the name of the API key, empty if there is none."""

    async def check_text(self, text: str, *, owner: str) -> str | None:
        """Looks at a prompt or at the text of a conversation, before it is used, and at a reply."""
        ...

    async def check_image(self, image: Image.Image, *, owner: str) -> str | None:
        """Looks at an image: one that was sent, and each that was generated, also previews."""
        ...


def load_filter(name: str) -> ContentFilter | None:
    """The filter of `MODULE:FUNCTION`, or None for an empty name. Raises `ConfigError` if it is not there."""
    if not name:
        return None
    module, _, function = name.partition(":")
    try:
        make = cast(Callable[[], ContentFilter], getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"content_filter={name} cannot be imported ({error}): write MODULE:FUNCTION") from error
    return make()


class Guard:
    """Asks the filter, if there is one, on behalf of one request. Each method raises `ApiError` 400 if it refuses."""

    def __init__(self, content_filter: ContentFilter | None, owner: str) -> None:
        self.filter = content_filter
        self._owner = owner

    async def text(self, text: str, param: str | None = None) -> None:
        """Asks about a text."""
        if self.filter is not None:
            _refuse(await self.filter.check_text(text, owner=self._owner), param)

    async def image(self, image: Image.Image, param: str | None = None) -> None:
        """Asks about an image."""
        if self.filter is not None:
            _refuse(await self.filter.check_image(image, owner=self._owner), param)


def _refuse(why: str | None, param: str | None) -> None:
    if why is not None:
        raise ApiError(400, f"the content filter refuses this: {why}", param=param, code=BLOCKED)
