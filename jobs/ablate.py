"""The paper's design study at toy scale: `python -m jobs.ablate --root URI [--tflops N] [--scenes N] [--set …]`.

What is generated and by which loss (clip_flow, clip_mse, vae_flow), on scenes of a closed world, whose judge knows
every fact and scores pictures of all of them alike. Every run gets the same floating-point operations, counted on a
step of its own, with those of the stage before it that taught the backbone to answer. Leaves `ablation.json`,
`ablation.md` (the table) and `curves.svg` below `<root>/ablation`; run again, it goes on where it was.
"""

import hashlib
import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import typer

from blip3o import storage
from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.config.recipe import Recipe
from blip3o.errors import ConfigError
from jobs.common import StageOverrides, entry_point, join_ray

logger = logging.getLogger(__name__)

PIPELINE = "ablation"  # the shipped recipe; its runs are named after it
AUTOENCODER, LATENTS = "ablation-autoencoder", "ablation-latents"
LATENT_IMAGES = 512  # whose latents are measured
# What is compared is what to generate, with encoder and autoencoder trained before, as in the paper: after so many
# steps the judge takes half of the scenes that it restores (docs/ablation.md). They count for no run.
AUTOENCODER_STEPS = 400
KL_WEIGHT = 1e-6  # of its divergence beside its squared error

