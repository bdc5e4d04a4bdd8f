"""WISE: replies of every sort, the categories' borders, the three ways to an overall."""

import json

import pytest

from blip3o.errors import ConfigError, DataError
from blip3o.evaluate.records import Item, Judge
from blip3o.evaluate.suites.wise.grades import read_grades
from blip3o.evaluate.suites.wise.suite import CATEGORIES, FILES, VERIFIED_FILES, WISE, WISE_VERIFIED

GPT = Judge(id="gpt-4o-2024-05-13", version="own prompt")


def items(count=1000):
    return [Item(key=str(n), prompt=f"p{n}", record={"Explanation": f"e{n}"}, samples=1) for n in range(1, count + 1)]


def legacy(reply):
    value, fault = read_grades(reply, WISE.grades, highest=2)
    assert (value is None) is bool(fault)
    return tuple(value.values()) if value else None


@pytest.mark.parametrize(
    "reply",
    [
        "Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "consistency: 2\nREALISM:1\naesthetic quality : 0",
        "**Consistency**: 2\n**Realism**: 1\n**Aesthetic Quality**: 0",
        "**Consistency:** 2/2\n**Realism:** 1/2\n**Aesthetic Quality:** 0/2",
        "Consistency:\n2\nRealism:\n1\nAesthetic Quality:\n0",
        "Consistency Score: 2, Realism Score: 1, Aesthetic Quality Score: 0",
        '{"consistency": 2, "realism": 1, "aesthetic_quality": 0}',
        "2\n1\n0",
        "\n 2 \n\n1\n0\n",
        "The consistency is good and the realism fair.\nConsistency: 2.\nRealism: 1.\nAesthetic Quality: 0.",
        "Aesthetic Quality: 0\nRealism: 1\nConsistency: 2",
        "Consistency: 2\nRealism: 1\nAesthetic Quality: 0\nSo again, Consistency: 2",
        "Consistency: 2.0\nRealism: 1.0\nAesthetic Quality: 0.0",
        "**Consistency**: **2**/2\nRealism: 1 out of 2\nAesthetic Quality: 0 / 2.0",
        "**Consistency (0-2):** 2\n**Realism (0-2):** 1\n**Aesthetic Quality (0-2):** 0",
        "On a scale of 0 to 2:\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: it shows what is meant,\nand all of it.\n2\nRealism: mostly. 1\nAesthetic Quality: dull (0)",
        "Consistency: as asked\nScore: 2\nRealism: as asked\nScore: 1/2\nAesthetic Quality: poor\nScore: 0",
        "| Consistency | 2 |\n| Realism | 1 |\n| Aesthetic Quality | 0 |",
        "1. Consistency: 2.\n2. Realism: 1.\n3. Aesthetic Quality: 0.",
        "Consistency - 2\nRealism - 1\nAesthetic Quality - 0",
        "Consistency: <2>\nRealism: <1>\nAesthetic Quality: <0>",
        '{"consistency": {"score": 2, "why": "x"}, "realism": {"score": 1}, "aesthetic_quality": {"score": 0}}',
        "```\n2\n1\n0\n```",
        "**2**\n**1**\n**0**",
        "<think>Consistency: 0</think>Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
    ],
)
def test_grades_are_read_however_they_are_set(reply):
    assert legacy(reply) == (2, 1, 0)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "I'm sorry, I can't grade this image.",
        "Consistency: 2\nRealism: 1",
        "Consistency: 2\nRealism: 1\nAesthetic Quality: high",
        "Consistency: 3\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 12\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1.5\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: -1\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1-2\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1 or 2\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: 1\nConsistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: Realism: 1 Aesthetic Quality: 0",
        "Inconsistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "2\n1",
        "2\n1\n3",
        "2 1 0",
        "2\n1\n0\n1",
        "Consistency: 1/5\nRealism: 1/5\nAesthetic Quality: 1/5",
        "Consistency: **1**/5\nRealism: 1/5\nAesthetic Quality: 1/5",
        "Consistency: it shows 2 cats\nRealism: 1\nAesthetic Quality: 0",
        "Consistency: on a scale of 0 to 2\nRealism: 1\nAesthetic Quality: 0",
        "<think>Consistency: 2\nRealism: 1\nAesthetic Quality: 0",
        "<think>Consistency: 2\nRealism: 1\nAesthetic Quality: 0</think>",
    ],
)
def test_what_cannot_be_told_is_a_fault_and_never_a_guess(reply):
    assert legacy(reply) is None


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 1", 1),
        ("score:0", 0),
        ("**Score:** 1", 1),
        ("1", 1),
        ("0", 0),
        (" **1**.\n", 1),
        ("Score: <1>", 1),
        ("Score (0 or 1): 1", 1),
        ("Score on a scale of 0 to 1: 1", 1),
        ("Score: it is met, on a scale from 0 to 1.\n1", 1),
        ("On a scale of 0 to 1, the score is 1.", 1),
        ("Score: 1.0", 1),
        ('{"score": 1}', 1),
        ("<answer>1</answer>", 1),
        ("Score: \\boxed{1}", 1),
        ("<think>Score: 0</think>\nScore: 1", 1),
        ("<think>Score: 0", None),
        ("Score: 1\n<think>or was it", None),
        ("on a scale of 0 to 1", None),
        ("Score: <0 or 1>", None),
        ("2", None),
        ("10", None),
        ("-1", None),
        ("0\n1", None),
        ("Score: 1/5", None),
        ("Score: 100%", None),
        ("Score: 2", None),
        ("Score: 0.5", None),
        ("Score: 1\nScore: 0", None),
        ("yes", None),
    ],
)
def test_the_verified_list_has_one_grade(reply, score):
    assert (read_grades(reply, ("score",), highest=1)[0] or {}).get("score") == score


