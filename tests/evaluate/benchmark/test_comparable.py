"""`comparable` is true of a wholly official evaluation, and of none in which any one input is another.

It starts from a fabricated GenEval evaluation (the 553 prompts, 4 pictures of each, the official scorer's rows), the
one suite whose official list is on record, and changes one input at a time. What no one can see from the files: a
finding that was edited by hand into another well-formed one, and pictures that were never the model's.
"""

import hashlib
import json
import random
import re
from dataclasses import replace

import pytest

from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.prepare import prepare
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.geneval.suite import OFFICIAL_JUDGE, GenEval
from blip3o.evaluate.suites.registry import find_suite
from blip3o.evaluate.suites.suite import items_digest
from jobs.evaluate import main
from jobs.evaluation.command import plan_of
from jobs.evaluation.options import BenchmarkOptions
from tests.evaluate.suites.sources import changed, leaves

GENEVAL = GenEval()
KEPT = ("items.jsonl", "files.jsonl", "judgements.jsonl", "judge.json")
OFFICIAL = GENEVAL.items(None)
FINDINGS = [
    Judgement(key=item.key, sample=sample, value={"correct": sample != 0, "reason": ""})
    for item in OFFICIAL
    for sample in range(4)
]


def results(correct=lambda sample: sample != 0, leave_out=(), items=553):
    """The rows of the official scorer."""
    rows = [
        {
            "filename": f"images/{item.key}/samples/{sample:04d}.png",
            "tag": item.record["tag"],
            "prompt": item.prompt,
            "correct": correct(sample),
            "reason": "",
            "metadata": json.dumps(item.record),
        }
        for item in OFFICIAL[:items]
        for sample in range(4)
        if (item.key, sample) not in leave_out
    ]
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def stage(out, name, *options):
    return main(["--suite", "geneval", "--out", str(out), "--stage", name, *options])


def score_of(out):
    return json.loads((out / "geneval/score.json").read_text())


def picture(out, item, sample):
    return out / f"geneval/images/{item:05d}/samples/{sample:04d}.png"


def describe(out):
    place = SuiteFolder(out=str(out), suite=GENEVAL, asks=False)
    place.write_files(place.describe(place.read_items(), {}))


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """A folder in which every input is the official one."""
    out = tmp_path_factory.mktemp("official")
    prepare(Plan(out=str(out), suites=(find_suite("geneval"),)))
    for item in OFFICIAL:
        for sample in range(4):
            path = out / "geneval" / GENEVAL.image_path(item, sample)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(f"picture {item.key} {sample}".encode())
    describe(out)
    (out / "results.jsonl").write_text(results())
    assert stage(out, "judge", "--judge", f"geneval=official:{out}/results.jsonl") == 0
    return out


@pytest.fixture
def copy(evaluation):
    """The folder, which is as before when a test has changed it."""
    changing = [evaluation / "geneval" / name for name in KEPT]
    changing += [picture(evaluation, item, sample) for item in (7, 300, 552) for sample in range(4)]
    before = {path: path.read_bytes() for path in changing}
    yield evaluation
    for path, data in before.items():
        path.write_bytes(data)


@pytest.fixture
def small(tmp_path):
    """An evaluation of three items: their pictures, not judged yet."""
    prepare(Plan(out=str(tmp_path), suites=(find_suite("geneval"),), limit=3))
    for item in range(3):
        for sample in range(4):
            picture(tmp_path, item, sample).parent.mkdir(exist_ok=True)
            picture(tmp_path, item, sample).write_bytes(f"picture {item} {sample}".encode())
    describe(tmp_path)
    return tmp_path


