"""Converts chat messages in OpenAI's format to turns of the chat template, and their image. Imports no torch.

A message is `{"role": …, "content": …}`; its content is a string or a list of parts:

    {"type": "text", "text": "What is this?"}
    {"type": "image_url", "image_url": {"url": "data:image/png;base64,…"}}   # or a path, or an s3:// URI
    {"type": "image", "image": picture}                                      # a PIL image, or a path

Functions of `ChatMessage` hold what Python and HTTP share: the order of roles, the place of an image, the template's
turns. `serve.http.forms` calls them too.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from PIL import Image

from blip3o import storage
from blip3o.data.images.decode import DAMAGE, open_image
from blip3o.data.text.templates import Turn
from blip3o.errors import DataError, RequestError, StorageError, one_line, quoted
from blip3o.inference.arguments import type_of
from blip3o.inference.data_urls import read_data_url

ROLES = ("system", "developer", "user", "assistant")
ImageSource = Image.Image | str | os.PathLike[str]
Message = Mapping[str, Any]
Conversation = str | Message | Sequence[Message] | Sequence[Turn]
_PART_TYPES = ("text", "image_url", "image")
_AN_IMAGE = "a PIL image or a path"
# What makes an image of values that hold one, by the names of their types.
_IMAGE_FIX = {
    "ndarray": f"{_AN_IMAGE}: PIL.Image.fromarray(array) of bytes [height, width, 3]",
    "Tensor": f"{_AN_IMAGE}: PIL.Image.fromarray(tensor.numpy()) of bytes [height, width, 3]",
    "bytes": f"{_AN_IMAGE}: PIL.Image.open(io.BytesIO(data))",
}


class ChatMessage(Protocol):
    """A parsed message, from Python or HTTP."""

    @property
    def role(self) -> str:
        """One of `ROLES`."""
        ...

    @property
    def text(self) -> str:
        """Its text parts, each on a line of its own."""
        ...

    @property
    def image_indices(self) -> tuple[int, ...]:
        """Indices of its parts that are images."""
        ...


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong with a conversation: the path below `messages`, and a message for the caller."""

    place: tuple[str | int, ...]
    message: str


def to_turns(messages: Sequence[ChatMessage]) -> tuple[Turn, ...]:
    """The template's turns. System messages at the start become one turn."""
    begin = next((i for i, message in enumerate(messages) if _template_role(message) != "system"), len(messages))
    system = "\n\n".join(message.text for message in messages[:begin])
    rest = [Turn(role=_template_role(message), text=message.text) for message in messages[begin:]]
    return (Turn(role="system", text=system), *rest) if begin else tuple(rest)


def order_problem(messages: Sequence[ChatMessage]) -> Problem | None:
    """What is wrong with the order of roles; None if the assistant is next."""
    spoken = [i for i, message in enumerate(messages) if _template_role(message) != "system"]
    if not spoken:
        return Problem(place=(), message="there is no user message to answer")
    if messages[spoken[-1]].role != "user":
        message = "the last message must be the user's, since it is the one to answer"
        return Problem(place=(spoken[-1], "role"), message=message)
    return None


def image_problem(messages: Sequence[ChatMessage]) -> Problem | None:
    """What is wrong with the images; None if there is none, or one in the user's first message."""
    first = next((i for i, message in enumerate(messages) if message.role == "user"), None)
    for count, (i, j) in enumerate(_image_positions(messages)):
        place, role = (i, "content", j), messages[i].role
        if role != "user":
            return Problem(place=place, message=f"an image in a message of the {role}: the model reads only the user's")
        if count:
            return Problem(place=place, message="this is a second image, and the model reads one per conversation")
        if i != first:
            message = f"the image must be in the user's first message, messages.{first}: the model expects it there"
            return Problem(place=place, message=message)
    return None


def _image_positions(messages: Sequence[ChatMessage]) -> Iterator[tuple[int, int]]:
    return ((i, j) for i, message in enumerate(messages) for j in message.image_indices)