def test_a_fault_keeps_the_reply_and_says_what_lacks():
    found = WISE.judgement(items()[0], 0, "Consistency: 2")
    assert found.value is None
    assert found.fault == "no realism in 'Consistency: 2'"
    assert found.reply == "Consistency: 2"


def graded(suite, grades):
    return [
        suite.judgement(item, 0, "\n".join(f"{name.replace('_', ' ')}: {n}" for name, n in grades(item).items()))
        for item in items()
    ]


def test_the_wiscore_weighs_the_grades():
    score = WISE.score(items(), graded(WISE, lambda _: {"consistency": 2, "realism": 1, "aesthetic_quality": 0}), GPT)
    assert score.overall == pytest.approx((0.7 * 2 + 0.2 * 1) / 2)


@pytest.mark.parametrize(
    ("suite", "category", "ids"),
    [
        (WISE, "time", (401, 567)),
        (WISE, "space", (568, 700)),
        (WISE, "chemistry", (901, 1000)),
        (WISE_VERIFIED, "time", (401, 520)),
        (WISE_VERIFIED, "space", (521, 640)),
        (WISE_VERIFIED, "chemistry", (881, 1000)),
    ],
)
def test_the_two_lists_have_their_own_borders(suite, category, ids):
    members = [int(item.key) for item in items() if suite.category(item) == category]
    assert (members[0], members[-1]) == ids


def test_one_file_of_grades_has_three_overalls():
    def culture_alone(item):
        return {name: 2 if WISE.category(item) == "culture" else 0 for name in WISE.grades}

    score = WISE.score(items(), graded(WISE, culture_alone), GPT)
    assert score.overall == pytest.approx(0.4)
    assert score.details["unweighted"] == pytest.approx(1 / 6)
    assert score.categories == pytest.approx(dict.fromkeys(CATEGORIES, 0.0) | {"culture": 1.0})
    verified = graded(WISE_VERIFIED, lambda item: {"score": int(WISE_VERIFIED.category(item) == "time")})
    assert WISE_VERIFIED.score(items(), verified, GPT).overall == pytest.approx(0.12)


def test_a_missing_id_or_an_unreadable_reply_leaves_no_overall():
    judged = graded(WISE, lambda _: {"consistency": 2, "realism": 2, "aesthetic_quality": 2})
    garbage = [*judged[:-1], WISE.judgement(items()[-1], 0, "it is nice")]
    for found, (missing, failed) in ((judged[:-1], (1, 0)), (garbage, (0, 1))):
        score = WISE.score(items(), found, GPT)
        assert (score.overall, score.details["unweighted"], score.interval) == (None, None, None)
        assert (score.coverage.n_missing, score.coverage.n_parse_failed) == (missing, failed)
        assert score.categories["culture"] == pytest.approx(1.0)
    few = WISE.score(items(10), judged[:10], GPT)
    assert few.overall is None
    assert "10 prompts instead of 1000" in few.why_not


