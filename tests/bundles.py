"""A nano model as a bundle, with every part awake, for tests that need a model that reacts to all that it is given."""

import torch
from torch import nn

from blip3o.config.recipe import TemplateConfig
from blip3o.convert.bundle import BundleConfig, build_model, write_bundle
from blip3o.data.tokenizer import ChatTokenizer
from blip3o.model.unified import initialize
from blip3o.rng import torch_generator
from tests.model.helpers import nano_config

MAX_LENGTH = 128
TEXTS = [TemplateConfig().instruction, "a red circle above a blue square", "What colour is it? It is green."]


def tokenizer(*texts: str) -> ChatTokenizer:
    return ChatTokenizer.train([*TEXTS, *texts], 400)


def bundle_config() -> BundleConfig:
    return BundleConfig(model=nano_config(), template=TemplateConfig(), max_length=MAX_LENGTH)


def weights(seed: int = 0) -> dict[str, nn.Parameter]:
    """Of every part; zeros of the initialisation get numbers, because a gate that is shut hides what is behind it."""
    model = build_model(bundle_config(), tokenizer())
    initialize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.normal_(0, 0.3, generator=torch_generator(seed, "wake", name))
    return dict(model.named_parameters())


def write_nano_bundle(uri: str, *, seed: int = 0) -> None:
    write_bundle(uri, config=bundle_config(), tensors=weights(seed), tokenizer=tokenizer(), provenance={"seed": seed})
