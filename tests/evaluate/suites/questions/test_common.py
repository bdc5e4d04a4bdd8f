"""VQA accuracy, MME pairs and multiple choice: how replies are read, and what is counted."""

import json

import pytest

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Judgement
from blip3o.evaluate.suites.questions.choice import Choice, chosen
from blip3o.evaluate.suites.questions.common import EXACT_MATCH
from blip3o.evaluate.suites.questions.mme import COGNITION, PERCEPTION, Mme, yes_or_no
from blip3o.evaluate.suites.questions.vqa import VQA_LMMS, VQAV2, Vqa, accuracy, both_sides, vqa_eval
from blip3o.evaluate.suites.questions.vqa_words import normalise_reply, normalise_words


@pytest.mark.parametrize(
    ("reply", "read"),
    [
        ("Yes", "yes"),
        ("  The  dog ", "dog"),
        ("a man and an owl", "man and owl"),
        ("two", "2"),
        ("None", "0"),
        ("ten.", "10"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("somebodyd've", "somebody'd've"),
        ("youdve", "youdve"),  # two apostrophes lack: not in the table
        ("man's hat", "man 's hat"),
        ("3.5", "3.5"),
        ("end.", "end"),
        ("1,000", "1000"),  # commas go before anything else
        ("red, white", "red white"),
        ("red/white", "red white"),
        ("red / white", "red white"),
        ("half-baked", "half baked"),
        ("half -baked", "half baked"),
        ("what?", "what"),
        ("top\nleft", "top left"),
        ("", ""),
        ("the", ""),
    ],
)
def test_a_reply_is_read_as_the_official_evaluation_reads_it(reply, read):
    assert normalise_reply(reply) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("1,000", "1000"),
        ("1,000-2", "10002"),  # a comma in a number takes every other mark along
        ("half-baked", "half baked"),
        ("red ,white-black", "red white black"),
        ("a-b -c", "ab c"),  # one hyphen touches a space, so none becomes one
        ("man's", "man's"),  # only replies have their 's split off
        ("." * 40, "." * 8),  # no more than 32 periods go
        ("Im", "im"),
    ],
)
def test_annotators_answers_are_read_by_fewer_steps(answer, read):
    assert normalise_words(answer) == read


