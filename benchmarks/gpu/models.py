"""Models of the released sizes, or of nano ones in the same layout, built straight on a device with random weights."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench
from blip3o.config.load import build_recipe
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import Recipe, TemplateConfig
from blip3o.config.recipe_files import Tree, merge, override
from blip3o.data.text.templates import ChatTemplate
from blip3o.data.text.tokenizer import IMAGE_PAD, ChatTokenizer
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.model.unified import UnifiedModel

# Prompts of a pretraining set, template included: mean and longest, in tokens.
MEAN_TOKENS, MAX_TOKENS = 136, 224
NANO_MAX_TOKENS = 56
TEXTS = [TemplateConfig().instruction, "a red circle above a blue square", "What colour is it? It is green."]

# The released layout (features of 8 x 8, four levels of latents, three of the U-Net), narrow, shallow and small.
_NANO: Tree = merge(
    PRESETS["debug"],
    {
        "num_queries": 8,
        "encoder": {"image_size": 112, "pool": 1},
        "backbone": {"vocab_size": 512, "vision": {"image_size": 56, "layers": 1, "full_layers": [0]}},
    },
)
_NANO_SANA: Tree = {
    "kind": "sana",
    "autoencoder": {
        "kind": "dc",
        "image_size": 32,
        "latent_channels": 8,
        "channels": [8, 8, 16],
        "encoder_layers": [1, 1, 1],
        "decoder_layers": [1, 1, 1],
        "attention_levels": 1,
        "head_dim": 4,
        "scaling": 0.41407,
    },
    "null": "black",
    "caption_width": 24,
    "layers": 2,
    "heads": 4,
    "head_dim": 8,
    "cross_heads": 2,
    "sampler": {"num_inference_steps": 4},
}
# Pixels from features in two small steps: what is then measured is the generation of features.
CHEAP_DECODER: Tree = {
    "kind": "pixel",
    "image_size": 32,
    "coarse_width": 8,
    "channels": [8],
    "num_inference_steps": 1,
}


def model_tree(bench: Bench, preset: str, changes: Tree | None = None) -> Tree:
    """Sizes of a released preset, or of its nano stand-in, with changes on top."""
    nano = merge(_NANO, {"decoder": _NANO_SANA}) if preset == "4b-sana" else _NANO
    return merge(bench.pick(PRESETS[preset], nano), changes or {})


def model_config(bench: Bench, preset: str, changes: Tree | None = None) -> ModelConfig:
    """The same, validated."""
    return ModelConfig.model_validate(model_tree(bench, preset, changes))


def stage_recipe(
    bench: Bench, preset: str, *, changes: Tree | None = None, overrides: Mapping[str, Any] | None = None
) -> Recipe:
    """The generate stage of a preset on one worker, in bf16, from stored features; `overrides` are dotted keys."""
    tree: Tree = {
        "run": {"name": "gpu", "storage": "gpu"},
        "data": {
            "root": "gpu",
            "sources": [{"name": "synthetic", "shards": "*.tar"}],
            "tokenizer": "tokenizer.json",
            "max_length": bench.pick(512, NANO_MAX_TOKENS),
            "features": "cache",
        },
        "model": model_tree(bench, preset, changes),
        "stage": {"name": "generate"},
        "optim": {"steps": 100, "lr": 1e-4, "micro_batch_size": 16, "micro_batches": 1},
        "parallel": {"device": bench.options.device, "precision": "bf16"},
        "checkpoint": {"every": 100},
    }
    for key, value in (overrides or {}).items():
        tree = override(tree, f"{key}={str(value).lower() if isinstance(value, bool) else value}")
    return build_recipe(tree)


@contextmanager
def building(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules built inside are on this device in this dtype, without a copy on the CPU."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def randomize(module: nn.Module, *, seed: int = 0) -> None:
    """Draws every parameter where it lies, so that none is zero and activations keep their size through the layers.

    Matrices are normal with standard deviation fan_in^(-1/2). Weights of norms vary around 1, other vectors around 0.
    """
    generators: dict[torch.device, torch.Generator] = {}
    for name, parameter in module.named_parameters():
        device = parameter.device
        generator = generators.setdefault(device, torch.Generator(device).manual_seed(seed))
        if parameter.dim() > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)


def build(config: ModelConfig, parts: Collection[str], device: torch.device, dtype: torch.dtype) -> UnifiedModel:
    """Some parts of a model with random weights, frozen, in evaluation mode."""
    with building(device, dtype):
        model = UnifiedModel(config, image_token_id=0, parts=parts, max_length=MAX_TOKENS)
    randomize(model)
    return model.requires_grad_(requires_grad=False).eval()


def pipeline(model: UnifiedModel, device: torch.device, *, batch_size: int, max_length: int) -> Blip3oPipeline:
    """The pipeline of a model, with a tokenizer trained on a few words."""
    template = TemplateConfig()
    return Blip3oPipeline(
        model=model,
        tokenizer=tokenizer(),
        template=ChatTemplate(
            system=template.system,
            instruction=template.instruction,
            image_tokens=model.config.backbone.image_tokens,
            style=template.style,
        ),
        max_length=max_length,
        device=device,
        batch_size=batch_size,
    )


def tokenizer() -> ChatTokenizer:
    """A tokenizer that fits every vocabulary used here."""
    made = ChatTokenizer.train(TEXTS, 400)
    assert made.ids[IMAGE_PAD] < 400
    return made
