"""What goes wrong in a benchmark job costs nothing that was paid for: findings, drawings, and time to draw."""

import base64
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler

import pytest
from PIL import Image

from blip3o import storage
from blip3o.errors import DataError, ServiceError
from blip3o.evaluate.benchmark.http_target import HttpTarget
from blip3o.evaluate.benchmark.judge import judge
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.prepare import prepare
from blip3o.evaluate.benchmark.rows import read_rows
from blip3o.evaluate.benchmark.score import score
from blip3o.evaluate.benchmark.work import Work, png
from blip3o.evaluate.judges.runner import JudgeRunner
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.registry import find_suite
from tests.jobs.stranger import serving

GRAY = png(Image.effect_noise((64, 64), 50))
ITEMS = 3


def drawn(name, encoded):
    return {"data": [{"b64_json": base64.b64encode(encoded).decode(), "seed": 1}], "model": name}


def reply(body, *, length=None, status="200 OK"):
    """A raw reply of HTTP/1.0, with its length or another one."""
    return f"HTTP/1.0 {status}\r\ncontent-length: {length or len(body)}\r\n\r\n".encode() + body


GOOD = reply(json.dumps(drawn("m", GRAY)).encode())


@contextmanager
def server_of(*replies):
    """The URL of a server that answers POSTs with these raw replies, the last one again and again."""
    left = list(replies)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.wfile.write(reply(b'{"data": [{"id": "m"}]}'))

        def do_POST(self):
            self.rfile.read(int(self.headers["content-length"]))
            self.wfile.write(left.pop(0) if len(left) > 1 else left[0])

        def log_message(self, *_):
            """Says nothing."""

    with serving(Handler) as url:
        yield url


def draw(url, folder):
    work = Work(kind="draw", uri=f"{folder}/a.png", partial=f"{folder}/partial", prompt="a dog", seed=1)
    return list(HttpTarget(url=url).run([work]))


@pytest.mark.parametrize(
    "lost",
    [
        reply(b'{"data": [{"b64', length=1000),
        reply(b"over", length=1000, status="503 Busy"),
        b"garbage\r\n\r\n",
        b'HTTP/1.0 200 OK\r\n\r\n{"data": "\xc3',  # of unknown length, cut within a letter
    ],
)
def test_a_server_that_goes_away_within_a_reply_is_asked_again(lost, tmp_path):
    with server_of(lost, lost, GOOD) as url:
        [done] = draw(url, tmp_path)
    assert not done.fault and (tmp_path / "a.png").read_bytes() == GRAY


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (json.dumps(drawn("m", GRAY[:600])).encode(), "answered without one image as b64_json"),
        (b'{"a": "\xe9"}', "without whole JSON"),
        (b"<html>", "without whole JSON"),
    ],
)
def test_a_reply_that_is_no_image_is_one_line(answer, fault, tmp_path, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.01")
    with server_of(reply(answer)) as url, pytest.raises(ServiceError, match=fault) as error:
        draw(url, tmp_path)
    assert len(str(error.value).splitlines()) == 1 and not (tmp_path / "a.png").exists()


def reader(name, *, fails_after=ITEMS):
    """A judge that reads its own name everywhere, until it fails; and the list of what it was asked about."""
    asked = []

    def judge_sample(item, sample, data):
        if len(asked) == fails_after:
            raise ServiceError("the judge has gone away")
        asked.append(item.key)
        return Judgement(key=item.key, sample=sample, value={"lines": [name]})

    return JudgeRunner(judge=Judge(id=name, version="1"), judge_sample=judge_sample), asked


def judged_by(plan, finder):
    judge(replace(plan, suites=tuple(replace(one, judge=lambda _: finder) for one in plan.suites)))


@pytest.mark.parametrize("found", [0, 1])
def test_a_judge_that_fails_loses_nothing_of_another_and_counts_nothing_of_it(found, tmp_path):
    plan = Plan(out=str(tmp_path), suites=(find_suite("ocr"),), limit=ITEMS, samples=1)
    prepare(plan)
    place = plan.folder(plan.suites[0])
    for item in place.read_items():
        storage.write_bytes(place.file(place.path(item, 0)), GRAY)
    place.write_files(place.describe(place.read_items(), {}))
    (first, asked), (second, _) = reader("first"), reader("second", fails_after=found)
    judged_by(plan, first)
    score(plan)
    before = (tmp_path / "ocr/score.json").read_bytes()
    rows = read_rows(place.file("judgements.jsonl"))
    with pytest.raises(ServiceError):
        judged_by(plan, second)
    score(plan)
    after = json.loads((tmp_path / "ocr/score.json").read_bytes())
    assert after["judge"] == asdict(second.judge) and after["coverage"]["n_scored"] == found
    assert [row for row in read_rows(place.file("judgements.jsonl")) if row["judge"] == asdict(first.judge)] == rows
    judged_by(plan, first)
    score(plan)
    assert (tmp_path / "ocr/score.json").read_bytes() == before
    assert len(asked) == ITEMS, "what the first judge had found was asked for again"


def test_what_was_found_beside_a_failure_is_kept(tmp_path, monkeypatch):
    plan = Plan(out=str(tmp_path), suites=(find_suite("ocr"),), limit=ITEMS, samples=1)
    prepare(plan)
    place = plan.folder(plan.suites[0])
    keys = [item.key for item in place.read_items()]
    for item in place.read_items():
        storage.write_bytes(place.file(place.path(item, 0)), GRAY)
    place.write_files(place.describe(place.read_items(), {}))
    both, ending = threading.Barrier(2, timeout=30), threading.Event()
    shutdown = ThreadPoolExecutor.shutdown

    def ended(pool, **how):
        ending.set()
        shutdown(pool, **how)

    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", ended)

    def judge_sample(item, sample, data):
        if item.key in keys[:2]:
            both.wait()
        if item.key == keys[0]:
            raise ServiceError("the judge has gone away")
        assert ending.wait(30)  # the failure is known
        return Judgement(key=item.key, sample=sample, value={"lines": ["x"]})

    with pytest.raises(ServiceError, match="gone away"):
        judged_by(plan, JudgeRunner(judge=Judge(id="two", version="1"), judge_sample=judge_sample, threads=2))
    rows = read_rows(place.file("judgements.jsonl"))
    assert keys[1] in [row["key"] for row in rows], "what was paid for is lost"


@pytest.mark.parametrize(
    ("suite", "file", "content"),
    [
        ("wise", "w.json", json.dumps([{"Prompt": "a", "Explanation": "b", "prompt_id": 1}] * 2)),
        ("ocr", "o.jsonl", f"{json.dumps({'id': 1, 'prompt': 'a', 'text': 'b'})}\n" * 2),
        ("dpg", "d.json", json.dumps({"1": "a", "1.txt": "b"})),
    ],
)
def test_items_of_one_key_are_refused_before_anything_is_drawn(suite, file, content, tmp_path):
    source = tmp_path / file
    source.write_text(content)
    plan = Plan(out=str(tmp_path / "out"), suites=(find_suite(suite),), sources={suite: str(source)}, limit=1)
    with pytest.raises(
        DataError, match=f"{re.escape(str(file))}: 1 items share their key with another, the first is '1'"
    ):
        prepare(plan)
    assert not (tmp_path / "out").exists()
