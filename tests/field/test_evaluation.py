"""Sources and replies as users' tools and servers write them, through the real `evaluate` command."""

import json

import pytest
from PIL import Image

from jobs.evaluate import main
from tests.evaluate.suites.sources import DPG, SOURCES, text_of
from tests.jobs.stranger import stranger

MARK = "\ufeff"
CUT = "half \ud83d"
QUESTION = {"image": "plain.jpg", "question": "What?", "answers": ["red"] * 10}
LINES = "".join(f"{json.dumps({'id': number, **QUESTION})}\n" for number in (0, 1))


@pytest.fixture(scope="module")
def server():
    """A model behind the chat route that answers every question: red, unless the question says otherwise."""

    def answer(path, body):
        if path == "/v1/models":
            return {"data": [{"id": "m"}]}
        asked = body["messages"][0]["content"][-1]["text"]
        reply = asked.removeprefix("say ") if asked.startswith("say ") else CUT if asked == "cut" else "red"
        return {"choices": [{"message": {"role": "assistant", "content": reply}}]}

    with stranger(answer) as url:
        yield url


@pytest.fixture
def folder(tmp_path):
    picture = Image.new("RGB", (32, 16), (220, 30, 30))
    picture.paste((30, 30, 220), (16, 0, 32, 16))
    picture.save(tmp_path / "plain.jpg")
    return tmp_path


def evaluate(folder, suite, source, server, *options):
    common = ["--suite", suite, "--source", f"{suite}={source}", "--out", str(folder / "out"), "--actors", "1"]
    return main([*common, "--target", server, *options])


def score_of(folder, suite="vqa"):
    return json.loads((folder / "out" / suite / "score.json").read_text())


@pytest.mark.parametrize(
    "data",
    [
        (MARK + LINES).encode(),  # a byte order mark, as Windows' editors and PowerShell write
        (MARK + LINES).replace("\n", "\r\n").encode(),
        (MARK + "".join(f"{line}\n{MARK}" for line in LINES.splitlines())).encode(),  # files with marks, joined
        f"\n{MARK}\n{LINES}\n\n".encode(),
        json.dumps(json.loads(LINES.splitlines()[0])).encode()
        + b"\n"
        + LINES.splitlines()[1].encode(),  # no last newline
    ],
    ids=["mark", "mark and CRLF", "joined", "empty lines", "no last newline"],
)
def test_questions_with_a_byte_order_mark_are_answered_and_scored(data, folder, server):
    (folder / "bom.jsonl").write_bytes(data)
    assert evaluate(folder, "vqa", folder / "bom.jsonl", server) == 0
    score = score_of(folder)
    assert (score["overall"], score["coverage"]["n_scored"]) == (1.0, 2)


@pytest.mark.parametrize("suite", ["geneval", "dpg", "wise", "mjhq", "ocr", "scenes", "mme", "choice"])
def test_every_suite_s_source_may_have_one(suite, folder, server):
    name, rows = SOURCES[suite]
    text = text_of(name, rows)
    read = []
    for mark in ("", MARK):
        (folder / f"{bool(mark)}").mkdir()
        source = folder / f"{bool(mark)}" / name
        source.write_text(mark + text)
        (folder / "out").rename(folder / "before") if mark else None
        assert evaluate(folder, suite, source, server, "--stage", "prepare") == 0
        items = (folder / "out" / suite / "items.jsonl").read_text()
        read.append(items.replace(str(source.parent), ""))
    assert read[0] == read[1] and MARK not in read[1]