def graded_row(number, grade):
    return {"prompt_id": number} | dict.fromkeys(WISE.grades, grade)


def lines(*rows):
    return "".join(f"{json.dumps(row)}\n" for row in rows).encode()


@pytest.mark.parametrize("grade", [2, 2.0, "2", "2.0", " 2 "])
@pytest.mark.parametrize("number", [7, 7.0, "7", "7.0"])
@pytest.mark.parametrize(
    "written", [lines, lambda *rows: json.dumps(rows, indent=1).encode(), lambda *rows: b"\xef\xbb\xbf" + lines(*rows)]
)
def test_grades_of_official_files_are_read_as_they_are_published(grade, number, written):
    [found] = WISE.import_judgements(written(graded_row(number, grade)), where="j.jsonl")
    assert (found.key, found.value, found.fault) == ("7", dict.fromkeys(WISE.grades, 2), "")


@pytest.mark.parametrize("grade", [9.9, 999, 999.0, 3, -1, 1.5, "1.5", True, None, "", "two", [2]])
def test_what_is_no_grade_in_an_official_file_is_a_fault(grade):
    [void] = WISE.import_judgements(lines(graded_row(2, grade)), where="j.jsonl")
    assert void.value is None and "j.jsonl, record 1" in void.fault
    [skipped] = WISE_VERIFIED.import_judgements(lines({"prompt_id": 3, "score": grade}), where="j.jsonl")
    assert skipped.value is None


def test_nan_in_an_official_file_is_refused_with_its_line():
    with pytest.raises(DataError, match=r"j\.jsonl, line 2 cannot be read: NaN is no JSON"):
        WISE.import_judgements(lines(graded_row(1, 2), graded_row(2, float("nan"))), where="j.jsonl")


OTHERS = "\nRealism: 1\nAesthetic Quality: 0"


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("1~2", None),
        ("1～2", None),
        ("1 → 0", None),
        ("1 -> 2", None),
        ("1到2", None),
        ("1 ou 2", None),
        ("1+", None),
        (">=1", None),
        (">= 1", None),
        ("<1", None),
        ("≥1", None),
        ("−1", None),
        ("2 cats of 3 are there, so I grade 1", None),
        ("2 of the cats are missing → 1", None),
        ("1, it is 1 of 2 cats, so 1", 1),
        ("1, the moon is missing, so not 2", 1),
        ("1, so 2 moons would be needed for more", 1),
        ("<1>", 1),
        ("< 1 >", 1),
        ("$1$", 1),
        (r"\(1\)", 1),
        (r"\[1\]", 1),
        ("１", 1),
        ("１／２", 1),
        ("1/2", 1),
        ("1 out of 2", 1),
    ],
)
def test_what_is_no_single_grade_is_none_however_it_is_set(text, grade):
    found = WISE.judgement(items(1)[0], 0, f"Consistency: {text}{OTHERS}")
    assert (found.value or {}).get("consistency") == grade and bool(found.fault) == (grade is None)


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Score 0/1: 1", 1),
        ("Score 0 or 1: 1", 1),
        ("**Score** 0-1 : **0**", 0),
        ("Score 1 : the image", None),
        ("| Score |\n|---|\n| 1 |", 1),
        ("| Item | Score | Why |\n|:--|:-:|--:|\n| moon | 0 | 3 are there |", 0),
        ("Score | Note\n--- | ---\n1 | fine", 1),
        ("| Part | Score |\n|---|---|\n| moon | 1 |\n| sun | 0 |", None),
        ("| Part | Score |\n|---|---|\n| moon | 1 |\n| sun | 1 |", 1),
        ("| Part | What |\n|---|---|\n| Score | 1 |", 1),
        ("| Score |\n|---|\n\n1 of 2 things", None),
    ],
)
def test_a_label_over_a_column_or_before_its_scale(reply, grade):
    found = WISE_VERIFIED.judgement(items(1)[0], 0, reply)
    assert found.value == (None if grade is None else {"score": grade})


