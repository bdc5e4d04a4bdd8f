"""One step of the generate stage against the step that upstream takes, on the same inputs, weights and draws.

    python -m benchmarks.train_step [--batch 8] [--prompt 136] [--rounds 5]

The other way is the plain one: the encoder runs in the step, prompt and queries pass through the frozen backbone
together with gradient and activations recomputed, the language-model head and its cross-entropy are computed over all
positions and discarded, nothing is cached, and the language model is that of `transformers`. Ours trains on stored
features (`ratio`), or with the encoder online (`ratio_online`). Losses and gradients of all three must agree. Also
reported: the seconds of each part, and for the 8b preset the counted floating-point operations of ours over the other's
(`flops_8b`).

`ratio_packed` compares our step on stored features with itself: prompts of different lengths, the longest 224 / 136 of
their mean `--prompt`, padded over packed. Losses and gradients must agree too. The DiT has its share of the 8b step.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._measure import all_in_turns, in_turns, keep, options
from benchmarks._transformers import inner, transformers_model
from blip3o.config.load import build_recipe, preset_model
from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.model.activation_checkpointing import checkpoint_layers
from blip3o.model.backbone import Prompt
from blip3o.model.describe import META
from blip3o.model.flops.counted import full_pass, measure, training
from blip3o.model.flow import interpolate, noise_level, velocity_target
from blip3o.model.unified import UnifiedModel, initialize
from blip3o.train.deepspeed.config import deepspeed_config
from blip3o.train.objectives import Batch, StageModule, build_stage_module, flow_draws
from blip3o.train.objectives.base import build_objective
from blip3o.train.stages import freeze, stage_of

TOLERANCE = 1e-5  # of loss and gradients, relative, in fp32
VOCABULARY, QUERIES, SUPERVISED = 32_000, 64, 8
PACKED_DIT_LAYERS = 3  # with these the DiT takes an eighth of the step's operations, as in 8b; with MODEL's, a third
GENERATING = ("encoder", "backbone", "queries", "dit")
MODEL = {
    "num_queries": QUERIES,
    "encoder": {
        "image_size": 448,
        "patch_size": 14,
        "width": 256,
        "layers": 12,
        "heads": 4,
        "mlp_width": 2176,  # EVA's is 8.57 times its width, 15360 to 1792; here a multiple of 64 as there
        "pool": 4,
    },
    "backbone": {
        "vocab_size": VOCABULARY,
        "hidden_size": 512,
        "layers": 8,
        "heads": 8,
        "kv_heads": 2,
        "mlp_width": 2048,
        "vision": {"image_size": 28, "patch_size": 14, "width": 32, "layers": 1, "heads": 2, "mlp_width": 32},
    },
    "dit": {
        "dim": 384,
        "layers": 8,
        "heads": 6,
        "kv_heads": 6,
        "mlp_width": 1024,  # two thirds of four times the width, as 4864 to 1792
        "time_width": 224,  # as 1024 to 1792
    },
    "decoder": {"kind": "pixel", "image_size": 64, "coarse_width": 32, "channels": [16]},
}


@dataclass
class Clock:
    """Seconds of named parts, added up over a step."""

    parts: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the seconds of the body."""
        began = time.perf_counter()
        yield
        self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - began


