"""Sampling with what depends on the condition computed once, against computing it again at every step.

    python -m benchmarks.sampler [--steps 30] [--layers 8] [--width 448] [--batch 2] [--rounds 7]

Both run the same DiT and solver with guidance 3. The other way is the plain loop: caption projection, and keys and
values of every layer's cross-attention, for both branches at each step.
"""

import argparse

import torch
from torch import Tensor, nn

from benchmarks._measure import in_turns, options, report
from blip3o.config.model import DiTConfig
from blip3o.model.dit import DiT
from blip3o.model.flow import guide, integrate

HEAD, GRID, QUERIES, GUIDANCE = 64, 8, 64, 3.0  # the released ones
TOLERANCE = 1e-6  # absolute, of features of size about 1


def _dit(arguments: argparse.Namespace) -> DiT:
    width = arguments.width
    config = DiTConfig(
        dim=width,
        layers=arguments.layers,
        heads=width // HEAD,
        kv_heads=width // HEAD,
        mlp_width=19 * width // 7,  # as 4864 to 1792
        time_width=4 * width // 7,
    )
    dit = DiT(config, in_channels=width, grid=GRID, condition_dim=2 * width)  # 3584 to 1792
    for parameter in dit.parameters():
        nn.init.normal_(parameter, std=0.02)  # gates begin at zero, which would hide the condition
    return dit.eval()


@torch.inference_mode()
def _sample(dit: DiT, states: Tensor, noise: Tensor, *, steps: int, once: bool) -> Tensor:
    """Features [B, L, F] by Euler's method; the condition is prepared before the loop, or inside it."""
    null = torch.zeros_like(states)
    prepared = [dit.condition(branch) for branch in (states, null)] if once else None

    def velocity(latents: Tensor, sigma_B: Tensor) -> Tensor:
        condition, unconditional = prepared or [dit.condition(branch) for branch in (states, null)]
        time = 1000 * sigma_B
        return guide(dit(latents, time, condition), dit(latents, time, unconditional), GUIDANCE)

    return integrate(velocity, noise, steps)


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the two ways differ by more than `TOLERANCE`."""
    sizes = {"steps": 30, "layers": 8, "width": 448, "batch": 2, "rounds": 7}
    arguments, folder = options(__doc__.splitlines()[0], sizes, argv)
    torch.manual_seed(0)
    dit = _dit(arguments)
    states = torch.randn(arguments.batch, QUERIES, 2 * arguments.width)
    noise = torch.randn(arguments.batch, GRID**2, arguments.width)
    fast, slow = (_sample(dit, states, noise, steps=arguments.steps, once=once) for once in (True, False))
    error = (fast - slow).abs().max().item()
    if error > TOLERANCE:
        raise SystemExit(f"features differ by {error}, more than {TOLERANCE}: nothing to compare")
    seconds = in_turns(
        lambda: _sample(dit, states, noise, steps=arguments.steps, once=True),
        lambda: _sample(dit, states, noise, steps=arguments.steps, once=False),
        rounds=arguments.rounds,
    )
    report("sampler", *seconds, folder, error=error, tolerance=TOLERANCE, sizes=vars(arguments))


if __name__ == "__main__":
    main()
