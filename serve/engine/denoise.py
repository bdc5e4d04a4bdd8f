"""The rows that are denoised together, each with its own trajectory, guidance and conditions.

A step is one evaluation of the denoiser on the conditional rows of all slots that step, and the null rows of those that
use guidance, padded to a width at which the bits of a row are those of `Blip3oPipeline.generate`. A solver keeps its
memory per row. The caller assigns slots.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.inference.widths import chunks, fitting
from blip3o.model.condition import Condition
from blip3o.model.flow import Trajectory, guide, trajectory

__all__ = ["Condition", "DenoiseBatch", "prepare"]


def prepare(pipeline: Blip3oPipeline, states: Sequence[Tensor]) -> list[Condition]:
    """What the denoiser makes of query states [N, H], each a batch of one row."""
    stacked = torch.stack(list(states)).to(pipeline.device)
    prepared: list[Condition] = []
    for count, (rows,) in chunks(stacked, widths=pipeline.denoiser_widths):
        batch = pipeline.model.denoiser.condition(rows)
        prepared += [_row(batch, row) for row in range(count)]
    return prepared


def _row(batch: Condition, row: int) -> Condition:
    return batch.with_tensors([tensor[row : row + 1].clone() for tensor in batch.tensors])


@dataclass(frozen=True, kw_only=True)
class _Row:
    way: Trajectory
    conditions: tuple[Condition, ...]  # the prompt's, and the null one if the row uses guidance
    guidance: float


class DenoiseBatch:
    """The state of denoising in a fixed number of slots. A row stays in its slot until another one replaces it."""

    def __init__(self, pipeline: Blip3oPipeline) -> None:
        """All slots are empty."""
        self._pipeline, self._model = pipeline, pipeline.model
        config = pipeline.model.config
        zeros = torch.zeros(config.num_queries, config.backbone.hidden_size, dtype=pipeline.dtype)
        [self._null] = prepare(pipeline, [zeros])
        self._rows: dict[int, _Row] = {}
        self._joined: tuple[list[Condition], Any] = ([], None)  # the conditions of the last pass, and their batch

    def put(
        self,
        slot: int,
        noise_LF: Tensor,
        *,
        condition: Condition,
        num_inference_steps: int,
        guidance_scale: float,
        negative: Condition | None = None,
    ) -> None:
        """Starts a row from noise under a condition; a `guidance_scale` of 1 means no guidance."""
        sampler = self._model.config.sampler
        self._rows[slot] = _Row(
            way=trajectory(sampler.solver, noise_LF, num_inference_steps, shift=sampler.shift),
            conditions=(condition,) if guidance_scale == 1 else (condition, negative or self._null),
            guidance=guidance_scale,
        )

    def step(self, slots: Sequence[int]) -> None:
        """Advances the rows in these slots by one evaluation, in one pass."""
        rows = [self._rows[slot] for slot in slots]
        guided = [row for row in rows if len(row.conditions) > 1]
        conditions = [row.conditions[0] for row in rows] + [row.conditions[1] for row in guided]
        ways = [row.way for row in (*rows, *guided)]
        widest = self._pipeline.denoiser_widths[-1]
        parts = (slice(start, start + widest) for start in range(0, len(ways), widest))
        velocity = torch.cat([self._velocity(ways[part], conditions[part]) for part in parts])
        null = dict(zip(map(id, guided), velocity[len(rows) :], strict=False))
        for number, row in enumerate(rows):
            own = velocity[number]
            row.way.advance(guide(own, null[id(row)], row.guidance) if id(row) in null else own)

    def _velocity(self, ways: list[Trajectory], conditions: list[Condition]) -> Tensor:
        """That of one pass, with the rows that pad it."""
        padding = fitting(len(ways), self._pipeline.denoiser_widths) - len(ways)
        ways = ways + ways[-1:] * padding
        return self._model.velocity(
            self._batch_of(conditions + conditions[-1:] * padding),
            torch.stack([way.point for way in ways]),
            torch.stack([way.level for way in ways]),
        )

    def features(self, slot: int) -> Tensor:
        """The features [L, F] of the latents in a slot."""
        return self._model.to_features(self._rows[slot].way.point)

    def expected(self, slot: int) -> Tensor:
        """The features [L, F] that the last evaluation of a slot expects at the end."""
        return self._model.to_features(self._rows[slot].way.expected)

    def _batch_of(self, conditions: list[Condition]) -> Condition:
        """All of them as one batch; joined again only when they have changed."""
        known, batch = self._joined
        if len(known) != len(conditions) or any(one is not other for one, other in zip(known, conditions, strict=True)):
            tensors = zip(*(condition.tensors for condition in conditions), strict=True)
            batch = conditions[0].with_tensors([torch.cat(each) for each in tensors])
            self._joined = conditions, batch
        return batch