# The table's columns of shares, by the fields of `Row`.
SHARES = {
    "exact": "exact",
    "shape": "shape",
    "color": "color",
    "bound": "decoder's bound",
    "luck": "luck",
    "cosine": "cosine",
    "diversity": "diversity",
    "understanding": "answers",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One compared run: its training, and shares of held-out scenes drawn right (`exact`: in everything stated).

    `shape` and `color` are shares too, `bound` what the decoder makes of true targets, `luck` the drawings against
    other captions; `understanding` is the share of questions answered right. `cosine` is that of what is drawn to what
    is true, in the run's own target space, and `diversity` the distance of drawings of one prompt over that of drawings
    of different ones (blip3o.evaluate.metrics.feature_space).
    """

    run: str
    stage: str
    steps: int
    loss: float
    exact: float
    shape: float
    color: float
    bound: float
    luck: float
    cosine: float
    diversity: float
    understanding: float


def ablate(root: str, *, scenes: int, tflops: float, overrides: Sequence[str] = ()) -> list[Row]:
    """Prepares, trains and scores; writes the files and returns the table. Raises as training and evaluation do."""
    from jobs.training.run import train_pipeline

    if not (math.isfinite(tflops) and tflops > 0):
        raise ConfigError(f"--tflops {tflops:g} is no number above 0")
    root = storage.normalize(root)
    below = [f"run.storage={root}/runs", f"data.root={root}/data", *overrides]
    stages = _by_run(load_pipeline(PIPELINE, below))
    _prepare(stages, root, scenes)
    costs = {name: step_flops(recipe) for name, recipe in stages.items() if recipe.objective.generation}
    first = stages["ablation-understand"]
    before = step_flops(first) * first.optim.steps
    steps = []
    for name, cost in costs.items():
        # A joint run has to learn to answer as well, with the operations that the others spent on it before.
        own = tflops * 1e12 - (0 if "text" in stages[name].terms else before)
        if own < cost * stages[name].optim.warmup_steps * 2:
            raise ConfigError(f"--tflops {tflops:g} leaves {own / cost:.0f} steps to {name}: give more")
        steps.append(f"{name.removeprefix(f'{PIPELINE}-')}:optim.steps={round(own / cost)}")
    pipeline = load_pipeline(PIPELINE, [*below, *steps])
    stages = _by_run(pipeline)
    train_pipeline(pipeline)
    rows = [_score(stages, name, root) for name in costs]
    _write(storage.join(root, "ablation"), stages, rows, {"scenes": scenes, "tflops": tflops})
    return rows


def _by_run(pipeline: TrainingPipeline) -> dict[str, Recipe]:
    return {recipe.run.name: recipe for recipe in pipeline.stages}


def _prepare(stages: Mapping[str, Recipe], root: str, scenes: int) -> None:
    """Data, tokenizer, and for vae_flow an autoencoder and the statistics of its latents."""
    from blip3o.data.sets.scenes import build_scenes
    from blip3o.data.shards.locations import tokenizer_uri
    from jobs.index import index
    from jobs.tokenizer import train_tokenizer

    first, vae = next(iter(stages.values())), stages["ablation-vae-flow"]
    build_scenes(f"{root}/data/scenes", train=scenes, heldout=max(scenes // 10, 40))
    join_ray()
    index(first)
    if not storage.exists(tokenizer_uri(first.data)):
        train_tokenizer(first)
    if not _finished(vae, AUTOENCODER):
        train_autoencoder(vae, steps=AUTOENCODER_STEPS)
    if not _finished(vae, LATENTS):
        measure_latents(vae)


def _finished(recipe: Recipe, run: str) -> bool:
    from blip3o.runs.results import is_finished

    return is_finished(recipe.run.storage, run)


def train_autoencoder(recipe: Recipe, *, steps: int) -> float:
    """Trains the recipe's autoencoder on its pictures, and leaves it as the finished run `AUTOENCODER`.

    The loss is the squared error of a sample's picture with `KL_WEIGHT` times the divergence from a standard normal
    (Kingma and Welling, arXiv 1312.6114); the learning rate is the recipe's, stretched over the steps. Returns the mean
    squared error of the last step.
    """
    import torch

    from blip3o.config.objectives import Task
    from blip3o.data.batches import build_micro_batches
    from blip3o.data.inputs import StageInputs
    from blip3o.model.decoders.pixel import to_unit
    from blip3o.model.unified import UnifiedModel, initialize
    from blip3o.rng import torch_generator
    from blip3o.runs.paths import final_uri
    from blip3o.runs.results import write_final
    from blip3o.train.schedule import learning_rate

    torch.set_num_threads(recipe.parallel.threads)
    model = UnifiedModel(recipe.model, image_token_id=0, parts=("decoder",), max_length=1)
    initialize(model, recipe.run.seed)
    vae: Any = model.get_submodule("decoder.vae")  # a module of diffusers
    draws = torch_generator(recipe.run.seed, "autoencoder")
    optim = recipe.optim.model_copy(update={"steps": steps})
    optimizer = torch.optim.AdamW(vae.parameters())
    build = build_micro_batches(StageInputs(recipe), Task.PIXELS)
    for number in range(steps):
        optimizer.param_groups[0]["lr"] = learning_rate(optim, number)
        images = to_unit(torch.tensor(build(number)["decoder_pixels"]))
        posterior = vae.encode(images).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=draws)
        error = (vae.decode(latents).sample - images).square().mean()
        optimizer.zero_grad()
        (error + KL_WEIGHT * posterior.kl().mean()).backward()
        optimizer.step()
    tree = recipe.model_dump(mode="json")
    identity = hashlib.sha256(json.dumps([tree, steps], sort_keys=True).encode()).hexdigest()
    description = {"run": AUTOENCODER, "stage": "autoencoder", "identity": identity, "recipe": tree, "summary": {}}
    write_final(final_uri(recipe.run.storage, AUTOENCODER), dict(model.named_parameters()), description)
    logger.info("%s: mean squared error %.4f after %d steps", AUTOENCODER, error.item(), steps)
    return error.item()


def measure_latents(recipe: Recipe) -> None:
    """Leaves the statistics of the autoencoder's latents as the finished run `LATENTS`."""
    from blip3o.train.features.latents import measure_latents

    alone = recipe.stage.model_copy(update={"start_from": (AUTOENCODER,)})  # the backbone is trained later
    measure_latents(recipe.model_copy(update={"stage": alone}), name=LATENTS, images=LATENT_IMAGES)


def step_flops(recipe: Recipe) -> int:
    """Floating-point operations of one optimizer step, forward and backward, by the first micro-batch's shape."""
    import torch

    from blip3o.data.batches import build_micro_batches
    from blip3o.data.inputs import StageInputs
    from blip3o.runs.rows import FLOPS
    from blip3o.train.loop import to_batch
    from blip3o.train.metrics.meter import FlopsMeter
    from blip3o.train.stages import stage_of

    inputs = StageInputs(recipe)
    arrays = build_micro_batches(inputs, stage_of(recipe).task)(0)
    batch = to_batch(arrays, pad_id=inputs.pad_id, device=torch.device("cpu"))
    work = FlopsMeter(recipe, image_token_id=inputs.image_token_id, pad_id=inputs.pad_id)(batch)
    return sum(count for name, count in work.items() if name.startswith(FLOPS)) * recipe.optim.micro_batches


def _score(stages: Mapping[str, Recipe], name: str, root: str) -> Row:
    from blip3o.evaluate.heldout.evaluation import evaluate
    from blip3o.runs.rows import rows_of
    from blip3o.train.export import export

    recipe = stages[name]
    decoding = ["ablation-decoder"] if recipe.model.decoder.generated is None else []
    bundle = export(recipe, [*recipe.stage.start_from, *decoding, name], f"{root}/ablation/{name}/bundle")
    scores = evaluate(recipe, bundle, f"{root}/ablation/{name}").scores
    drawn, own, steps = scores["scenes"], scores["own"], recipe.optim.steps
    tail = [row["loss"] for row in rows_of(recipe)[-max(steps // 10, 1) :]]
    return Row(
        run=name,
        stage=recipe.stage.name,
        steps=steps,
        loss=sum(tail) / len(tail),
        exact=drawn["all_correct"],
        shape=drawn["shape"],
        color=drawn["color"],
        bound=drawn["upper_bound"],
        luck=drawn["shuffled"],
        cosine=own["own_cosine"]["value"],
        diversity=own["diversity"]["own_diversity"],
        understanding=scores["understanding"]["accuracy"],
    )


def _write(uri: str, stages: Mapping[str, Recipe], rows: Sequence[Row], size: dict[str, Any]) -> None:
    from blip3o.evaluate.reports.curves import loss_curves
    from blip3o.runs.rows import rows_of

    metrics = {row.run: rows_of(stages[row.run]) for row in rows}
    files = {
        "ablation.json": json.dumps({"size": size, "runs": [asdict(row) for row in rows]}, indent=1),
        "ablation.md": "\n".join(table(rows)) + "\n",
        "curves.svg": loss_curves(metrics),
    }
    for name, text in files.items():
        storage.write_bytes(storage.join(uri, name), text.encode())


def table(rows: Sequence[Row]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield f"| run | steps | loss, last tenth | {' | '.join(SHARES.values())} |"
    yield "|---" * (3 + len(SHARES)) + "|"
    for row in rows:
        shares = " | ".join(f"{getattr(row, name):.3f}" for name in SHARES)
        yield f"| {row.run} | {row.steps} | {row.loss:.4f} | {shares} |"


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
    print("\n".join(table(ablate(root, scenes=scenes, tflops=tflops, overrides=overrides))))


main = entry_point("ablate", command)

if __name__ == "__main__":
    sys.exit(main())
