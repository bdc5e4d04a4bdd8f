"""A score counts findings about the bytes that lie there now: pictures, replies, grids, references, in every suite."""

import json
from dataclasses import replace

import pytest
from PIL import Image

from blip3o.errors import ConfigError
from blip3o.evaluate.benchmark.generate import generate
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.prepare import check_paths
from blip3o.evaluate.benchmark.report import report
from blip3o.evaluate.benchmark.stages import run as run_stages
from blip3o.evaluate.benchmark.work import png
from blip3o.evaluate.suites.registry import SUITES, find_suite
from jobs.evaluate import main
from tests.evaluate.benchmark.fake_target import FakeTarget
from tests.evaluate.suites.sources import write

HERE = "tests.evaluate.benchmark.test_evidence"


def agree(image, question):
    """Says yes to everything."""
    return "yes"


def brightness(image):
    """A network of one feature."""
    return [float(sum(image.resize((1, 1)).getpixel((0, 0))))]


def plan_of(tmp_path, suite, **options):
    folder = tmp_path / "source"
    folder.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9), "red").save(folder / "a.png")
    sources = {suite: write(folder, suite)}
    return Plan(out=str(tmp_path / "out"), suites=(find_suite(suite),), sources=sources, target=FakeTarget(), **options)


def run(plan, *stages):
    stages = stages or ("prepare", "generate", "judge", "score")
    run_stages(replace(plan, stages=stages), print)
    return json.loads((place_of(plan) / "score.json").read_text()) if "score" in stages else None


def place_of(plan):
    from pathlib import Path

    return Path(plan.out) / plan.suites[0].suite.name


def missing(score):
    counts = score["coverage"]
    assert counts["n_expected"] == counts["n_scored"] + counts["n_missing"] + counts["n_parse_failed"]
    assert (score["overall"] is None) == (counts["n_scored"] < counts["n_expected"])
    return counts["n_missing"]


@pytest.mark.parametrize("suite", SUITES)
def test_two_samples_are_two_files_or_are_refused_before_anything_is_written(suite, tmp_path, capsys):
    plan = plan_of(tmp_path, suite)
    options = ["--suite", suite, "--out", plan.out, "--source", f"{suite}={plan.sources[suite]}", "--stage", "prepare"]
    if main([*options, "--samples", "2"]):
        assert f"{suite} has room for one sample of each item" in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()
        return
    generate(plan)
    rows = [json.loads(line) for line in (place_of(plan) / "files.jsonl").read_text().splitlines()]
    assert len({row["path"] for row in rows}) == len(rows) == 2 * len({row["key"] for row in rows})
    assert len({row["seed"] for row in rows}) == len({row["sha256"] for row in rows}) == len(rows)


def test_two_items_of_one_file_are_refused(tmp_path, capsys):
    rows = [{"id": key, "prompt": "a sign", "text": "a"} for key in ("a", "b")]
    source = tmp_path / "s.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    plan = Plan(out=str(tmp_path / "out"), suites=(find_suite("ocr"),), sources={"ocr": str(source)})
    place = plan.folder(plan.suites[0])
    items = plan.suites[0].suite.items(str(source))
    check_paths(place, items)
    with pytest.raises(ConfigError, match="2 files share their path with another"):
        check_paths(place, [items[0], items[0]])


@pytest.mark.parametrize("suite", ["vqa", "mme", "choice"])
def test_a_reply_about_another_picture_does_not_count_and_is_asked_for_again(suite, tmp_path, capsys):
    plan = plan_of(tmp_path, suite)
    first = run(plan)
    assert missing(first) == 0
    n = first["coverage"]["n_expected"]
    Image.new("RGB", (9, 9), "blue").save(tmp_path / "source/a.png")
    capsys.readouterr()
    stale = run(plan, "score")
    assert missing(stale) == n
    assert f"{n} replies are about images that have changed since" in stale["why_not"]
    assert f"{suite}: {n} replies are about images that have changed" in capsys.readouterr().out
    assert stale["digests"]["files"] != first["digests"]["files"]
    assert stale["digests"]["items"] == first["digests"]["items"]
    plan.target.says, before = "blue", plan.target.made
    again = run(plan)
    assert (plan.target.made - before, missing(again)) == (n, 0)
    assert not [reason for reason in again["why_not"] if "picture" in reason and "pairs" not in reason]
    (tmp_path / "source/a.png").unlink()
    assert missing(run(plan, "score")) == n


