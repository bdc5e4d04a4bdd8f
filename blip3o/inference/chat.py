"""Replies to conversations: how tokens are chosen, when a reply ends, and many replies written together.

A `ReplyBatch` has a fixed number of rows and reads prompts one by one, so a reply does not depend on what else is
written at the same time. A token that is drawn takes its random number from (seed, number of the token): the same seed
gives the same reply in any company.
"""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from blip3o.data.text.tokenizer import PAD, TURN_END, ChatTokenizer
from blip3o.errors import ConfigError
from blip3o.inference.widths import candidates
from blip3o.model.backbone import Backbone, Prefilled, Prompt
from blip3o.model.language.replies import ReplyCache
from blip3o.rng import torch_generator

logger = logging.getLogger(__name__)
FinishReason = Literal["stop", "length"]

MAX_REPLY_TOKENS = 512  # of a reply, by default: the cache's columns behind the prompt
_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what a character decodes to while some of its bytes are missing


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. A temperature of 0 is greedy: the most likely token, whatever `top_p` and `seed` are.

    Above, a token is drawn from the smallest set of most likely tokens that holds `top_p` of the probability (nucleus
    sampling, arXiv 1904.09751).
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def choose(self, logits_V: Tensor, number: int) -> int:
        """The token number `number` of a reply, from 0, given its logits."""
        if self.temperature == 0:
            return int(logits_V.argmax())
        probabilities, tokens = torch.softmax(logits_V.cpu().double() / self.temperature, -1).sort(
            descending=True, stable=True
        )
        below = probabilities.cumsum(-1)
        kept = int((below - probabilities < self.top_p).sum())  # those before which there was room; at least one
        drawn = torch.rand((), generator=torch_generator(self.seed, "token", number), dtype=torch.float64)
        place = torch.searchsorted(below[:kept], drawn * below[kept - 1], right=True)
        return int(tokens[min(int(place), kept - 1)])


GREEDY = Sampling()