def put(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def put_rows(path, rows):
    put(path, "".join(f"{json.dumps(row)}\n" for row in rows))


def test_the_official_evaluation_is_comparable(evaluation):
    assert stage(evaluation, "score") == 0
    score = score_of(evaluation)
    assert (score["comparable"], score["why_not"], score["overall"]) == (True, [], 0.75)
    assert score["judge"]["id"] == OFFICIAL_JUDGE.id and score["judge"]["source"].startswith("sha256 ")
    assert score["coverage"] == {"n_expected": 2212, "n_scored": 2212, "n_missing": 0, "n_parse_failed": 0}


def a_byte(out):
    put(picture(out, 7, 1), picture(out, 7, 1).read_bytes()[:-1] + b"?")


def a_picture_of_another_prompt(out):
    put(picture(out, 7, 1), picture(out, 300, 1).read_bytes())


def two_exchanged(out):
    one, other = picture(out, 7, 1).read_bytes(), picture(out, 300, 2).read_bytes()
    put(picture(out, 7, 1), other)
    put(picture(out, 300, 2), one)


def one_deleted(out):
    picture(out, 552, 3).unlink()


def a_sum_in_files(out):
    rows = rows_of(out / "geneval/files.jsonl")
    rows[9] |= {"sha256": "0" * 64, "original": "0" * 64}
    put_rows(out / "geneval/files.jsonl", rows)


def findings(change):
    def mutate(out):
        rows = rows_of(out / "geneval/judgements.jsonl")
        put_rows(out / "geneval/judgements.jsonl", change(rows))

    return mutate


def items(change):
    def mutate(out):
        put_rows(out / "geneval/items.jsonl", change(rows_of(out / "geneval/items.jsonl")))

    return mutate


def judge(**changes):
    """Another judge, in judge.json and in every finding."""

    def mutate(out):
        found = json.loads((out / "geneval/judge.json").read_text()) | changes
        put(out / "geneval/judge.json", json.dumps(found))
        findings(lambda rows: [row | {"judge": found} for row in rows])(out)

    return mutate


def judge_alone(out):
    put(out / "geneval/judge.json", json.dumps({"id": OFFICIAL_JUDGE.id, "version": OFFICIAL_JUDGE.version}))


def fewer_samples(out):
    items(lambda rows: [row | {"samples": 3} for row in rows])(out)
    findings(lambda rows: [row for row in rows if row["sample"] < 3])(out)


def without_the_last_item(out):
    items(lambda rows: rows[:-1])(out)
    findings(lambda rows: rows[:-4])(out)


def an_item_more(out):
    items(lambda rows: [*rows, rows[0] | {"key": "00553"}])(out)


def without(record, name):
    return {key: value for key, value in record.items() if key != name}


def record_of(number, **changes):
    return items(
        lambda rows: [
            row | {"record": row["record"] | changes} if place == number else row for place, row in enumerate(rows)
        ]
    )


MUTANTS = {
    "a byte of a picture": (a_byte, "1 judgements are of files that have changed"),
    "a picture of another prompt": (a_picture_of_another_prompt, "1 judgements are of files that have changed"),
    "two pictures exchanged": (two_exchanged, "2 judgements are of files that have changed"),
    "a picture deleted": (one_deleted, "1 judgements are of files that have changed"),
    "a sum in files.jsonl": (a_sum_in_files, "1 files are not the ones that were made"),
    "a finding dropped": (findings(lambda rows: rows[1:]), "judgements are missing"),
    "all findings dropped": (findings(lambda rows: []), "judgements are missing"),
    "a finding unread": (findings(lambda rows: [rows[0] | {"value": None}, *rows[1:]]), "judgements are missing"),
    "a finding about other bytes": (
        findings(lambda rows: [rows[0] | {"sha256": "0" * 64}, *rows[1:]]),
        "1 judgements are of files that have changed",
    ),
    "a finding of another sample": (
        findings(
            lambda rows: [rows[0] | {"sample": 1}, *[row for row in rows[1:] if row["sample"] or row["key"] > "0"]]
        ),
        "",
    ),
    "another judge": (judge(id="yolo"), "the judge is not mask2former"),
    "another version of the judge": (judge(version="mmdet 3"), "the judge is not mask2former"),
    "the judge's name, but not its findings": (judge_alone, "judgements are missing"),
    "three samples": (fewer_samples, "not 4 samples of each prompt"),
    "an item less": (without_the_last_item, "the prompts are not GenEval's 553"),
    "an item more": (an_item_more, "the prompts are not GenEval's 553"),
    "another order": (items(lambda rows: rows[::-1]), "the prompts are not GenEval's 553"),
    "a prompt": (
        items(lambda rows: [rows[0] | {"prompt": "a photo of nothing"}, *rows[1:]]),
        "the prompts are not GenEval's 553",
    ),
    "a tag": (record_of(5, tag="colors"), r"1 records are not GenEval's, the first is \['00005'\]"),
    "a record without its tag": (
        items(lambda rows: [rows[0] | {"record": without(rows[0]["record"], "tag")}, *rows[1:]]),
        r"1 records are not GenEval's, the first is \['00000'\]",
    ),
    "a record without clauses": (
        items(lambda rows: [rows[0] | {"record": without(rows[0]["record"], "include")}, *rows[1:]]),
        r"1 records are not GenEval's, the first is \['00000'\]",
    ),
    "clauses that are none": (record_of(5, include="dog"), r"1 records are not GenEval's, the first is \['00005'\]"),
    "nothing to be included": (record_of(5, include=[]), r"1 records are not GenEval's, the first is \['00005'\]"),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_one_changed_input_is_not_comparable_and_says_why(what, copy, capsys):
    mutate, reason = MUTANTS[what]
    mutate(copy)
    if stage(copy, "score"):
        assert what == "a finding of another sample" and "two judgements on sample" in capsys.readouterr().err
        return
    score = score_of(copy)
    counts = score["coverage"]
    assert not score["comparable"] and re.search(reason, "\n".join(score["why_not"])), score["why_not"]
    assert counts["n_expected"] == counts["n_scored"] + counts["n_missing"] + counts["n_parse_failed"]
    if counts["n_scored"] < counts["n_expected"]:
        assert score["overall"] is None


@pytest.mark.parametrize("value", [{}, {"correct": "false"}, {"correct": 1}, {"correct": None}])
def test_a_finding_without_a_verdict_is_refused(value, copy, capsys):
    findings(lambda rows: [rows[0] | {"value": value}, *rows[1:]])(copy)
    assert stage(copy, "score") == 1
    assert "the finding on sample 0 of '00000' is" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("double", ["item", "finding"])
def test_what_is_there_twice_is_refused(double, copy, capsys):
    {"item": items(lambda rows: [*rows, rows[3]]), "finding": findings(lambda rows: [*rows, rows[3]])}[double](copy)
    assert stage(copy, "score") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def judged_by(out, kind, text):
    """The score after findings from a file were judged by."""
    path = out / f"{hashlib.sha256(text.encode()).hexdigest()}.jsonl"
    path.write_text(text)
    assert stage(out, "judge", "--judge", f"geneval={kind}:{path}") == 0
    assert stage(out, "score") == 0
    return score_of(out)


def test_a_picture_that_was_replaced_before_it_was_judged_is_told(small):
    replaced = "1 files are not the ones that were made"
    assert replaced not in judged_by(small, "official", results(items=3))["why_not"]
    put(picture(small, 2, 1), b"drawn by another model")
    assert replaced in judged_by(small, "official", results(items=3))["why_not"]
    describe(small)  # as generate does when it is run again
    score = judged_by(small, "official", results(RULES["all"], items=3))  # the new picture was judged
    assert replaced in score["why_not"] and score["coverage"]["n_missing"] == 0
    put(picture(small, 2, 1), b"picture 2 1")
    assert replaced not in judged_by(small, "official", results(items=3))["why_not"]


def test_the_file_of_findings_that_is_named_is_the_one_that_counts(small):
    files = {name: results(rule, items=3) for name, rule in RULES.items()}
    for name in ("none", "half", "none", "all"):
        score = judged_by(small, "official", files[name])
        assert score["overall"] == {"none": 0.0, "half": 0.5, "all": 1.0}[name]
        assert score["judge"]["id"] == OFFICIAL_JUDGE.id and len(score["why_not"]) == 1
    part = judged_by(small, "official", results(RULES["half"], items=3, leave_out={("00001", 2)}))
    assert (part["coverage"]["n_missing"], part["overall"]) == (1, None)
    for name in ("none", "half"):
        score = judged_by(small, "file", files[name])
        assert score["overall"] == {"none": 0.0, "half": 0.5}[name]
        assert any("the judge is not" in reason for reason in score["why_not"])


@pytest.mark.parametrize("kind", ["official", "file"])
def test_a_file_that_was_read_before_does_not_speak_of_what_was_drawn_after(kind, small, capsys):
    """A file of findings has no sums: it is about what lay there when it was first read."""
    assert judged_by(small, kind, results(items=3))["coverage"]["n_missing"] == 0
    drawn = picture(small, 1, 2)
    before = drawn.read_bytes()
    drawn.write_bytes(b"drawn again")
    place = SuiteFolder(out=str(small), suite=GENEVAL, asks=False)
    place.write_files(place.describe(place.read_items(), {}, {place.file("images/00001/samples/0002.png")}))
    for _ in range(3):  # however often it is named
        score = judged_by(small, kind, results(items=3))
        assert (score["coverage"]["n_missing"], score["overall"], score["comparable"]) == (1, None, False)
        assert "1 judgements were imported before, about files that have changed" in " ".join(
            capsys.readouterr().err.split()
        )
    other = judged_by(small, kind, results(RULES["all"], items=3))  # made later, of these files as far as one can know
    assert other["coverage"]["n_missing"] == 0
    drawn.write_bytes(before)
    assert judged_by(small, kind, results(items=3))["coverage"]["n_missing"] == 0


RULES = {"none": lambda _: False, "half": lambda sample: sample > 1, "all": lambda _: True}


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ('\\"count\\": 1', '\\"count\\": 0', "was judged by another record than that of 00000"),
        ('\\"count\\": 1', '\\"count\\": true', "count is true, expected a whole number"),
        ('"tag": "single_object"', '"tag": "counting"', "has the tag"),
        ("samples/0003.png", "samples/0004.png", "which is no picture of these items"),
    ],
)
def test_official_rows_about_another_record_or_sample_are_refused(old, new, fault, small, capsys):
    """The official scorer reads metadata.jsonl: one that was changed made another verdict."""
    text = results(items=3)
    assert old in text
    (small / "other.jsonl").write_text(text.replace(old, new, 1))
    assert stage(small, "judge", "--judge", f"geneval=official:{small}/other.jsonl") == 1
    assert fault in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("metadata", "fault"),
    [
        (dict(OFFICIAL[0].record, tag="counting"), "was judged by another record than that of 00000"),
        (dict(OFFICIAL[0].record), ""),
        ([1], "metadata is [1]: expected an object"),
        (7, "metadata is 7: expected an object"),
        (True, "metadata is true: expected an object"),
    ],
)
def test_a_record_that_is_no_text_is_held_against_the_item_s_all_the_same(metadata, fault, small, capsys):
    rows = [json.loads(line) for line in results(items=3).splitlines()]
    rows[0]["metadata"] = metadata
    (small / "other.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert stage(small, "judge", "--judge", f"geneval=official:{small}/other.jsonl") == bool(fault)
    assert fault in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("items.jsonl", '"samples": 4', '"samples": []'),
        ("items.jsonl", '"key": "00000"', '"key": 7'),
        ("items.jsonl", '"prompt": "', '"prompt": 7, "x": "'),
        ("items.jsonl", '"record": {', '"record": 7, "x": {'),
        ("items.jsonl", '"record": {', '"record": null, "record2": {'),
        ("files.jsonl", '"sample": 0', '"sample": [0]'),
        ("files.jsonl", '"sha256": "', '"sha256": [], "x": "'),
        ("files.jsonl", '"fault": ""', '"fault": null'),
        ("judgements.jsonl", '"sample": 0', '"sample": [0]'),
        ("judgements.jsonl", '"sample": 0', '"sample": true'),
        ("judgements.jsonl", '"value": {', '"value": 7, "x": {'),
        ("judgements.jsonl", '"fault": ""', '"fault": {}'),
        ("judgements.jsonl", '"fault": "", ', ""),
    ],
)
def test_a_file_of_the_results_that_was_damaged_is_one_line(file, old, new, small, capsys):
    judged_by(small, "official", results(items=3))
    path = small / "geneval" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    capsys.readouterr()
    assert [stage(small, name) for name in ("score", "report")][0] == 1
    told = capsys.readouterr().err
    assert file in told and "Traceback" not in told