class PlainStep:
    """Upstream's step: the same loss as `StageModule`'s on the same batch, by `transformers` and without shortcuts."""

    def __init__(self, module: StageModule, recipe: Recipe) -> None:
        self.module, self.recipe = module, recipe
        backbone = recipe.model.backbone
        plain = transformers_model(backbone, image_token_id=0)
        plain.load_state_dict(module.model.backbone.hf.state_dict())
        plain.requires_grad_(requires_grad=False)
        self.text, self.head = inner(backbone, plain), plain.lm_head
        checkpoint_layers(self.text.layers)

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, and the query states [B, N, H] twice: as they came from the backbone, and as the DiT took them.

        The second is a leaf, so that the backward pass of each can be timed by itself.
        """
        model = self.module.model
        with clock.part("encoder"), torch.no_grad():
            data = model.encoder.encode_batch(batch["encoder_pixels"]).float()
        prompt = Prompt(input_ids=batch["input_ids"], attention_mask=torch.ones_like(batch["input_ids"]))
        with clock.part("backbone forward"):
            hidden = self._hidden(prompt)
        with clock.part("head and cross-entropy"):
            logits = self.head(hidden).float()
            F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=IGNORE)
            del logits
        states = hidden[:, -self.recipe.model.num_queries :]
        leaf = states.detach().requires_grad_()
        with clock.part("DiT forward"):
            loss = flow_loss(self.module, self.recipe, batch, data, leaf)
        return loss, states, leaf

    def _hidden(self, prompt: Prompt) -> Tensor:
        """Last hidden states of prompt and queries, [B, L + N, H], gradients through all of them."""
        queries = self.module.model.queries.expand(prompt.input_ids.shape[0], -1, -1)
        embeddings = torch.cat([self.text.embed_tokens(prompt.input_ids), queries], dim=1)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        return self.text(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state


class OurStep:
    """The parts of `StageModule`'s own forward, one after the other, only for the breakdown."""

    def __init__(self, module: StageModule, recipe: Recipe) -> None:
        self.module, self.recipe = module, recipe

    def loss(self, batch: Batch, clock: Clock) -> tuple[Tensor, Tensor, Tensor]:
        """As `PlainStep.loss`."""
        model = self.module.model
        with clock.part("encoder"), torch.no_grad():
            data = batch["features"] if "features" in batch else model.features(batch["encoder_pixels"])
        ids = batch["input_ids"]
        lengths = torch.full((len(ids),), ids.shape[1])
        prompt = Prompt(input_ids=ids, attention_mask=torch.ones_like(ids), lengths=lengths)
        with clock.part("prompt"), torch.no_grad():
            cached = model.backbone.fill(prompt)
        with clock.part("queries forward"):
            queries = model.queries.expand(data.shape[0], -1, -1)
            states = model.backbone.extend(cached, queries, keep=False).states
        leaf = states.detach().requires_grad_()
        with clock.part("DiT forward"):
            loss = flow_loss(self.module, self.recipe, batch, data, leaf)
        return loss, states, leaf


def flow_loss(module: StageModule, recipe: Recipe, batch: Batch, data: Tensor, states: Tensor) -> Tensor:
    """The mean squared error of the velocity under query states, as upstream's forward computes it."""
    sampler, shape = recipe.model.sampler, module.model.latent_shape
    draws = flow_draws(
        batch["draw_key"], seed=recipe.run.seed, kind="flow-0", shape=shape, dropout=sampler.condition_dropout
    )
    sigma = noise_level(draws.uniform, recipe.stage.flow, shift=sampler.shift)
    condition = module.model.dit.condition(states * draws.keep[:, None, None])
    velocity = module.model.dit(interpolate(data, draws.noise, sigma), 1000 * sigma, condition)
    return (velocity - velocity_target(data, draws.noise)).square().mean()


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to take a step: the batch as it sees it, what it trains, and a call that computes loss and gradients."""

    batch: Batch
    trainable: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip: float
    gradients: Callable[[Batch], Tensor]

    def step(self) -> None:
        """One complete optimizer step."""
        self.optimizer.zero_grad()
        self.gradients(self.batch)
        self.update()

    def update(self) -> None:
        """Clipping and AdamW."""
        nn.utils.clip_grad_norm_(self.trainable.values(), self.clip)
        self.optimizer.step()


def _recipe(arguments: argparse.Namespace, features: str, **dit: int) -> Recipe:
    return build_recipe(
        {
            "run": {"name": "bench", "storage": "bench"},
            "data": {
                "root": "bench",
                "sources": [{"name": "bench", "shards": "*.tar"}],
                "tokenizer": "tokenizer.json",
                "max_length": arguments.prompt,
                "features": features,
            },
            "model": MODEL | {"dit": cast("dict[str, int]", MODEL["dit"]) | dit},
            "stage": {"name": "generate"},
            "optim": {"steps": 1000, "lr": 1e-4, "micro_batch_size": arguments.batch, "micro_batches": 1},
            "parallel": {"device": "cpu", "precision": "fp32"},
            "checkpoint": {"every": 1000},
        }
    )


def _module(recipe: Recipe) -> StageModule:
    module = build_stage_module(recipe, image_token_id=0, pad_id=0)
    initialize(module.model, 0)
    generator = torch.Generator().manual_seed(0)
    for name in freeze(module.model, stage_of(recipe)):
        # Last layers and gates are initialised to zero, which would hide everything behind them from the comparison.
        nn.init.normal_(module.model.get_parameter(name), std=0.02, generator=generator)
    return module


def _batch(arguments: argparse.Namespace, recipe: Recipe) -> Batch:
    """Prompts of equal length, none padded; the last few of their tokens are supervised, as upstream's replies are."""
    generator = torch.Generator().manual_seed(0)
    rows, length, side = arguments.batch, arguments.prompt, recipe.model.encoder.image_size
    ids = torch.randint(1, VOCABULARY, (rows, length), generator=generator)
    labels = torch.full((rows, length + QUERIES), IGNORE)
    labels[:, length - SUPERVISED : length] = ids[:, -SUPERVISED:]
    pixels = torch.randint(0, 256, (rows, side, side, 3), generator=generator, dtype=torch.uint8)
    return {"input_ids": ids, "labels": labels, "encoder_pixels": pixels, "draw_key": torch.arange(rows)}


