"""Text rendering: what is compared, and the recogniser itself on a rendered line."""

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from blip3o.errors import DataError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.ocr import Ocr, RapidOcr, edit_distance, similarity

OCR = Ocr()
READER = Judge(id="reader", version="1")


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("abc", "abc", 0), ("abc", "acb", 2), ("flaw", "lawn", 2)],
)
def test_known_distances(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_it_is_a_distance(a, b, c):
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)
    assert edit_distance(a, b) >= abs(len(a) - len(b))


@pytest.mark.parametrize(
    ("wanted", "lines", "value"),
    [
        ("NO PARKING", ["noparking"], 1.0),
        ("NO PARKING", ["NO", "PARKING"], 1.0),
        ("Café", ["cafe!"], 1.0),
        ("19:45", ["1945"], 1.0),
        ("OPEN", [], 0.0),
        ("OPEN", [""], 0.0),
        ("OPEN", ["OPEN", "OPEN"], 0.5),
        ("OPEN", ["OPFN"], 0.75),
        ("OPEN", ["xyz"], 0.0),
    ],
)
def test_words_are_compared_letter_by_letter(wanted, lines, value):
    assert similarity(wanted, lines) == pytest.approx(value)


def read(items, lines):
    return [
        Judgement(key=item.key, sample=n, value={"lines": lines(item, n)})
        for item in items
        for n in range(item.samples)
    ]


def test_the_score_is_the_mean_over_pictures():
    items = OCR.items(None)
    assert len({item.prompt for item in items}) == len({OCR.image_path(item, 0) for item in items}) == 18
    assert all(f'"{item.record["text"]}"' in item.prompt for item in items)
    score = OCR.score(items, read(items, lambda item, n: [item.record["text"]] if n else []), READER)
    assert (score.overall, score.details["exact"], score.interval) == (0.5, 0.5, (0.5, 0.5))
    assert score.categories == {"word": 0.5, "words": 0.5, "number": 0.5}
    assert OCR.score(items, read(items, lambda *_: [])[:-1], READER).overall is None


def test_other_texts_come_from_a_file(tmp_path):
    file = tmp_path / "texts.jsonl"
    file.write_text(json.dumps({"id": 5, "prompt": 'a van with "FISH"', "text": "FISH"}))
    [item] = OCR.items(str(file))
    assert OCR.score([item], read([item], lambda *_: ["fish"]), READER).categories == {"all": 1.0}
    file.write_text("{}")
    with pytest.raises(DataError, match="lacks id, prompt, text"):
        OCR.items(str(file))


def test_the_recogniser_reads_a_rendered_line():
    pytest.importorskip("rapidocr_onnxruntime", reason="the extra 'ocr' is not installed")
    image = Image.new("RGB", (320, 96), "white")
    ImageDraw.Draw(image).text((20, 24), "FRESH FRUIT", fill="black", font=ImageFont.load_default(size=40))
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    reader = RapidOcr()
    assert similarity("FRESH FRUIT", reader.lines(buffer.getvalue())) == 1.0
    assert reader.judge.version
