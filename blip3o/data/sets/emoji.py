"""The emoji set: every emoji that is neither flag nor component, in two styles, with its published words.

Pictures: `@lobehub/fluent-emoji-3d` (Microsoft's Fluent Emoji, MIT) as style "3D", 256 px WebP, and
`emoji-datasource-google` (Google's Noto Emoji, Apache-2.0) as style "flat", 64 px PNG. Words: `emojibase-data` (MIT).
Only the default skin tone is kept, so that people do not outnumber the rest. About a tenth of the *concepts* is held
out, the same ones in both styles and for every seed. Byte-equal pictures of several concepts within a style are kept
once.
"""

import functools
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import Image

from blip3o.data.sets import npm, writer
from blip3o.data.sets.emoji_text import STYLES, Concept, caption_questions, captions, questions
from blip3o.data.sets.npm import NpmPackage
from blip3o.errors import DataError
from blip3o.rng import derive_seed, numpy_generator

WORDS = NpmPackage(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)
PICTURES = {
    "3D": NpmPackage(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
    ),
    "flat": NpmPackage(
        name="emoji-datasource-google",
        version="16.0.0",
        sha256="fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
    ),
}
_FOLDERS = {"3D": "package/assets/", "flat": "package/img/google/64/"}
_WORDS_FILES = {"data": "package/en/data.json", "messages": "package/en/messages.json"}
_LEFT_OUT_GROUPS = {"component", "flags"}
_HELDOUT_ONE_IN = 10
_TONES = {"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"}
_PRESENTATION = "FE0F"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One published picture: its concept, its style, its full code points as published, and the encoded file."""

    concept: Concept
    style: str
    codepoint: str
    ext: str
    data: bytes


def concept_code(codepoint: str) -> str:
    """The code points that carry the meaning: upper case, without skin tones and the variation selector FE0F."""
    return "-".join(part for part in codepoint.upper().split("-") if part != _PRESENTATION and part not in _TONES)


def has_skin_tone(codepoint: str) -> bool:
    """Whether a sequence of code points asks for a skin tone other than the default."""
    return not _TONES.isdisjoint(codepoint.upper().split("-"))


def split_of(code: str) -> str:
    """`train` or `heldout`, by nothing but the concept's code, so that both styles and all seeds agree."""
    return "heldout" if derive_seed("emoji", "split", code) % _HELDOUT_ONE_IN == 0 else "train"


@functools.lru_cache(maxsize=1)
def concepts() -> dict[str, Concept]:
    """Every concept of the set by its code, in the publisher's order. Errors as `npm.fetch`."""
    names = set(_WORDS_FILES.values())
    files = npm.read_members(npm.fetch(WORDS), names.__contains__)
    rows, messages = (json.loads(files[_WORDS_FILES[kind]]) for kind in ("data", "messages"))
    groups = {g["order"]: g["message"] for g in messages["groups"] if g["key"] not in _LEFT_OUT_GROUPS}
    kept = sorted((row for row in rows if row.get("group") in groups), key=lambda row: row["order"])
    return {(c := _concept(row, groups[row["group"]])).code: c for row in kept}


def _concept(row: dict[str, Any], group: str) -> Concept:
    keywords = tuple(row.get("tags", ()))
    return Concept(code=concept_code(row["hexcode"]), label=row["label"], group=group, keywords=keywords)


def pictures() -> list[Picture]:
    """All pictures of the set, as published, by style and concept. Errors as `npm.fetch`."""
    return [picture for style in STYLES for picture in _pictures_of(style)]


def _pictures_of(style: str) -> list[Picture]:
    folder = _FOLDERS[style]
    files = npm.read_members(npm.fetch(PICTURES[style]), lambda name: name.startswith(folder))
    by_code: dict[str, Picture] = {}
    for name, data in sorted(files.items()):
        codepoint, _, ext = name.removeprefix(folder).partition(".")
        concept = concepts().get(concept_code(codepoint))
        if concept is not None and not has_skin_tone(codepoint):
            picture = Picture(concept=concept, style=style, codepoint=codepoint.upper(), ext=ext, data=data)
            by_code.setdefault(concept.code, picture)  # some are published twice, with and without FE0F
    return _without_twins(list(by_code.values()))


