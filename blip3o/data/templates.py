r"""Conversations to token ids: ChatML, one function for training and inference, so the two cannot differ.

A turn is `<|im_start|>role\ntext<|im_end|>\n`. An image stands at the head of the first user turn as
`<|vision_start|>`, one `<|image_pad|>` per language token, `<|vision_end|>`. A request to draw ends with an open
assistant turn and `[IMG]`; the learnable queries follow it. (Upstream closes that turn in training, not in inference.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blip3o.data.tokenizer import GENERATE, IMAGE_PAD, TURN_END, TURN_START, VISION_END, VISION_START, ChatTokenizer

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message: `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids and their labels (the id where it is supervised, `IGNORE` elsewhere), of equal length."""

    ids: tuple[int, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The fixed words of a conversation, and how many tokens an image takes."""

    system: str
    instruction: str
    image_tokens: int

    def draw(self, tokenizer: ChatTokenizer, caption: str) -> list[int]:
        """Ids of a request to draw `caption`, up to and including `[IMG]`."""
        turns = [Turn(role="user", text=self.instruction.format(caption=caption))]
        return [*self.chat(tokenizer, turns, with_image=False), tokenizer.ids[GENERATE]]

    def chat(self, tokenizer: ChatTokenizer, turns: list[Turn], *, with_image: bool) -> list[int]:
        """Ids of a conversation that waits for the assistant's reply."""
        encoded = self.conversation(tokenizer, turns, with_image=with_image)
        return [*encoded.ids, *self._open(tokenizer, "assistant")]

    def form(self, tokenizer: ChatTokenizer, caption: str, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """A request to draw `caption`, then a form about it: question after question, and no answers between them.

        Each question's last token is supervised with the first token of its answer. So the questions alone, as queries
        after a request to draw, hold the answers in their hidden states.
        """
        ids = self.draw(tokenizer, caption)
        labels = [IGNORE] * len(ids)
        expected = IGNORE
        for question, answer in pairs:
            asked = tokenizer.encode(question)
            ids += asked
            labels += [expected, *[IGNORE] * (len(asked) - 1)]
            expected = tokenizer.encode(answer)[0]
        return Encoded(ids=(*ids, tokenizer.ids[TURN_END]), labels=(*labels, expected))

    def conversation(self, tokenizer: ChatTokenizer, turns: list[Turn], *, with_image: bool) -> Encoded:
        """Ids and labels of whole turns: assistant text and its `<|im_end|>` are supervised, all else is not."""
        ids: list[int] = []
        labels: list[int] = []
        head = [Turn(role="system", text=self.system)] if self.system else []
        show = with_image
        for turn in head + turns:
            opening = self._open(tokenizer, turn.role)
            if show and turn.role == "user":
                opening += self._image(tokenizer)
                show = False
            text = tokenizer.encode(turn.text)
            closing = [tokenizer.ids[TURN_END]]
            supervised = turn.role == "assistant"
            newline = tokenizer.encode("\n")
            ids += opening + text + closing + newline
            labels += [IGNORE] * len(opening)
            labels += text + closing if supervised else [IGNORE] * (len(text) + 1)
            labels += [IGNORE] * len(newline)
        return Encoded(ids=tuple(ids), labels=tuple(labels))

    def _open(self, tokenizer: ChatTokenizer, role: str) -> list[int]:
        return [tokenizer.ids[TURN_START], *tokenizer.encode(f"{role}\n")]

    def _image(self, tokenizer: ChatTokenizer) -> list[int]:
        return [
            tokenizer.ids[VISION_START],
            *[tokenizer.ids[IMAGE_PAD]] * self.image_tokens,
            tokenizer.ids[VISION_END],
        ]
