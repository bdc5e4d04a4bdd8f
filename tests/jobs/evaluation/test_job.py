"""The benchmark job on a nano model: equal images whoever draws them, a killed run that resumes, and honest counts."""

import base64
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from blip3o.bundle.reading import load_bundle
from jobs.evaluate import main
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from tests.bundles import write_nano_bundle
from tests.jobs.stranger import stranger
from tests.serve.client import Server

ITEMS = 12  # two of each family
SHORT = ["--limit", str(ITEMS), "--num-inference-steps", "2"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("evaluation") / "bundle")
    write_nano_bundle(uri)
    return uri


@pytest.fixture(scope="module")
def server(bundle):
    """The bundle behind the real HTTP face."""
    engine = Engine(load_bundle(bundle))
    engine.start()
    with Server(build_api(LocalBackend(engine), "nano")) as server:
        yield server
    engine.close()


@pytest.fixture(scope="module")
def offline(bundle, tmp_path_factory):
    """The results of one run in this process, with all controls."""
    out = tmp_path_factory.mktemp("offline")
    assert evaluate(out, bundle, "--actors", "0", "--untrained") == 0
    return out


def evaluate(out, target, *options):
    return main(["--suite", "scenes", "--target", target, "--out", str(out), *SHORT, *options])


def sums(out):
    rows = [json.loads(line) for line in (out / "scenes/files.jsonl").read_text().splitlines()]
    assert len(rows) == ITEMS and all(len(row["sha256"]) == 64 and not row["fault"] for row in rows)
    return {row["path"]: row["sha256"] for row in rows}


def score_of(out):
    return json.loads((out / "scenes/score.json").read_text())


def images(out):
    return sorted((out / "scenes/images").rglob("*.png"))


def test_a_server_gives_the_same_images_and_the_same_score(server, offline, tmp_path):
    assert evaluate(tmp_path, server.url, "--actors", "2") == 0
    assert sums(tmp_path) == sums(offline)
    ours, theirs = score_of(tmp_path), score_of(offline)
    shuffled = {"shuffled": theirs["controls"]["shuffled"]}
    assert ours == theirs | {"controls": shuffled}
    assert json.loads((tmp_path / "target.json").read_text())["model"] == "nano"


def test_three_actors_draw_the_same_images_and_score_alike(bundle, offline, tmp_path, ray_cluster):
    assert evaluate(tmp_path, bundle, "--actors", "3", "--cpus-per-actor", "0.5") == 0
    assert sums(tmp_path) == sums(offline)
    ours, theirs = score_of(tmp_path), score_of(offline)
    assert ours == theirs | {"controls": {name: theirs["controls"][name] for name in ("upper_bound", "shuffled")}}


def test_a_killed_run_goes_on_and_draws_nothing_twice(server, offline, tmp_path):
    """SIGKILL while images come in: what was finished is kept as it is, and the rest is drawn."""
    options = ["--suite", "scenes", "--target", server.url, "--out", str(tmp_path), *SHORT]
    process = subprocess.Popen([sys.executable, "-m", "jobs.evaluate", *options])
    try:
        wait_for_images(tmp_path, process)
    finally:
        process.kill()
        process.wait()
    left = {path: path.stat().st_mtime_ns for path in images(tmp_path)}
    assert 0 < len(left) < ITEMS, "the kill came too early or too late to prove anything"
    assert evaluate(tmp_path, server.url) == 0
    assert {path: path.stat().st_mtime_ns for path in left} == left
    assert sums(tmp_path) == sums(offline)
    assert score_of(tmp_path)["overall"] == score_of(offline)["overall"]


def wait_for_images(out, process, timeout_s=300):
    """Until the first image is there; the run must still continue then."""
    deadline = time.monotonic() + timeout_s
    while not images(out):
        assert process.poll() is None and time.monotonic() < deadline, "no image was drawn"
        time.sleep(0.002)


def test_lost_images_alone_are_drawn_again(bundle, offline, tmp_path):
    assert evaluate(tmp_path, bundle, "--actors", "0", "--stage", "prepare") == 0
    assert evaluate(tmp_path, bundle, "--actors", "0", "--stage", "generate") == 0
    lost, *kept = images(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in kept}
    lost.unlink()
    assert evaluate(tmp_path, bundle, "--actors", "0", "--stage", "generate") == 0
    assert sums(tmp_path) == sums(offline)
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    assert json.loads((tmp_path / "scenes/cost.json").read_text())["files"] == ITEMS + 1


