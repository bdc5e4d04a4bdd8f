"""DPG-Bench: chains of dependent questions, both ways of scoring, the layout, and the size trap of the grids."""

import json

import numpy as np
import pytest
from PIL import Image

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.dpg import (
    OFFICIAL_JUDGE,
    Dpg,
    judgement,
    question_text,
    read_answer,
    read_questions,
    tile_scores,
)
from blip3o.evaluate.suites.grids import join_tiles, split_grid

DPG = Dpg()
HEADER = (
    "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple,question_natural_language"
)


def row(item, number, dependency="0", kind="entity - whole (dog)"):
    return f'{item},a dog on {item},,{number},"{dependency}",entity,whole,{kind},Is there a {item}{number}?'


def table(*rows):
    return "\n".join([HEADER, *rows, ""])


TWO = table(
    row("one", 1),
    row("one", 2, "0", "attribute - color (dog, red)"),
    row("two", 1),
    row("two", 2, "1", "attribute - color (dog, red)"),
    row("two", 3, "2", "attribute - color (dog, red)"),
)


@pytest.fixture
def two(tmp_path):
    file = tmp_path / "questions.csv"
    file.write_text(TWO)
    return DPG.items(str(file))


def questions(*parents):
    return [{"number": number, "parents": of_one} for number, of_one in enumerate(parents, start=1)]


def answers(*words):
    return {str(number): word for number, word in enumerate(words, start=1)}


@pytest.mark.parametrize(
    ("parents", "words", "final"),
    [
        ([[0], [1], [2]], ["no", "yes", "yes"], [0, 0, 0]),  # a no goes down the chain
        ([[0], [1], [2]], ["yes", "no", "yes"], [1, 0, 0]),
        ([[0], [0], [1, 2]], ["yes", "no", "yes"], [1, 0, 0]),  # one parent is enough
        ([[0], [0], [0]], ["yes", "no", "yes"], [1, 0, 1]),
        ([[2], [3], [0]], ["yes", "yes", "no"], [1, 0, 0]),  # parents that come later: 1 sees 2 before it falls
        ([[0], [0, 1]], ["no", "yes"], [0, 0]),  # "0, 1" is a dependency on 1
    ],
)
def test_a_no_takes_its_dependents_along_in_order(parents, words, final):
    assert list(tile_scores(questions(*parents), answers(*words))[1].values()) == final


@pytest.mark.parametrize("word", ["Yes", "yes.", " yes", "y", "", "true"])
def test_only_yes_exactly_counts(word):
    assert tile_scores(questions([0]), answers(word)) == ({1: 0.0}, {1: 0.0})


@pytest.mark.parametrize(
    ("reply", "answer"),
    [("yes", "yes"), ("Yes.", "yes"), (" NO\n", "no"), ("Yes, there is", None), ("unclear", None), ("", None)]
    + [
        ("**Yes.**", "yes"),
        ('"no"', "no"),
        ("Answer: yes", "yes"),
        ("<think>no</think>yes", "yes"),
        ("<think>yes", None),
    ]
    + [("yes or no", None), ("not", None), ("yes no", None)],
)
def test_a_judge_that_chats_says_yes_or_no_or_nothing(reply, answer):
    assert "Is it red?" in question_text({"text": "Is it red?"})
    assert read_answer(reply) == answer


def all_tiles(items, answer):
    """A finding on every tile; `answer` maps (item, tile, question number) to a word."""
    return [
        judgement(item, tile, {q["number"]: answer(item.key, tile, q["number"]) for q in item.record["questions"]})
        for item in items
        for tile in range(item.samples)
    ]


def test_the_official_score_loses_the_first_row_and_the_fixed_one_does_not(two):
    judged = all_tiles(two, lambda key, tile, number: "no" if (key, number) == ("one", 1) else "yes")
    score = DPG.score(two, judged, OFFICIAL_JUDGE)
    assert score.overall == score.details["official"]["overall"] == 100.0
    assert score.details["fixed"]["overall"] == pytest.approx((50 + 100) / 2)
    assert (score.best, score.details["official"]["n_prompts"]) == (100.0, 2)


def test_the_official_score_drops_the_first_item_if_a_question_depends_on_the_lost_one(tmp_path):
    file = tmp_path / "q.csv"
    file.write_text(table(row("one", 1), row("one", 2, "1"), row("two", 1)))
    items = DPG.items(str(file))
    score = DPG.score(items, all_tiles(items, lambda key, *_: "no" if key == "one" else "yes"), OFFICIAL_JUDGE)
    assert (score.details["official"]["n_prompts"], score.overall) == (1, 100.0)
    assert (score.details["fixed"]["n_prompts"], score.details["fixed"]["overall"]) == (2, 50.0)


def test_the_official_score_keeps_the_item_if_another_parent_already_said_no(tmp_path):
    file = tmp_path / "q.csv"
    file.write_text(table(row("one", 1), row("one", 2), row("one", 3, "2,1")))
    items = DPG.items(str(file))
    score = DPG.score(items, all_tiles(items, lambda k, t, number: "no" if number == 2 else "yes"), OFFICIAL_JUDGE)
    assert (score.details["official"]["n_prompts"], score.overall) == (1, 0.0)


