"""The report shows every figure it is given, escapes what it shows, and loads nothing from anywhere."""

import base64
import re

import pytest
from PIL import Image

from blip3o.evaluate.metrics.understanding import AnswerRecord
from blip3o.evaluate.reports.heldout import AnsweredPicture, ReportImages, write_report


def tally(accuracy, n, chance=None):
    return {"accuracy": accuracy, "chance": chance, "n": n}


UNDERSTANDING = {
    **tally(0.811, 161, 0.152),
    "n_unparsed": 19,
    "interval": [0.753, 0.864],
    "shuffled": 0.203,
    "by_kind": {"color": tally(0.911, 41, 0.125), "count": tally(0.604, 42, 0.25)},
    "by_source": {"emoji": tally(0.505, 43, 0.106)},
    "two_way": tally(0.707, 71, 0.5) | {"by_kind": {"presence": tally(0.708, 31, 0.5)}},
    "open": tally(0.109, 33) | {"by_kind": {"label": tally(0.11, 34)}},
}
RETRIEVAL = {
    "r1": 0.312,
    "r5": 0.613,
    "chance_r1": 0.0081,
    "chance_r5": 0.0392,
    "shuffled_r1": 0.0013,
    "shuffled_r5": 0.0214,
}
SCENES = {
    "all_correct": 0.715,
    "shape": 0.816,
    "count": 0.777,
    "color": 0.918,
    "n_color": 47,
    "relation": 0.519,
    "n_relation": 13,
    "upper_bound": 0.951,
    "judge": 0.998,
    "shuffled": 0.021,
    "n": 64,
    "families": {"counting": {"all_correct": 0.422, "n": 11}},
}
STAGE = {
    "steps": 1234,
    "first_loss": 6.543,
    "last_loss": 0.1234,
    "seconds": 87.4,
    "samples_per_second": 345.6,
    "data_wait_fraction": 0.073,
    "workers": 2,
    "zero_stage": 1,
}
SUMMARY = {
    "understanding": UNDERSTANDING,
    "generation": {**RETRIEVAL, "n": 128, "by_source": {"emoji": {**RETRIEVAL, "r1": 0.234, "n": 65}}},
    "scenes": SCENES,
    "stages": {"generate": STAGE},
    "provenance": {"bundle": "s3://bucket/bundle", "seed": 17},
}
METRICS = {"generate": [{"step": step, "loss": 1 / (step + 1)} for step in range(20)]}


def answered(reply, answer="red"):
    record = AnswerRecord(
        uid="scenes/0/1",
        source="scenes",
        kind="color",
        question="What <b>color</b>?",
        choices=(),
        answer=answer,
        reply=reply,
    )
    return AnsweredPicture(record=record, image=Image.new("RGB", (64, 64), "red"))


def written(tmp_path, summary=SUMMARY, metrics=METRICS, replies=("red",)):
    path = tmp_path / "out" / "report.html"
    images = ReportImages(grid=Image.new("RGB", (300, 200), "white"), answered=tuple(answered(r) for r in replies))
    write_report(path, summary=summary, metrics=metrics, images=images)
    return path.read_text()


def leaves(tree):
    if isinstance(tree, dict):
        return [leaf for key, value in tree.items() for leaf in leaves(value)]
    return [leaf for value in tree for leaf in leaves(value)] if isinstance(tree, list) else [tree]


@pytest.mark.parametrize("name", ["understanding", "generation", "scenes"])
def test_every_figure_is_shown(tmp_path, name):
    page = written(tmp_path)
    summary = SUMMARY[name]
    if name == "generation":  # within a source, R@1 alone
        summary = {**summary, "by_source": [summary["by_source"]["emoji"][key] for key in ("r1", "chance_r1", "n")]}
    for figure in leaves(summary):
        shown = "–" if figure is None else str(figure) if isinstance(figure, int) else f"{100 * figure:.1f} %"
        assert f">{shown}<" in page or f" {shown}" in page, figure


def test_stages_curves_and_provenance(tmp_path):
    page = written(tmp_path)
    assert all(f">{cell}<" in page for cell in ("1234", "6.543", "0.1234", "345.6", "7.3 %", "87", "2", "1"))
    assert all(f">{cell}<" in page for cell in ("s3://bucket/bundle", "17"))
    assert "<svg" in page


def test_what_was_learned_comes_first_then_pictures_then_tables_and_recipes_are_folded(tmp_path):
    path = tmp_path / "report.html"
    images = ReportImages(grid=Image.new("RGB", (3, 2), "white"), answered=(answered("red"),))
    write_report(path, summary=SUMMARY, metrics=METRICS, images=images, recipes={"generate": "optim: <lr>"})
    page = path.read_text()
    said = re.sub(r"<[^>]+>", " ", page[page.index('<ul class="learned">') :])
    assert "81.1 %  of 161 answers about pictures (three or more choices) are right." in said
    assert "by chance 15.2 %; about other pictures 20.3 %" in said
    assert "71.5 %  of 64 drawings show exactly what was asked." in said
    assert "for other prompts 2.1 %; the decoder allows 95.1 %" in said
    places = [
        page.index(mark) for mark in ('class="learned"', 'class="grid"', 'class="card"', "<table", "<svg", "<details>")
    ]
    assert places == sorted(places)
    folded = page[page.index("<details>") :]
    assert "optim: &lt;lr&gt;" in folded and "s3://bucket/bundle" in folded and "<h2" not in folded


def test_right_and_wrong_replies_are_marked(tmp_path):
    page = written(tmp_path, replies=("Red.", "blue"))
    assert page.count('class="right"') == 1
    assert page.count('class="wrong"') == 1
    assert page.count("true answer: red") == 1


def test_at_most_a_dozen_questions_are_shown(tmp_path):
    assert written(tmp_path, replies=("red",) * 30).count('class="card"') == 12


def test_what_comes_from_outside_is_escaped(tmp_path):
    page = written(tmp_path, replies=("<script>alert(1)</script>",))
    assert "<script" not in page
    assert "What &lt;b&gt;color&lt;/b&gt;?" in page


def test_the_page_loads_nothing(tmp_path):
    page = written(tmp_path)
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert "url(http" not in page
    png = re.search(r'class="grid"[^>]*base64,([^"]+)"', page).group(1)
    assert base64.b64decode(png).startswith(b"\x89PNG")


def test_parts_that_were_not_measured_are_left_out(tmp_path):
    summary = {**SUMMARY, "understanding": None, "scenes": None, "stages": {}}
    page = written(tmp_path, summary=summary, metrics={}, replies=())
    assert "Answers, " not in page
    assert "Scenes" not in page
    assert "<h2>Training" not in page
    assert "31.2 %" in page