def _template_role(message: ChatMessage) -> str:
    """A message's role in the model's template, which has no developer."""
    return "system" if message.role == "developer" else message.role


def parse_messages(
    messages: Conversation, image: ImageSource | None = None
) -> tuple[tuple[Turn, ...], Image.Image | None]:
    """The turns and the image, if any, of a question (a string), of one message or several in OpenAI's format, or of
    turns of the template, which are taken as they are.

    `image` is added to the user's first message. Raises `RequestError` with the path of the value for a wrong type, an
    unknown key or role, an unreadable image, or a second image.
    """
    if isinstance(messages, str):
        if not messages.strip():
            raise RequestError("the question is empty: say what to ask")
        messages = [{"role": "user", "content": messages}]
    if _is_object(messages):
        messages = [messages]
    if not isinstance(messages, Sequence) or isinstance(messages, bytes):
        raise RequestError(f"messages is {type_of(messages)}: give a string, a message, or a list of messages")
    turns = tuple(turn for turn in messages if isinstance(turn, Turn))
    if turns and len(turns) == len(messages):
        return turns, None if image is None else load_image(image)
    parsed = [_parse_message(message, f"messages[{number}]") for number, message in enumerate(messages)]
    if wrong := order_problem(parsed) or image_problem(parsed):
        raise RequestError(f"messages{_at(wrong.place)}: {wrong.message}")
    shown = [(f"messages[{i}]{_at(('content', j))}", parsed[i].parts[j]) for i, j in _image_positions(parsed)]
    if image is not None:
        shown.append(("image", image))
    if len(shown) > 1:
        raise RequestError("image: the messages hold one already, and the model reads one per conversation")
    return to_turns(parsed), load_image(shown[0][1], shown[0][0]) if shown else None


def parse_conversations(
    conversations: Sequence[Conversation], images: Sequence[ImageSource] | None
) -> tuple[list[tuple[Turn, ...]], list[Image.Image] | None]:
    """The turns and the image of each conversation, as `parse_messages`; the images are None if none has one.

    `images` has one for each. Raises `RequestError` as it does, and where only some of them have an image.
    """
    asked = as_list("conversations", conversations, "conversations; chat answers a single one")
    shown = [None] * len(asked) if images is None else as_list("images", images, "images, one for each conversation")
    if not asked:
        raise RequestError("there are 0 conversations: give at least one")
    if len(shown) != len(asked):
        raise RequestError(f"{len(asked)} conversations and {len(shown)} images: give one image for each of them")
    parsed = [parse_messages(it, image) for it, image in zip(asked, shown, strict=True)]
    loaded = [image for _, image in parsed if image is not None]
    if loaded and len(loaded) < len(parsed):
        raise RequestError(
            f"{len(loaded)} of {len(parsed)} conversations have an image: ask these and the others apart"
        )
    return [turns for turns, _ in parsed], loaded or None


def as_list(name: str, values: object, wanted: str) -> list[Any]:
    """Several values as a list. Raises `RequestError` for a single one: a string, a message or an image."""
    if not isinstance(values, Iterable) or isinstance(values, str | bytes | Mapping | Image.Image):
        raise RequestError(f"{name} is {type_of(values)}: give a list of {wanted}")
    return list(values)


def load_images(sources: object) -> list[Image.Image]:
    """The images of one source or of several, as `load_image`. Raises `RequestError` as it does, or for none."""
    if isinstance(sources, Image.Image | str | os.PathLike):
        return [load_image(sources)]
    loaded = [load_image(it, f"images[{i}]") for i, it in enumerate(as_list("images", sources, "images"))]
    if not loaded:
        raise RequestError("there are 0 images: give at least one")
    return loaded


