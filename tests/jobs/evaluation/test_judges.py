"""Judges in the benchmark job: detectors, findings from files, models behind an endpoint, and replies to questions."""

import json

import pytest
from PIL import Image

from blip3o.bundle.reading import load_bundle
from blip3o.evaluate.suites.geneval.suite import Detected
from jobs.evaluate import main
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from tests.bundles import write_nano_bundle
from tests.jobs.stranger import stranger
from tests.serve.client import Server

HERE = "tests.jobs.evaluation.test_judges"
GRADES = "Consistency: 2\nRealism: 1\nAesthetic Quality: 0"
GARBAGE = "I would say\u2028it's lovely"  # with a line separator, which JSON leaves as it is


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("judges") / "bundle")
    write_nano_bundle(uri, seed=3)  # of those that say something
    return uri


def evaluate(suite, target, out, *options):
    common = ["--suite", suite, "--target", target, "--out", str(out), "--actors", "0", "--num-inference-steps", "1"]
    return main([*common, *options])


def score_of(out, suite):
    return json.loads((out / suite / "score.json").read_text())


def rows_of(out, suite, name="judgements"):
    lines = (out / suite / f"{name}.jsonl").read_text().split("\n")
    return [json.loads(line) for line in lines if line]


def see(image):
    """A detector that finds a bench, wherever it looks."""
    assert image.mode == "RGB"
    return {"bench": [Detected(box=(0, 0, 9, 9), score=0.5)]}


def agree(image, question):
    """Says yes to what is asked about a dog alone."""
    return "yes" if "dog" in question else "no"


def read(image):
    """Reads the same word everywhere."""
    return ["open"]


def brightness(image):
    """A network of one feature."""
    return [sum(image.resize((1, 1)).getpixel((0, 0)))]


def test_geneval_by_a_detector_of_ones_own(bundle, tmp_path):
    options = ["--limit", "3", "--samples", "1", "--judge", f"geneval={HERE}:see"]
    assert evaluate("geneval", bundle, tmp_path, *options) == 0
    prompts = [row["prompt"] for row in rows_of(tmp_path, "geneval", "items")]
    found = {row["key"]: row["value"]["correct"] for row in rows_of(tmp_path, "geneval")}
    assert list(found.values()) == [prompt == "a photo of a bench" for prompt in prompts]
    folder = tmp_path / "geneval/images/00000"
    assert json.loads((folder / "metadata.jsonl").read_text())["prompt"] == prompts[0]
    assert sorted(path.name for path in folder.rglob("*")) == ["0000.png", "metadata.jsonl", "samples"]
    score = score_of(tmp_path, "geneval")
    assert not score["comparable"] and score["judge"]["id"] == f"{HERE}:see"
    # The official scorer's rows in its place: another judge, so every finding is new.
    rows = [
        {"filename": f"images/{number:05d}/samples/0000.png", "prompt": prompt, "correct": True, "reason": ""}
        for number, prompt in enumerate(prompts[:2])
    ]
    results = tmp_path / "results.jsonl"
    results.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for stage in ("judge", "score"):
        assert evaluate("geneval", bundle, tmp_path, "--judge", f"geneval=official:{results}", "--stage", stage) == 0
    score = score_of(tmp_path, "geneval")
    assert (score["coverage"]["n_scored"], score["coverage"]["n_missing"], score["overall"]) == (2, 1, None)
    assert score["judge"]["id"].startswith("mask2former")


def test_dpg_by_an_answerer_of_ones_own_with_grids(bundle, tmp_path, capsys):
    table = tmp_path / "dpg.csv"
    head = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
    lines = [f"{head},question_natural_language"]
    for item in ("first", "second"):
        lines.append(f"{item},a dog on a mat,,1,0,entity,whole,entity - whole (dog),Is there a dog?")
        lines.append(f"{item},a dog on a mat,,2,1,relation,spatial,relation - spatial (mat),Is there a mat?")
    table.write_text("\n".join(lines) + "\n")
    options = ["--source", f"dpg={table}", "--judge", f"dpg={HERE}:agree"]
    assert evaluate("dpg", bundle, tmp_path / "out", *options) == 0
    assert "8 of 8 scored" in capsys.readouterr().out
    tiles = [Image.open(tmp_path / f"out/dpg/tiles/first/{number}.png") for number in range(4)]
    grid = Image.open(tmp_path / "out/dpg/images/first.png")
    side = tiles[0].width
    assert grid.size == (2 * side, 2 * side)
    assert grid.crop((side, 0, 2 * side, side)).tobytes() == tiles[1].tobytes()
    assert {path.name for path in (tmp_path / "out/dpg/images").iterdir()} == {"first.png", "second.png"}
    assert score_of(tmp_path / "out", "dpg")["details"]["fixed"]["overall"] == 50.0


def test_text_by_a_reader_and_distances_by_a_network_of_ones_own(bundle, tmp_path):
    prompts = {f"k{number}": {"category": "art", "prompt": f"thing {number}"} for number in range(12)}
    (tmp_path / "art").mkdir()
    for number, key in enumerate(prompts):
        Image.new("RGB", (9, 9), (20 * number, 0, 0)).save(tmp_path / f"art/{key}.jpg")
    (tmp_path / "meta_data.json").write_text(json.dumps(prompts))
    judges = ["--judge", f"ocr={HERE}:read", "--judge", f"mjhq={HERE}:brightness", "--limit", "12", "--samples", "1"]
    source = ["--source", f"mjhq={tmp_path}/meta_data.json"]
    assert evaluate("ocr,mjhq", bundle, tmp_path / "out", *judges, *source) == 0
    lines = {row["key"]: row["value"] for row in rows_of(tmp_path / "out", "ocr")}
    assert lines["000"] == {"lines": ["open"]}
    assert 0 < score_of(tmp_path / "out", "ocr")["overall"] < 1
    distance = score_of(tmp_path / "out", "mjhq")
    assert distance["overall"] > 0 and distance["details"]["n"] == 12 and not distance["comparable"]
    assert "MetaQuery-XL" in (tmp_path / "out/report.html").read_text(), (
        "what others published for mjhq is listed with it"
    )


