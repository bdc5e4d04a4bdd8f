"""A new suite is one file and one row: a toy suite goes through every stage without a line of code elsewhere."""

import json
from pathlib import Path

from PIL import Image

from blip3o.data.images.decode import open_image
from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.plan import Plan, find_suites
from blip3o.evaluate.benchmark.stages import run
from blip3o.evaluate.judges.runner import JudgeRequest, JudgeRunner
from blip3o.evaluate.records import Item, Judge, Judgement, Score
from blip3o.evaluate.suites import registry
from blip3o.evaluate.suites.registry import SuiteSpec
from blip3o.evaluate.suites.suite import Suite, collect_values, mean
from tests.evaluate.benchmark.fake_target import FakeTarget

# --- the one file of a suite: it asks for dark images, and grades how dark they are ---


class Dark(Suite):
    """Two prompts, two images of each."""

    name = "dark"
    protocol = "mean darkness"
    samples = 2

    def items(self, source):
        return tuple(Item(key=key, prompt=f"a {key} night", record={}, samples=2) for key in ("cold", "warm"))

    def image_path(self, item, sample):
        return f"images/{item.key}/{sample}.png"

    def score(self, items, judgements, judge):
        values, coverage = collect_values(items, judgements)
        overall = mean(value["dark"] for value in values.values()) if coverage.complete else None
        return Score(
            suite=self.name,
            protocol=self.protocol,
            judge=judge,
            coverage=coverage,
            overall=overall,
            categories={},
            comparable=False,
            why_not=("a toy",),
        )


def darkness(data):
    return 1 - sum(open_image(data).resize((1, 1)).getpixel((0, 0))) / (3 * 255)


def make_judge(request: JudgeRequest) -> JudgeRunner:
    if request.spec is not None:
        raise ConfigError("dark takes no judge")
    return JudgeRunner(
        judge=Judge(id="darkness", version="1"),
        judge_sample=lambda item, sample, data: Judgement(key=item.key, sample=sample, value={"dark": darkness(data)}),
    )


def exchanged(items, judgements):
    """The control: nothing is dark."""
    return [Judgement(key=one.key, sample=one.sample, value={"dark": 0.0}) for one in judgements]


# --- its one row ---

ROW = SuiteSpec(
    suite=Dark(),
    judge=make_judge,
    grade=lambda item, value: value["dark"],
    reason=lambda value: f"{value['dark']:.3f} dark",
    truth=lambda item: Image.new("RGB", (16, 16), "black"),
    shuffled=exchanged,
)


def test_a_suite_of_one_file_and_one_row_is_prepared_generated_judged_scored_and_reported(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.SUITES, "dark", ROW)
    lines: list[str] = []
    run(Plan(out=str(tmp_path), suites=find_suites("dark"), target=FakeTarget()), lines.append)
    folder = Path(tmp_path, "dark")
    images = sorted(folder.glob("images/*/*.png"))
    assert len(images) == 4 and len(list(folder.glob("truth/*.png"))) == 2
    expected = mean(darkness(path.read_bytes()) for path in images)
    score = json.loads((folder / "score.json").read_text())
    assert score["overall"] == expected and 0 < expected < 1
    assert score["controls"] == {"shuffled": 0.0}
    assert lines[0].startswith(f"dark: {100 * expected:.1f} %, shuffled 0.0 %; 4 of 4 scored")
    darkest = max(darkness(path.read_bytes()) for path in images)
    assert f"{darkest:.3f} dark" in Path(tmp_path, "report.html").read_text()


def test_every_row_is_found_by_the_name_of_its_suite():
    assert all(registry.find_suite(name).suite.name == name for name in registry.SUITES)
