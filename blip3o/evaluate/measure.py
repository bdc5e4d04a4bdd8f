"""Puts a trained model to the held-out samples: asks it the questions, draws the prompts. Scoring is elsewhere.

Every draw's seed is a function of (evaluation's seed, sample), so a figure depends on nothing but the bundle and the
recipe. `on_done(n)` is called whenever n more questions or drawings are finished.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from blip3o.data.templates import Turn
from blip3o.evaluate.grid import GridRow, GridSection
from blip3o.evaluate.retrieval import derangement
from blip3o.evaluate.sampling import HeldOutItem, Question
from blip3o.evaluate.understanding import AnswerRecord
from blip3o.inference import Pipeline
from blip3o.rng import derive_seed, numpy_generator

OnDone = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """What was drawn for some items, in their order.

    `generated` and `truth` are features [n, L, F] (float32) of the drawings and of the true pictures; `drawn` and
    `decoded` are both through the decoder; `seeds` are the drawings' seeds.
    """

    items: tuple[HeldOutItem, ...]
    seeds: tuple[int, ...]
    generated: np.ndarray
    truth: np.ndarray
    drawn: tuple[Image.Image, ...]
    decoded: tuple[Image.Image, ...]


def draw_seed(seed: int, uid: str, number: int = 0) -> int:
    """The seed of drawing `number` of a sample."""
    return derive_seed(seed, "evaluate", "draw", uid, number)


def ask(
    pipeline: Pipeline, questions: Sequence[Question], *, images: Sequence[Image.Image], on_done: OnDone
) -> list[AnswerRecord]:
    """The model's replies to questions about `images`, one each: the question's own, or another as a control."""
    records: list[AnswerRecord] = []
    for rows in _chunks(len(questions), pipeline.width):
        turns = [[Turn(role="user", text=questions[row].question)] for row in rows]
        replies = pipeline.chat_batch(turns, images=[images[row] for row in rows])
        records += [_answered(questions[row], reply) for row, reply in zip(rows, replies, strict=True)]
        on_done(len(rows))
    return records


def _answered(question: Question, reply: str) -> AnswerRecord:
    return AnswerRecord(
        uid=question.item.uid,
        source=question.item.source,
        kind=question.kind,
        question=question.question,
        choices=question.choices,
        answer=question.answer,
        reply=reply,
    )


def exchanged_images(questions: Sequence[Question], seed: int) -> list[Image.Image]:
    """For each question the picture of another one of its source: what the words alone let the model answer.

    Raises `DataError` if a source has a single question.
    """
    images = [question.item.image for question in questions]
    sources = np.array([question.item.source for question in questions])
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        order = derangement(len(rows), numpy_generator(seed, "evaluate", "pictures", str(source)))
        for row, other in zip(rows, rows[order], strict=True):
            images[row] = questions[other].item.image
    return images


def draw(pipeline: Pipeline, items: Sequence[HeldOutItem], *, seed: int, on_done: OnDone) -> Drawings:
    """One drawing of each item's caption, and what the decoder makes of its true picture's features."""
    seeds = tuple(draw_seed(seed, item.uid) for item in items)
    generated, truth, drawn, decoded = [], [], [], []
    for rows in _chunks(len(items), pipeline.width):
        part, part_seeds = items[rows.start : rows.stop], seeds[rows.start : rows.stop]
        generated.append(pipeline.generate_features([item.caption for item in part], seeds=part_seeds))
        truth.append(pipeline.encode([item.image for item in part]))
        drawn += pipeline.decode(generated[-1], seeds=part_seeds)
        decoded += pipeline.decode(truth[-1], seeds=part_seeds)
        on_done(len(part))
    return Drawings(
        items=tuple(items),
        seeds=seeds,
        generated=_array(generated),
        truth=_array(truth),
        drawn=tuple(drawn),
        decoded=tuple(decoded),
    )


def grid_sections(pipeline: Pipeline, drawings: Drawings, *, rows: int, columns: int, seed: int) -> list[GridSection]:
    """The first `rows` items of each source with `columns` drawings (at least 2); the first is the scored one."""
    by_source: dict[str, list[int]] = {}
    for index, item in enumerate(drawings.items):
        by_source.setdefault(item.source, []).append(index)
    shown = {source: indices[:rows] for source, indices in by_source.items()}
    further = _further(pipeline, drawings.items, [i for indices in shown.values() for i in indices], columns - 1, seed)
    return [
        GridSection(title=source, rows=tuple(_row(drawings, index, further[index]) for index in indices))
        for source, indices in shown.items()
    ]


def _further(
    pipeline: Pipeline, items: Sequence[HeldOutItem], indices: Sequence[int], count: int, seed: int
) -> dict[int, list[Image.Image]]:
    """Drawings 1 … count of some items, all in one call so that batches are full."""
    wanted = [items[index] for index in indices for _ in range(count)]
    seeds = [draw_seed(seed, items[index].uid, number) for index in indices for number in range(1, count + 1)]
    images = pipeline.generate([item.caption for item in wanted], seeds=seeds)
    return {index: images[place * count : (place + 1) * count] for place, index in enumerate(indices)}


def _row(drawings: Drawings, index: int, further: Sequence[Image.Image]) -> GridRow:
    item = drawings.items[index]
    return GridRow(
        caption=item.caption,
        truth=item.image,
        decoded=drawings.decoded[index],
        drawn=(drawings.drawn[index], *further),
    )


def _chunks(total: int, width: int) -> Iterator[range]:
    for start in range(0, total, width):
        yield range(start, min(start + width, total))


def _array(parts: Sequence[torch.Tensor]) -> np.ndarray:
    return torch.cat(list(parts)).float().cpu().numpy()
