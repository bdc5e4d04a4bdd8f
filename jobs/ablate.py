"""`blip3o ablate --root URI [--tflops N] [--scenes N] [--set …]`: the paper's design study at toy scale.

It compares what to generate and by which loss (clip_flow, clip_mse, vae_flow) on scenes of a closed world, whose judge
knows every fact and scores the images of all of them alike. Every run gets the same floating-point operations, counted
on one of its own steps and including those of the stage that taught the backbone to answer. The study writes
`ablation.json`, `ablation.md` (the table) and `curves.svg` below `<root>/ablation`; run again, it resumes.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from jobs.common import StageOverrides, entry_point, join_ray

if TYPE_CHECKING:
    from blip3o.evaluate.reports.ablation import AblationRow

PIPELINE = "ablation"  # the shipped recipe; its runs are named after it
UNDERSTAND, DECODER, VAE_FLOW = (f"{PIPELINE}-{stage}" for stage in ("understand", "decoder", "vae-flow"))
AUTOENCODER, LATENTS = f"{PIPELINE}-autoencoder", f"{PIPELINE}-latents"
LATENT_IMAGES = 512  # whose latents are measured
# The study compares what to generate; encoder and autoencoder are trained before, as in the paper, at no run's cost.
# After this many steps the judge accepts half of the scenes that the autoencoder restores (docs/ablation.md).
AUTOENCODER_STEPS = 400


def ablate(root: str, *, scenes: int, tflops: float, overrides: Sequence[str] = ()) -> "list[AblationRow]":
    """Prepares, trains and scores; writes the files and returns the table. Raises as training and evaluation do."""
    from blip3o.evaluate.reports.ablation import write_ablation
    from blip3o.runs.rows import rows_of
    from jobs.training.run import train_pipeline

    if not (math.isfinite(tflops) and tflops > 0):
        raise ConfigError(f"--tflops {tflops:g} is no number above 0")
    root = storage.normalize(root)
    below = [f"run.storage={root}/runs", f"data.root={root}/data", *overrides]
    stages = _by_run(load_pipeline(PIPELINE, below))
    _prepare(stages, root, scenes)
    steps = _equal_steps(stages, tflops)
    pipeline = load_pipeline(PIPELINE, [*below, *(f"{_stage(run)}:optim.steps={n}" for run, n in steps.items())])
    stages = _by_run(pipeline)
    train_pipeline(pipeline)
    rows = [_score(stages, run, root) for run in steps]
    metrics = {run: rows_of(stages[run]) for run in steps}
    write_ablation(storage.join(root, "ablation"), rows, size={"scenes": scenes, "tflops": tflops}, metrics=metrics)
    return rows


def _by_run(pipeline: TrainingPipeline) -> dict[str, Recipe]:
    return {recipe.run.name: recipe for recipe in pipeline.stages}


def _stage(run: str) -> str:
    return run.removeprefix(f"{PIPELINE}-")


def _prepare(stages: Mapping[str, Recipe], root: str, scenes: int) -> None:
    """Data, tokenizer, and for vae_flow an autoencoder and the statistics of its latents."""
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.shards.locations import tokenizer_uri
    from blip3o.data.text.tokenizer_training import train_tokenizer
    from blip3o.runs.results import is_finished
    from blip3o.train.autoencoder import train_autoencoder
    from jobs.index import index

    first, vae = next(iter(stages.values())), stages[VAE_FLOW]
    build_scenes(f"{root}/data/scenes", train=scenes, heldout=max(scenes // 10, 40))
    join_ray()
    index(first)
    if not storage.exists(tokenizer_uri(first.data)):
        train_tokenizer(first)
    if not is_finished(vae.run.storage, AUTOENCODER):
        train_autoencoder(vae, name=AUTOENCODER, steps=AUTOENCODER_STEPS)
    if not is_finished(vae.run.storage, LATENTS):
        measure_latents(vae)


def measure_latents(recipe: Recipe) -> None:
    """Writes the statistics of the autoencoder's latents as the finished run `LATENTS`."""
    from blip3o.train.features.latents import measure_latents

    # The stage also starts from the backbone, which is trained later.
    stage = recipe.stage.model_copy(update={"start_from": (AUTOENCODER,)})
    measure_latents(recipe.model_copy(update={"stage": stage}), name=LATENTS, images=LATENT_IMAGES)


def _equal_steps(stages: Mapping[str, Recipe], tflops: float) -> dict[str, int]:
    """For each compared run, as many steps as `tflops` allows. Raises `ConfigError` where that is hardly any."""
    from blip3o.train.metrics.step_flops import step_flops

    understand = stages[UNDERSTAND]
    before = step_flops(understand) * understand.optim.steps
    steps = {}
    for run, recipe in stages.items():
        if not recipe.objective.generation:
            continue
        # A joint run also has to learn to answer, with the operations that the other runs spent on it before.
        own = tflops * 1e12 - (0 if "text" in recipe.terms else before)
        cost = step_flops(recipe)
        if own < cost * recipe.optim.warmup_steps * 2:
            raise ConfigError(f"--tflops {tflops:g} leaves {own / cost:.0f} steps to {run}: give more")
        steps[run] = round(own / cost)
    return steps


def _score(stages: Mapping[str, Recipe], run: str, root: str) -> "AblationRow":
    from blip3o.evaluate.heldout.evaluation import evaluate
    from blip3o.evaluate.reports.ablation import AblationRow
    from blip3o.runs.rows import rows_of
    from blip3o.train.export import export

    recipe = stages[run]
    decoding = [DECODER] if recipe.model.decoder.generated is None else []
    bundle = f"{root}/ablation/{run}/bundle"
    export(recipe, [*recipe.stage.start_from, *decoding, run], bundle, overwrite=True)
    return AblationRow.from_scores(
        evaluate(recipe, bundle, f"{root}/ablation/{run}").scores,
        run=run,
        stage=recipe.stage.name,
        steps=recipe.optim.steps,
        losses=[row["loss"] for row in rows_of(recipe)],
    )


def command(
    root: Annotated[str, typer.Option(metavar="URI", help="Folder of data, runs and results.")],
    *,
    tflops: Annotated[
        float, typer.Option(metavar="N", help="10^12 operations of each run, including those for understanding.")
    ] = 20.0,
    scenes: Annotated[int, typer.Option(metavar="N", help="Training scenes.")] = 2000,
    overrides: StageOverrides,
) -> None:
    """Compare what to generate and by which loss: the paper's design study at toy scale."""
    rows = ablate(root, scenes=scenes, tflops=tflops, overrides=overrides)
    from blip3o.evaluate.reports.ablation import table

    print("\n".join(table(rows)))
    print(f"written to {storage.join(root, 'ablation')}: ablation.json, ablation.md, curves.svg")


main = entry_point("ablate", command)

if __name__ == "__main__":
    sys.exit(main())
