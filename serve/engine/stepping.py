"""Denoising, in a thread of its own: all rows advance together, one evaluation at a time; others join in between."""

import functools
import time
from collections.abc import Mapping, Sequence

from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.model.flow import evaluations
from serve.engine.decoding import FinishedRow, RowSink
from serve.engine.denoise import DenoiseBatch, prepare
from serve.engine.requests import Generation, Requests, attempt
from serve.engine.scheduler import Row, Schedule, partial_steps
from serve.engine.stage import Stage
from serve.protocol import GenerateRequest


class DenoiseStage(Stage):
    """Advances the rows of requests whose prompts were read, and hands them to the decoder."""

    name = "denoise"

    def __init__(self, pipeline: Blip3oPipeline, requests: Requests, decoder: RowSink, *, max_waiting: int) -> None:
        """At most `max_waiting` rows wait for a slot. `decoder` takes those that are done."""
        super().__init__(pipeline, requests)
        self._decoder = decoder
        # Guarded by `requests.changed`; the arithmetic runs without it. Only this thread changes the slots.
        self.schedule = Schedule.empty(batch_size=pipeline.batch_size, max_waiting=max_waiting)
        self._seconds = 0.0
        self.stepped_at: float | None = None

    def evaluations(self, request: GenerateRequest) -> int:
        """Evaluations of the denoiser, per branch, of each of a request's rows."""
        return evaluations(self._pipeline.model.config.sampler.solver, request.num_inference_steps)

    def accepts(self, request: GenerateRequest) -> bool:
        """Whether a request's rows fit into the queue and can be done in time. The caller holds the lock."""
        self.drop_ended()
        if not self.schedule.admits(request.owner, len(request.seeds)):
            return False
        # Estimates come from the last step: without work, a slow one would refuse all later requests.
        is_idle = not self._requests.generations
        return is_idle or request.deadline_s is None or self.seconds_until(request) <= request.deadline_s

    def seconds_until(self, request: GenerateRequest) -> float:
        """About how long a request takes that comes now. The caller holds the lock.

        Denoising and decoding overlap, so the slower one counts.
        """
        images = len(request.seeds)
        steps = self.schedule.steps_until(images=images, steps=self.evaluations(request))
        rows = len(self.schedule.running) + self.schedule.waiting + images
        return max(steps * self._seconds, self._decoder.seconds_ahead(rows))

    def seconds_ahead(self) -> float:
        """About how long until all rows are done. The caller holds the lock."""
        rows = len(self.schedule.running) + self.schedule.waiting
        return max(self.schedule.steps_ahead * self._seconds, self._decoder.seconds_ahead(rows))

    def submit(self, generation: Generation) -> None:
        """Queues a request's rows. The caller holds the lock, and has checked that they fit."""
        request = generation.request
        self.schedule = self.schedule.submit(
            generation.number,
            images=len(request.seeds),
            steps=self.evaluations(request),
            owner=request.owner,
            priority=request.priority,
        )

    def drop_ended(self) -> None:
        """Frees the rows of requests that have ended."""
        with self._requests.changed:
            for number in self.schedule.requests - self._requests.generations.keys():
                self.schedule = self.schedule.without(number)

    @property
    def rows_ahead(self) -> int:
        """Rows that are denoised or wait for that. The caller holds the lock."""
        self.drop_ended()
        return self.schedule.waiting + sum(row.done < row.steps for row in self.schedule.running)

    @property
    def _ready(self) -> list[int]:
        return [number for number, each in self._requests.generations.items() if each.states is not None]

    # The thread runs everything below.

    def has_work(self) -> bool:
        """Whether a row can enter a slot, step, or go to the decoder."""
        self.drop_ended()
        can_hand_over = bool(self.schedule.finished) and self._decoder.room > 0
        return self.schedule.has_steps or can_hand_over or self.schedule.can_admit(self._ready)

    def work(self) -> None:
        """One step of all rows."""
        self._admit()
        self._step()
        self._hand_over()

    @functools.cached_property
    def _batch(self) -> DenoiseBatch:
        """The rows in the slots; created for the first image, since a bundle may only chat."""
        return DenoiseBatch(self._pipeline)

    def _admit(self) -> None:
        with self._requests.changed:
            self.drop_ended()
            self.schedule = self.schedule.admit(self._ready)
            starting = dict(self.schedule.unstarted)
            generations = {row.request: self._requests.generations[row.request] for row in starting.values()}
        new = [generation for number, generation in generations.items() if generation.conditions is None]
        for generation in new:
            self._requests.admitted(generation)
        self._requests.batch_then_single(new, self._prepare)
        for slot, row in starting.items():
            generation = generations[row.request]
            if generation.conditions is not None:  # else it has failed
                self._put(slot, row, generation)
        self.drop_ended()

    def _prepare(self, generations: Sequence[Generation]) -> None:
        states = [state for generation in generations for state in generation.states or ()]
        conditions = iter(prepare(self._pipeline, states))
        for generation in generations:
            generation.conditions = [next(conditions) for _ in generation.prompts]

    def _put(self, slot: int, row: Row, generation: Generation) -> None:
        assert generation.conditions is not None, "the caller has checked"
        condition, *negative = generation.conditions
        self._batch.put(
            slot,
            self._pipeline.feature_noise(generation.request.seeds[row.image]),
            condition=condition,
            num_inference_steps=generation.request.num_inference_steps,
            guidance_scale=generation.request.guidance_scale,
            negative=negative[0] if negative else None,
        )

    def _step(self) -> None:
        slots = self.schedule.stepping
        if not slots:
            return
        rows = {slot: self.schedule.slots[slot] for slot in slots}
        began = time.perf_counter()
        error = attempt(lambda: self._batch.step(slots))
        if error is not None:  # no row is more at fault than another
            for number in {row.request for row in rows.values() if row}:
                self._requests.fail(number, error)
            return
        seconds = time.perf_counter() - began
        self._requests.observe("blip3o_denoise_step_seconds", seconds)
        self._requests.observe("blip3o_stage_seconds", seconds, self.name)
        self._requests.observe("blip3o_batch_rows", len(slots))
        with self._requests.changed:
            self.schedule = self.schedule.advance()
            self._seconds, self.stepped_at = seconds, self._requests.clock()
        self._preview({slot: self.schedule.slots[slot] for slot in slots})

    def _preview(self, rows: Mapping[int, Row | None]) -> None:
        """Gives the decoder previews that are due; it drops those for which it has no room."""
        for slot, row in rows.items():
            with self._requests.changed:
                generation = self._requests.generations.get(row.request) if row else None
            if row is None or generation is None or not generation.request.partial_images:
                continue
            after = partial_steps(row.steps, generation.request.partial_images)
            if row.done in after:
                self._give({slot: row}, partial=after.index(row.done))

    def _hand_over(self) -> None:
        """Gives finished rows to the decoder, the first to arrive first, as many as it has room for; frees their slots.

        A row must not wait in its slot for later ones: new rows would overtake it for as long as requests come.
        """
        with self._requests.changed:
            self.drop_ended()
            finished = dict(list(self.schedule.finished.items())[: self._decoder.room])
        given = self._give(finished)
        with self._requests.changed:
            self.schedule = self.schedule.release(given)

    def _give(self, rows: Mapping[int, Row], *, partial: int | None = None) -> list[int]:
        """Puts rows into the decoder's queue, finished ones as far as there is room; returns their slots."""
        features = self._batch.features if partial is None else self._batch.expected
        with self._requests.changed:
            requests = {row.request: self._requests.generations.get(row.request) for row in rows.values()}
        found = {
            slot: FinishedRow(
                number=row.request,
                image=row.image,
                seed=generation.request.seeds[row.image],
                features=features(slot).cpu(),
                partial=partial,
            )
            for slot, row in rows.items()
            if (generation := requests[row.request]) is not None
        }
        with self._requests.changed:
            given = list(found)[: self._decoder.room if partial is None else None]
            self._decoder.put([found[slot] for slot in given])
        return given
