"""What is said of an emoji is English and true."""

import numpy as np
import pytest

from blip3o.data.sets.emoji_text import Concept, caption_questions, captions, phrase, questions

GROUPS = ["animals & nature", "food & drink", "people & body"]


def concept(label: str, group: str = "objects", *keywords: str) -> Concept:
    return Concept(code=label, label=label, group=group, keywords=keywords)


@pytest.mark.parametrize(
    ("label", "group", "expected"),
    [
        ("red apple", "food & drink", "a red apple"),
        ("avocado", "food & drink", "an avocado"),
        ("grapes", "food & drink", "grapes"),
        ("broccoli", "food & drink", "broccoli"),
        ("nest with eggs", "animals & nature", "a nest with eggs"),
        ("octopus", "animals & nature", "an octopus"),
        ("rhinoceros", "animals & nature", "a rhinoceros"),
        ("unicorn", "animals & nature", "a unicorn"),
        ("ewe", "animals & nature", "a ewe"),
        ("umbrella", "travel & places", "an umbrella"),
        ("hourglass done", "travel & places", "an hourglass done"),
        ("one o’clock", "travel & places", "one o’clock"),
        ("people holding hands", "people & body", "people holding hands"),
        ("person lifting weights", "people & body", "a person lifting weights"),
        ("man: red hair", "people & body", "a man (red hair)"),
        ("OK hand", "people & body", "an OK hand"),
        ("no entry", "symbols", "no entry"),
        ("up arrow", "symbols", "an up arrow"),
        ("SOS button", "symbols", "an SOS button"),
        ("keycap: 1", "symbols", "a keycap (1)"),
        ("glasses", "objects", "glasses"),
        ("magnifying glass tilted left", "objects", "a magnifying glass tilted left"),
    ],
)
def test_articles(label, group, expected):
    assert phrase(concept(label, group)) == expected


def test_captions_begin_with_style_and_noun_and_all_name_the_concept():
    texts = captions(concept("red apple", "food & drink", "fruit", "ripe"), "3D")
    assert texts[0] == "a 3D emoji of a red apple" and "a red apple" in texts
    assert all("red apple" in text for text in texts) and len(set(texts)) == len(texts)
    assert any("food & drink" in text for text in texts) and any("fruit, ripe" in text for text in texts)


APPLE = concept("red apple", "food & drink", "fruit")
OTHERS = [
    APPLE,
    concept("pear", "food & drink"),  # of the same group
    concept("apple tree", "animals & nature"),  # shares a word
    concept("bat", "animals & nature", "fruits"),  # shares a keyword, up to its plural
    concept("woman", "people & body", "adult"),
]


def test_yes_and_no_are_true_and_balanced():
    said = {"yes": [], "no": []}
    for seed in range(200):
        qa = questions(APPLE, "3D", others=OTHERS, groups=GROUPS, rng=np.random.default_rng(seed))
        is_a = [q for q in qa if q["kind"] == "is_a"]
        assert sorted(q["answer"] for q in is_a) == ["no", "yes"] and all(q["choices"] == ["yes", "no"] for q in is_a)
        for q in is_a:
            said[q["answer"]].append(q["question"])
    show, belong = "Does this emoji show {}?", "Does this emoji belong to the group {}?"
    assert set(said["yes"]) == {show.format("a red apple"), belong.format("food & drink")}
    assert set(said["no"]) == {show.format("a woman"), belong.format("people & body")}
    assert 70 < said["yes"].count(show.format("a red apple")) < 130


def test_label_group_and_style_are_the_published_ones():
    qa = questions(APPLE, "flat", others=OTHERS, groups=GROUPS, rng=np.random.default_rng(0))
    answers = {q["kind"]: (q["answer"], q["choices"]) for q in qa if q["kind"] != "is_a"}
    assert answers == {
        "label": ("red apple", []),
        "group": ("food & drink", GROUPS),
        "style": ("flat", ["3D", "flat"]),
    }


def test_a_form_asks_for_words_of_the_label_the_group_and_what_it_stands_for():
    named = concept("smiling cat with heart-eyes", "smileys & emotion", "love", "pet")
    assert {pair["question"]: pair["answer"] for pair in caption_questions(named)} == {
        "What?": "smiling",
        "Second word?": "cat",
        "Last word?": "heart-eyes",
        "Group?": "smileys & emotion",
        "For what?": "love",
        "Or what?": "pet",
    }
    bare = concept("bat", "animals & nature")
    assert [pair["question"] for pair in caption_questions(bare)] == ["What?", "Last word?", "Group?"]