def test_a_judges_garbage_is_counted_kept_and_asked_again_but_never_scored(bundle, tmp_path):
    rows = [{"Prompt": f"thing {n}", "Explanation": "it is so", "prompt_id": n} for n in (1, 2, 3)]
    source = tmp_path / "wise.json"
    source.write_text(json.dumps(rows))
    asked = []

    def answer(path, body):
        text = body["messages"][0]["content"][-1]["text"]
        assert path == "/v1/chat/completions" and body["temperature"] == 0
        asked.append(next(row["prompt_id"] for row in rows if row["Prompt"] in text))
        reply = GARBAGE if asked[-1] == 2 else GRADES
        return {"choices": [{"message": {"role": "assistant", "content": reply}}]}

    out = tmp_path / "out"
    with stranger(answer) as url:
        options = ["--source", f"wise={source}", "--judge", f"wise=openai:{url}/v1:grader"]
        assert evaluate("wise", bundle, out, *options) == 0
        assert sorted(asked) == [1, 2, 3]
        assert evaluate("wise", bundle, out, *options, "--stage", "judge") == 0
    assert asked[3:] == [2]
    score = score_of(out, "wise")
    coverage = {"n_expected": 3, "n_scored": 2, "n_missing": 0, "n_parse_failed": 1}
    assert (score["coverage"], score["overall"], score["judge"]["id"]) == (coverage, None, "grader")
    assert [row["reply"] for row in rows_of(out, "wise")] == [GRADES, GARBAGE, GRADES]
    assert "–" in (out / "report.html").read_text()


def test_questions_are_put_to_bundle_and_server_alike(bundle, tmp_path):
    pictures = {name: Image.new("RGB", (40, 40), name) for name in ("red", "blue")}
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
    asked = [{"image": f"{name}.png", "question": f"Is it {name}?"} for name in pictures]
    sources = {
        "vqa": [{"id": n, **row, "answers": ["yes"] * 10} for n, row in enumerate(asked)],
        "mme": [{"id": n, **asked[0], "answer": word, "category": "color"} for n, word in enumerate(("Yes", "No"))],
        "choice": [{"id": n, **row, "options": ["red", "blue"], "answer": "AB"[n]} for n, row in enumerate(asked)],
    }
    options = []
    for suite, rows in sources.items():
        file = tmp_path / f"{suite}.jsonl"
        file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        options += ["--source", f"{suite}={file}"]
    pipeline = load_bundle(bundle)
    engine = Engine(pipeline)
    engine.start()
    with Server(build_api(LocalBackend(engine), "nano")) as server:
        assert evaluate(",".join(sources), server.url, tmp_path / "http", *options) == 0
    engine.close()
    assert evaluate(",".join(sources), bundle, tmp_path / "bundle", *options) == 0
    for suite in sources:
        ours, theirs = (rows_of(tmp_path / kind, suite) for kind in ("bundle", "http"))
        assert ours == theirs and all(row["reply"] == row["value"]["reply"] for row in ours)
        assert score_of(tmp_path / "bundle", suite)["coverage"]["n_scored"] == 2
    first = rows_of(tmp_path / "bundle", "vqa")[0]["reply"]
    assert first == pipeline.chat("Is it red?", image=pictures["red"])


@pytest.mark.parametrize(
    ("judge", "fault"),
    [
        ([], "has no judge of its own"),
        (["--judge", "geneval=tests.jobs.nowhere:see"], "no function that can be imported"),
        (["--judge", f"geneval={HERE}:absent"], "no function that can be imported"),
        (["--judge", "geneval=see"], "has no judge of its own"),
    ],
)
def test_a_suite_without_its_judge_says_which_it_takes(judge, fault, tmp_path, capsys):
    options = ["--suite", "geneval", "--out", str(tmp_path), "--limit", "1"]
    assert main([*options, "--stage", "prepare"]) == 0
    assert main([*options, *judge, "--stage", "judge"]) == 1
    assert fault in capsys.readouterr().err.splitlines()[-1]
    assert main([*options, *judge, "--target", str(tmp_path / "bundle")]) == 1
    assert fault in capsys.readouterr().err.splitlines()[-1], "it drew, or tried to, with no judge for its drawings"


@pytest.mark.parametrize("spec", ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000", "127.0.0.1/v1:model"])
def test_an_endpoint_without_its_model_is_refused_before_anything_is_drawn(spec, tmp_path, capsys):
    source = tmp_path / "wise.json"
    source.write_text(json.dumps([{"Prompt": "a thing", "Explanation": "it is so", "prompt_id": 1}]))
    options = ["--suite", "wise", "--source", f"wise={source}", "--judge", f"wise=openai:{spec}"]
    assert main([*options, "--target", str(tmp_path / "bundle"), "--out", str(tmp_path / "out")]) == 1
    assert "give openai:http://HOST:PORT/v1:MODEL" in capsys.readouterr().err.splitlines()[-1]
