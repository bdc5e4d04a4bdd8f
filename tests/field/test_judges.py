"""Judges behind gateways, and models that think: every reply and every HTTP fault, through the command that judges."""

import json
from pathlib import Path

import pytest
from PIL import Image

from blip3o import storage
from blip3o.evaluate.benchmark.folder import SuiteFolder
from blip3o.evaluate.benchmark.rows import read_rows
from blip3o.evaluate.benchmark.work import png
from blip3o.evaluate.judges.client import Clock, JudgeClient
from blip3o.evaluate.judges.replies import REFUSED
from blip3o.evaluate.suites.edits import gedit_grades
from blip3o.evaluate.suites.registry import find_suite
from jobs import evaluate as job
from tests.evaluate.endpoint import Answer, completion, error, serving

HERE = Path(__file__).parent / "judge"
REPLIES, HTTP = (
    [json.loads(line) for line in (HERE / name).read_text().splitlines()] for name in ("replies.jsonl", "http.jsonl")
)
CSV = (
    "item_id,text,proposition_id,dependency,tuple,question_natural_language\na,a dog,1,0,entity (dog),Is there a dog?\n"
)
GRADED = completion("Score: 1")
LEGACY = {"consistency": 2.0, "realism": 1.0, "aesthetic_quality": 0.0}


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """What the client was to wait, instead of waiting."""
    found = []
    monkeypatch.setattr(Clock, "sleep", lambda self, seconds: found.append(seconds))
    return found


class Evaluation:
    """One suite whose pictures are drawn; `judge` runs the command and says what it left."""

    def __init__(self, folder, suite, source, spec):
        self.place = SuiteFolder(out=str(folder / "out"), suite=find_suite(suite).suite, asks=find_suite(suite).asks)
        self.common = ["--suite", suite, "--out", str(folder / "out")]
        self.spec = [] if spec is None else ["--judge", f"{suite}={spec}"]
        assert self.run("--stage", "prepare", "--source", f"{suite}={source}") == 0
        items = self.place.read_items()
        for number, item in enumerate(items):
            for sample in range(item.samples):
                if not self.place.asks:
                    picture = png(Image.new("RGB", (8, 8), (number, sample, 9)))
                    storage.write_bytes(self.place.file(self.place.path(item, sample)), picture)
        self.place.write_files(self.place.describe(items, {}))

    def run(self, *options):
        return job.main([*self.common, *options])

    def judge(self, *options):
        return self.run("--stage", "judge", *self.spec, *options)

    def score(self):
        assert self.run("--stage", "score") == 0
        return json.loads(storage.read_bytes(self.place.file("score.json")))

    def counts(self):
        coverage = self.score()["coverage"]
        return coverage["n_scored"], coverage["n_missing"], coverage["n_parse_failed"]

    @property
    def rows(self):
        return read_rows(self.place.file("judgements.jsonl"))


def wise(folder, server, count=2, suite="wise-verified", spec=None):
    rows = [{"Prompt": f"thing {n}", "Explanation": "it is so", "prompt_id": n} for n in range(1, count + 1)]
    (folder / "w.json").write_text(json.dumps(rows))
    return Evaluation(folder, suite, folder / "w.json", spec or f"openai:{server.url}:eye:8b")


def dpg(folder, server):
    (folder / "d.csv").write_text(CSV)
    return Evaluation(folder, "dpg", folder / "d.csv", f"openai:{server.url}:eye")


@pytest.mark.parametrize("case", REPLIES, ids=range(len(REPLIES)))
def test_a_reply_of_the_field_is_read_or_is_a_fault(case, server, tmp_path):
    server.script(completion(case["content"], case["finish_reason"]))
    if case["suite"] == "gedit":
        reply = JudgeClient(base_url=server.url, model="eye", prompt_version="1").ask("x", [])
        assert gedit_grades(reply.text) == (case["right"], "")
        return
    run = (dpg if case["suite"] == "dpg" else wise)(tmp_path, server, *([1] if case["suite"] != "dpg" else []))
    assert run.judge() == 0
    fault = isinstance(case["right"], str) and case["right"].startswith("a fault")
    count = len(run.rows)
    assert run.counts() == ((0, 0, count) if fault else (count, 0, 0))
    wanted = {"answers": {"1": case["right"]}} if case["suite"] == "dpg" else case["right"]
    for row in run.rows:
        assert row["value"] == (None if fault else wanted) and ("truncated at" in row["fault"]) is fault
        assert case["suite"] == "dpg" or row["reply"] == case["content"]
    asked = len(server.received)
    assert run.judge() == 0
    assert (len(server.received) > asked) is fault, "what was read was asked again, or what was not was left"


