"""The samples of an evaluation are a function of manifests and seed, spread over sources, and never trained on."""

import pytest

from blip3o import storage
from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.heldout.reader import choose
from tests.evaluate.world import HELD_OUT, add_source, recipe, scenes


@pytest.fixture
def root(tmp_path):
    add_source(str(tmp_path), "first", scenes(seed=0))
    add_source(str(tmp_path), "second", scenes(seed=1))
    return str(tmp_path)


def chosen(root, *sources, **evaluate):
    made = recipe(root, *(sources or ("first", "second")), **evaluate)
    return choose(made.data, made.evaluate)


def test_the_choice_is_repeatable_and_depends_on_the_seed(root):
    first, again, other = (chosen(root, questions=10, images=10, seed=seed) for seed in (3, 3, 4))
    assert [item.uid for item in first.items] == [item.uid for item in again.items]
    assert [(q.item.uid, q.question) for q in first.questions] == [(q.item.uid, q.question) for q in again.questions]
    assert [item.uid for item in first.items] != [item.uid for item in other.items]


def test_sources_alternate_in_equal_shares(root):
    found = chosen(root, questions=10, images=9)
    assert [item.source for item in found.items] == ["first", "second"] * 4 + ["first"]
    assert [question.item.source for question in found.questions] == ["first", "second"] * 5
    assert set(found.fingerprints) == {"first", "second"}


def test_captions_are_distinct_over_all_sources(root):
    captions = [item.caption for item in chosen(root, images=40).items]
    assert len(set(captions)) == len(captions)


def test_there_is_no_more_than_the_sources_hold(root):
    found = chosen(root, "first", questions=500, images=500)
    assert len(found.questions) == HELD_OUT
    assert len({question.item.uid for question in found.questions}) == HELD_OUT
    assert len(found.items) == len({scene.record["captions"][0] for scene in scenes(seed=0)})


def test_items_are_the_samples_they_name(root):
    by_caption = {scene.record["captions"][0]: scene.record for scene in reversed(scenes(seed=0))}
    for item in chosen(root, "first", images=8).items:
        assert item.uid.startswith("first/")
        assert item.record["family"] == by_caption[item.caption]["family"]
        assert (item.image.size, item.image.mode) == ((64, 64), "RGB")


def test_training_samples_are_refused(tmp_path):
    add_source(str(tmp_path), "leaked", scenes("train"))
    with pytest.raises(DataError, match="leaked/.* split 'train'"):
        chosen(str(tmp_path), "leaked")


def test_changed_shards_are_refused(root):
    shard = storage.join(root, "second", "part-00001.tar")
    storage.write_bytes(shard, storage.read_bytes(shard) + b"\0" * 512)
    with pytest.raises(DataError, match="part-00001.tar has .* bytes"):
        chosen(root)


def test_sources_must_be_named_and_indexed(root):
    made = recipe(root)
    with pytest.raises(ConfigError, match="evaluate.sources is empty"):
        choose(made.data, made.evaluate)
    with pytest.raises(DataError, match="index the source first"):
        chosen(root, "third")