@pytest.mark.parametrize("options", [{"limit": 552}, {"samples": 3}, {"samples": 5}, {"limit": 1}])
def test_a_part_or_another_number_of_samples_is_not_comparable(options):
    plan = plan_of(BenchmarkOptions(suite="geneval", **options), "x")
    chosen = list(OFFICIAL)[: plan.limit]
    chosen = [replace(item, samples=plan.samples or 4) for item in chosen]
    found = [replace(FINDINGS[0], key=item.key, sample=n) for item in chosen for n in range(item.samples)]
    score = GENEVAL.score(chosen, found, OFFICIAL_JUDGE)
    assert score.coverage.complete and not score.comparable


def mutants_of(record, rng):
    """A record with every leaf of it changed, removed or doubled in turn."""
    for path, value in leaves(record):
        yield changed(record, path, f"{value}x" if isinstance(value, str) else value + 1)
        yield changed(record, path, True)
    for name in ("include", "exclude"):
        clauses = record.get(name, [])
        yield record | {name: [*clauses, {"class": "person", "count": 1}]}
        yield from ([record | {name: clauses[::-1]}] if clauses[::-1] != clauses else [])
        for place, clause in enumerate(clauses):
            yield record | {name: clauses[:place] + clauses[place + 1 :]}
            yield from (
                record
                | {name: [*clauses[:place], {k: v for k, v in clause.items() if k != left}, *clauses[place + 1 :]]}
                for left in clause
            )
            yield record | {name: [*clauses[:place], clause | {"color": "mauve"}, *clauses[place + 1 :]]}


