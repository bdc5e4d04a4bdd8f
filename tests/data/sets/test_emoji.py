"""The emoji set: split by concept, default skin tone, no flags, and bytes that depend on the settings alone."""

import io
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from PIL import Image

from blip3o.data.sets import emoji
from blip3o.data.sets.emoji_text import STYLES, phrase
from blip3o.errors import DataError


@pytest.fixture(scope="module")
def samples(published):
    return list(emoji._samples(published, size=None, seed=0))


@pytest.fixture(scope="module")
def records(samples):
    return [sample.record for sample in samples]


@pytest.mark.parametrize(
    ("codepoint", "expected"),
    [
        ("1f34e", "1F34E"),
        ("2764-fe0f-200d-1f525", "2764-200D-1F525"),
        ("1F468-1F3FD-200D-2695-FE0F", "1F468-200D-2695"),
        ("1f9d1-1f3fb-200d-1f91d-200d-1f9d1-1f3ff", "1F9D1-200D-1F91D-200D-1F9D1"),
    ],
)
def test_concept_is_the_code_points_without_tone_and_variation(codepoint, expected):
    assert emoji.concept_code(codepoint) == expected
    assert emoji.has_skin_tone(codepoint) == ("1f3f" in codepoint.lower())


def test_no_concept_is_in_both_splits_and_styles_agree(records):
    splits = defaultdict(set)
    for record in records:
        splits[record["concept"]].add(record["split"])
    assert all(len(found) == 1 for found in splits.values())
    both = Counter(r["concept"] for r in records)
    assert sum(n == 2 for n in both.values()) > 1500 and max(both.values()) == 2
    heldout = sum(found == {"heldout"} for found in splits.values()) / len(splits)
    assert 0.08 < heldout < 0.12


def test_the_split_does_not_depend_on_the_seed(published, records):
    other = {s.key: s.record["split"] for s in emoji._samples(published, size=None, seed=5)}
    assert other == {f"{r['style']}-{r['concept']}".lower(): r["split"] for r in records}


def test_both_styles_are_there_without_tones_flags_and_components(records):
    styles = Counter(record["style"] for record in records)
    assert set(styles) == set(STYLES) and min(styles.values()) > 1500
    assert not any(emoji.has_skin_tone(record["codepoint"]) for record in records)
    groups = {record["group"] for record in records}
    assert len(groups) == 8 and not groups & {"flags", "components"}
    labels = {record["label"] for record in records}
    assert {"red apple", "grapes", "heart on fire", "man health worker"} <= labels and "light skin tone" not in labels


def test_no_picture_is_there_twice_in_a_style(samples):
    pictures = Counter((s.record["style"], s.image) for s in samples)
    assert max(pictures.values()) == 1


def test_answers_are_true_by_the_published_words(records):
    phrases = defaultdict(set)
    for concept in emoji.concepts().values():
        phrases[phrase(concept)].add(concept.group)
    for record in records:
        own = phrase(emoji.concepts()[record["concept"]])
        for qa in record["qa"]:
            assert qa["answer"] in qa["choices"] or qa["kind"] == "label"
            if qa["kind"] in ("label", "group", "style"):
                assert qa["answer"] == record[qa["kind"]]
            elif "show" in qa["question"]:
                shown = qa["question"].removeprefix("Does this emoji show ").removesuffix("?")
                assert (qa["answer"] == "yes") == (shown == own)
                assert qa["answer"] == "yes" or record["group"] not in phrases[shown]
            else:
                asked = qa["question"].removeprefix("Does this emoji belong to the group ").removesuffix("?")
                assert (qa["answer"] == "yes") == (asked == record["group"])


def test_training_text_says_no_held_out_label(records):
    by_split = defaultdict(set)
    for record in records:
        by_split[record["split"]].add(phrase(emoji.concepts()[record["concept"]]))
    shown = {
        qa["question"].removeprefix("Does this emoji show ").removesuffix("?")
        for record in records
        if record["split"] == "train"
        for qa in record["qa"]
        if qa["kind"] == "is_a" and "show" in qa["question"]
    }
    assert shown <= by_split["train"]


def test_captions_are_said_and_differ(records):
    assert all(all(r["captions"]) and len(set(r["captions"])) == len(r["captions"]) >= 5 for r in records)
    assert all(r["captions"][0].startswith(f"a {r['style']} emoji of ") for r in records)


def test_resized_pictures_are_square_on_white(published):
    for picture in [p for p in published if p.concept.label in ("red apple", "transgender symbol")]:
        image = Image.open(io.BytesIO(emoji._resized(picture.data, 96)))
        assert (image.mode, image.size, image.format) == ("RGB", (96, 96), "PNG")
        assert all(channel > 240 for channel in image.getpixel((0, 0)))
        assert len(set(image.getdata())) > 50


def test_built_twice_the_bytes_are_equal_and_a_whole_set_is_left_alone(published, tmp_path, monkeypatch):
    summary = emoji.build_emoji(str(tmp_path / "a"))
    emoji.build_emoji(str(tmp_path / "b"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sum(summary.counts.values()) == len(published) and len(summary.shards["heldout"]) == 1

    monkeypatch.setattr(emoji, "pictures", lambda: pytest.fail("fetched again"))
    again = emoji.build_emoji(str(tmp_path / "a"))
    assert not again.built and again.counts == summary.counts
    with pytest.raises(DataError, match="another folder"):
        emoji.build_emoji(str(tmp_path / "a"), size=32)


def test_a_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(DataError, match="size=0"):
        emoji.build_emoji(str(tmp_path), size=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
