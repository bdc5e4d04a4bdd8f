"""Conversations as LLaVA writes them: a list of `{"from": "human" | "gpt", "value": text}`, `<image>` in a question.

Our template shows the image at the head of the first question, wherever its mark stood.
"""

from blip3o.data.damage import DamagedSampleError

IMAGE_MARK = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def conversation_pairs(conversations: object) -> list[tuple[str, str]]:
    """Questions and answers of a conversation in order, without the image mark.

    Raises `DamagedSampleError` if it is not a list of turns that alternate, question first and answer last, if a turn
    says nothing, or if more than one image is shown.
    """
    if not isinstance(conversations, list) or not conversations or len(conversations) % 2:
        raise DamagedSampleError("conversations is not a list of questions, each with its answer")
    if str(conversations).count(IMAGE_MARK) > 1:
        raise DamagedSampleError(f"conversations shows more than one {IMAGE_MARK}, a sample has one")
    texts = [_text(turn, ("user", "assistant")[number % 2]) for number, turn in enumerate(conversations)]
    return list(zip(texts[::2], texts[1::2], strict=True))


def _text(turn: object, role: str) -> str:
    if not isinstance(turn, dict) or _ROLES.get(str(turn.get("from"))) != role:
        raise DamagedSampleError("conversations does not alternate between human and gpt, human first")
    value = turn.get("value")
    said = value.replace(IMAGE_MARK, "").strip() if isinstance(value, str) else ""
    if not said:
        raise DamagedSampleError("conversations has a turn that says nothing")
    return said
