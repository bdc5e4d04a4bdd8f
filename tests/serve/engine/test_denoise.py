"""Features, before rounding to pixels: bit for bit those of the pipeline, whatever is in the other slots."""

import itertools
from dataclasses import dataclass

import pytest
import torch

from serve.engine.denoise import DenoiseBatch, prepare

PROMPTS = ("a red circle", "It is green.")


@dataclass(frozen=True)
class Made:
    """One row of a batch."""

    prompt: str
    seed: int
    steps: int
    guidance: float


ROWS = (
    Made(PROMPTS[0], 1, 5, 3.0),
    Made(PROMPTS[1], 2, 3, 1.0),
    Made(PROMPTS[1], 3, 4, 2.3),
    Made(PROMPTS[0], 1, 1, 0.0),
)


def _expected(pipeline, row):
    return pipeline.generate_features(
        [row.prompt], seeds=[row.seed], num_inference_steps=row.steps, guidance_scale=row.guidance
    )[0]


def _put(pipeline, batch, slot, row, conditions):
    batch.put(
        slot,
        pipeline.feature_noise(row.seed),
        condition=conditions[PROMPTS.index(row.prompt)],
        num_inference_steps=row.steps,
        guidance_scale=row.guidance,
    )


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
@torch.inference_mode()
def test_rows_in_a_batch_equal_rows_on_their_own(reference, order):
    batch = DenoiseBatch(reference)
    conditions = prepare(reference, reference.condition(PROMPTS))
    rows = [ROWS[i] for i in order]
    for slot, row in enumerate(rows):
        _put(reference, batch, slot, row, conditions)
    for step in range(max(row.steps for row in rows)):
        batch.step([slot for slot, row in enumerate(rows) if step < row.steps])
    for slot, row in enumerate(rows):
        assert torch.equal(batch.features(slot), _expected(reference, row)), row


@torch.inference_mode()
def test_a_slot_can_be_reused_while_the_others_continue(reference):
    batch = DenoiseBatch(reference)
    conditions = prepare(reference, reference.condition(PROMPTS))
    long, first, second = ROWS[0], ROWS[1], Made(PROMPTS[0], 9, 2, 4.0)
    _put(reference, batch, 2, long, conditions)
    _put(reference, batch, 0, first, conditions)
    for _ in range(3):
        batch.step([0, 2])
    assert torch.equal(batch.features(0), _expected(reference, first))
    _put(reference, batch, 0, second, conditions)
    for _ in range(2):
        batch.step([0, 2])
    assert torch.equal(batch.features(0), _expected(reference, second))
    assert torch.equal(batch.features(2), _expected(reference, long))
