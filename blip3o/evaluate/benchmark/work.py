"""One piece of an evaluation's work is one file to make: a drawing, a decoded picture, or a reply. Pure data.

A file that is there is finished and never made again, so work that was stopped goes on from what it left. What a file
holds is a function of its piece of work alone, not of the pieces beside it, of who does it, or of when.
"""

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from PIL import Image

from blip3o import storage
from blip3o.errors import RequestError
from blip3o.evaluate.judges.replies import answer

MAX_NEW_TOKENS = 32  # of a reply, where the user does not say
WITHIN_REASONING = "the reply ends within its reasoning: raise --max-new-tokens, with another --out"

Kind = Literal["draw", "decode", "ask"]


@dataclass(frozen=True, kw_only=True)
class Work:
    """A file to make at `uri` (a local one grows in the folder `aside`).

    `draw`: an image of `prompt` from `seed`; `decode`: the features of the image at `picture` through the decoder, its
    noise from `seed`; `ask`: the reply to `prompt`, about the image at `picture` if there is one.
    """

    kind: Kind
    uri: str
    aside: str
    prompt: str
    seed: int
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """What became of a piece of work: `seconds` of one worker, or a `fault` of its prompt ("" where it was made)."""

    uri: str
    seconds: float
    fault: str = ""


class Target(Protocol):
    """A model under evaluation."""

    @property
    def what(self) -> str:
        """The model in a line."""
        ...

    @property
    def can_decode(self) -> bool:
        """Whether it takes work of kind `decode`."""
        ...

    def identity(self) -> dict[str, Any]:
        """What its results depend on. Results of different identities are never mixed."""
        ...

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files in any order, and says of each when it is there."""
        ...


def png(image: Image.Image) -> bytes:
    """An image as the one PNG of its pixels, so that equal images have equal sha256."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def keep_image(work: Work, image: Image.Image) -> None:
    """Writes an image to its place."""
    storage.write_bytes(work.uri, png(image), aside=work.aside)


def keep_reply(work: Work, reply: str, *, cut: bool) -> None:
    """Writes a reply to its place, as it was given; `cut` says whether it took all the tokens that it was allowed.

    Raises `RequestError` for one that ends within its reasoning, or was cut before it said anything: a model that was
    cut while it thought has not answered, and has not answered wrongly either.
    """
    if answer(reply) is None or (cut and not reply.strip()):
        raise RequestError(WITHIN_REASONING)
    storage.write_bytes(work.uri, json_bytes({"reply": reply}), aside=work.aside)


def json_bytes(value: object, *, indent: int | None = None) -> bytes:
    """A value as JSON in UTF-8. Half of a surrogate pair, which no UTF-8 has, is written as JSON's escape of it."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="backslashreplace")


def other_limit(max_new_tokens: int) -> dict[str, int]:
    """The limit of a reply as part of a target's identity, where it is not the one that results always had."""
    return {} if max_new_tokens == MAX_NEW_TOKENS else {"max_new_tokens": max_new_tokens}


def batches(work: Sequence[Work], width: int) -> list[tuple[Work, ...]]:
    """Work in groups of up to `width` of one kind, with a picture or without."""
    groups: dict[tuple[str, bool], list[Work]] = {}
    for piece in work:
        groups.setdefault((piece.kind, piece.picture is None), []).append(piece)
    return [tuple(group[start : start + width]) for group in groups.values() for start in range(0, len(group), width)]


def without_faults(done: Sequence[Done], seconds: float) -> list[Done]:
    """Shares the seconds of a batch out between what was made in it."""
    made = sum(not one.fault for one in done) or 1
    return [one if one.fault else replace(one, seconds=seconds / made) for one in done]