def _without_twins(found: list[Picture]) -> list[Picture]:
    """One picture of each content: where a style draws several concepts alike, the one with the shortest label."""
    plainest: dict[bytes, Picture] = {}
    for picture in sorted(found, key=lambda p: (len(p.concept.label), p.concept.code)):
        plainest.setdefault(picture.data, picture)
    return sorted(plainest.values(), key=lambda p: p.concept.code)


def samples(*, size: int | None = None, seed: int = 0) -> Iterator[writer.Sample]:
    """The whole set in a shuffled order; `size` is the side in pixels, None keeps the files as they were published.

    `seed` draws the order and the questions; the pictures, captions and the split do not depend on it.
    Published files have an alpha channel; resized ones are PNG, RGB, on white.
    """
    return _samples(pictures(), size=size, seed=seed)


def _samples(found: list[Picture], *, size: int | None, seed: int) -> Iterator[writer.Sample]:
    groups = sorted({concept.group for concept in concepts().values()})
    by_split: dict[str, list[Concept]] = {"train": [], "heldout": []}
    for code in sorted({picture.concept.code for picture in found}):
        by_split[split_of(code)].append(concepts()[code])
    for picture in sorted(found, key=lambda p: derive_seed(seed, "emoji", "order", _key(p))):
        yield _sample(picture, groups=groups, others=by_split[split_of(picture.concept.code)], size=size, seed=seed)


def _key(picture: Picture) -> str:
    return f"{picture.style}-{picture.concept.code}".lower()


def _sample(
    picture: Picture, *, groups: list[str], others: list[Concept], size: int | None, seed: int
) -> writer.Sample:
    concept, style, key = picture.concept, picture.style, _key(picture)
    rng = numpy_generator(seed, "emoji", "qa", key)
    record = {
        "source": "emoji",
        "concept": concept.code,
        "split": split_of(concept.code),
        "captions": captions(concept, style),
        "qa": questions(concept, style, others=others, groups=groups, rng=rng),
        "caption_qa": caption_questions(concept),
        "label": concept.label,
        "group": concept.group,
        "keywords": list(concept.keywords),
        "codepoint": picture.codepoint,
        "style": style,
    }
    image, ext = (picture.data, picture.ext) if size is None else (_resized(picture.data, size), "png")
    return writer.Sample(key=key, image=image, ext=ext, record=record)


def _resized(data: bytes, size: int) -> bytes:
    """The picture on a white square of `size` pixels, as PNG. The few pictures that are not square are centred."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    side = max(picture.size)
    square = Image.new("RGBA", (side, side), "white")
    square.alpha_composite(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    buffer = io.BytesIO()
    flat = square.convert("RGB").resize((size, size), Image.Resampling.LANCZOS)
    flat.save(buffer, "PNG", compress_level=3)  # a third faster to build than the default, and 9 % larger
    return buffer.getvalue()


def build_emoji(
    out: str,
    *,
    size: int | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    on_progress: writer.Progress | None = None,
) -> writer.SetSummary:
    """Writes the set below the URI `out`, unless it is already there, complete and with the same settings.

    `size` in pixels (None: as published), `seed` as in `samples`; `on_progress(done, total)` after each sample. Raises
    `ServiceError` (no npm, no network), `DataError` (a changed package, a set of other settings), `StorageError`.
    """
    if size is not None and size < 1:
        raise DataError(f"size={size}: pictures need at least 1 pixel")
    settings = {"set": "emoji", "size": size, "seed": seed, "samples_per_shard": samples_per_shard}
    there = writer.completed(out, settings)
    if there is not None:
        return there
    found = pictures()
    stream = _samples(found, size=size, seed=seed)
    return writer.write_set(
        out, stream, settings=settings, total=len(found), samples_per_shard=samples_per_shard, on_progress=on_progress
    )
