"""One piece of an evaluation's work is one file to make: a generated image, a decoded image, or a reply. Pure data.

A file that exists is finished and is never made again, so an interrupted evaluation resumes with what is missing. The
content of a file is a function of its piece of work only: not of the other pieces in its batch, of the worker, or of
time.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

from PIL import Image

from blip3o import storage
from blip3o.errors import RequestError
from blip3o.evaluate.benchmark.rows import json_bytes
from blip3o.evaluate.judges.replies import answer

MAX_NEW_TOKENS = 32  # of a reply, by default
WITHIN_REASONING = "the reply ends within its reasoning: raise --max-tokens, with another --out"

Kind = Literal["draw", "decode", "ask"]


@dataclass(frozen=True, kw_only=True)
class SamplerOverrides:
    """Overrides of the target's own sampler; None keeps its default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None


@dataclass(frozen=True, kw_only=True)
class Work:
    """A file to make at `uri` (a local file grows in the folder `partial` first).

    `draw`: an image of `prompt` from `seed`. `decode`: the features of the image at `picture` through the decoder, with
    noise from `seed`. `ask`: the reply to `prompt`, about the image at `picture` if there is one.
    """

    kind: Kind
    uri: str
    partial: str
    prompt: str
    seed: int
    picture: str | None = None


@dataclass(frozen=True, kw_only=True)
class Done:
    """The outcome of a piece of work: the `seconds` of one worker, or a `fault` of its prompt ("" on success)."""

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
        """Makes the files in any order, and yields each outcome as soon as its file is there."""
        ...


def png(image: Image.Image) -> bytes:
    """An image as the one PNG of its pixels, so that equal images have equal sha256."""
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def keep_image(work: Work, image: Image.Image) -> None:
    """Writes the image of a piece of work."""
    storage.write_bytes(work.uri, png(image), aside=work.partial)


def keep_reply(work: Work, reply: str, *, truncated: bool) -> None:
    """Writes the reply of a piece of work verbatim; `truncated` says whether it used all the tokens it was allowed.

    Raises `RequestError` for a reply that ends within its reasoning, or was truncated before it said anything: such a
    model has not answered, and has not answered wrongly either.
    """
    if answer(reply) is None or (truncated and not reply.strip()):
        raise RequestError(WITHIN_REASONING)
    storage.write_bytes(work.uri, json_bytes({"reply": reply}), aside=work.partial)


def token_limit_identity(max_new_tokens: int) -> dict[str, int]:
    """The token limit as part of a target's identity; empty for the default, which older results do not record."""
    return {} if max_new_tokens == MAX_NEW_TOKENS else {"max_new_tokens": max_new_tokens}


def batches(work: Sequence[Work], width: int) -> list[tuple[Work, ...]]:
    """Batches of up to `width` pieces; each batch is of one kind, and either all or none of it has a picture."""
    groups: dict[tuple[str, bool], list[Work]] = {}
    for piece in work:
        groups.setdefault((piece.kind, piece.picture is None), []).append(piece)
    return [tuple(group[start : start + width]) for group in groups.values() for start in range(0, len(group), width)]


def share_seconds(done: Sequence[Done], seconds: float) -> list[Done]:
    """The outcomes of a batch, with its seconds divided equally between the files that were made."""
    made = sum(not one.fault for one in done) or 1
    return [one if one.fault else replace(one, seconds=seconds / made) for one in done]
