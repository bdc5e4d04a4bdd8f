"""A model behind another server than ours: its refusals, what may pass, and replies truncated while it thought."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.bundle_target import BundleTarget, BundleWorker
from blip3o.evaluate.benchmark.http_target import HttpTarget
from blip3o.evaluate.benchmark.work import Work
from blip3o.storage import retry
from jobs.evaluate import main
from jobs.evaluation.command import plan_of
from jobs.evaluation.options import BenchmarkOptions
from tests.bundles import write_nano_bundle
from tests.evaluate.endpoint import Answer, completion, error, serving

QUESTION = {"id": "q", "image": "a.png", "question": "What colour?", "answers": ["red"] * 10}
MODELS = Answer(body={"object": "list", "data": [{"id": "m"}]})
LONG = ["--max-tokens", "256"]


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """What the client was to wait, instead of waiting."""
    found = []
    monkeypatch.setattr(retry.time, "sleep", found.append)
    monkeypatch.setattr(HttpTarget, "identity", lambda self: {"target": "http", "model": "m"})
    return found


def evaluated(folder, server, *options):
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    (folder / "q.jsonl").write_text(json.dumps(QUESTION))
    source = ["--suite", "vqa", "--source", f"vqa={folder}/q.jsonl", "--out", f"{folder}/out"]
    assert main([*source, "--target", server.url, *options]) == 0
    score = json.loads((folder / "out/vqa/score.json").read_text())
    made = json.loads((folder / "out/vqa/files.jsonl").read_text())
    return score, made["fault"]


THOUGHT = "<think>The picture shows"
CUT = [
    completion(THOUGHT, "length"),
    completion(THOUGHT, "stop"),  # a server that does not say that it truncated
    completion(f"{THOUGHT} blue, so:", "max_tokens"),
    completion(None, "length", reasoning_content="The picture shows"),
    completion("", "length", reasoning="The picture shows"),
    completion(" \n", "MAX_TOKENS"),
    completion("<|channel|>analysis<|message|>The picture", "length"),
]


@pytest.mark.parametrize("cut", CUT, ids=range(len(CUT)))
def test_a_model_that_is_cut_while_it_thinks_has_not_answered(cut, server, tmp_path):
    server.script(cut)
    score, fault = evaluated(tmp_path, server)
    assert (score["coverage"]["n_missing"], score["overall"]) == (1, None)
    assert fault == "the reply ends within its reasoning: raise --max-tokens, with another --out"


@pytest.mark.parametrize("said", ["red", "<think>It is blue? No.</think>red"])
def test_a_reply_that_is_cut_after_its_thought_is_what_was_said(said, server, tmp_path):
    server.script(completion(said, "length"))
    score, fault = evaluated(tmp_path, server, *LONG)
    assert (score["overall"], fault) == (1.0, "") and server.bodies[0]["max_tokens"] == 256


def test_a_thought_that_was_kept_as_a_reply_is_unread(server, tmp_path):
    server.script(completion("red"))
    evaluated(tmp_path, server)
    [file] = (tmp_path / "out/vqa/replies").iterdir()
    file.write_text(json.dumps({"reply": THOUGHT}))
    counts = evaluated(tmp_path, server)[0]["coverage"]
    assert (counts["n_scored"], counts["n_missing"], counts["n_parse_failed"]) == (0, 0, 1)


def test_the_limit_is_part_of_what_was_evaluated_where_it_is_not_the_usual_one(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(HttpTarget, "_call", lambda self, route, patient: {"data": [{"id": "m"}]})
    usual, other = (HttpTarget(url="http://h", max_new_tokens=limit).identity() for limit in (32, 256))
    assert "max_new_tokens" not in usual and other == {**usual, "max_new_tokens": 256}


def test_the_limit_is_above_0(capsys):
    assert main(["--suite", "vqa", "--target", "http://h", "--max-tokens", "0"]) == 1
    assert "--max-tokens 0 is below 1" in capsys.readouterr().err


PASSES = [
    (error(429, "slow down", {"Retry-After": "7"}), 7),
    (error(503, "loading", {"Retry-After-Ms": "2500"}), 2.5),
    (Answer(body={"error": {"message": "Rate limit reached. Please try again in 9s.", "code": 429}}), 9),
    (Answer(body={"error": {"message": "upstream", "code": 502}}), None),
    (Answer(body={"choices": [{"error": {"code": 503, "message": "provider"}, "message": {"content": ""}}]}), None),
    (completion("re", "error"), None),
    (Answer(body=b"<html>busy</html>"), None),
    (Answer(status=529, body=b"overloaded"), None),
    (error(409, "conflict"), None),
]


@pytest.mark.parametrize(("fault", "wait"), PASSES, ids=range(len(PASSES)))
def test_what_may_pass_is_asked_again_as_late_as_the_server_wants(fault, wait, server, tmp_path, waits):
    server.script(fault, completion("red"))
    score, said = evaluated(tmp_path, server)
    assert (score["overall"], said, len(server.received), len(waits)) == (1.0, "", 2, 1)
    assert waits[0] == wait if wait else waits[0] < 1


def test_a_server_that_wants_more_patience_than_there_is_says_so(server, tmp_path, capsys):
    server.script(error(429, "quota by the day", {"Retry-After": "3600"}))
    with pytest.raises(AssertionError):
        evaluated(tmp_path, server)
    told = capsys.readouterr().err.splitlines()[-1]
    assert "429: quota by the day" in told and "asks to wait 3600 s" in told


REFUSED = [
    error(400, "flagged by the content filter", code="content_filter"),
    error(403, "the picture was blocked by moderation"),
    error(413, "the picture is too large"),
    Answer(body={"error": {"message": "prompt too long", "type": "invalid_request_error", "code": 400}}),
    completion(None, "content_filter"),
    completion(None, refusal="I cannot look at this."),
]


@pytest.mark.parametrize("refusal", REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_for_its_content_is_a_fault_of_its_item(refusal, server, tmp_path):
    server.script(refusal)
    score, fault = evaluated(tmp_path, server)
    assert score["coverage"]["n_missing"] == 1 and fault and "reasoning" not in fault
    assert len(server.received) == 1


@pytest.mark.parametrize(
    "refusal", [error(401, "no key"), error(404, "no route"), error(400, "x", code="model_not_found")]
)
def test_what_is_refused_altogether_stops(refusal, server, tmp_path, capsys):
    server.script(refusal)
    with pytest.raises(AssertionError):
        evaluated(tmp_path, server)
    assert "/v1/chat/completions answered HTTP 4" in capsys.readouterr().err.splitlines()[-1]


class Thinker:
    """A pipeline that thinks, and is truncated while it does where the question is long; ids stand for characters.

    Asked about nothing, it gives blanks until it is truncated.
    """

    tokenizer = SimpleNamespace(decode=lambda ids: "".join(map(chr, ids)))

    def chat_ids(self, turns, with_image):
        return []

    def reply_ids(self, turns, images, max_tokens):
        assert max_tokens == 256
        says = {"long": "<think>long", "short": "<think>x</think>red", "nothing": " " * max_tokens, "blank": " "}
        return [[ord(char) for char in says[turn[0].text]] for turn in turns]


def test_a_bundle_that_is_cut_before_it_answers_has_not_answered_either(tmp_path):
    work = tuple(
        Work(kind="ask", uri=f"{tmp_path}/{prompt}.json", partial=f"{tmp_path}/partial", prompt=prompt, seed=0)
        for prompt in ("long", "short", "nothing", "blank")
    )
    worker = BundleWorker(BundleTarget(bundle="b", batch_size=4, max_new_tokens=256), [work])
    worker._pipeline = Thinker()
    cut, whole, nothing, blank = worker.make(0)
    for unanswered, name in ((cut, "long"), (nothing, "nothing")):
        assert "ends within its reasoning" in unanswered.fault and not (tmp_path / f"{name}.json").exists()
    assert whole.fault == "" and json.loads((tmp_path / "short.json").read_text())["reply"].endswith("red")
    assert blank.fault == "", "a model that ends without a word has answered, if wrongly"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("bundle"))
    write_nano_bundle(uri)
    return uri


def test_what_a_bundle_is_includes_its_resolved_precision_and_how_it_computes(bundle):
    identity = BundleTarget(bundle=bundle, batch_size=3).identity()
    assert (identity["precision"], identity["decode_batch_size"], identity["execution"]) == ("fp32", 3, "eager")
    assert BundleTarget(bundle=bundle, batch_size=3, gpus=0.5).identity()["precision"] == "bf16"
    other = BundleTarget(bundle=bundle, batch_size=3, precision="bf16", decode_batch_size=1)
    assert (other.identity()["precision"], other.identity()["decode_batch_size"]) == ("bf16", 1)
    pipeline = BundleWorker(other, [])._loaded()
    assert (pipeline.precision, pipeline.decode_rows) == ("bf16", 1)


def test_actors_find_a_bundle_that_was_named_by_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = plan_of(BenchmarkOptions(suite="scenes", target="runs/demo/bundle", actors=0), None)
    assert plan.target.bundle == f"{tmp_path}/runs/demo/bundle"
    assert plan.out == f"{tmp_path}/runs/evaluation/bundle"


@pytest.mark.parametrize("option", [{"precision": "bf16"}, {"decode_batch_size": 2}, {"execution": "compile"}])
def test_a_server_computes_as_it_was_started(option):
    [name] = option
    options = BenchmarkOptions(suite="scenes", target="http://127.0.0.1:1", **option)
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} is the server's own"):
        plan_of(options, None)