def test_a_reply_that_was_rewritten_or_lost_does_not_count(tmp_path):
    plan = plan_of(tmp_path, "vqa")
    assert missing(run(plan)) == 0
    (place_of(plan) / "replies/1-0.json").write_text('{"reply": "blue"}')
    assert missing(run(plan, "score")) == 1
    (place_of(plan) / "replies/2-0.json").unlink()
    assert missing(run(plan, "score")) == 2


@pytest.mark.parametrize("reply", ["", "null", "[]", "{}", '{"reply": 1}', "{", '{"reply": "a", "reply": "b"}'])
def test_a_file_that_holds_no_reply_is_one_line(reply, tmp_path, capsys):
    plan = plan_of(tmp_path, "vqa")
    run(plan, "prepare", "generate")
    (place_of(plan) / "replies/1-0.json").write_text(reply)
    assert main(["--suite", "vqa", "--out", plan.out, "--stage", "judge"]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 10


def test_grids_follow_their_tiles(tmp_path):
    plan = plan_of(tmp_path, "dpg", judges={"dpg": f"{HERE}:agree"})
    first = run(plan)
    assert missing(first) == 0 and not [reason for reason in first["why_not"] if "grid" in reason]
    folder = place_of(plan)
    tile, grid = folder / "tiles/one/2.png", folder / "images/one.png"
    original, joined = tile.read_bytes(), grid.read_bytes()
    tile.write_bytes(png(Image.new("RGB", (16, 16), "white")))
    changed = run(plan, "score")
    assert missing(changed) == 1
    assert "1 grids are not made of the current tiles: generate again" in changed["why_not"]
    again = run(plan, "generate", "judge", "score")
    assert missing(again) == 0 and "1 files are not the ones that were made" in again["why_not"]
    assert Image.open(grid).getpixel((1, 17)) == (255, 255, 255)
    tile.write_bytes(original)
    restored = run(plan, "generate", "judge", "score")
    assert restored == first and grid.read_bytes() == joined
    grid.write_bytes(b"another grid")
    assert "1 grids are not made of the current tiles: generate again" in run(plan, "score")["why_not"]
    grid.unlink()
    assert "1 grids are not made of the current tiles: generate again" in run(plan, "score")["why_not"]
    assert run(plan, "generate", "score") == first and grid.read_bytes() == joined


@pytest.mark.parametrize("samples", [1, 3])
def test_fewer_tiles_than_four_are_a_reason(samples, tmp_path):
    plan = plan_of(tmp_path, "dpg", judges={"dpg": f"{HERE}:agree"}, samples=samples)
    score = run(plan)
    assert "not 4 tiles of each prompt" in score["why_not"] and missing(score) == 0
    assert not (place_of(plan) / "images").exists()


def test_reference_pictures_are_part_of_a_finding(tmp_path, capsys):
    plan = plan_of(tmp_path, "mjhq", judges={"mjhq": f"{HERE}:brightness"})
    (tmp_path / "source/art").mkdir()
    for number, key in enumerate(("k1", "k2")):
        Image.new("RGB", (9, 9), (0, 90 * number, 0)).save(tmp_path / f"source/art/{key}.jpg")
    first = run(plan)
    name = f"mmd_{HERE}:brightness"
    assert first["overall"] is None and first["coverage"]["n_scored"] == 2 and first["details"][name] is not None
    assert "2 and 2 pictures for 1 feature dimensions: a Fréchet distance takes 10" in capsys.readouterr().out
    Image.new("RGB", (9, 9), "white").save(tmp_path / "source/art/k1.jpg")
    stale = run(plan, "score")
    assert (stale["coverage"]["n_missing"], stale["details"][name]) == (1, None)
    again = run(plan, "judge", "score")
    assert again["coverage"]["n_missing"] == 0 and again["details"][name] != first["details"][name]
    (tmp_path / "source/art/k2.jpg").unlink()
    assert run(plan, "score")["coverage"]["n_missing"] == 1


def test_what_is_judged_is_what_lies_there(tmp_path):
    """A picture that was replaced since generate described it is judged as it is, and its finding is about it."""
    plan = plan_of(tmp_path, "scenes")
    first = run(plan)
    path = place_of(plan) / "images/00000/samples/0000.png"
    path.write_bytes((place_of(plan) / "truth/00000.png").read_bytes())
    assert missing(run(plan, "score")) == 1
    again = run(plan, "judge", "score")
    assert missing(again) == 0 and again["categories"] != first["categories"]
    assert "1 files are not the ones that were made" in again["why_not"]
    report(plan)
    path.unlink()
    assert missing(run(plan, "score")) == 1
    report(plan)


@pytest.mark.parametrize("suite", ["scenes", "vqa", "dpg"])
def test_results_of_before_the_sums_were_kept_are_scored_as_they_were(suite, tmp_path):
    """Rows without `original`, `picture`, `sources` and a judge's `source`, as earlier versions wrote them."""
    plan = plan_of(tmp_path, suite, judges={"dpg": f"{HERE}:agree"} if suite == "dpg" else {})
    first = run(plan)
    folder = place_of(plan)
    rows = [json.loads(line) for line in (folder / "files.jsonl").read_text().splitlines()]
    kept = ("key", "sample", "seed", "path", "sha256", "fault")
    (folder / "files.jsonl").write_text("".join(f"{json.dumps({n: row[n] for n in kept})}\n" for row in rows))
    text = (folder / "judgements.jsonl").read_text()
    (folder / "judgements.jsonl").write_text(text.replace(', "source": ""', ""))
    judge = json.loads((folder / "judge.json").read_text())
    (folder / "judge.json").write_text(json.dumps({name: judge[name] for name in ("id", "version")}))
    assert run(plan, "score") == first
    assert run(plan) == first


def test_a_finding_of_no_item_is_counted_and_shown_nowhere(tmp_path):
    plan = plan_of(tmp_path, "scenes")
    first = run(plan)
    path = place_of(plan) / "judgements.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    with path.open("a") as file:
        file.write(json.dumps(row | {"key": "00999"}) + "\n" + json.dumps(row | {"sample": 1}) + "\n")
    score = run(plan, "score")
    assert score["overall"] == first["overall"]
    assert "2 judgements are of files that have changed since: judge again" in score["why_not"]
    report(plan)


@pytest.mark.parametrize("name", ["items", "files", "judgements"])
@pytest.mark.parametrize("row", ["{}", "null", "{", '{"key": "1"}', '{"key": "1", "judge": {}, "value": NaN}'])
def test_a_damaged_row_of_ours_is_one_line(name, row, tmp_path, capsys):
    plan = plan_of(tmp_path, "vqa")
    run(plan)
    with (place_of(plan) / f"{name}.jsonl").open("a") as file:
        file.write(f"{row}\n")
    capsys.readouterr()
    assert main(["--suite", "vqa", "--out", plan.out, "--stage", "score"]) == 1
    said = capsys.readouterr().err.strip().splitlines()
    assert f"{name}.jsonl" in said[-1] and len(said) == 1


@pytest.mark.parametrize("name", ["judge.json", "cost.json", "score.json", "../target.json"])
@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_damaged_file_of_ours_is_one_line(name, content, tmp_path, capsys):
    plan = plan_of(tmp_path, "vqa")
    run(plan)
    (place_of(plan) / name).write_text(content)
    stage = "score" if name == "judge.json" else "report"
    assert main(["--suite", "vqa", "--out", plan.out, "--stage", stage]) == 1
    assert name.rpartition("/")[2] in capsys.readouterr().err.strip().splitlines()[-1]
