"""Prompts, in a thread of their own: the query states of waiting requests, read together or found in a cache."""

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.requests import Generation, Requests
from serve.engine.stage import Stage

Prompt = tuple[int, ...]


class ConditionCache:
    """Query states [N, H] by the bundle and the prompt's tokens; the least recently used leave first.

    A prompt's states are a function of both, so an image has the same bytes with the cache and without.
    """

    def __init__(self, *, most_bytes: int) -> None:
        """Holds at most so many bytes of states; 0 holds none."""
        self._most, self._entries = most_bytes, OrderedDict[tuple[str, Prompt], Tensor]()
        self.bytes = 0

    def get(self, bundle: str, prompt: Prompt) -> Tensor | None:
        """The states, if they are here."""
        found = self._entries.get((bundle, prompt))
        if found is not None:
            self._entries.move_to_end((bundle, prompt))
        return found

    def put(self, bundle: str, prompt: Prompt, states: Tensor) -> None:
        """Keeps states [N, H], and drops others if there is no room."""
        assert (bundle, prompt) not in self._entries, "the states are here already"
        if states.nbytes > self._most:
            return
        self._entries[bundle, prompt] = states
        self.bytes += states.nbytes
        while self.bytes > self._most:
            _, dropped = self._entries.popitem(last=False)
            self.bytes -= dropped.nbytes


class ConditionStage(Stage):
    """Reads the prompts of requests, as many in a pass as a batch has rows, in the order in which they get slots."""

    name = "condition"

    def __init__(
        self,
        pipeline: Blip3oPipeline,
        requests: Requests,
        order: Callable[[], list[int]],
        *,
        cache_bytes: int,
    ) -> None:
        """`order` gives the numbers of the waiting requests; it is called with the lock held."""
        super().__init__(pipeline, requests)
        self._order, self._cache = order, ConditionCache(most_bytes=cache_bytes)

    def has_work(self) -> bool:
        """Whether a prompt was not read."""
        return any(generation.states is None for generation in self._requests.generations.values())

    def work(self) -> None:
        """Reads up to a batch of prompts in one pass."""
        with self._requests.changed:
            waiting = [self._requests.generations[number] for number in self._order()]
            unread = [generation for generation in waiting if generation.states is None]
        self._requests.batch_then_single(unread[: self._pipeline.batch_size], self._read)

    def _read(self, generations: Sequence[Generation]) -> None:
        """Fills in the states of all, in one pass over the prompts that no one has asked for lately."""
        needed = list(dict.fromkeys(prompt for each in generations for prompt in each.prompts))
        bundle = self._pipeline.bundle_sha256
        states = {prompt: self._cache.get(bundle, prompt) for prompt in needed}
        missing = [prompt for prompt, found in states.items() if found is None]
        for name, prompts in (("hits", len(needed) - len(missing)), ("misses", len(missing))):
            if prompts:
                self._requests.count(f"blip3o_cache_{name}_total", "condition", by=prompts)
        if missing:
            began = time.perf_counter()
            # On the CPU: other threads have other streams, and a GPU's memory is for rows.
            read = self._pipeline.states_of([list(prompt) for prompt in missing]).cpu()
            self._requests.observe("blip3o_stage_seconds", time.perf_counter() - began, self.name)
            for prompt, row in zip(missing, read, strict=True):
                states[prompt] = row.clone()
                self._cache.put(bundle, prompt, row.clone())
        with self._requests.changed:
            for generation in generations:
                found = [states[prompt] for prompt in generation.prompts]
                generation.states = [each for each in found if each is not None]
                self._requests.count("blip3o_tokens_total", "prompt", by=len(generation.prompts[0]))
            self._requests.changed.notify_all()