def _way(module: StageModule, recipe: Recipe, batch: Batch, gradients: Callable[[Batch], Tensor]) -> Way:
    trainable = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trainable.values(), lr=recipe.optim.lr, betas=recipe.optim.betas)
    clip = deepspeed_config(recipe)["gradient_clipping"]
    return Way(batch=batch, trainable=trainable, optimizer=optimizer, clip=clip, gradients=gradients)


def _ours(recipe: Recipe, batch: Batch) -> tuple[StageModule, Way]:
    module = _module(recipe)

    def gradients(batch: Batch) -> Tensor:
        loss = module(batch)["flow"] / module.counts(batch)["flow"]
        loss.backward()
        return loss.detach()

    return module, _way(module, recipe, batch, gradients)


def _padded(module: StageModule, recipe: Recipe, batch: Batch) -> Way:
    """Our step, but with prompts padded to the longest: the loss of a batch that does not say how long they are."""
    objective = build_objective(recipe.objective, recipe, pad_id=0)

    def gradients(batch: Batch) -> Tensor:
        prepared = objective.prepare(batch)
        del prepared["lengths"]
        loss = objective.loss(module.model, prepared)["flow"] / module.counts(batch)["flow"]
        loss.backward()
        return loss.detach()

    return _way(module, recipe, batch, gradients)


def ragged_lengths(rows: int, mean: int) -> list[int]:
    """Lengths of that mean: the longest is 224 / 136 of it, the others are spread evenly around what is left."""
    longest = mean * 224 // 136 if rows > 1 else mean
    others = max(rows - 1, 1)
    middle = (rows * mean - longest) / others
    rest = [round(middle * (0.5 + (place + 0.5) / others)) for place in range(rows - 2)]
    return [longest, *rest, rows * mean - longest - sum(rest)][:rows]


def _packing(arguments: argparse.Namespace, batch: Batch) -> tuple[dict[str, object], dict[str, float]]:
    """Seconds of our step with packed and with padded prompts; and by how much their losses and gradients differ."""
    recipe = _recipe(arguments, "cache", layers=PACKED_DIT_LAYERS)
    lengths = ragged_lengths(*batch["input_ids"].shape)
    ids = torch.randint(1, VOCABULARY, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(1))
    real = torch.arange(ids.shape[1]) < torch.tensor(lengths)[:, None]
    ragged = {name: tensor for name, tensor in batch.items() if name != "labels"} | {"input_ids": ids * real}
    _, packed = _ours(recipe, ragged)
    padded = _padded(_module(recipe), recipe, ragged)
    errors = _differences(packed, padded)
    ours, other = (statistics.median(values) for values in in_turns(packed.step, padded.step, rounds=arguments.rounds))
    figures = {"ours_packed": round(ours, 4), "other_padded": round(other, 4), "lengths": lengths}
    return {"ratio_packed": round(other / ours, 3), "packing": figures}, errors


def _plain(recipe: Recipe, batch: Batch) -> tuple[PlainStep, Way]:
    module = _module(recipe)
    plain = PlainStep(module, recipe)

    def gradients(batch: Batch) -> Tensor:
        loss, states, leaf = plain.loss(batch, Clock())
        loss.backward()
        states.backward(leaf.grad)
        return loss.detach()

    return plain, _way(module, recipe, batch, gradients)


