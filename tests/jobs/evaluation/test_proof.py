"""What a demo proves, on a nano model: controls beside the scenes, and replies that later stages left as they were."""

import pytest

from blip3o.bundle.reading import load_bundle
from blip3o.evaluate.heldout.evaluation import evaluate
from blip3o.runs.paths import final_uri
from blip3o.runs.results import write_final
from jobs.evaluation import proof
from tests.evaluate.world import add_source, make_bundle, recipe, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Held-out scenes, a bundle, and a run with the bundle's backbone, and one with another."""
    folder = str(tmp_path_factory.mktemp("proof"))
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
    before = proof.understanding_before(made, ["same"], f"{root}/before", after)
    expected = {"accuracy": after.scores["understanding"]["accuracy"], "n": after.scores["understanding"]["n"]}
    assert before == expected | {"same_replies": 12, "replies": 12}
    assert proof.understanding_before(made, ["other"], f"{root}/other", after)["same_replies"] < 12


def test_scenes_stand_beside_their_controls_and_a_second_time_cost_nothing(root, monkeypatch):
    proved = proof.scenes(f"{root}/bundle", f"{root}/suites", items=6)
    assert set(proved) >= {"overall", "shuffled", "untrained", "upper_bound", "families"}
    assert proved["n"] == 6 and len(proved["families"]) == 6
    monkeypatch.setattr("blip3o.inference.pipeline.Blip3oPipeline.generate", None)
    assert proof.scenes(f"{root}/bundle", f"{root}/suites", items=6) == proved
