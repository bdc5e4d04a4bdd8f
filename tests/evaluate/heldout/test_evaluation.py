"""A held-out evaluation from end to end on an untrained model: files, repeatability, and figures."""

import json

import pytest
from PIL import Image

from blip3o.evaluate.heldout.evaluation import evaluate
from tests.evaluate.world import add_source, make_bundle, recipe, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("evaluate"))
    for seed, name in enumerate(("first", "second")):
        add_source(folder, name, scenes(seed=seed))
    make_bundle(f"{folder}/bundle")
    return folder


@pytest.fixture(scope="module")
def made(root):
    return evaluate(recipe(root, "first", "second", questions=12, images=12), f"{root}/bundle", f"{root}/out")


def test_what_is_returned_is_what_is_written(root, made):
    with open(f"{root}/out/evaluation.json") as file:
        assert json.load(file) == made.scores
    with open(f"{root}/out/answers.jsonl") as file:
        answers = [json.loads(line) for line in file]
    assert [answer["reply"] for answer in answers] == [item.record.reply for item in made.images.answered]
    assert Image.open(f"{root}/out/grid.png").size == made.images.grid.size
    with open(f"{root}/out/report.html") as file:
        assert "Retrieval" in file.read()


def nulls(value, name=""):
    for key, inner in value.items():
        if inner is None:
            yield f"{name}{key}"
        elif isinstance(inner, dict):
            yield from nulls(inner, f"{name}{key}.")


def test_every_null_has_a_reason_and_every_reason_a_null(made):
    found = made.scores["reasons"]
    assert found.keys() == set(nulls(made.scores)) >= {"understanding.open.chance", "held_out.captions_in_training"}
    assert "manifest.parquet does not exist: index the source first" in found["held_out.captions_in_training"]
    assert not [reason for reason in found.values() if "not defined for these samples" in reason]


def test_an_untrained_model_scores_no_better_than_chance_and_the_judge_is_exact(made):
    scores = made.scores
    assert (scores["generation"]["n"], scores["generation"]["chance_r1"]) == (12, 1 / 12)
    assert set(scores["generation"]["by_source"]) == {"first", "second"}
    assert scores["generation"]["r1"] < 0.5
    own = scores["own"]
    assert own["own_r1"]["value"] == scores["generation"]["r1"]
    low, high = own["own_cosine"]["interval"]
    assert low <= own["own_cosine"]["value"] <= high
    # A model that was never trained draws noise: the prompt makes little difference, the seed all of it.
    assert own["diversity"]["own_diversity"] > 0.5
    assert (own["diversity"]["n_prompts"], own["diversity"]["n_samples"]) == (9, 4)
    counted = scores["understanding"]
    assert counted["n"] + counted["two_way"]["n"] + counted["open"]["n"] == 12
    assert counted["n_unparsed"] == counted["n"]
    assert (counted["accuracy"], counted["shuffled"]) == (0.0, 0.0)
    assert scores["scenes"]["n"] == 12
    assert scores["scenes"]["judge"] == 1.0
    assert scores["scenes"]["all_correct"] == scores["scenes"]["shuffled"] == 0.0


def test_the_figures_are_a_function_of_bundle_data_and_recipe(root, made):
    again = evaluate(recipe(root, "first", "second", questions=12, images=12), f"{root}/bundle", f"{root}/again")
    assert again.scores == made.scores
    assert again.images.grid.tobytes() == made.images.grid.tobytes()


def test_provenance_names_bundle_data_and_what_the_figures_are_not(made):
    provenance = made.scores["provenance"]
    assert provenance["bundle"].endswith("/bundle")
    assert len(provenance["sha256 of bundle.json"]) == len(provenance["manifest of first"]) == 64
    assert provenance["comparable with published benchmarks"].startswith("no")


def test_data_without_questions_and_scenes_leave_those_figures_out(root, tmp_path):
    plain = scenes(seed=2)
    for scene in plain:
        scene.record.clear()
        scene.record["captions"] = [scene.key]
    add_source(root, "flickr30", plain)
    scores = evaluate(recipe(root, "flickr30", images=5), f"{root}/bundle", str(tmp_path)).scores
    assert scores["understanding"] is None
    assert scores["scenes"] is None
    assert (scores["generation"]["n"], scores["generation"]["r5"]) == (5, None)
    reasons = scores["reasons"]
    assert reasons["understanding"] == "no held-out sample has questions (`qa` in its record)"
    assert reasons["scenes"] == "no held-out sample is a scene of `blip3o data build scenes`"
    for name in ("generation.r5", "generation.by_source.flickr30.chance_r5", "own.own_r5.value"):
        assert reasons[name] == "R@5 of 5 images is 1 by chance: it needs more than 5"
    page = (tmp_path / "report.html").read_text()
    assert "no held-out sample has questions" in page and "Held out: samples." in page
    assert "among five" not in page