def load_image(source: object, place: str = "image") -> Image.Image:
    """The image of a path, a URI or a `data:` URL, upright and RGB; a PIL image is read, and returned unchanged.

    Raises `RequestError`, which begins with `place`, if it cannot be read.
    """
    if isinstance(source, Image.Image):
        return _read_picture(source, place)
    if not isinstance(source, str | os.PathLike):
        raise RequestError(f"{place} is {type_of(source)}: give {_IMAGE_FIX.get(type(source).__name__, _AN_IMAGE)}")
    name = os.fsdecode(source)
    try:
        return open_image(_read_bytes(name))
    except RequestError as error:
        raise RequestError(f"{place} {error}") from error
    except StorageError as error:
        raise RequestError(f"{place}: {error}") from error
    except DataError as error:
        shown = "the data URL" if name[:5].lower() == "data:" else quoted(name)
        raise RequestError(f"{place}: {shown} is not an image that can be read: {one_line(error)}") from error


def _read_picture(image: Image.Image, place: str) -> Image.Image:
    """A PIL image whose pixels have been read: Pillow opens a file without that, and so opens damaged ones, too."""
    if 0 in image.size:
        raise RequestError(f"{place} has {image.width} x {image.height} pixels: give a picture with at least one")
    try:
        image.load()
    except DAMAGE as error:
        raise RequestError(f"{place} is a PIL image that cannot be read: {one_line(error)}") from error
    return image


def _read_bytes(name: str) -> bytes:
    if name[:5].lower() == "data:":
        return read_data_url(name)
    if name.lower().startswith(("http:", "https:")):
        raise RequestError(f"is {quoted(name)}, and nothing is downloaded: give a path, or a PIL image")
    return storage.read_bytes(name)


@dataclass(frozen=True, kw_only=True)
class _ParsedMessage:
    """A message from Python; its parts are texts, and images that are not loaded yet."""

    role: str
    parts: tuple[Any, ...]
    image_indices: tuple[int, ...]

    @property
    def text(self) -> str:
        """Its text parts, each on a line of its own."""
        return "\n".join(part for place, part in enumerate(self.parts) if place not in self.image_indices)


def _parse_message(message: object, place: str) -> _ParsedMessage:
    if not _is_object(message):
        raise RequestError(f"{place} is {type_of(message)}: give a dict with role and content")
    given = {name for name, value in message.items() if value is not None}  # a reply of the server has "refusal": None
    if extra := sorted(given - {"role", "content", "name"}, key=str):
        raise RequestError(f"{place} has {quoted(str(extra[0]))}: a message has role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise RequestError(f"{place}['role'] is {quoted(str(role))}: give one of {', '.join(ROLES)}")
    if content is None and role == "assistant":
        content = ""
    if isinstance(content, str):
        return _ParsedMessage(role=role, parts=(content,), image_indices=())
    if not isinstance(content, list | tuple):
        raise RequestError(f"{place}['content'] is {type_of(content)}: give a string or a list of parts")
    parsed = [_parse_part(part, f"{place}['content'][{number}]") for number, part in enumerate(content)]
    images = tuple(number for number, (is_image, _) in enumerate(parsed) if is_image)
    return _ParsedMessage(role=role, parts=tuple(value for _, value in parsed), image_indices=images)


def _parse_part(part: object, place: str) -> tuple[bool, Any]:
    """Whether a part is an image, and its text or image."""
    if not _is_object(part) or part.get("type") not in _PART_TYPES:
        raise RequestError(f"{place} is not a part: give a dict with type {', '.join(_PART_TYPES)}")
    value = part.get(part["type"])
    if part["type"] == "text":
        if not isinstance(value, str):
            raise RequestError(f"{place}['text'] is {type_of(value)}: give a string")
        return False, value
    if part["type"] == "image_url":
        if not _is_object(value) or not isinstance(value.get("url"), str):
            raise RequestError(f'{place}: give "image_url": {{"url": …}}, a data URL or a path')
        value = value["url"]
    return True, value


def _is_object(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def _at(place: tuple[str | int, ...]) -> str:
    return "".join(f"[{part!r}]" for part in place)
