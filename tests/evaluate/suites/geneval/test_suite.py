"""GenEval's rules on detections made to sit on every edge of them, its layout, and the official scorer's own rows."""

import json
import re

import numpy as np
import pytest

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.geneval.judge import import_results
from blip3o.evaluate.suites.geneval.suite import OFFICIAL_JUDGE, Detected, GenEval, check, judgement, kept
from blip3o.evaluate.suites.registry import find_suite

GENEVAL = GenEval()
OTHER_JUDGE = Judge(id="someone", version="1")


def det(score=0.95, box=(0, 0, 10, 10), color=None):
    return Detected(box=box, score=score, color=color)


def wanted(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": "p"}


def clause(name, count=1, **more):
    return {"class": name, "count": count, **more}


CAT = wanted("single_object", clause("cat"))
THREE_CATS = wanted("counting", clause("cat", 3), exclude=[clause("cat", 4)])
RED_CAT = wanted("colors", clause("cat", color="red"))


@pytest.mark.parametrize(
    ("score", "there"),
    [(0.3, False), (float(np.nextafter(np.float32(0.3), np.float32(1))), True), (float(np.float32(0.3)), False)],
)
def test_a_score_at_the_threshold_is_not_there(score, there):
    assert check(CAT, {"cat": [det(score)]}).correct is there


def test_counting_asks_for_more_certainty_and_for_no_more_objects():
    assert not check(THREE_CATS, {"cat": [det(0.9)] * 3}).correct
    assert check(THREE_CATS, {"cat": [det(0.91)] * 3 + [det(0.9)] * 5}).correct
    assert not check(THREE_CATS, {"cat": [det(0.91)] * 4}).correct
    assert check(THREE_CATS, {"cat": [det(0.91)] * 4}).reason == "expected fewer than 4 of cat, found 4"
    assert not check(THREE_CATS, {"cat": [det(0.91)] * 2, "dog": [det()]}).correct


def test_surplus_objects_do_no_harm_elsewhere():
    assert check(CAT, {"cat": [det()] * 5, "dog": [det()]}).correct
    assert check(CAT, {"cat": []}).reason == "expected 1 of cat, found 0"
    assert not check(CAT, {}).correct


def test_sixteen_of_a_class_are_kept_and_of_equals_the_last_ones():
    many = [det(0.5, box=(n, 0, n + 1, 1)) for n in range(20)]
    assert [one.box[0] for one in kept({"cat": many}, counting=False)["cat"]] == list(range(19, 3, -1))
    best_first = [det(0.4), det(0.8), det(0.6)]
    assert [one.score for one in kept({"cat": best_first}, counting=False)["cat"]] == [0.8, 0.6, 0.4]
    # Seventeen are wanted and there, but no more than sixteen are seen.
    assert not check(wanted("counting", clause("cat", 17)), {"cat": [det()] * 17}).correct


def test_identical_boxes_all_count_as_nothing_is_suppressed():
    assert check(wanted("counting", clause("cat", 2)), {"cat": [det(), det()]}).correct


def test_the_color_is_asked_of_as_many_as_are_wanted_of_the_best():
    assert check(RED_CAT, {"cat": [det(0.5, color="blue"), det(0.6, color="red")]}).correct
    verdict = check(RED_CAT, {"cat": [det(0.6, color="blue"), det(0.5, color="red")]})
    assert not verdict.correct
    assert verdict.reason == "expected 1 red of cat, found blue"
    # A tie: the later one is the first.
    assert check(RED_CAT, {"cat": [det(0.5, color="blue"), det(0.5, color="red")]}).correct


def test_the_color_is_asked_of_each_that_is_wanted():
    two_red = wanted("colors", clause("cat", 2, color="red"))
    assert check(two_red, {"cat": [det(color="red"), det(color="red")]}).correct
    verdict = check(two_red, {"cat": [det(0.6, color="blue"), det(0.5, color="red")]})
    assert verdict.reason == "expected 2 red of cat, found blue, red"


def test_the_classifier_sees_only_the_found_objects_of_its_class():
    seen = []

    def classifier(name, found):
        seen.append((name, [one.score for one in found]))
        return ["red"] * len(found)

    assert check(RED_CAT, {"cat": [det(0.4), det(0.7), det(0.2)], "dog": [det()]}, classifier).correct
    assert seen == [("cat", [0.7])]
    assert not check(RED_CAT, {"cat": [det(0.3)]}, classifier).correct
    assert len(seen) == 1


LEFT = wanted("position", clause("dog"), clause("cat", position=["left of", 0]))


@pytest.mark.parametrize(
    ("cat", "dog", "holds"),
    [
        ((0, 0, 10, 10), (30, 0, 40, 10), True),
        ((30, 0, 40, 10), (0, 0, 10, 10), False),
        ((0, 0, 10, 10), (0, 0, 10, 10), False),  # the same place: no relation
        ((0, 0, 10, 10), (2, 0, 12, 10), False),  # nearer than a tenth of both widths
        # Offset 4 less 0.1 * 20 leaves 2, over the full length 4: exactly a half, which is not more than a half.
        ((0, 0, 10, 10), (4, 0, 14, 10), False),
        ((0, 0, 10, 10), (4.01, 0, 14.01, 10), True),
        ((5, 5, 5, 5), (6, 5, 6, 5), True),  # boxes without extent still have a place
        ((5, 5, 5, 5), (5, 5, 5, 5), False),
        ((5, 5, 5, 5), (5.0009, 5, 5.0009, 5), False),  # less than a thousandth of a pixel
    ],
)
def test_a_relation_at_its_edges(cat, dog, holds):
    assert check(LEFT, {"cat": [det(box=cat)], "dog": [det(box=dog)]}).correct is holds


def test_a_diagonal_is_two_relations():
    above = wanted("position", clause("dog"), clause("cat", position=["above", 0]))
    there = {"cat": [det(box=(0, 0, 10, 10))], "dog": [det(box=(50, 50, 60, 60))]}
    assert check(above, there).correct
    assert check(LEFT, there).correct


def test_the_relation_must_hold_for_every_found_pair():
    two_dogs = wanted("position", clause("dog", 2), clause("cat", position=["left of", 0]))
    cat, near, far = det(box=(20, 0, 30, 10)), det(box=(60, 0, 70, 10)), det(box=(90, 0, 99, 10))
    assert check(two_dogs, {"cat": [cat], "dog": [near, far]}).correct
    assert not check(two_dogs, {"cat": [cat], "dog": [near, det(box=(0, 0, 9, 10))]}).correct


def test_without_its_target_a_relation_is_wrong():
    verdict = check(LEFT, {"cat": [det()]})
    assert not verdict.correct
    assert verdict.reason == "expected 1 of dog, found 0; nothing for cat to be left of"
    # One of two is there, and is no target either: its clause does not hold.
    two_dogs = wanted("position", clause("dog", 2), clause("cat", position=["left of", 0]))
    verdict = check(two_dogs, {"cat": [det(box=(0, 0, 9, 9))], "dog": [det(box=(60, 0, 70, 9))]})
    assert verdict.reason == "expected 2 of dog, found 1; nothing for cat to be left of"


def test_only_the_best_of_each_stand_in_the_relation():
    left, right = (0, 0, 10, 10), (60, 0, 70, 10)
    there = {"cat": [det(0.9, left), det(0.4, right)], "dog": [det(0.8, right), det(0.5, left)]}
    assert check(LEFT, there).correct
    assert not check(LEFT, there | {"cat": [det(0.4, left), det(0.9, right)]}).correct


def items(count=None):
    return GENEVAL.items(None)[:count]


def test_the_layout_is_what_the_official_scorer_reads():
    first = items()[0]
    path = GENEVAL.image_path(first, 3)
    assert path == "images/00000/samples/0003.png"
    assert re.match(r"\d+\.png", path.rsplit("/", 1)[1])
    texts = GENEVAL.texts(items())
    assert len(texts) == 553
    assert json.loads(texts["images/00000/metadata.jsonl"]) == first.record
    assert "\n" not in texts["images/00000/metadata.jsonl"]


def judged(chosen, correct):
    return [
        Judgement(key=item.key, sample=n, value={"correct": correct(item, n)})
        for item in chosen
        for n in range(item.samples)
    ]


def test_the_overall_is_the_unweighted_mean_over_tags():
    score = GENEVAL.score(items(), judged(items(), lambda i, n: i.record["tag"] == "counting"), OFFICIAL_JUDGE)
    assert score.overall == pytest.approx(1 / 6)
    assert score.categories["counting"] == 1.0
    assert score.details["correct_prompts"] == pytest.approx(80 / 553)
    assert score.details["correct_images"] == pytest.approx(80 / 553)
    assert (score.comparable, score.why_not) == (True, ())


def test_a_prompt_is_right_if_any_of_its_pictures_is():
    score = GENEVAL.score(items(), judged(items(), lambda i, n: n == 2), OFFICIAL_JUDGE)
    assert (score.overall, score.details["correct_images"], score.details["correct_prompts"]) == (0.25, 0.25, 1.0)
    assert score.interval == (0.25, 0.25)


def test_an_incomplete_score_has_no_overall_but_says_what_is_there():
    all_but_one = judged(items(), lambda i, n: True)[:-1]
    score = GENEVAL.score(items(), all_but_one, OFFICIAL_JUDGE)
    assert (score.overall, score.interval, score.comparable) == (None, None, False)
    assert score.coverage.n_missing == 1
    assert score.categories["single_object"] == 1.0
    unread = [*all_but_one, Judgement(key=items()[-1].key, sample=3, value=None, fault="the detector failed")]
    assert GENEVAL.score(items(), unread, OFFICIAL_JUDGE).coverage.n_parse_failed == 1


def test_what_is_not_official_is_not_comparable_and_says_why():
    few = items(3)
    score = GENEVAL.score(few, judged(few, lambda i, n: True), OTHER_JUDGE)
    assert (score.overall, score.comparable) == (1.0, False)
    assert "the prompts are not GenEval's 553" in score.why_not
    assert any("judge" in why for why in score.why_not)


def test_findings_come_from_detections():
    item = items()[0]
    [name] = [clause["class"] for clause in item.record["include"]]
    assert judgement(item, 1, {name: [det()]}).value == {"correct": True, "reason": ""}
    assert judgement(item, 1, {}).value["correct"] is False


def official_row(item, sample, correct, **changes):
    row = {
        "filename": f"out/{item.key}/samples/{sample:04d}.png",
        "tag": item.record["tag"],
        "prompt": item.prompt,
        "correct": correct,
        "reason": "" if correct else "expected cat>=1, found 0",
        "metadata": json.dumps(item.record),
        "details": "{}",
    }
    return json.dumps(row | changes)


def test_the_official_results_are_taken_in():
    rows = [official_row(item, n, n == 0) for item in items(2) for n in range(4)]
    found = import_results("\n".join([*rows, ""]).encode(), items())
    score = GENEVAL.score(items(2), found, OFFICIAL_JUDGE)
    assert (score.overall, score.coverage.n_scored) == (0.25, 8)
    assert found[1].value == {"correct": False, "reason": "expected cat>=1, found 0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "a photo of something else"}, "the prompt of 00000 is"),
        ({"filename": "out/00999/samples/0000.png"}, "no picture of these items"),
        ({"filename": "out/00000/samples/grid.png"}, "no picture of these items"),
        ({"correct": "yes"}, "true or false"),
    ],
)
def test_rows_that_belong_to_other_items_are_refused(changes, message):
    with pytest.raises(DataError, match=message):
        import_results(official_row(items()[0], 0, **({"correct": True} | changes)).encode(), items())


def test_damaged_results_are_refused_by_line():
    good = official_row(items()[0], 0, True)
    with pytest.raises(DataError, match="line 2 is not JSON"):
        import_results(f'{good}\n{{"filename"'.encode(), items())
    with pytest.raises(DataError, match="line 1 is a list"):
        import_results(b"[]", items())


def test_a_file_of_other_prompts_can_be_used_and_is_not_comparable(tmp_path):
    file = tmp_path / "long.jsonl"
    file.write_text(json.dumps(CAT | {"prompt": "a cat on a long sofa"}) + "\n")
    [item] = GENEVAL.items(str(file))
    assert (item.key, item.prompt) == ("00000", "a cat on a long sofa")
    assert not GENEVAL.score([item], judged([item], lambda i, n: True), OFFICIAL_JUDGE).comparable
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="record 1 lacks tag, include"):
        GENEVAL.items(str(file))


def test_suites_are_asked_for_by_name():
    assert find_suite("geneval").suite.name == "geneval"
    with pytest.raises(ConfigError, match="--suite genevals is unknown"):
        find_suite("genevals")
