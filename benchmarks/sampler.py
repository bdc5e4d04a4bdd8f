"""Sampling with the condition's projections computed once, against computing them at every step.

    python -m benchmarks.sampler [--steps 30] [--layers 4] [--width 448] [--batch 1] [--together 16] [--rounds 5]

Both run the same DiT and solver with guidance 3. The other way is the plain loop: caption projection, and keys and
values of every layer's cross-attention, for both branches at each step, and one pass for each branch.

Further keys: `ratio_one_pass`, one pass over conditional and null rows against one for each; `one_at_a_time` and
`batched`, seconds an image takes by itself and among `together` images, and `ratio_batched`, the first over the second.
"""

import argparse
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor, nn

from benchmarks._measure import all_in_turns, options, report
from blip3o.config.load import preset_model
from blip3o.config.model import ModelConfig
from blip3o.model.flow import guide, integrate
from blip3o.model.unified import UnifiedModel

Way = Callable[[UnifiedModel, Tensor, Tensor, int], Tensor]

HEAD, GUIDANCE = 64, 3.0  # the released ones
TOLERANCE = (
    1e-5  # absolute, of features of size about 1: passes of other shapes run other kernels, which round otherwise
)


def _model(arguments: argparse.Namespace) -> UnifiedModel:
    """A DiT of the released proportions over 8 x 8 features of its own width, under states of twice the width."""
    width = arguments.width
    debug = preset_model("debug").model_dump()
    dit = {"dim": width, "layers": arguments.layers, "heads": width // HEAD, "kv_heads": width // HEAD}
    dit |= {"mlp_width": 19 * width // 7, "time_width": 4 * width // 7}
    config = ModelConfig.model_validate(
        debug
        | {
            "encoder": debug["encoder"] | {"width": width},
            "backbone": debug["backbone"] | {"hidden_size": 2 * width},
            "dit": debug["dit"] | dit,
        }
    )
    model = UnifiedModel(config, image_token_id=0, parts=("dit",), max_length=1)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)  # gates begin at zero, which would hide the condition
    return model.eval()


@torch.inference_mode()
def _prepared(model: UnifiedModel, states: Tensor, noise: Tensor, steps: int) -> Tensor:
    return model.sample_features(states, noise, num_inference_steps=steps, guidance_scale=GUIDANCE)


@torch.inference_mode()
def _plain(model: UnifiedModel, states: Tensor, noise: Tensor, steps: int) -> Tensor:
    """Features [B, L, F] as `sample_features` gives them, the condition prepared inside the loop."""

    def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
        branches = (states, torch.zeros_like(states))
        conditional, null = (model.velocity(model.dit.condition(branch), latents, sigma_B) for branch in branches)
        return guide(conditional, null, GUIDANCE)

    return integrate(velocity, noise, steps)


@torch.inference_mode()
def _two_passes(model: UnifiedModel, states: Tensor, noise: Tensor, steps: int) -> Tensor:
    """As `_prepared`, with one pass for each branch."""
    conditions = [model.dit.condition(branch) for branch in (states, torch.zeros_like(states))]

    def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
        conditional, null = (model.velocity(condition, latents, sigma_B) for condition in conditions)
        return guide(conditional, null, GUIDANCE)

    return integrate(velocity, noise, steps)


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the two ways differ by more than `TOLERANCE`."""
    sizes = {"steps": 30, "layers": 4, "width": 448, "batch": 1, "together": 16, "rounds": 5}
    arguments, folder = options(__doc__.splitlines()[0], sizes, argv)
    torch.manual_seed(0)
    model = _model(arguments)
    rows = max(arguments.batch, arguments.together)
    states = torch.randn(rows, model.config.num_queries, 2 * arguments.width)
    noise = torch.randn(rows, *model.latent_shape)

    def run(way: Way, count: int) -> Tensor:
        return way(model, states[:count], noise[:count], arguments.steps)

    fast, slow = (run(way, arguments.batch) for way in (_prepared, _plain))
    error = (fast - slow).abs().max().item()
    if error > TOLERANCE:
        raise SystemExit(f"features differ by {error}, more than {TOLERANCE}: nothing to compare")
    ours, other, two_passes, alone, together = all_in_turns(
        [
            lambda: run(_prepared, arguments.batch),
            lambda: run(_plain, arguments.batch),
            lambda: run(_two_passes, arguments.batch),
            lambda: run(_prepared, 1),
            lambda: run(_prepared, arguments.together),
        ],
        rounds=arguments.rounds,
    )
    one, batched = median(alone), median(together) / arguments.together
    more = {"ratio_one_pass": median(two_passes) / median(ours), "ratio_batched": one / batched}
    more |= {"one_at_a_time": one, "batched": batched}
    rounded = {name: round(value, 4) for name, value in more.items()}
    report("sampler", ours, other, folder, **rounded, error=error, tolerance=TOLERANCE, sizes=vars(arguments))


if __name__ == "__main__":
    main()