def test_three_labels_over_three_columns():
    reply = "| Consistency | Realism (0-2) | **Aesthetic Quality** |\n|---|---|---|\n| **2** | 1/2 | 0 |\n\nAs asked."
    found = WISE.judgement(items(1)[0], 0, reply)
    assert found.value == {"consistency": 2, "realism": 1, "aesthetic_quality": 0}


@pytest.mark.parametrize("number", [0, 1001, 1.5, "x", None, True, -1, "1.5", []])
def test_an_id_that_is_none_is_refused_with_its_row(number):
    with pytest.raises(DataError, match="j.jsonl, record 1: prompt_id .* expected a number from 1 to 1000"):
        WISE.import_judgements(lines(graded_row(number, 2)), where="j.jsonl")


def test_the_judge_s_words_count_where_no_row_has_the_grades():
    told = [{"prompt_id": n, "evaluation": f"<think>2</think>{text}"} for n, text in ((1, "1\n1\n1"), (2, "0\n0\n0"))]
    files = [("full.json", json.dumps(told).encode()), ("scores.jsonl", lines(graded_row(1, 2)))]
    found = {one.key: one.value for one in WISE.import_files(files)}
    assert found == {"1": dict.fromkeys(WISE.grades, 2), "2": dict.fromkeys(WISE.grades, 0)}
    with pytest.raises(DataError, match="record 1 lacks evaluation"):
        WISE.import_judgements(b'{"prompt_id": 1}', where="j.jsonl")
    with pytest.raises(DataError, match="record 1 is 7"):
        WISE.import_judgements(b"[7]", where="j.json")


def test_the_judge_is_asked_with_the_item_and_a_user_may_ask_otherwise():
    item = Item(key="1", prompt="the {explanation} of it", record={"Explanation": "means that"}, samples=1)
    text = WISE.question(item)
    assert "the {explanation} of it" in text
    assert "means that" in text
    assert WISE.question(item, "Grade: {prompt}") == "Grade: the {explanation} of it"
    with pytest.raises(ConfigError, match=r"no \{prompt\}"):
        WISE.question(item, "grade it")


def wise_rows(*numbers):
    return [
        {"Prompt": f"p{n}", "Explanation": "e", "Category": "c", "Subcategory": "s", "prompt_id": n} for n in numbers
    ]


def test_the_user_s_three_files_are_one_list(tmp_path):
    for name, numbers in zip(FILES, ((2, 1), (401,), (701,)), strict=True):
        (tmp_path / name).write_text(json.dumps(wise_rows(*numbers)))
    assert [item.key for item in WISE.items(str(tmp_path))] == ["1", "2", "401", "701"]
    assert WISE.image_path(WISE.items(str(tmp_path))[2], 0) == "images/401.png"
    with pytest.raises(ConfigError, match="ships no prompts"):
        WISE.items(None)


@pytest.mark.parametrize(
    ("suite", "folder", "names"),
    [
        (WISE_VERIFIED, "", VERIFIED_FILES),
        (WISE_VERIFIED, "data_verified", VERIFIED_FILES),
        (WISE_VERIFIED, "", FILES),  # under the names of the first list
        (WISE, "data", FILES),
        (WISE, "WISE_legacy/data", FILES),
    ],
)
def test_the_official_folders_are_read_in_their_order(suite, folder, names, tmp_path):
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name, number in zip(names, ("1", 401.0, 701), strict=True):
        (tmp_path / folder / name).write_text(json.dumps(wise_rows(number)))
    assert [item.key for item in suite.items(str(tmp_path))] == ["1", "401", "701"]


def test_a_folder_without_the_official_files_says_which_they_are(tmp_path):
    with pytest.raises(DataError, match="holds no cultural_common_sense_verified.json"):
        WISE_VERIFIED.items(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"), [('{"a": 1}', "is a dict"), ('[{"Prompt": "x"}]', "lacks Explanation"), ("[", "not JSON")]
)
def test_other_files_are_refused(tmp_path, content, message):
    file = tmp_path / "list.json"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        WISE.items(str(file))
    file.write_text(json.dumps(wise_rows(1001)))
    with pytest.raises(DataError, match="from 1 to 1000"):
        WISE.items(str(file))
