"""A step through the backbone with the frozen prefix, against a full pass with activation checkpointing.

    python -m benchmarks.frozen_prefix [--prompt 136] [--queries 64] [--layers 8] [--width 512] [--batch 2] [--rounds 9]

Both give the query states of the same ragged prompts and the queries' gradient. The full pass, as upstream trains, runs
prompt and queries with gradient and recomputes activations; ours runs the prompt once without gradient.
"""

import argparse

import torch
from torch import Tensor, nn

from benchmarks._measure import in_turns, options, report
from blip3o.config.backbone import BackboneConfig, VisionConfig
from blip3o.model.activation_checkpointing import checkpoint_layers
from blip3o.model.backbone import Backbone, Prompt

TOLERANCE = 1e-5  # of loss and gradient, relative, in fp32
VISION = VisionConfig(image_size=28, patch_size=14, width=32, layers=1, heads=2, mlp_width=32)  # prompts are text


def _backbone(arguments: argparse.Namespace) -> Backbone:
    config = BackboneConfig(
        vocab_size=1024,
        hidden_size=arguments.width,
        layers=arguments.layers,
        heads=8,
        kv_heads=2,
        mlp_width=11 * arguments.width // 2,  # as 11008 to 2048 in Qwen2.5-VL-3B
        vision=VISION,
    )
    return Backbone(config, image_token_id=0).requires_grad_(requires_grad=False)


def _prompt(arguments: argparse.Namespace) -> Prompt:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, 1024, (arguments.batch, arguments.prompt), generator=generator)
    lengths = torch.randint(arguments.prompt // 2, arguments.prompt + 1, (arguments.batch, 1), generator=generator)
    return Prompt(input_ids=ids, attention_mask=(torch.arange(arguments.prompt) < lengths).long())


def _step(
    backbone: Backbone, prompt: Prompt, queries: nn.Parameter, weight: Tensor, *, full: bool
) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient with respect to the queries."""
    states = (backbone.query_states_full if full else backbone.query_states)(prompt, queries)
    loss = (states * weight).square().mean()
    return loss.detach(), torch.autograd.grad(loss, queries)[0]


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if the two ways differ by more than `TOLERANCE`."""
    sizes = {"prompt": 136, "queries": 64, "layers": 8, "width": 512, "batch": 2, "rounds": 9}
    arguments, folder = options(__doc__.splitlines()[0], sizes, argv)
    torch.manual_seed(0)
    ours, prompt = _backbone(arguments), _prompt(arguments)
    other = _backbone(arguments)
    other.load_state_dict(ours.state_dict())
    checkpoint_layers(other.text.layers)
    queries = nn.Parameter(torch.randn(arguments.queries, arguments.width))
    weight = torch.randn(arguments.batch, arguments.queries, arguments.width)
    fast, slow = (_step(model, prompt, queries, weight, full=full) for model, full in ((ours, False), (other, True)))
    errors = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(fast, slow, strict=True)]
    if max(errors) > TOLERANCE:
        raise SystemExit(f"loss and gradient differ by {errors}, more than {TOLERANCE}: nothing to compare")
    seconds = in_turns(
        lambda: _step(ours, prompt, queries, weight, full=False),
        lambda: _step(other, prompt, queries, weight, full=True),
        rounds=arguments.rounds,
    )
    report("frozen_prefix", *seconds, folder, loss_error=errors[0], gradient_error=errors[1], sizes=vars(arguments))


if __name__ == "__main__":
    main()
