r"""Conversations to token ids: one function for training and inference, so the two cannot differ.

In ChatML, a turn is `<|im_start|>role\ntext<|im_end|>\n`. An image stands at the head of the first user turn as
`<|vision_start|>`, one `<|image_pad|>` per language token, `<|vision_end|>`. A request to draw ends with an open
assistant turn and `[IMG]`; the learnable queries follow it. (Upstream closes that turn in training, not in inference.)

Other families write turns in another frame. Each frame gives the ids of the family's own template, token by token
(tests/data/text/test_chat_templates.py), for texts that do not begin or end with white space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from blip3o.config.recipe import TemplateStyle
from blip3o.data.text.tokenizer import (
    GENERATE,
    IMAGE_PAD,
    TURN_END,
    TURN_START,
    VISION_END,
    VISION_START,
    ChatTokenizer,
)

IGNORE = -100


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message: `role` is system, user or assistant."""

    role: str
    text: str


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids and their labels (the id where it is supervised, `IGNORE` elsewhere), of equal length.

    `branches`, if not empty, is as long: 0 in a common beginning, and from 1 on in continuations of it that stand one
    after another but see only the beginning and themselves.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    branches: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Frame:
    """How a family writes turns: runs of special tokens and text, in which `{role}` stands for the role.

    `begin` comes before everything, `opening` before a turn's text, `end` after it (and is supervised where the text
    is), `rest` after that. `thought` comes between the opening and the text of a reply to the last user turn.
    `preamble` is put before the system's words, and with it there is a system turn even if it has none. A text is
    `stripped` of white space at its ends where the family does so.
    """

    begin: tuple[str, ...] = ()
    opening: tuple[str, ...] = (TURN_START, "{role}\n")
    end: tuple[str, ...] = (TURN_END,)
    rest: tuple[str, ...] = ("\n",)
    thought: tuple[str, ...] = ()
    preamble: str = ""
    stripped: bool = False


FRAMES: dict[TemplateStyle, Frame] = {
    "chatml": Frame(),
    "qwen3": Frame(thought=("<think>", "\n\n", "</think>", "\n\n")),
    "llama3": Frame(
        begin=("<|begin_of_text|>",),
        opening=("<|start_header_id|>", "{role}", "<|end_header_id|>", "\n\n"),
        end=("<|eot_id|>",),
        rest=(),
        preamble="Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n",
        stripped=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class ChatTemplate:
    """The fixed words of a conversation, how many tokens an image takes, and the family's frame.

    Every method raises `ConfigError` if a token of the frame is missing from the tokenizer.
    """

    system: str
    instruction: str
    image_tokens: int
    style: TemplateStyle = "chatml"

    @property
    def frame(self) -> Frame:
        """How turns are written."""
        return FRAMES[self.style]

    def generation_request(self, tokenizer: ChatTokenizer, caption: str) -> list[int]:
        """Ids of a request to draw `caption`, up to and including `[IMG]`."""
        turns = [Turn(role="user", text=self.instruction.format(caption=caption))]
        return [*self.chat(tokenizer, turns, with_image=False), tokenizer.ids[GENERATE]]

    def chat(self, tokenizer: ChatTokenizer, turns: list[Turn], *, with_image: bool) -> list[int]:
        """Ids of a conversation that waits for the assistant's reply."""
        encoded = self.conversation(tokenizer, turns, with_image=with_image)
        opening = self._write(tokenizer, self.frame.opening, "assistant")
        return [*encoded.ids, *opening, *self._write(tokenizer, self.frame.thought)]

    def form(self, tokenizer: ChatTokenizer, caption: str, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """A request to draw `caption`, then a form about it: question after question, and no answers between them.

        Each question's last token is supervised with the first token of its answer. So just the questions, as queries
        after a request to draw, hold the answers in their hidden states.
        """
        ids = self.generation_request(tokenizer, caption)
        labels = [IGNORE] * len(ids)
        expected = IGNORE
        for question, answer in pairs:
            asked = tokenizer.encode(question)
            ids += asked
            labels += [expected, *[IGNORE] * (len(asked) - 1)]
            expected = tokenizer.encode(answer)[0]
        return Encoded(ids=(*ids, tokenizer.ids[TURN_END]), labels=(*labels, expected))

    def side_by_side(self, tokenizer: ChatTokenizer, pairs: Sequence[tuple[str, str]]) -> Encoded:
        """Questions and answers about one image, each a branch: with what is before it, a conversation by itself."""
        talks = [
            self.conversation(
                tokenizer, [Turn(role="user", text=question), Turn(role="assistant", text=answer)], with_image=True
            )
            for question, answer in pairs
        ]
        stem = talks[0].ids.index(tokenizer.ids[VISION_END]) + 1
        ids, labels, branches = list(talks[0].ids[:stem]), list(talks[0].labels[:stem]), [0] * stem
        for number, talk in enumerate(talks, start=1):
            ids += talk.ids[stem:]
            labels += talk.labels[stem:]
            branches += [number] * (len(talk.ids) - stem)
        return Encoded(ids=tuple(ids), labels=tuple(labels), branches=tuple(branches))

    def conversation(self, tokenizer: ChatTokenizer, turns: list[Turn], *, with_image: bool) -> Encoded:
        """Ids and labels of whole turns: the assistant's text and its end are supervised, all else is not."""
        frame = self.frame
        ids = self._write(tokenizer, frame.begin)
        labels = [IGNORE] * len(ids)
        turns = self._framed(turns)
        users = [place for place, turn in enumerate(turns) if turn.role == "user"]
        for place, turn in enumerate(turns):
            opening = self._write(tokenizer, frame.opening, turn.role)
            if with_image and users and place == users[0]:
                opening += self._image(tokenizer)
            if turn.role == "assistant" and place == len(turns) - 1 and users:
                opening += self._write(tokenizer, frame.thought)
            said = tokenizer.encode(turn.text) + self._write(tokenizer, frame.end)
            rest = self._write(tokenizer, frame.rest)
            ids += opening + said + rest
            labels += [IGNORE] * len(opening)
            labels += said if turn.role == "assistant" else [IGNORE] * len(said)
            labels += [IGNORE] * len(rest)
        return Encoded(ids=tuple(ids), labels=tuple(labels))

    def _framed(self, turns: list[Turn]) -> list[Turn]:
        """The turns as the family writes their texts, led by a system turn: the conversation's own, else the default.

        A system turn in any other place stays where it is, as in the families' own templates.
        """
        own = bool(turns) and turns[0].role == "system"
        default = [Turn(role="system", text=self.system)] if self.system or self.frame.preamble else []
        told = [*turns] if own else [*default, *turns]
        if self.frame.stripped:
            told = [Turn(role=turn.role, text=turn.text.strip()) for turn in told]
        if self.frame.preamble:
            told[0] = Turn(role="system", text=self.frame.preamble + told[0].text)
        return told

    def _write(self, tokenizer: ChatTokenizer, pieces: tuple[str, ...], role: str = "") -> list[int]:
        ids: list[int] = []
        for piece in pieces:
            ids += [tokenizer.special(piece)] if piece.startswith("<") else tokenizer.encode(piece.format(role=role))
        return ids

    def _image(self, tokenizer: ChatTokenizer) -> list[int]:
        return [
            tokenizer.ids[VISION_START],
            *[tokenizer.ids[IMAGE_PAD]] * self.image_tokens,
            tokenizer.ids[VISION_END],
        ]
