"""Answers are compared after normalising only; chance, groups and intervals are what they are defined to be."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.data.text.normalise import normalise
from blip3o.evaluate.metrics.understanding import AnswerRecord, score

COLORS = ("red", "green", "blue", "black")


def record(reply, answer="red", choices=COLORS, kind="color", source="scenes"):
    return AnswerRecord(
        uid="scenes/0/0", source=source, kind=kind, question="What color?", choices=choices, answer=answer, reply=reply
    )


@pytest.mark.parametrize("reply", ["light grey", " Light  Grey ", "LIGHT GREY.", "light\ngrey .", "light grey"])
def test_case_spaces_and_a_final_period_do_not_count(reply):
    assert record(reply, answer="light grey", choices=("light grey", "beige", "white")).correct
    assert not record(reply, answer="lightgrey").correct


@pytest.mark.parametrize("reply", ["red circle", "", "not red", "red, green", "red!", "reds"])
def test_anything_else_than_the_answer_is_wrong_and_unparsed(reply):
    assert not record(reply).correct
    assert record(reply).unparsed


def test_a_wrong_choice_is_parsed_and_an_open_reply_always_is():
    assert not record("green").unparsed
    assert not record("anything", choices=()).unparsed


@given(st.text())
def test_normalised_text_has_single_spaces_and_lower_case(text):
    assert normalise(text) == normalise(f"  {text.lower()}\t")
    assert "  " not in normalise(text)


def test_scores_of_known_replies():
    yes_no = {"choices": ("yes", "no"), "kind": "presence", "answer": "yes"}
    scores = score(
        [
            record("red"),
            record("green"),
            record("red", choices=COLORS + ("pink", "white", "grey", "beige"), kind="shape"),
            record("purple", source="emoji"),
            record("yes", **yes_no),
            record("no", **yes_no),
            record("maybe", **yes_no),
            record("a cat", answer="cat", choices=(), kind="label"),
        ],
        seed=0,
    )
    assert (scores["accuracy"], scores["n"], scores["n_unparsed"]) == (0.5, 4, 1)
    assert scores["chance"] == pytest.approx((3 / 4 + 1 / 8) / 4)
    assert scores["by_kind"]["color"] == {"accuracy": pytest.approx(1 / 3), "chance": 0.25, "n": 3, "n_unparsed": 1}
    assert scores["by_source"]["emoji"]["accuracy"] == 0
    assert scores["two_way"]["accuracy"] == pytest.approx(1 / 3)
    assert (scores["two_way"]["chance"], scores["two_way"]["n"], scores["two_way"]["n_unparsed"]) == (0.5, 3, 1)
    assert (scores["open"]["accuracy"], scores["open"]["chance"], scores["open"]["n"]) == (0, None, 1)


def test_three_choices_make_a_headline_question():
    scores = score([record("red", choices=("red", "green", "blue")), record("red", choices=("red", "green"))], seed=0)
    assert (scores["n"], scores["two_way"]["n"]) == (1, 1)


def test_groups_without_questions_have_no_figures():
    scores = score([record("a cat", choices=())], seed=0)
    assert scores["accuracy"] is None
    assert scores["interval"] is None
    assert scores["n"] == 0


def test_the_interval_holds_the_accuracy_and_narrows_with_more_questions():
    few, many = (score([record("red"), record("green")] * n, seed=3)["interval"] for n in (10, 1000))
    assert few[0] < 0.5 < few[1]
    assert few[1] - few[0] > 5 * (many[1] - many[0])
    # The normal approximation of 1000 even answers: 0.5 ± 1.96 * sqrt(0.25 / 2000).
    assert many == pytest.approx([0.478, 0.522], abs=0.004)


def test_the_interval_is_a_function_of_the_seed():
    records = [record("red"), record("green")] * 20
    assert score(records, seed=1) == score(records, seed=1)


def test_all_right_answers_leave_the_doubt_of_their_number():
    assert score([record("red")] * 5, seed=0)["interval"] == pytest.approx([5 / (5 + 1.96**2), 1], abs=1e-4)
    assert score([record("blue")] * 5, seed=0)["interval"] == pytest.approx([0, 1.96**2 / (5 + 1.96**2)], abs=1e-4)
