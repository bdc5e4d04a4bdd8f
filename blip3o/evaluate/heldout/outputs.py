"""The outputs of a trained model on held-out samples: replies to their questions, drawings of their prompts.

The seed of every drawing is a function of the evaluation's seed and the sample, so a figure depends only on the bundle
and the recipe. `on_done(n)` is called whenever n more questions or drawings are finished.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from blip3o.data.text.templates import Turn
from blip3o.evaluate.heldout.selection import HeldOutSample, Question
from blip3o.evaluate.metrics.retrieval import derangement
from blip3o.evaluate.metrics.understanding import AnswerRecord
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.rng import derive_seed, numpy_generator

OnDone = Callable[[int], None]


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Features [n, L, F] of the items' drawings (`generated`, from `seeds`) and of their true images (`truth`)."""

    items: tuple[HeldOutSample, ...]
    seeds: tuple[int, ...]
    generated: Tensor
    truth: Tensor


@dataclass(frozen=True, kw_only=True)
class DecodedImages:
    """Decoded images of some rows of `Drawings`: from the drawn features, and from the true ones."""

    drawn: Mapping[int, Image.Image]
    decoded: Mapping[int, Image.Image]


def draw_seed(seed: int, uid: str, number: int = 0) -> int:
    """The seed of drawing `number` of a sample."""
    return derive_seed(seed, "evaluate", "draw", uid, number)


def ask(
    pipeline: Blip3oPipeline, questions: Sequence[Question], *, images: Sequence[Image.Image], on_done: OnDone
) -> list[AnswerRecord]:
    """The model's replies to questions about `images`, one each: the question's own image, or another as a control."""
    records: list[AnswerRecord] = []
    for rows in _chunks(len(questions), pipeline.batch_size):
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
    """For each question the image of another question of its source: a control for what the text alone gives away.

    Raises `DataError` if a source has only one question.
    """
    images = [question.item.image for question in questions]
    sources = np.array([question.item.source for question in questions])
    for source in np.unique(sources):
        rows = np.flatnonzero(sources == source)
        order = derangement(len(rows), numpy_generator(seed, "evaluate", "pictures", str(source)))
        for row, other in zip(rows, rows[order], strict=True):
            images[row] = questions[other].item.image
    return images


def draw(pipeline: Blip3oPipeline, items: Sequence[HeldOutSample], *, seed: int, on_done: OnDone) -> Drawings:
    """The features of one drawing of each item's caption, and of its true image."""
    seeds = tuple(draw_seed(seed, item.uid) for item in items)
    generated, truth = [], []
    for rows in _chunks(len(items), pipeline.batch_size):
        prompts = [items[row].caption for row in rows]
        generated.append(pipeline.generate_features(prompts, seeds=[seeds[row] for row in rows]))
        truth.append(pipeline.encode([items[row].image for row in rows]))
        on_done(len(rows))
    return Drawings(items=tuple(items), seeds=seeds, generated=torch.cat(generated), truth=torch.cat(truth))


def decode(pipeline: Blip3oPipeline, drawings: Drawings, rows: Sequence[int], *, on_done: OnDone) -> DecodedImages:
    """The images of some rows: only the rows that are needed, because decoding costs as much as drawing."""
    drawn: dict[int, Image.Image] = {}
    decoded: dict[int, Image.Image] = {}
    for chunk in _chunks(len(rows), pipeline.batch_size):
        part = [rows[place] for place in chunk]
        seeds = [drawings.seeds[row] for row in part]
        for features, images in ((drawings.generated, drawn), (drawings.truth, decoded)):
            images |= zip(part, pipeline.decode(features[part], seeds=seeds), strict=True)
        on_done(len(part))
    return DecodedImages(drawn=drawn, decoded=decoded)


@dataclass(frozen=True, kw_only=True)
class Variants:
    """Several drawings of some rows of `Drawings`: `features` [rows, columns, L, F]; the first is the scored one."""

    rows: tuple[int, ...]
    seeds: tuple[tuple[int, ...], ...]
    features: Tensor


def vary(pipeline: Blip3oPipeline, drawings: Drawings, rows: Sequence[int], *, columns: int, seed: int) -> Variants:
    """`columns` drawings (at least 2) of each row's caption, the first of which exists already."""
    seeds = tuple(tuple(draw_seed(seed, drawings.items[row].uid, n) for n in range(1, columns)) for row in rows)
    # All further drawings in one call, so that the pipeline can fill its batches.
    further = pipeline.generate_features(
        [drawings.items[row].caption for row in rows for _ in range(1, columns)],
        seeds=[number for of_row in seeds for number in of_row],
    )
    first = drawings.generated[list(rows)].unsqueeze(1)
    features = torch.cat([first, further.unflatten(0, (len(rows), columns - 1))], dim=1)
    scored = [drawings.seeds[row] for row in rows]
    return Variants(
        rows=tuple(rows),
        seeds=tuple((one, *others) for one, others in zip(scored, seeds, strict=True)),
        features=features,
    )


def _chunks(total: int, width: int) -> Iterator[range]:
    for start in range(0, total, width):
        yield range(start, min(start + width, total))
