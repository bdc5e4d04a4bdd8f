"""What was held out, by the records; which captions training has as well, by its sources themselves."""

from dataclasses import replace

import pytest

from blip3o.data.sets.writer import Sample
from blip3o.evaluate.heldout import apart
from blip3o.evaluate.heldout.apart import compare
from blip3o.evaluate.heldout.reader import choose
from tests.evaluate.world import add_source, recipe, scenes


def captioned(texts, **record):
    """Samples of one picture with these captions."""
    picture = scenes()[0]
    return [
        Sample(key=f"{n}", image=picture.image, ext=picture.ext, record={"captions": list(each), **record})
        for n, each in enumerate(texts)
    ]


@pytest.fixture
def world(tmp_path):
    """A training source (named as the recipe has it) and held-out ones of four kinds."""
    add_source(
        str(tmp_path), "scenes", captioned([("A dog.",), ("a cat", "two  cats"), *((f"b{n}",) for n in range(30))])
    )
    held = [("a dog",), ("Two cats",), ("a cow", "a cat")]
    for name, record in {
        "grouped": {"source": "import", "grouped_by": "caption"},
        "photos": {"source": "import"},
        "others": {},
    }.items():
        add_source(str(tmp_path), name, captioned(held, split="heldout", **record))
    add_source(str(tmp_path), "shapes", scenes())
    return str(tmp_path)


def compared(root, *names, **evaluate):
    made = recipe(root, *names, **evaluate)
    samples = choose(made.data, made.evaluate)
    return compare(made.data, samples.items)


@pytest.mark.parametrize(
    ("name", "what"),
    [("grouped", "captions"), ("photos", "pictures"), ("shapes", "compositions"), ("others", "samples")],
)
def test_what_was_held_out_is_told_by_the_records(world, name, what):
    found = compared(world, name)
    assert found.held_out == {name: what}
    assert found.note().startswith(f"Held out: {what}. ")


def test_captions_of_training_are_counted_whatever_their_spelling(world):
    found = compared(world, "photos")
    assert (found.captions, found.trained, found.compared, found.training) == (3, 2, 32, 32)
    assert found.note() == "Held out: pictures. Of 3 captions, 2 are also among 32 training samples."
    none = replace(found, trained=0, compared=10)
    assert none.note() == "Held out: pictures. None of 3 captions is among 10 training samples (of 32)."


@pytest.mark.parametrize(("limit", "value"), [("COMPARED", 16), ("COMPARED_BYTES", 16 * 2560)])
def test_of_a_large_source_a_part_is_compared(world, monkeypatch, limit, value):
    monkeypatch.setattr(apart, limit, value)
    found = compared(world, "photos")
    assert 8 < found.compared < 24 and found.training == 32
    assert f"among {found.compared} training samples (of 32)" in found.note()


def test_sources_that_cannot_be_read_are_a_reason(world):
    made = recipe(world, "photos")
    data = made.data.model_copy(update={"root": f"{world}/elsewhere"})
    found = compare(data, choose(made.data, made.evaluate).items)
    assert found.trained is None and found.figures()["captions_in_training"] is None
    assert "Whether training has their captions is not known: " in found.note()
    assert "manifest.parquet does not exist: index the source first" in found.note()