def answered(case):
    headers = case.get("headers") or {}
    body = case["body"]
    return Answer(status=case["status"], body=body.encode() if isinstance(body, str) else body, headers=headers)


@pytest.mark.parametrize("case", HTTP, ids=[case["what"] for case in HTTP])
def test_an_answer_of_a_real_judge_is_retried_or_is_a_fault_of_its_item(case, server, tmp_path, waits):
    first, then = answered(case["first"]), case["then"] and answered(case["then"])
    refused = case["first"]["status"] == 400 and then is None
    asked = {"thing 1": 0, "thing 2": 0}

    def answer(body):
        text = body["messages"][0]["content"][-1]["text"]
        name = next(name for name in asked if name in text)
        asked[name] += 1
        return first if name == "thing 1" and (asked[name] == 1 or then is None) else then or GRADED

    server.answer = answer
    run = wise(tmp_path, server)
    assert run.judge() == 0
    assert run.counts() == ((1, 0, 1) if refused else (2, 0, 0))
    before = dict(asked)
    assert before == {"thing 1": 1 if then is None else 2, "thing 2": 1}
    assert run.judge() == 0 and asked == before
    requested = case["first"]["headers"].get("Retry-After")
    assert waits == ([5.0] if requested else [1.0] * (then is not None and case["first"]["status"] != 400))
    if refused:
        [row] = [row for row in run.rows if row["value"] is None]
        assert row["fault"].startswith(REFUSED) and "The response was filtered" in row["fault"]
        assert run.judge("--retry-refused") == 0 and asked == before | {"thing 1": 2}


@pytest.mark.parametrize(
    "refusal",
    [
        error(403, "Your input was flagged", metadata={"reasons": ["violence"]}),
        Answer(status=400, body={"code": "DataInspectionFailed", "message": "Input data may be inappropriate"}),
        completion("Score: 0", "SAFETY"),
        completion(None, refusal="I can't look at this"),
        Answer(body={"error": {"message": "blocked", "code": "content_policy_violation"}}),
    ],
)
def test_refusals_of_content_are_rows_and_the_rest_is_judged(refusal, server, tmp_path, capsys):
    run = wise(tmp_path, server, count=12)
    server.answer = lambda body: refusal if "thing 1" in body["messages"][0]["content"][-1]["text"] else GRADED
    assert run.judge() == 0  # 1, 10, 11 and 12 are refused
    err = capsys.readouterr().err
    assert "4 of 12 judgements are unread, 4 of them refused; the first: refused by the judge" in err
    assert run.counts() == (8, 0, 4)
    assert "8 of 12 scored, 0 missing, 4 unread (4 refused by the judge: --retry-refused" in capsys.readouterr().out
    assert run.score()["n_refused"] == 4 and run.score()["overall"] is None
    server.script(GRADED)
    assert run.judge() == 0 and server.received == []
    assert run.judge("--retry-refused") == 0 and run.counts() == (12, 0, 0) and len(server.received) == 4


@pytest.mark.parametrize(
    ("fault", "message", "requests"),
    [
        (error(401, "no such key"), "set $BLIP3O_JUDGE_API_KEY", 1),
        (error(404, "no such route"), "check the address", 1),
        (error(429, "quota", code="insufficient_quota"), "waiting does not help", 1),
        (error(400, "'temperature' is not supported with this model"), "--judge-option temperature=none", 1),
        (error(400, "this model takes no images"), "nothing it was asked was accepted", 3),
        (error(429, "slow down", {"Retry-After": "3600"}), "asks to wait 3600 s", 1),
        (error(503, "loading"), "judge again to resume", 6),
    ],
)
def test_what_ends_the_judging_is_one_line_and_a_later_run_goes_on(fault, message, requests, server, tmp_path, capsys):
    run = wise(tmp_path, server.script(GRADED, fault), count=20)
    if fault.status != 400:
        assert run.judge() == 1
        assert run.counts()[:2] == (1, 19)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    other = wise(fresh, server.script(fault), count=20)
    assert other.judge() == 1 and len(server.received) == requests
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and "Traceback" not in line
    server.script(GRADED)
    assert other.judge() == 0 and other.counts() == (20, 0, 0)


def test_a_single_item_that_is_refused_is_a_refusal_of_everything(server, tmp_path, capsys):
    run = wise(tmp_path, server.script(error(422, "unknown field")), count=1)
    assert run.judge() == 1 and run.counts() == (0, 0, 1)
    assert "nothing it was asked was accepted" in capsys.readouterr().err.splitlines()[-1]


