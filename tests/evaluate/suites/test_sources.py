"""Sources that users bring: another format is one line with the file and the row, and never a wrong score."""

import json

import pytest

from blip3o.errors import DataError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.registry import find_suite

HEAD = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
ASKED = {"id": 1, "image": "a.png", "question": "q?"}


@pytest.mark.parametrize(
    ("name", "file", "content", "fault"),
    [
        ("vqa", "q.jsonl", ASKED | {"answers": "blue"}, 'q.jsonl, record 1: answers is "blue", expected a list'),
        ("vqa", "q.jsonl", ASKED | {"answers": [{"answer_id": 1}] * 4}, "q.jsonl, record 1: answers is "),
        ("vqa", "q.jsonl", ASKED | {"answers": ["a"] * 4, "image": 5}, "q.jsonl, record 1: image is 5"),
        ("choice", "q.jsonl", ASKED | {"options": "dog", "answer": "A"}, 'q.jsonl, record 1: options is "dog"'),
        ("mme", "q.jsonl", ASKED | {"answer": True, "category": "count"}, "q.jsonl, record 1: answer is true"),
        ("mjhq", "m.json", {"a": None}, "m.json, 'a' is null: expected an object of the fields category, prompt"),
        ("mjhq", "m.json", {"a": {"category": "art", "prompt": None}}, "m.json, 'a': prompt is null"),
        ("wise", "w.json", [1], "w.json, record 1 is 1: expected an object"),
        ("ocr", "o.jsonl", {"id": 1, "prompt": "a sign", "text": 2026}, "o.jsonl, record 1: text is 2026"),
        ("dpg", "d.csv", f'{HEAD}a,a dog,1,0,entity,"Is it?"\nb,a cat\n', "d.csv, row 2 lacks proposition_id, "),
        ("dpg", "d.csv", f"{HEAD}a,caf\xe9,1,0,entity,q?\n".encode("latin-1"), "d.csv is not UTF-8 text"),
        ("dpg", "d.csv", f'{HEAD}a,"{"x" * 200_000}', "d.csv is no CSV after line 1: field larger"),
        ("dpg", "prompts/a.txt", b"caf\xe9", "a.txt is not UTF-8 text"),
    ],
)
def test_a_source_of_another_format_is_one_line_with_file_and_row(name, file, content, fault, tmp_path):
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        find_suite(name).suite.items(str(path if path.parent == tmp_path else path.parent))
    assert fault in str(error.value) and str(path.parent) in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_answers_in_vqav2s_own_form_are_its_texts(tmp_path):
    texts = ["red"] * 2 + ["blue"] * 8
    own = [{"answer": text, "answer_confidence": "yes", "answer_id": n} for n, text in enumerate(texts)]
    file = tmp_path / "q.jsonl"
    read = []
    for answers in (texts, own):
        file.write_text(json.dumps(ASKED | {"answers": answers}))
        read.append(find_suite("vqa").suite.items(str(file)))
    assert read[0] == read[1]
    replied = [Judgement(key="1", sample=0, value={"reply": "red"})]
    assert find_suite("vqa").suite.score(read[1], replied, Judge(id="a", version="1")).overall == pytest.approx(0.6)