def test_any_field_of_any_record_is_held_against_the_official_one():
    rng = random.Random("records")
    tried = 0
    by_tag = {item.record["tag"]: place for place, item in enumerate(OFFICIAL)}
    for place in [*by_tag.values(), *rng.sample(range(553), 6)]:
        item = OFFICIAL[place]
        for record in mutants_of(dict(item.record), rng):
            mutant = [*OFFICIAL[:place], replace(item, record=record), *OFFICIAL[place + 1 :]]
            assert items_digest([mutant[place]], GENEVAL.facts) != items_digest([item], GENEVAL.facts), record
            tried += 1
            if tried % 25 == 0:
                score = GENEVAL.score(mutant, FINDINGS, OFFICIAL_JUDGE)
                assert not score.comparable and score.why_not, record
    assert tried > 150


@pytest.mark.parametrize(
    "of", [Judge(id=OFFICIAL_JUDGE.id, version="mmdet 2 (mine)"), Judge(id="x", version="mmdet 2")]
)
def test_the_judge_s_name_and_version_both_count(of):
    assert GENEVAL.score(OFFICIAL, FINDINGS, OFFICIAL_JUDGE).comparable
    assert not GENEVAL.score(OFFICIAL, FINDINGS, of).comparable


def test_what_decides_nothing_leaves_it_comparable(tmp_path):
    """Fields that the scorer does not read, the order of a record's keys, an empty exclude, the folder of the run."""
    rows = [
        dict(reversed(list((item.record | {"index": n, "exclude": item.record.get("exclude", [])}).items())))
        for n, item in enumerate(OFFICIAL)
    ]
    source = tmp_path / "prompts.jsonl"
    source.write_text("\ufeff" + "".join(f"{json.dumps(row)}\r\n" for row in rows))
    assert GENEVAL.score(GENEVAL.items(str(source)), FINDINGS, OFFICIAL_JUDGE).comparable
