"""Conversations, in a thread of their own: neither images nor replies wait for each other.

Replies are written together, one token at a time. Between two tokens the thread drops replies that were cancelled, and
reads at most one prompt. So a token waits for at most one prompt and one pass of the batch, and a new conversation,
once a row is free, for one pass.
"""

import functools
import secrets
import time
from collections.abc import Callable

from torch import Tensor

from blip3o.inference.chat import Reply, ReplyBatch, Sampling, new_reply
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.fairness import FairQueue
from serve.engine.requests import Chat, Requests, attempt
from serve.engine.stage import Stage
from serve.protocol import ChatDelta, ChatReply

_RANDOM_SEEDS = 2**63


class ChatStage(Stage):
    """Answers conversations, the next one by a fair queue."""

    name = "chat"

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests) -> None:
        super().__init__(pipeline, requests)
        self._batch: ReplyBatch | None = None  # a replica that only draws needs no cache
        self._rows: dict[int, Chat] = {}
        # Guarded by `requests.changed`.
        self._queue = FairQueue()
        self._seconds = 0.0
        self.running = 0

    def submit(self, chat: Chat) -> None:
        """Queues a conversation. The caller holds the lock."""
        request = chat.request
        self._queue = self._queue.add(
            chat.number, owner=request.owner, priority=request.priority, cost=request.max_tokens
        )

    @property
    def waiting(self) -> int:
        """Conversations whose prompt was not read. The caller holds the lock."""
        self._drop_queued()
        return self._queue.rows

    def admits(self, owner: str, *, places: int) -> bool:
        """Whether an owner's conversation may wait, if `places` may. The caller holds the lock."""
        return self._queue.admits(owner, 1, free=places - self.waiting, places=places)

    def seconds_ahead(self) -> float:
        """About how long a conversation takes that comes now. The caller holds the lock."""
        return (self.waiting / self._pipeline.reply_rows + 1) * self._seconds

    @property
    def seconds_left(self) -> float:
        """About how long until all conversations that are here have ended. The caller holds the lock."""
        return (self.waiting + self.running) / self._pipeline.reply_rows * self._seconds

    def _drop_queued(self) -> None:
        for number in self._queue.requests - self._requests.chats.keys():
            self._queue = self._queue.without(number)

    # The thread runs everything below.

    def has_work(self) -> bool:
        """Whether there is a conversation."""
        self._drop_queued()
        return bool(self._queue.entries or self._rows)

    def work(self) -> None:
        """Reads one prompt if a row is free, and adds a token to every reply."""
        batch = self._batch = self._batch or self._pipeline.reply_batch()
        self._drop_ended(batch)
        self._admit(batch)
        self._step(batch)

    def _drop_ended(self, batch: ReplyBatch) -> None:
        with self._requests.changed:
            ended = [row for row, chat in self._rows.items() if chat.number not in self._requests.chats]
        for row in ended:
            self._free(batch, row)

    def _free(self, batch: ReplyBatch, row: int) -> None:
        batch.remove(row)
        with self._requests.changed:
            del self._rows[row]
            self.running = len(self._rows)

    def _admit(self, batch: ReplyBatch) -> None:
        row = batch.free
        with self._requests.changed:
            self._drop_queued()
            entry = self._queue.next()
            if row is None or entry is None:
                return
            self._queue = self._queue.take(entry)
            chat = self._rows[row] = self._requests.chats[entry.request]
            chat.admitted = self._requests.clock()
            self.running = len(self._rows)
        self._requests.admitted(chat)
        self._attempt(batch, row, lambda: self._start(batch, row, chat))

    def _attempt(self, batch: ReplyBatch, row: int, action: Callable[[], None]) -> None:
        """Does something for one reply; an error ends this one."""
        number = self._rows[row].number
        error = attempt(action)
        if error is not None:
            self._requests.fail(number, error)
            if row in self._rows:
                self._free(batch, row)

    def _start(self, batch: ReplyBatch, row: int, chat: Chat) -> None:
        request = chat.request
        seed = secrets.randbelow(_RANDOM_SEEDS) if request.seed is None else request.seed
        sampling = Sampling(temperature=request.temperature, top_p=request.top_p, seed=seed)
        reply = new_reply(self._pipeline.tokenizer, max_tokens=request.max_tokens, sampling=sampling, stop=request.stop)
        began = time.perf_counter()
        piece = batch.put(row, self._pipeline.chat_prompt(request.turns, request.images), reply)
        self._requests.observe("blip3o_stage_seconds", time.perf_counter() - began, "prefill")
        self._deliver(batch, row, reply, piece)

    def _step(self, batch: ReplyBatch) -> None:
        running = batch.running
        if not running:
            return
        began = time.perf_counter()
        logits: dict[int, Tensor] = {}
        error = attempt(lambda: logits.update(batch.forward()))
        if error is not None:  # no reply is more at fault than another
            for row in running:
                self._requests.fail(self._rows[row].number, error)
                self._free(batch, row)
            return
        pieces: dict[int, str] = {}
        for row in running:
            self._attempt(batch, row, functools.partial(self._take, batch, row, logits[row], pieces))
        self._requests.observe("blip3o_stage_seconds", time.perf_counter() - began, self.name)
        for row, piece in pieces.items():
            self._attempt(batch, row, functools.partial(self._deliver, batch, row, running[row], piece))

    @staticmethod
    def _take(batch: ReplyBatch, row: int, logits_V: Tensor, pieces: dict[int, str]) -> None:
        pieces[row] = batch.take(row, logits_V)

    def _deliver(self, batch: ReplyBatch, row: int, reply: Reply, piece: str) -> None:
        chat = self._rows[row]
        with self._requests.changed:
            if piece and chat.on_event and chat.number in self._requests.chats:
                chat.on_event(ChatDelta(text=piece))
        if reply.finish_reason is None:
            return
        self._free(batch, row)
        with self._requests.changed:
            self._seconds = self._requests.clock() - chat.admitted
            self._requests.count("blip3o_tokens_total", "prompt", by=chat.prompt_tokens)
            self._requests.count("blip3o_tokens_total", "reply", by=len(reply.ids))
            self._requests.resolve(
                chat.number,
                ChatReply(
                    text=reply.text.sent,
                    prompt_tokens=chat.prompt_tokens,
                    reply_tokens=len(reply.ids),
                    finish_reason=reply.finish_reason,
                ),
            )
