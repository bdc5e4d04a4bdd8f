"""Conversations about one picture, as LLaVA (`from`, `value`) and OpenAI's API (`role`, `content`) write them.

Our template shows the image at the head of the first question, wherever its mark stood. A leading system turn is not
trained on: the template has its own.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from blip3o.data.shards.damage import DamagedSampleError

IMAGE_MARK = "<image>"
_USER, _ASSISTANT, _SYSTEM = "user", "assistant", "system"
_ROLES = {
    **dict.fromkeys(("human", "user"), _USER),
    **dict.fromkeys(("gpt", "assistant", "model", "bot", "chatgpt", "bing", "bard"), _ASSISTANT),
    **dict.fromkeys(("system", "developer"), _SYSTEM),
}
_SPEAKER_KEYS = ("from", "role")
_TEXT_KEYS = ("value", "content", "text")
_IMAGE_KEYS = ("image_url", "image", "path", "url", "source")
_TEXT_PARTS = {"text", "input_text", "output_text"}
_IMAGE_PARTS = {"image", "image_url", "input_image"}


@dataclass(frozen=True, slots=True)
class _Turn:
    """One turn: how messages call it, its role, its text, and how many image parts it has."""

    title: str
    role: str
    text: str
    images: int


def conversation_pairs(conversations: object) -> list[tuple[str, str]]:
    """Questions and answers of a conversation in order. Questions lose the image's mark, answers stay as they are.

    Raises `DamagedSampleError` if it is not a list of turns that alternate, question first (a system turn may precede
    it) and answer last, if a turn says nothing, or if more than one image is shown.
    """
    turns = [_turn(number, turn) for number, turn in enumerate(_listed(conversations), start=1)]
    if turns and turns[0].role == _SYSTEM:
        turns = turns[1:]
    _check_order(turns)
    if sum(turn.text.count(IMAGE_MARK) + turn.images for turn in turns[::2]) > 1:
        raise DamagedSampleError(f"conversations shows more than one {IMAGE_MARK}, a sample has one")
    questions = [_said(turn, turn.text.replace(IMAGE_MARK, "")) for turn in turns[::2]]
    return list(zip(questions, [_said(turn, turn.text) for turn in turns[1::2]], strict=True))


def image_sources(conversations: object) -> list[object]:
    """What the image parts of a conversation name as their picture (a path, a URL, an object), in order."""
    found = []
    for part in _parts(conversations):
        if part.get("type") in _IMAGE_PARTS:
            found += [part[key] for key in _IMAGE_KEYS if part.get(key)][:1]
    return found


def without_sources(conversations: list[Any]) -> list[Any]:
    """A conversation whose image parts only say that a picture stands there."""

    def bare(part: object) -> object:
        return {"type": "image"} if isinstance(part, dict) and part.get("type") in _IMAGE_PARTS else part

    def cleared(turn: object) -> object:
        if not isinstance(turn, dict):
            return turn
        return {
            key: [bare(part) for part in value] if isinstance(value, list) else value for key, value in turn.items()
        }

    return [cleared(turn) for turn in conversations]


def _parts(conversations: object) -> Iterator[dict[str, Any]]:
    for turn in conversations if isinstance(conversations, list) else []:
        for value in turn.values() if isinstance(turn, dict) else []:
            yield from (part for part in (value if isinstance(value, list) else []) if isinstance(part, dict))


def _listed(conversations: object) -> list[object]:
    if isinstance(conversations, list) and conversations:
        return conversations
    found = "it is empty" if isinstance(conversations, list) else f"it is a {type(conversations).__name__}"
    raise DamagedSampleError(f"conversations is not a list of questions, each with its answer: {found}")


def _turn(number: int, turn: object) -> _Turn:
    if not isinstance(turn, dict):
        raise DamagedSampleError(f"conversations has a turn without a role: turn {number} is a {type(turn).__name__}")
    name = next((turn[key] for key in _SPEAKER_KEYS if key in turn), None)
    if name is None:
        keys = ", ".join(map(str, turn)) or "nothing"
        raise DamagedSampleError(
            f"conversations has a turn without a role: turn {number} has {keys}, no 'from' or 'role'"
        )
    title = f"turn {number} ('{name}')"
    role = _ROLES.get(str(name).strip().lower(), "")
    if not role:
        raise DamagedSampleError(f"conversations has an unknown role: turn {number} is '{name}'")
    if role == _SYSTEM and number == 1:
        return _Turn(title, role, "", 0)
    texts, images = _content(title, next((turn[key] for key in _TEXT_KEYS if key in turn), None))
    if images and role == _ASSISTANT:
        raise DamagedSampleError(f"conversations shows a picture in an answer: {title}")
    return _Turn(title, role, texts, images)


def _content(title: str, value: object) -> tuple[str, int]:
    """The text of a turn, and how many image parts it has."""
    if isinstance(value, list):
        parts = [_part(title, part) for part in value]
        return "\n".join(text for text in parts if text is not None), parts.count(None)
    return _plain(title, value), 0


def _part(title: str, part: object) -> str | None:
    """The text of a part, None for a picture."""
    if not isinstance(part, dict):
        return _plain(title, part)
    kind = part.get("type")
    if kind in _IMAGE_PARTS:
        return None
    if kind in _TEXT_PARTS or (kind is None and "text" in part):
        return _plain(title, part.get("text"))
    raise DamagedSampleError(f"conversations has a part that is neither text nor image: {title} has '{kind}'")


def _plain(title: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise DamagedSampleError(f"conversations has a turn that is no text: {title} holds a {type(value).__name__}")


def _check_order(turns: list[_Turn]) -> None:
    for number, turn in enumerate(turns):
        wanted, what = ((_USER, "a question"), (_ASSISTANT, "an answer"))[number % 2]
        if turn.role != wanted:
            raise DamagedSampleError(
                f"conversations does not alternate between human and gpt, human first: {turn.title} is where {what} "
                "should be"
            )
    if len(turns) % 2 or not turns:
        found = f"{turns[-1].title} is the last" if turns else "there is only a system turn"
        raise DamagedSampleError(f"conversations is not a list of questions, each with its answer: {found}")


def _said(turn: _Turn, text: str) -> str:
    said = text.strip()
    if not said:
        raise DamagedSampleError(f"conversations has a turn that says nothing: {turn.title}")
    return said