class ReplyText:
    """Text that grows by tokens, in pieces of whole characters, up to but without the first of the `stop` texts."""

    def __init__(self, decode: Callable[[list[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode, self._stop = decode, [text for text in stop if text]
        self._ids: list[int] = []
        self._text = ""  # with what is held back
        self.sent = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain after one more token, and was not before."""
        self._ids.append(token)
        self._text = self._decode(self._ids)
        if ends := [at for text in self._stop if (at := self._text.find(text)) >= 0]:
            self.stopped = True
            self._text = self._text[: min(ends)]
            return self.finish()
        if self._text.endswith(_INCOMPLETE):
            return ""
        return self._send(self._text[: len(self._text) - self._held()])

    def finish(self) -> str:
        """What was held back, when no more tokens come."""
        return self._send(self._text)

    def _send(self, text: str) -> str:
        piece = text[len(self.sent) :]
        self.sent += piece
        return piece

    def _held(self) -> int:
        """Characters at the end that may be the start of a stop text."""
        most = max((len(text) - 1 for text in self._stop), default=0)
        for length in range(min(most, len(self._text)), 0, -1):
            if any(text.startswith(self._text[-length:]) for text in self._stop):
                return length
        return 0


@dataclass(kw_only=True)
class Reply:
    """One reply while it is written. `ids` has its tokens, without the one that ended it."""

    text: ReplyText
    max_tokens: int
    stop_ids: Collection[int]
    sampling: Sampling = GREEDY
    ids: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    def take(self, logits_V: Tensor) -> str:
        """Chooses the next token; returns the new text. Sets `finish_reason` if the reply is complete.

        Raises `FloatingPointError` for logits that are no numbers: any token would be as likely.
        """
        assert self.finish_reason is None, "the reply has ended"
        if not logits_V.isfinite().all():
            raise FloatingPointError("the logits of the next token are not finite")
        token = self.sampling.choose(logits_V, len(self.ids))
        if token in self.stop_ids:
            self.finish_reason = "stop"
            return self.text.finish()
        self.ids.append(token)
        piece = self.text.add(token)
        if self.text.stopped:
            self.finish_reason = "stop"
        elif len(self.ids) == self.max_tokens:
            self.finish_reason = "length"
            piece += self.text.finish()
        return piece


def new_reply(
    tokenizer: ChatTokenizer, *, max_tokens: int, sampling: Sampling = GREEDY, stop: Sequence[str] = ()
) -> Reply:
    """A reply of which nothing is written yet."""
    stop_ids = frozenset({tokenizer.ids[TURN_END], tokenizer.ids[PAD]})
    return Reply(text=ReplyText(tokenizer.decode, stop), max_tokens=max_tokens, stop_ids=stop_ids, sampling=sampling)


class ReplyBatch:
    """Replies that are written together, in `rows` rows."""

    def __init__(self, backbone: Backbone, *, rows: int, max_length: int, max_tokens: int = MAX_REPLY_TOKENS) -> None:
        """Prompts have `max_length` tokens with their padding; no reply has more than `max_tokens`."""
        blocks = -(
            -max_tokens // MAX_REPLY_TOKENS
        )  # a cache's size is part of the arithmetic: the same for most limits
        self._cache = ReplyCache(backbone, rows=rows, columns=max_length + blocks * MAX_REPLY_TOKENS)
        self._device = backbone.text.norm.weight.device
        self.replies: list[Reply | None] = [None] * rows

    @property
    def free(self) -> int | None:
        """A row that is free, if there is one."""
        return next((row for row, reply in enumerate(self.replies) if reply is None), None)

    @property
    def running(self) -> dict[int, Reply]:
        """The replies that are not complete, by row."""
        return {row: reply for row, reply in enumerate(self.replies) if reply is not None}

    def put(self, row: int, prompt: Prompt, reply: Reply) -> str:
        """Reads a prompt [1, L] in one pass, and starts its reply; returns the text of the first token."""
        piece = reply.take(self._cache.put(row, prompt))
        self.replies[row] = None if reply.finish_reason else reply
        return piece

    def forward(self) -> dict[int, Tensor]:
        """The logits [V] of the next token of every running reply, by row, in one pass."""
        tokens = [0 if reply is None else reply.ids[-1] for reply in self.replies]
        active = [reply is not None for reply in self.replies]
        logits = self._cache.step(torch.tensor(tokens, device=self._device), torch.tensor(active, device=self._device))
        return {row: logits[row] for row in self.running}

    def take(self, row: int, logits_V: Tensor) -> str:
        """Adds the next token to a row's reply, given its logits; returns the new text. Frees the row if it is done."""
        reply = self.replies[row]
        assert reply is not None, f"row {row} has no reply"
        piece = reply.take(logits_V)
        if reply.finish_reason:
            self.remove(row)
        return piece

    def step(self) -> dict[int, str]:
        """Adds a token to every running reply in one pass; returns the new text by row."""
        return {row: self.take(row, logits) for row, logits in self.forward().items()}

    def try_step(self, prompt: Prompt, read: Prefilled, tokens_W: Tensor, active_W: Tensor) -> Tensor:
        """The logits [W, V] after these tokens, with the same prompt before each of the active ones."""
        for row in active_W.nonzero().flatten().tolist():
            self._cache.place(row, prompt, read)
        return self._cache.step(tokens_W, active_W)

    def remove(self, row: int) -> None:
        """Frees a row."""
        self.replies[row] = None


@torch.inference_mode()
def reply_rows(backbone: Backbone, prompt: Prompt, largest: int) -> int:
    """The most rows, up to `largest`, at which a token's logits depend neither on its row nor on the other rows.

    Tried after a prompt [1, L], with another token in each row: in order, in reverse, and one row by itself.
    """
    read = backbone.prefill(prompt)
    for rows in reversed(candidates(largest)):
        batch = ReplyBatch(backbone, rows=rows, max_length=prompt.input_ids.shape[1])
        tokens = torch.arange(rows, device=prompt.input_ids.device)
        active = torch.ones_like(tokens, dtype=torch.bool)
        expected = batch.try_step(prompt, read, tokens, active)
        reverse = batch.try_step(prompt, read, tokens.flip(0), active)
        alone = batch.try_step(prompt, read, tokens, tokens == rows // 2)[rows // 2]
        if torch.equal(reverse.flip(0), expected) and torch.equal(alone, expected[rows // 2]):
            return rows
        logger.warning("chat: of %d rows, one's bits depend on its place: fewer are used on this machine", rows)
    raise ConfigError("a token of a reply has other bits at every run: use another precision")


def write_replies(batch: ReplyBatch, prompts: Iterator[tuple[Prompt, Reply]]) -> Iterator[str]:
    """Writes the replies to prompts, as many together as the batch has rows; yields text as it comes.

    The pieces say nothing about which reply they belong to: that is for one prompt, or for callers that wait.
    """
    while True:
        while (row := batch.free) is not None and (following := next(prompts, None)):
            yield batch.put(row, *following)
        if not batch.running:
            return
        yield from batch.step().values()