def test_a_folder_of_prompts_with_marks_is_drawn_without_them(folder, server):
    prompts = folder / "prompts"
    prompts.mkdir()
    (prompts / "one.txt").write_text(f"{MARK}a dog\r\n")
    (prompts / "q.csv").write_text(MARK + "\n".join(line for line in DPG if not line.startswith("two")) + "\n")
    assert evaluate(folder, "dpg", prompts, server, "--stage", "prepare") == 0
    [item] = [json.loads(line) for line in (folder / "out/dpg/items.jsonl").read_text().splitlines()]
    assert item["prompt"] == "a dog" and len(item["record"]["questions"]) == 2


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (LINES.encode("utf-16"), "is not UTF-8 text"),
        (LINES.replace('"red"', "NaN", 1).encode(), "line 1 cannot be read: NaN is no JSON"),
        (LINES.replace('"id": 1', '"id": 1, "id": 2').encode(), 'line 2 cannot be read: the key "id" appears twice'),
        (LINES.replace('"red"', "[" * 900 + "]" * 900, 1).encode(), "line 1 has values more than 32 levels deep"),
        (LINES.replace('"red"', "[" * 90_000, 1).encode(), "line 1 has values more than 32 levels deep"),
        (LINES.replace('"id": 1', '"id": 0').encode(), "has two questions of one id"),
        (LINES.replace('"id": 1', '"id": "a\\u0000b"').encode(), "remove it"),
        (LINES.replace('"id": 1', '"id": "../../a"').encode(), "is no key"),
        (LINES.replace("What?", "\\ud83d").encode(), "remove it"),
        (LINES.replace('"id": 1', '"id": null').encode(), "id is null, expected a text or a whole number"),
        (LINES.replace('"id": 1', f'"id": {"1" * 5000}').encode(), "line 2 cannot be read: "),
        (LINES[:-40].encode(), "line 2 is not JSON"),
        (b"", "has no items"),
        (MARK.encode(), "has no items"),
    ],
)
def test_a_source_that_is_damaged_is_one_line(data, fault, folder, server, capsys):
    (folder / "q.jsonl").write_bytes(data)
    assert evaluate(folder, "vqa", folder / "q.jsonl", server) == 1
    said = capsys.readouterr().err.splitlines()
    assert fault in said[-1] and len(said) == 1
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("said", "answers", "vqa", "vqav2"),
    [
        ("two", ["two"] * 10, 1.0, 1.0),
        ("PEPSI", ["PEPSI"] * 10, 1.0, 1.0),
        ("a dog", ["a dog"] * 10, 1.0, 1.0),
        ("3,000", ["3,000"] * 10, 1.0, 1.0),
        ("2", ["two"] * 9 + ["three"], 1.0, 1.0),
        ("Two.", ["two"] * 3 + ["three"] * 7, 0.9, 0.9),
        ("The dog", ["dog"] * 10, 1.0, 0.0),
        ("dont know", ["don't know"] * 2 + ["x"] * 8, 0.6, 0.6),
    ],
)
def test_replies_and_answers_are_read_alike(said, answers, vqa, vqav2, folder, server):
    prompts = {"vqa": vqa, "vqav2": vqav2}
    record = {"id": 0, **QUESTION, "question": f"say {said}", "answers": answers}
    (folder / "q.jsonl").write_text(f"{json.dumps(record)}\n")
    for suite, expected in prompts.items():
        assert evaluate(folder, suite, folder / "q.jsonl", server) == 0
        assert score_of(folder, suite)["overall"] == pytest.approx(expected)


def test_a_reply_that_was_cut_within_an_emoji_is_kept_and_scored(folder, server):
    (folder / "q.jsonl").write_text(json.dumps({"id": 0, **QUESTION, "question": "cut"}))
    for _ in range(2):
        assert evaluate(folder, "vqa", folder / "q.jsonl", server) == 0
        assert score_of(folder)["overall"] == 0.0
    [row] = (folder / "out/vqa/judgements.jsonl").read_text().splitlines()
    assert json.loads(row)["reply"] == "half ?"  # no file in UTF-8 can hold half of a pair


@pytest.mark.parametrize(
    ("said", "right"), [("y", "Yes"), ("N", "No"), ("Yes, it is.", "Yes"), ("no.", "No"), ("Y.", "Yes")]
)
def test_mme_takes_a_lone_letter(said, right, folder, server):
    other = {"Yes": "No", "No": "Yes"}[right]
    rows = [
        {"id": number, "image": "plain.jpg", "question": f"say {said}", "answer": answer, "category": "count"}
        for number, answer in enumerate((right, other))
    ]
    (folder / "q.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert evaluate(folder, "mme", folder / "q.jsonl", server) == 0
    score = score_of(folder, "mme")
    assert (score["overall"], score["details"]["n_unparsed"]) == (50.0, 0)


@pytest.mark.parametrize("suite", ["wise", "wise-verified", "mjhq", "vqa", "mme", "choice"])
def test_a_second_sample_without_a_place_is_refused(suite, folder, server, capsys):
    name, rows = SOURCES[suite]
    (folder / name).write_text(text_of(name, rows))
    assert evaluate(folder, suite, folder / name, server, "--samples", "2", "--stage", "prepare") == 1
    assert f"{suite} has room for one sample of each item" in capsys.readouterr().err
    assert not (folder / "out").exists()
