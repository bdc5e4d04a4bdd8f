"""What a model is asked and draws stays with its question and prompt, whatever the batches are."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from blip3o.bundle.reading import load_bundle
from blip3o.errors import DataError
from blip3o.evaluate.heldout.outputs import (
    ask,
    decode,
    draw,
    draw_seed,
    exchanged_images,
    vary,
)
from blip3o.evaluate.heldout.reader import choose
from blip3o.evaluate.heldout.showing import grid_sections
from tests.evaluate.world import add_source, make_bundle, recipe, scenes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline of width 4, and the chosen samples of two sources."""
    root = str(tmp_path_factory.mktemp("world"))
    for seed, name in enumerate(("first", "second")):
        add_source(root, name, scenes(seed=seed))
    make_bundle(f"{root}/bundle")
    made = recipe(root, "first", "second", questions=10, images=10)
    return load_bundle(f"{root}/bundle", batch_size=4), choose(made.data, made.evaluate)


class Counted:
    def __init__(self):
        self.total = 0

    def __call__(self, count):
        self.total += count


def test_every_question_has_its_own_reply(world):
    pipeline, chosen = world
    images = [question.item.image for question in chosen.questions]
    done = Counted()
    records = ask(pipeline, chosen.questions, images=images, on_done=done)
    assert [(r.uid, r.question, r.answer) for r in records] == [
        (q.item.uid, q.question, q.answer) for q in chosen.questions
    ]
    assert done.total == len(chosen.questions)
    last = ask(pipeline, chosen.questions[-1:], images=images[-1:], on_done=done)
    assert last == records[-1:]


def test_the_control_shows_another_picture_of_the_same_source(world):
    _, chosen = world
    exchanged = exchanged_images(chosen.questions, seed=0)
    source_of = {id(question.item.image): question.item.source for question in chosen.questions}
    for question, image in zip(chosen.questions, exchanged, strict=True):
        assert image is not question.item.image
        assert source_of[id(image)] == question.item.source


def test_a_single_question_has_no_control(world):
    _, chosen = world
    with pytest.raises(DataError, match="at least 2"):
        exchanged_images(chosen.questions[:1], seed=0)


def test_drawings_do_not_depend_on_the_batch_and_do_on_the_seed(world):
    pipeline, chosen = world
    done = Counted()
    drawings = draw(pipeline, chosen.items, seed=0, on_done=done)
    assert done.total == len(chosen.items)
    assert drawings.generated.shape == drawings.truth.shape
    alone = draw(pipeline, chosen.items[6:7], seed=0, on_done=done)
    assert torch.equal(alone.generated[0], drawings.generated[6])
    assert torch.equal(alone.truth[0], drawings.truth[6])
    other = draw(pipeline, chosen.items[6:7], seed=1, on_done=done)
    assert not torch.equal(other.generated, alone.generated)
    assert torch.equal(other.truth, alone.truth)


def test_seeds_differ_between_samples_and_numbers():
    seeds = {draw_seed(seed, uid, number) for seed in (0, 1) for uid in ("a/0/0", "a/0/1") for number in (0, 1)}
    assert len(seeds) == 8


def test_pictures_belong_to_their_rows(world):
    pipeline, chosen = world
    drawings = draw(pipeline, chosen.items, seed=0, on_done=Counted())
    rows = [7, 1, 4, 9, 0]
    done = Counted()
    pictures = decode(pipeline, drawings, rows, on_done=done)
    assert set(pictures.drawn) == set(pictures.decoded) == set(rows)
    assert done.total == len(rows)
    for row in rows:
        for features, images in ((drawings.generated, pictures.drawn), (drawings.truth, pictures.decoded)):
            (expected,) = pipeline.decode(features[row : row + 1], seeds=drawings.seeds[row : row + 1])
            assert np.array_equal(np.asarray(images[row]), np.asarray(expected))


def test_the_grid_shows_the_scored_drawing_first(world):
    pipeline, chosen = world
    drawings = draw(pipeline, chosen.items, seed=0, on_done=Counted())
    shown = {"first": [0, 2], "second": [1, 3]}
    pictures = decode(pipeline, drawings, [0, 1, 2, 3], on_done=Counted())
    variants = vary(pipeline, drawings, [0, 2, 1, 3], columns=3, seed=0)
    assert variants.features.shape == (4, 3, *drawings.generated.shape[1:])
    assert torch.equal(variants.features[3, 0], drawings.generated[3])
    sections = grid_sections(pipeline, drawings, pictures, shown=shown, variants=variants)
    assert [section.title for section in sections] == ["first", "second"]
    row, item = sections[1].rows[1], chosen.items[3]
    assert (row.caption, row.truth) == (item.caption, item.image)
    assert row.drawn[0] is pictures.drawn[3]
    expected = pipeline.generate([item.caption] * 2, seed=[draw_seed(0, item.uid, number) for number in (1, 2)])
    assert [image.tobytes() for image in row.drawn[1:]] == [image.tobytes() for image in expected]


def test_a_wider_pipeline_gives_the_same_replies(world):
    pipeline, chosen = world
    images = [question.item.image for question in chosen.questions]
    narrow, wide = (
        ask(replace(pipeline, batch_size=width), chosen.questions, images=images, on_done=Counted()) for width in (2, 8)
    )
    assert narrow == wide