def test_official_categories_are_the_last_tiles_answers_before_dependencies(two):
    # Item two: question 1 is no on every tile, its dependents yes on the last tile alone.
    def answer(key, tile, number):
        return "yes" if key == "one" or (number > 1 and tile == 3) else "no"

    score = DPG.score(two, all_tiles(two, answer), OFFICIAL_JUDGE)
    assert score.categories["attribute"] == 100.0
    assert score.details["fixed"]["broad"]["attribute"] == pytest.approx(100 * 4 / 12)
    assert set(score.details["fixed"]["categories"]) == {"entity - whole", "attribute - color"}
    assert score.details["fixed"]["overall"] == pytest.approx((100 + 0) / 2)


def test_a_prompt_is_the_mean_of_its_tiles(two):
    score = DPG.score(two, all_tiles(two, lambda key, tile, number: "yes" if tile == 0 else "no"), OFFICIAL_JUDGE)
    assert score.overall == 25.0
    assert score.interval == (25.0, 25.0)


def test_an_incomplete_score_has_no_overall(two):
    judged = all_tiles(two, lambda *_: "yes")
    score = DPG.score(two, judged[:-1], OFFICIAL_JUDGE)
    assert (score.overall, score.interval, score.coverage.n_missing) == (None, None, 1)
    assert score.details["official"]["survivors"] == 100.0
    assert score.details["fixed"]["n_prompts"] == 1


def test_a_tile_with_an_unanswered_question_is_unreadable(two):
    found = judgement(two[1], 0, {1: "yes", 3: "yes"})
    assert found.value is None
    assert found.fault == "no answer to 1 of the questions, the first is 2"
    assert DPG.score(two, [found], OFFICIAL_JUDGE).coverage.n_parse_failed == 1


def test_answers_to_other_questions_are_refused(two):
    stale = Judgement(key="two", sample=0, value={"answers": {"1": "yes"}})
    with pytest.raises(DataError, match="not to its questions"):
        DPG.score(two, [stale], OFFICIAL_JUDGE)


def test_nothing_here_is_comparable_and_the_reasons_say_so(two):
    score = DPG.score(two, all_tiles(two, lambda *_: "yes"), Judge(id="other", version="1"))
    assert not score.comparable
    assert score.why_not[0] == "2 prompts instead of 1065"
    assert "the judge is not mplug-large-vqa" in score.why_not


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("one", 1), row("one", 1)], "question 1 2 times"),
        ([row("one", 1, "7")], "depends on 7, which isn't there"),
        ([row("one", "first")], "row 1: .*numbers"),
        ([row("one", 1, "0;1")], "row 1: .*numbers"),
    ],
)
def test_a_table_that_cannot_be_scored_is_refused(rows, message):
    with pytest.raises(DataError, match=message):
        read_questions(table(*rows).encode(), "q.csv")


def test_a_table_of_something_else_is_refused():
    with pytest.raises(DataError, match="lacks item_id"):
        read_questions(b"a,b\n1,2\n", "q.csv")


def test_prompts_come_from_a_folder_or_json_too_and_then_cannot_be_scored(tmp_path):
    (tmp_path / "one.txt").write_text("a dog\n")
    (tmp_path / "prompts.json").write_text(json.dumps({"one.txt": "a dog"}))
    for source in (str(tmp_path), str(tmp_path / "prompts.json")):
        [item] = DPG.items(source)
        assert (item.key, item.prompt, item.samples) == ("one", "a dog", 4)
        with pytest.raises(ConfigError, match="give dpg the CSV"):
            DPG.score([item], [], OFFICIAL_JUDGE)
    (tmp_path / "dpg_bench.csv").write_text(table(row("one", 1)))
    assert len(DPG.items(str(tmp_path))[0].record["questions"]) == 1
    with pytest.raises(ConfigError, match="name the questions CSV"):
        DPG.items(None)


def test_the_official_folder_gets_the_grid_alone(two):
    assert DPG.grids(two)["images/two.png"] == tuple(DPG.image_path(two[1], number) for number in range(4))
    assert not any(DPG.image_path(item, 0).startswith("images/") for item in two)


def tiles(side=8):
    return [Image.fromarray(np.full((side, side, 3), 40 * number, np.uint8)) for number in range(4)]


def test_a_grid_gives_its_tiles_back():
    for made, tile in zip(split_grid(join_tiles(tiles()), resolution=8), tiles(), strict=True):
        assert np.array_equal(np.asarray(made), np.asarray(tile))


@pytest.mark.parametrize("resolution", [4, 7, 16])
def test_a_grid_of_other_tiles_is_refused(resolution):
    with pytest.raises(DataError, match="a grid of 16x16 has no tiles"):
        split_grid(join_tiles(tiles()), resolution=resolution)


@pytest.mark.parametrize("bad", [tiles()[:3], [*tiles()[:3], tiles(9)[3]], [Image.new("RGB", (8, 9))] * 4])
def test_tiles_that_make_no_grid_are_refused(bad):
    with pytest.raises(DataError, match="make no grid"):
        join_tiles(bad)
