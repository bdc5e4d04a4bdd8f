"""Two scores of the demo: scenes by GenEval's rules with every control, and understanding before the later stages.

The first is measured by the benchmark job; the second by giving the weights of the understand stage, from before any
later stage, the same questions as the final bundle.
"""

import json
from dataclasses import replace
from typing import Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.evaluate.benchmark.bundle_target import BundleTarget, bundle_digest
from blip3o.evaluate.benchmark.plan import Plan
from blip3o.evaluate.benchmark.stages import run
from blip3o.evaluate.heldout.evaluation import Evaluation, answers
from blip3o.evaluate.metrics import understanding
from blip3o.evaluate.suites.registry import find_suite
from blip3o.train.export import export

BATCH_SIZE = 30  # images


def score_scenes(bundle: str, out: str, *, items: int) -> dict[str, Any]:
    """The `scenes` suite on the first `items` held-out scenes, in a folder below `out` that is named after the bundle.

    Returns `overall` and its `families`; the controls `shuffled` (exchanged captions), `untrained` (fresh weights) and
    `upper_bound` (true features through the decoder); and `n`. Resumes from existing files. Raises `BundleError`.
    """
    target = BundleTarget(bundle=bundle, batch_size=BATCH_SIZE)
    folder = storage.normalize(storage.join(out, bundle_digest(bundle)[:12]))
    suite = find_suite("scenes")
    untrained = replace(target, untrained=True)
    run(Plan(out=folder, suites=(suite,), target=target, untrained=untrained, limit=items), print)
    score = json.loads(storage.read_bytes(storage.join(folder, suite.name, "score.json")))
    return {
        "overall": score["overall"],
        **score["controls"],
        "families": score["categories"],
        "interval": score["interval"],
        "n": score["coverage"]["n_scored"],
        "judge": score["judge"]["id"],
    }


def score_understanding_before(recipe: Recipe, runs: list[str], out: str, after: Evaluation) -> dict[str, Any]:
    """How the weights of the understand stage (from `runs`, as a bundle at `out`) answer the evaluation's questions.

    Returns `accuracy` and `n` as in the evaluation's scores, and how many of all `replies` are identical to those of
    `after` (`same_replies`). Raises `CheckpointError` for a run that has not finished.
    """
    export(recipe, runs, out, parts=("backbone",), overwrite=True)
    before = answers(recipe, out)
    scores = understanding.score(before, seed=recipe.evaluate.seed)
    replies = [item.record.reply for item in after.images.answered]
    same = sum(one.reply == reply for one, reply in zip(before, replies, strict=True))
    return {"accuracy": scores["accuracy"], "n": scores["n"], "same_replies": same, "replies": len(replies)}
