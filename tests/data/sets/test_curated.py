"""The curated set: as many of each kind, one full caption each, the same choice every time."""

from collections import Counter

from blip3o.data.sets import scenes
from blip3o.data.sets.curated import choose
from blip3o.data.sets.scenes_world import FAMILIES
from blip3o.data.sets.writer import Sample


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
