"""The curated set: as many of each kind, one full caption each, the same choice every time."""

import io
from collections import Counter

import pytest
from PIL import Image

from blip3o import storage
from blip3o.data.sets import scenes, writer
from blip3o.data.sets.curated import build_curated, choose
from blip3o.data.sets.scenes_world import FAMILIES
from blip3o.data.sets.writer import Sample
from blip3o.errors import DataError
from tests.data.sets.test_imported import samples_of
from tests.data.shard_files import encode, png, tar


def emoji(key):
    return Sample(key=key, image=b"", ext="png", record={"source": "emoji", "group": "food", "captions": ["a", "b"]})


def test_kinds_are_balanced_and_captions_say_most():
    pool = [scenes.sample(index, split="train") for index in range(60)] + [emoji(f"e{n}") for n in range(60)]
    chosen = choose(pool, samples=35, seed=0)
    kinds = Counter(sample.record.get("family", "emoji") for sample in chosen)
    assert kinds == dict.fromkeys([*FAMILIES, "emoji"], 5)
    for sample in chosen:
        full = sample.record.get("full_caption", "a")
        assert sample.record["captions"] == [full]
    assert choose(pool[::-1], samples=35, seed=0) == chosen
    assert choose(pool, samples=35, seed=1) != chosen


def test_samples_of_sets_that_name_theirs_alike_keep_their_own_words(tmp_path):
    sets, said = [], {}
    for seed, (color, ext, kind) in enumerate((("red", "png", "PNG"), ("blue", "jpg", "JPEG"))):
        content = []
        for number in range(5):
            image = encode(Image.open(io.BytesIO(png(10 * seed + number))), kind)
            record = {"source": color, "split": "train" if number else "heldout", "captions": [f"{color} {number}"]}
            content.append(Sample(key=f"{number}", image=image, ext=ext, record=record))
            said[f"{color} {number}"] = image
        sets.append(f"{tmp_path}/train-sets/{color}")  # a folder's name says nothing of what is held out
        writer.write_set(sets[-1], content, settings={"set": color}, total=5, samples_per_shard=9)
    made = build_curated(f"{tmp_path}/curated", sets=sets, samples=8)
    found = {sample.caption: sample.image for sample in samples_of(made.shards["train"])}
    assert found == {caption: image for caption, image in said.items() if not caption.endswith("0")}


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        (b"no tar" * 200, "is no shard of a set that was built here"),
        (tar([("a.png", png(0))]), "KeyError: 'json'"),
        (tar([("a.png", png(0)), ("a.json", b"{")]), "JSONDecodeError"),
        (tar([("a.png", png(0)), ("a.json", b'{"source": "x", "captions": []}')]), "IndexError"),
        (tar([("a.png", png(0)), ("a.json", b'{"source": "x", "captions": [3]}')]), "caption of 'a' is no text"),
        (tar([("a.png", png(0)), ("a.json", b"[]")]), "TypeError"),
        (tar([("a.json", b'{"source": "x", "captions": ["x"]}')]), "StopIteration"),
        (tar([]), "has no training samples: choose from other sets"),
    ],
)
def test_shards_of_others_are_refused(tmp_path, shard, message):
    storage.write_bytes(f"{tmp_path}/set/train-0.tar", shard)
    with pytest.raises(DataError, match=message):
        build_curated(f"{tmp_path}/out", sets=[f"{tmp_path}/set"], samples=1)


def test_no_samples_are_refused(tmp_path):
    with pytest.raises(DataError, match="samples=0: choose at least 1"):
        build_curated(f"{tmp_path}/out", sets=[], samples=0)
