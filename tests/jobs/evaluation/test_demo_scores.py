"""The demo's scores, on a nano model: scenes with their controls, and replies that later stages did not change."""

import pytest

from blip3o.bundle.reading import load_bundle
from blip3o.evaluate.heldout.evaluation import evaluate
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from jobs.evaluation.demo_scores import score_scenes, score_understanding_before
from tests.evaluate.world import add_source, make_bundle, recipe, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Held-out scenes, a bundle, and a run with the bundle's backbone, and one with another."""
    folder = str(tmp_path_factory.mktemp("scores"))
    add_source(folder, "held", scenes())
    make_bundle(f"{folder}/bundle")
    pipeline = load_bundle(f"{folder}/bundle")
    with open(f"{folder}/tokenizer.json", "wb") as file:
        file.write(pipeline.tokenizer.to_bytes())
    backbone = {name: value for name, value in pipeline.model.named_parameters() if name.startswith("backbone.")}
    about = {"stage": "understand", "recipe": {"stage": {"start_from": []}}}
    write_final(final_uri(folder, "same"), backbone, {"run": "same", "identity": "same", **about})
    other = {name: value.detach().flip(0) for name, value in backbone.items()}
    write_final(final_uri(folder, "other"), other, {"run": "other", "identity": "other", **about})
    return folder


@pytest.fixture(scope="module")
def made(root):
    plain = recipe(root, "held", questions=12, images=4)
    return plain.model_copy(update={"run": plain.run.model_copy(update={"storage": root})})


def test_replies_before_are_measured_and_not_assumed(root, made):
    after = evaluate(made, f"{root}/bundle", f"{root}/out")
    before = score_understanding_before(made, ["same"], f"{root}/before", after)
    expected = {"accuracy": after.scores["understanding"]["accuracy"], "n": after.scores["understanding"]["n"]}
    assert before == expected | {"same_replies": 12, "replies": 12}
    assert score_understanding_before(made, ["other"], f"{root}/other", after)["same_replies"] < 12


def test_scenes_are_scored_with_their_controls_and_a_second_time_costs_nothing(root, monkeypatch):
    scores = score_scenes(f"{root}/bundle", f"{root}/suites", items=6)
    assert set(scores) >= {"overall", "shuffled", "untrained", "upper_bound", "families"}
    assert scores["n"] == 6 and len(scores["families"]) == 6
    monkeypatch.setattr("blip3o.inference.pipeline.Blip3oPipeline.generate", None)
    assert score_scenes(f"{root}/bundle", f"{root}/suites", items=6) == scores