def _differences(way: Way, reference: Way) -> dict[str, float]:
    """Relative errors of the loss and of the gradients, the latter over all parameters, from equal weights."""
    ours, theirs = way.gradients(way.batch), reference.gradients(reference.batch)
    if way.trainable.keys() != reference.trainable.keys():
        raise SystemExit("the two ways train different parameters: nothing to compare")
    pairs = [(way.trainable[name].grad, reference.trainable[name].grad) for name in way.trainable]
    squares = [((a - b).square().sum(), b.square().sum()) for a, b in pairs if a is not None and b is not None]
    error, size = (torch.stack(column).sum().sqrt().item() for column in zip(*squares, strict=True))
    way.optimizer.zero_grad()
    reference.optimizer.zero_grad()
    found = {"loss": abs(ours - theirs).item() / abs(theirs).item(), "gradient": error / size}
    if len(squares) != len(pairs) or max(found.values()) > TOLERANCE:
        raise SystemExit(f"loss and gradients differ by {found}, more than {TOLERANCE}: nothing to compare")
    return found


def _breakdown(step: PlainStep | OurStep, way: Way, rounds: int) -> dict[str, float]:
    """Median seconds of each part of a step."""
    clocks = [_timed(step, way) for _ in range(rounds)]
    names = dict.fromkeys(name for clock in clocks for name in clock.parts)
    return {name: round(statistics.median(clock.parts[name] for clock in clocks), 4) for name in names}


def _timed(step: PlainStep | OurStep, way: Way) -> Clock:
    clock = Clock()
    way.optimizer.zero_grad()
    loss, states, leaf = step.loss(way.batch, clock)
    with clock.part("DiT backward"):
        loss.backward()
    with clock.part("backbone backward"):
        states.backward(leaf.grad)
    with clock.part("clipping and AdamW"):
        way.update()
    return clock


def counted_8b(prompt_tokens: int) -> dict[str, float]:
    """Floating-point operations of one image in the generate stage of the 8b preset, in units of 10^12."""
    with META:
        model = UnifiedModel(preset_model("8b"), image_token_id=0, parts=GENERATING, max_length=prompt_tokens)
    features, *rest = training(model, prompt_tokens)
    tokens = prompt_tokens + model.config.num_queries
    with torch.no_grad():
        states = torch.empty(1, tokens, model.config.backbone.hidden_size, device=META)
        head = measure(lambda: model.backbone.logits(states))
    ours = sum(cost.total for cost in rest)
    plain = features.total + full_pass(model, prompt_tokens).total + head + rest[-1].total
    return {
        "ours": round(ours / 1e12, 3),
        "ours_online": round((ours + features.total) / 1e12, 3),
        "other": round(plain / 1e12, 3),
        "ratio": round(ours / plain, 4),
    }


def main(argv: list[str] | None = None) -> None:
    """Measures, compares and reports. Ends with an error if a way's loss or gradients differ by `TOLERANCE`."""
    sizes = {"batch": 8, "prompt": 136, "rounds": 5, "parts": 2}
    arguments, folder = options(__doc__.splitlines()[0], sizes, argv)
    online, cached = (_recipe(arguments, kind) for kind in ("online", "cache"))
    batch = _batch(arguments, online)
    plain, other = _plain(online, batch)
    encoding, ours_online = _ours(online, batch)
    with torch.no_grad():
        features = encoding.model.features(batch["encoder_pixels"])
    stored = {name: tensor for name, tensor in batch.items() if name != "encoder_pixels"} | {"features": features}
    reading, ours = _ours(cached, stored)
    errors = {name: _differences(way, other) for name, way in (("cached", ours), ("online", ours_online))}
    seconds = all_in_turns((ours.step, ours_online.step, other.step), rounds=arguments.rounds)
    parts = {
        "ours": _breakdown(OurStep(reading, cached), ours, arguments.parts),
        "ours_online": _breakdown(OurStep(encoding, online), ours_online, arguments.parts),
        "other": _breakdown(plain, other, arguments.parts),
    }
    packing, errors["packed"] = _packing(arguments, stored)
    cached_s, online_s, plain_s = (statistics.median(values) for values in seconds)
    quartiles = [[round(value, 4) for value in statistics.quantiles(values, n=4)[::2]] for values in seconds]
    result = {
        "ratio": round(plain_s / cached_s, 3),
        "ratio_online": round(plain_s / online_s, 3),
        **packing,
        "ours": round(cached_s, 4),
        "ours_online": round(online_s, 4),
        "other": round(plain_s, 4),
        "unit": "s",
        "n": arguments.rounds,
        "quartiles": dict(zip(("ours", "ours_online", "other"), quartiles, strict=True)),
        "parts": parts,
        "flops_8b": counted_8b(arguments.prompt),
        "errors": errors,
        "sizes": vars(arguments),
    }
    keep("train_step", result, folder)


if __name__ == "__main__":
    main()
