"""Scores of edits: replies of every sort, means in their order, and no number for what was not graded."""

import pytest

from blip3o.evaluate.suites.edits import gedit_grades, gedit_item, gedit_score, imgedit_grades, imgedit_score


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ("Prompt Compliance: 5\nVisual Naturalness: 4\nPhysical Integrity: 4", [5, 4, 4]),
        ("Well done.\nA: 5.\nB: 4.\nC: 4.", [5, 4, 4]),
        ("**A**: 3\n**B:** **2**\nC : 1 ", [3, 2, 1]),
        ("A: 5\nB: 4", None),
        ("A: 5\nB: 4\nC: 3\nD: 2", None),
        ("A: 6\nB: 4\nC: 3", None),
        ("A: 0\nB: 0\nC: 0", None),
        ("A: 4.5\nB: 4\nC: 3", None),
        ("A: 5/5\nB: 4/5\nC: 3/5", [5, 4, 3]),
        ("A: 5/10\nB: 4/10\nC: 3/10", None),
        ("A: 5 out of 5\nB: 4 out of 5.\nC: 3", [5, 4, 3]),
        ("A: 5 out of 10\nB: 4\nC: 3", None),
        ("A: 5\r\nB: 4\r\nC: 3\r\n", [5, 4, 3]),
        ("- **A:** 5.0\n- **B**： 4\n- C: 3", [5, 4, 3]),
        ("A: on a scale of 1 to 5\nB: 4\nC: 3", None),
        ("<think>A: 1\nB: 1\nC: 1</think>\nA: 5\nB: 4\nC: 4", [5, 4, 4]),
        ("A: 1\nB: 1\nC: 1\n<think>", None),
        ("", None),
        ("a fine edit", None),
    ],
)
def test_imgedit_grades(reply, grades):
    found, fault = imgedit_grades(reply)
    assert found == grades
    assert bool(fault) == (grades is None)


def test_imgedit_rounds_at_each_step():
    score = imgedit_score({"1": ("add", [5, 4, 4]), "2": ("add", [5, 5, 4]), "3": ("style", [1, 1, 2])})
    # 4.33 and 4.67: 4.5; 1.33; and of both 2.915, which two digits make 2.92 (or 2.91 by the halves' binary form).
    assert score["types"] == {"add": 4.5, "style": 1.33}
    assert score["overall"] == round((4.5 + 1.33) / 2, 2)
    assert (score["n_expected"], score["n_parse_failed"]) == (3, 0)


def test_an_ungraded_edit_leaves_no_overall():
    score = imgedit_score({"1": ("add", [5, 5, 5]), "2": ("style", None)})
    assert (score["overall"], score["types"], score["n_parse_failed"]) == (None, {"add": 5.0, "style": None}, 1)
    assert imgedit_score({})["overall"] is None


@pytest.mark.parametrize(
    ("reply", "grades"),
    [
        ('{"score": [7, 9], "reasoning": "good"}', [7.0, 9.0]),
        ('Sure:\n```json\n{"score": [0, 10.0]}\n```', [0.0, 10.0]),
        ('{"score": [7]}', [7.0]),
        ('{\n"score": [7, 9], // both\n"reasoning": "a"\n}', [7.0, 9.0]),
        ('{"score": [7, /* PQ */ 9], // "score": [1, 1]\n}', [7.0, 9.0]),
        ('{"score": [7, 9], "reasoning": "see http://x // \\"y\\" /* z */"}', [7.0, 9.0]),
        ('It is 5" tall, see http://x {"score": [7, 9], "reasoning": "a // b"}', [7.0, 9.0]),
        ('{"score": [7, 9], "score": [3, 4]}', None),
        ('{"score": [7, 9], "scores": [7, 9]}', [7.0, 9.0]),
        ('{"score": {"a": 7, "b": 9}}', None),
        ('{"score": 7}', [7.0]),
        ('{"score": "7"}', [7.0]),
        ('{"score": ["7", "9/10"]}', [7.0, 9.0]),
        ('{"reasoning": "one\ntwo\tthree", "score": [7, 9]}', [7.0, 9.0]),
        ('{"score": [7, 9,], "reasoning": "a, ]",}', [7.0, 9.0]),
        ("{'x': {y}} {\"Score\": [7, 9]}", [7.0, 9.0]),
        ('{"result": {"score": [7, 9]}}', [7.0, 9.0]),
        ('||V^=^V||\n{"score": [7, 9]}\n||V^=^V||', [7.0, 9.0]),
        ('<think>{"score": [1, 1]}</think>{"score": [7, 9]}', [7.0, 9.0]),
        ('{"score": [1, 1]} no, {"score": [7, 9]}', None),
        ('<think>{"score": [7, 9]}', None),
        ('{"score": [7, 8, 9]}', None),
        ('{"score": []}', None),
        ('{"score": "7/5"}', None),
        ('{"score": null}', None),
        ('{"grade": [7, 9]}', None),
        ("7", [7.0]),
        ("11", None),
        ("on a scale of 0 to 10", None),
        ('{"score": [7, 11]}', None),
        ('{"score": [7, -1]}', None),
        ('{"score": "7, 9"}', [7.0, 9.0]),
        ('{"score": [true, 9]}', None),
        ('{"score": [7, NaN]}', None),
        ('{"score": [7, 9]', None),
        ("[7, 9]", [7.0, 9.0]),
        ("seven and nine", None),
        ("", None),
    ],
)
def test_gedit_grades(reply, grades):
    found, fault = gedit_grades(reply)
    assert found == grades
    assert bool(fault) == (grades is None)


def test_gedit_takes_the_lower_grades_and_their_geometric_mean():
    assert gedit_item([9, 4], [9, 10]) == {"sc": 4, "pq": 9, "overall": 6.0}
    assert gedit_item([0, 9], [9, 10])["overall"] == 0.0


def test_one_grade_of_an_edit_stands_for_both():
    assert gedit_item([4], [9]) == {"sc": 4, "pq": 9, "overall": 6.0}


def test_gedit_averages_tasks_not_items():
    high, low = gedit_item([9, 9], [9, 9]), gedit_item([1, 1], [1, 1])
    score = gedit_score({"1": ("color", high), "2": ("color", high), "3": ("text", low)})
    assert (score["sc"], score["overall"]) == (5.0, 5.0)
    assert score["tasks"]["color"] == {"sc": 9, "pq": 9, "overall": 9.0}


def test_gedit_puts_no_number_where_there_is_none():
    score = gedit_score({"1": ("color", gedit_item([9, 9], [9, 9])), "2": ("text", None)})
    assert (score["overall"], score["n_parse_failed"]) == (None, 1)
    assert score["tasks"]["text"]["overall"] is None
    assert gedit_score({})["overall"] is None