def test_options_are_part_of_who_judges(server, tmp_path, capsys):
    run = wise(tmp_path, server.script(GRADED))
    options = ["--judge-option", "max_tokens=64", "--judge-option", "wise-verified:reasoning_effort=low"]
    assert run.judge() == 0 and run.judge(*options) == 0
    assert [body.get("reasoning_effort") for body in server.bodies] == [None, None, "low", "low"]
    version = 'blip3o-2 max_tokens=64 reasoning_effort="low"'
    assert run.score()["judge"] == {"id": "eye:8b", "version": version, "source": ""}
    assert len(run.rows) == 4, "the other judge's findings were paid for"
    for bad in ("max_tokens=x", "dpg:max_tokens=9", "max_tokenz=9"):
        assert run.judge("--judge-option", bad) == 1
        assert "--judge-option" in capsys.readouterr().err.splitlines()[-1]
    assert run.run("--stage", "judge", "--judge-option", "max_tokens=9") == 1


@pytest.mark.parametrize(
    "answer",
    [
        completion("lovely \ud83d"),
        completion("lovely \ud83d", "length"),
        error(400, "bad \ud83d", code="content_filter"),
    ],
)
def test_half_a_letter_costs_no_finding(answer, server, tmp_path):
    run = wise(tmp_path, server.script(GRADED, answer))
    assert run.judge() == 0 and run.counts() == (1, 0, 1)
    assert any("?" in row["reply"] + row["fault"] for row in run.rows)


def test_a_tile_of_which_one_question_is_refused_is_a_refused_row(server, tmp_path):
    run = dpg(tmp_path, server.script(completion("**Yes.**"), error(400, "filtered", code="content_filter")))
    assert run.judge() == 0 and run.counts() == (1, 0, 3)
    assert {row["fault"][-12:] for row in run.rows if row["value"] is None} == {"(question 1)"}


def written(folder, rows, form):
    files = {"cultural_common_sense": rows[:2], "natural_science": rows[2:]}
    for name, part in files.items():
        text = json.dumps(part, indent=2) if form == "json" else "\n".join(map(json.dumps, part))
        data = (b"\xef\xbb\xbf" if form == "bom" else b"") + text.encode()
        (folder / f"{name}_scores_results.{'json' if form == 'json' else 'jsonl'}").write_bytes(data)
    words = [{"prompt_id": row["prompt_id"], "prompt": "p", "key": "k", "evaluation": "0\n0\n0"} for row in rows]
    if form != "json":
        (folder / "cultural_common_sense_full_results.json").write_text(json.dumps(words))
    return sorted(folder.glob("*scores*"))


@pytest.mark.parametrize("form", ["jsonl", "json", "bom"])
@pytest.mark.parametrize("given", ["folder", "files"])
def test_the_files_of_wises_evaluator_are_read_as_they_are_published(form, given, server, tmp_path):
    rows = [{"prompt_id": number, "Subcategory": "s", **LEGACY} for number in (1, "2", 3.0)]
    rows[2]["consistency"] = 999
    folder = tmp_path / "Results"
    folder.mkdir()
    files = written(folder, rows, form)
    spec = f"official:{folder if given == 'folder' else ','.join(map(str, files))}"
    run = wise(tmp_path, server, count=3, suite="wise", spec=spec)
    assert run.judge() == 0 and run.counts() == (2, 0, 1)
    assert run.rows[1]["value"] == {"consistency": 2, "realism": 1, "aesthetic_quality": 0}


def test_a_model_that_thinks_is_scored_by_its_answer(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    said = ["<think>A, or C?</think>The answer is B.", "**B**", "B a cat", "<think>B, surely"]
    asked = {"image": "a.png", "question": "What is it?", "options": ["a dog", "a cat"], "answer": "B"}
    (tmp_path / "q.jsonl").write_text("".join(f"{json.dumps({'id': n, **asked})}\n" for n in range(len(said))))
    run = Evaluation(tmp_path, "choice", tmp_path / "q.jsonl", None)
    for item, text in zip(run.place.read_items(), said, strict=True):
        storage.write_bytes(run.place.file(run.place.path(item, 0)), json.dumps({"reply": text}).encode())
    run.place.write_files(run.place.describe(run.place.read_items(), {}))
    assert run.judge() == 0
    score = run.score()
    assert (score["details"]["plain"], score["overall"], score["coverage"]["n_parse_failed"]) == (1.0, None, 1)
    assert [row["reply"] for row in run.rows] == said, "the words are kept as they came"