def test_controls_and_report_stand_beside_the_score(offline):
    score = score_of(offline)
    assert score["coverage"] == {"n_expected": ITEMS, "n_scored": ITEMS, "n_missing": 0, "n_parse_failed": 0}
    assert set(score["controls"]) == {"shuffled", "untrained", "upper_bound"}
    assert not score["comparable"] and score["why_not"]
    assert set(score["categories"]) == {"single_object", "two_object", "counting", "colors", "position", "color_attr"}
    page = (offline / "report.html").read_text()
    assert "upper bound" in page and "scenes by category" in page
    assert json.loads((offline / "report.json").read_text())["suites"]["scenes"]["overall"] == score["overall"]
    options = ["--suite", "scenes", "--out", str(offline), "--stage", "report", "--compare", str(offline)]
    assert main(options) == 0
    assert "<svg" in (offline / "report.html").read_text(), "one point from each evaluation is a curve"
    decoded = sorted((offline / "scenes/controls/upper_bound/images").rglob("*.png"))
    assert len(decoded) == ITEMS and Image.open(decoded[0]).size == Image.open(images(offline)[0]).size


def test_results_of_another_target_or_other_items_are_not_mixed_in(bundle, offline, tmp_path, capsys):
    other = tmp_path / "bundle"
    write_nano_bundle(str(other), seed=1)
    assert evaluate(offline, str(other), "--actors", "0") == 1
    assert "is of another target" in last_error(capsys)
    assert evaluate(offline, bundle, "--actors", "0", "--limit", "6") == 1
    assert "holds other items" in last_error(capsys)


def last_error(capsys):
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (["--suite", "scnes", "--target", "x"], "--suite scnes is unknown"),
        (["--suite", "scenes"], "neither --target nor --out"),
        (["--suite", "scenes", "--target", "x", "--stage", "draw"], "--stage draw is unknown"),
        (["--suite", "scenes", "--target", "http://127.0.0.1:9", "--untrained"], "--untrained needs"),
        (["--suite", "scenes", "--target", "x", "--judge", "geneval=a:b"], "is not SUITE=VALUE"),
        (["--suite", "scenes", "--out", "OUT", "--stage", "generate"], "needs --target"),
        (["--suite", "scenes", "--out", "OUT", "--stage", "score"], "run --stage prepare first"),
    ],
)
def test_a_command_that_cannot_run_says_so_in_one_line(options, fault, tmp_path, capsys):
    assert main([str(tmp_path) if option == "OUT" else option for option in options]) == 1
    assert fault in last_error(capsys)


def test_a_prompt_that_the_model_refuses_is_missing_and_there_is_no_overall(bundle, tmp_path):
    rows = (f"{'red ' * 300}circle", "a red circle")
    facts = {
        "family": "colors",
        "ground": "white",
        "objects": [{"shape": "circle", "color": "red", "box": [9, 9, 40, 40]}],
    }
    source = tmp_path / "source.jsonl"
    source.write_text("".join(f"{json.dumps({'prompt': prompt, **facts})}\n" for prompt in rows))
    assert evaluate(tmp_path / "out", bundle, "--actors", "0", "--source", f"scenes={source}") == 0
    score = score_of(tmp_path / "out")
    assert (score["coverage"]["n_missing"], score["coverage"]["n_scored"], score["overall"]) == (1, 1, None)
    made = [json.loads(line) for line in Path(tmp_path / "out/scenes/files.jsonl").read_text().splitlines()]
    assert "shorten it" in made[0]["fault"] and made[1]["sha256"]


def test_a_server_that_draws_from_its_own_seeds_is_refused(offline, tmp_path, capsys):
    image = base64.b64encode(images(offline)[0].read_bytes()).decode()
    models, drawn = {"data": [{"id": "other"}]}, {"data": [{"b64_json": image}]}
    with stranger(lambda path, body: models if path == "/v1/models" else drawn) as url:
        assert evaluate(tmp_path, url) == 1
    assert "names seed None" in last_error(capsys)
    assert not images(tmp_path)