@pytest.mark.parametrize(("agree", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_accuracy_leaves_each_annotator_out(agree, expected):
    answers = ["red"] * agree + [f"other{n}" for n in range(10 - agree)]
    assert accuracy("Red.", answers) == pytest.approx(expected)


ODD = (
    "two",
    "PEPSI",
    "a dog",
    "3,000",
    "The Beatles",
    "don't",
    "10:30 a.m.",
    "half-baked",
    "St. Mary's",
    "yes!",
    "tab\there",
)


@pytest.mark.parametrize("reading", [both_sides, vqa_eval])
@pytest.mark.parametrize("answer", ODD)
def test_a_reply_that_is_what_all_annotators_wrote_is_right(answer, reading):
    assert accuracy(answer, [answer] * 10, reading) == 1.0
    assert accuracy(f" {answer}\n", [answer] * 10, reading) == 1.0
    assert accuracy(answer, [answer] * 5 + ["other"] * 5, reading) == 1.0
    assert accuracy("something else", [answer] * 10, reading) == 0.0


@pytest.mark.parametrize(
    ("reply", "answers", "evalai", "authors", "lmms"),
    [
        # Unanimous: the authors' program compares as written; lmms-eval read the reply alone.
        ("two", ["two"] * 10, 1.0, 1.0, 0.0),
        ("PEPSI", ["PEPSI"] * 10, 1.0, 1.0, 0.0),
        ("a dog", ["a dog"] * 10, 1.0, 1.0, 0.0),
        ("3,000", ["3,000"] * 10, 1.0, 1.0, 0.0),
        ("two", ["2"] * 10, 1.0, 0.0, 1.0),
        ("2", ["two"] * 10, 1.0, 0.0, 0.0),
        ("Black.", ["black"] * 10, 1.0, 0.0, 1.0),
        ("dont", ["don't"] * 10, 1.0, 0.0, 1.0),
        # Divided: all read both sides.
        ("two", ["two"] * 9 + ["three"], 1.0, 1.0, 1.0),
        ("2", ["Two."] * 2 + ["three"] * 8, 0.6, 0.6, 0.6),
        ("the DOG", ["a dog"] + ["cat"] * 9, 0.3, 0.3, 0.3),
        ("3000", ["3,000"] * 3 + ["300"] * 7, 0.9, 0.9, 0.9),
        ("man's", ["man's"] * 4 + ["woman"] * 6, 1.0, 1.0, 0.0),  # lmms-eval split 's off the reply alone
        ("1,,2", ["1 2"] * 4 + ["x"] * 6, 0.0, 1.0, 0.0),  # the authors' comma in a number is a single one
    ],
)
def test_each_program_has_its_rule_and_its_name(reply, answers, evalai, authors, lmms):
    found = [accuracy(reply, answers, suite.reading) for suite in (Vqa(), VQAV2, VQA_LMMS)]
    assert found == pytest.approx([evalai, authors, lmms])
    assert len({suite.protocol for suite in (Vqa(), VQAV2, VQA_LMMS)}) == 3


def questions(suite, tmp_path, *rows):
    file = tmp_path / f"{suite.name}.jsonl"
    file.write_text(
        "\n".join(json.dumps({"id": n, "image": "a.png", "question": "q?"} | r) for n, r in enumerate(rows))
    )
    return suite.items(str(file))


def replied(items, *replies):
    return [Judgement(key=item.key, sample=0, value={"reply": r}) for item, r in zip(items, replies, strict=False)]


def test_vqa_scores_a_file(tmp_path):
    suite = Vqa()
    items = questions(
        suite,
        tmp_path,
        {"answers": ["red"] * 10, "category": "color"},
        {"answers": ["two"] * 2 + ["three"] * 8, "category": "number", "image": "s3://bucket/b.png"},
    )
    assert [item.record["image"] for item in items] == [f"{tmp_path}/a.png", "s3://bucket/b.png"]
    score = suite.score(items, replied(items, "red", "2"), EXACT_MATCH)
    assert score.overall == pytest.approx((1 + 0.6) / 2)
    assert score.categories == pytest.approx({"color": 1.0, "number": 0.6})
    part = suite.score(items, replied(items, "red"), EXACT_MATCH)
    assert (part.overall, part.coverage.n_missing, part.categories) == (None, 1, {"color": 1.0})


def test_questions_that_cannot_be_scored_are_refused(tmp_path):
    with pytest.raises(DataError, match="fewer than 4 answers"):
        questions(Vqa(), tmp_path, {"answers": ["red"] * 3})
    with pytest.raises(DataError, match="lacks answers"):
        questions(Vqa(), tmp_path, {})
    with pytest.raises(DataError, match="two questions of one id"):
        questions(Vqa(), tmp_path, {"answers": ["x"] * 4, "id": 1}, {"answers": ["x"] * 4, "id": "1"})
    with pytest.raises(ConfigError, match="vqa needs a local file"):
        Vqa().items(None)
    with pytest.raises(ConfigError, match="vqa draws nothing"):
        Vqa().image_path(questions(Vqa(), tmp_path, {"answers": ["x"] * 4})[0], 0)


@pytest.mark.parametrize(
    ("reply", "word"),
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Yes, it is", "yes"),
        ("No it isn't", "no"),
        (" y.e.s", "yes"),
        ("maybe", None),
        ("the answer is yes", None),
        ("", None),
        ("a no", "no"),  # within the first four letters
        ("Unknown", None),
        ("y", "yes"),
        ("N", "no"),
        (" Y.\n", "yes"),
        ("n.", "no"),
        ("y, it is", None),  # only a lone letter counts
        ("ny", None),
        ("Not at all", "no"),  # as the source reads it
        ("Yes and no", "yes"),
        ("YES", "yes"),
        ("x", None),
    ],
)
def test_yes_and_no_are_read_from_the_first_letters(reply, word):
    assert yes_or_no(reply) == word


def pairs(tmp_path, categories, images=2):
    rows = [
        {"category": category, "image": f"{n}.png", "answer": answer}
        for category in categories
        for n in range(images)
        for answer in ("Yes", "No")
    ]
    return questions(Mme(), tmp_path, *rows)


def test_a_subtask_is_accuracy_plus_accuracy_of_pairs(tmp_path):
    items = pairs(tmp_path, ["count"])
    score = Mme().score(items, replied(items, "yes", "no", "yes", "yes"), EXACT_MATCH)
    assert score.overall == pytest.approx(75 + 50)
    assert score.best == 200.0
    assert (score.details["perception"], score.details["cognition"]) == (None, None)
    # Always yes: half of the questions, no pair.
    assert Mme().score(items, replied(items, *["yes"] * 4), EXACT_MATCH).overall == 50.0


def test_perception_and_cognition_are_sums_over_all_their_subtasks(tmp_path):
    items = pairs(tmp_path, [*PERCEPTION, *COGNITION], images=1)
    score = Mme().score(items, replied(items, *["Yes", "No"] * 14), EXACT_MATCH)
    assert (score.details["perception"], score.details["cognition"], score.overall) == (2000.0, 800.0, 2800.0)


def test_a_reply_that_is_neither_is_wrong_and_counted(tmp_path):
    items = pairs(tmp_path, ["count"], images=1)
    score = Mme().score(items, replied(items, "yes", "perhaps"), EXACT_MATCH)
    assert (score.overall, score.details["n_unparsed"]) == (50.0, 1)
    part = Mme().score(items, replied(items, "yes"), EXACT_MATCH)
    assert (part.overall, part.categories) == (None, {"count": None})


def test_a_question_without_the_other_of_its_pair_counts_nowhere(tmp_path):
    items = pairs(tmp_path, ["count"])[:3]  # as --limit cuts
    for last in ("yes", "no"):
        score = Mme().score(items, replied(items, "yes", "no", last), EXACT_MATCH)
        assert (score.overall, score.categories["count"], score.coverage.n_scored) == (None, 200.0, 3)
    assert "1 questions are not in pairs, two about each picture" in score.why_not


def test_half_a_pair_and_other_answers_are_refused(tmp_path):
    with pytest.raises(DataError, match="1 questions of category 'count'"):
        questions(Mme(), tmp_path, {"category": "count", "answer": "Yes"})
    with pytest.raises(DataError, match="expected Yes or No"):
        questions(Mme(), tmp_path, {"category": "count", "answer": "two"})


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("B", 1),
        ("b", 1),
        (" (B) ", 1),
        ("B.", 1),
        ("B. a dog", 1),
        ("B: a dog", 1),
        ("(b) a dog", 1),
        ("A dog", 1),  # the option's words, not the letter A
        ("a dog.", 1),
        ("a cat", 0),
        ("a", 0),
        ("D", None),
        ("Both", None),
        ("A or B", None),
        ("a bird", None),
        ("", None),
        ("B.5", None),
        ("The answer is B.", 1),
        ("the answer is b", 1),
        ("Answer: B. a dog", 1),
        ("Answer:\n\nB", 1),
        ("The correct option is **B**", 1),
        ("The answer is a dog.", 1),
        ("The answer is the dog", 1),
        ("Answer: A dog", 1),
        ("final answer: (c) a cow", 2),
        ("I choose C", 2),
        ("A is wrong. The answer is B.", 1),
        ("It shows a dog (B).", 1),
        ("**B**", 1),
        ("**B.** a dog", 1),
        ("`B`", 1),
        ("B)", 1),
        ("[B]", 1),
        ("B a dog", 1),
        ("B - a dog", 1),
        ("B because it barks", 1),
        ("B\n\nExplanation: A has whiskers", 1),
        ("\\boxed{B}", 1),
        ("<think>A or C</think>\nB", 1),
        ("B a cat", None),  # the letter and the words of two options
        ("A, B", None),
        ("A and B", None),
        ("A/B", None),
        ("(A) (B)", None),
        ("B) or C)", None),
        ("The answer is A or B", None),
        ("The answer is A or B. My choice: B", None),
        ("The answer is A. No, the answer is B.", None),
        ("The answer is not B.", None),
        ("The answer is a bird", None),
        ("None of the above", None),
        ("A big dog", None),
        ("not B", None),
        ("The answer is B, no wait, C.", None),
        ("B. Actually, it is A", None),
        ("B, sorry, I mean C", None),
        ("B. No cat is there", 1),
        ("B。", 1),
        ("（B）", 1),
        ("Ｂ", 1),
        ("B、a dog", 1),
        ("$B$", 1),
        (r"\(B\)", 1),
        ("答案是B", 1),
        ("答案：B", 1),
        ("正确答案为（B）。", 1),
        ("根据图片，应选B。", 1),
        ("选B", 1),
        ("选项B是正确的", None),
        ("答案是A或B", None),
        ("答案不是B", None),
        ("La réponse est B.", 1),
        ("Réponse : **B**", 1),
        ("La bonne réponse est la B", 1),
        ("La réponse n'est pas B", None),
        ("Die richtige Antwort ist (B)", 1),
        ("Respuesta: B", 1),
        ("정답은 B", 1),
        ("B-side", None),
        ("<think>B", None),
    ],
)
def test_an_option_is_its_letter_or_its_words(reply, number):
    assert chosen(reply, ["a cat", "a dog", "a cow"]) == number


def test_two_options_of_the_same_words_are_told_apart_by_letter_alone():
    assert chosen("red", ["red", "Red."]) is None
    assert chosen("B", ["red", "Red."]) == 1


@pytest.mark.parametrize(
    ("reply", "options", "number"),
    [
        ("A cat", ["cat", "dog"], 0),
        ("A cat", ["dog", "cat"], 1),  # an article, and no letter
        ("a cat", ["dog", "cat"], 1),
        ("A cat", ["dog", "cow"], None),
        ("The answer is A cat", ["dog", "cat"], 1),
        ("B. Vitamin C", ["Vitamin A", "Vitamin C"], 1),
        ("Vitamin C", ["Vitamin A", "Vitamin C"], 1),
        ("I'm not sure", [str(n) for n in range(12)], None),
        ("D'accord", ["w", "x", "y", "z"], None),
        ("B yes", ["no", "yes"], 1),
    ],
)
def test_articles_and_words_are_told_from_letters(reply, options, number):
    assert chosen(reply, options) == number


def test_a_model_that_thinks_is_scored_by_what_it_says_after(tmp_path):
    items = questions(Mme(), tmp_path, *({"category": "count", "answer": word} for word in ("Yes", "No")))
    score = Mme().score(items, replied(items, "<think>no?</think>\nYes", "<think>no, that"), EXACT_MATCH)
    assert (score.overall, score.details["n_unparsed"]) == (50.0, 1)
    items = questions(Vqa(), tmp_path, {"answers": ["red"] * 10})
    assert Vqa().score(items, replied(items, "blue?</think>red"), EXACT_MATCH).overall == 1.0


def test_rotations_count_together(tmp_path):
    suite = Choice()
    rows = [{"options": ["x", "y"], "answer": "A", "group": 1}, {"options": ["y", "x"], "answer": "B", "group": 1}]
    items = questions(suite, tmp_path, *rows, {"options": ["x", "y", "z", "w"], "answer": "D"})
    assert items[0].prompt == "q?\nA. x\nB. y"
    score = suite.score(items, replied(items, "A", "A", "w"), EXACT_MATCH)
    assert score.overall == 0.5
    assert score.details == {"plain": pytest.approx(2 / 3), "chance": pytest.approx(1.25 / 3), "n_unparsed": 0}
    assert suite.score(items, replied(items, "A", "B", "w"), EXACT_MATCH).overall == 1.0
    assert suite.score(items, replied(items, "A", "hm", "w"), EXACT_MATCH).details["n_unparsed"] == 1


def test_a_choice_without_its_answer_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected an option's letter"):
        questions(Choice(), tmp_path, {"options": ["x", "y"], "answer": "C"})
