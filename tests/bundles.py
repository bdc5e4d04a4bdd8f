"""A nano model as a bundle, with every part awake, for tests that need a model that reacts to all that it is given."""

import torch
from torch import Tensor

from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import build_model
from blip3o.bundle.writing import write_bundle
from blip3o.config.model import ModelConfig
from blip3o.config.recipe import TemplateConfig
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.model.empty_weights import stored_tensors
from blip3o.model.unified import initialize
from blip3o.rng import torch_generator
from tests.model.helpers import nano_config

MAX_LENGTH = 128
TEXTS = [TemplateConfig().instruction, "a red circle above a blue square", "What colour is it? It is green."]


def tokenizer(*texts: str) -> ChatTokenizer:
    return ChatTokenizer.train([*TEXTS, *texts], 400)


def bundle_config(model: ModelConfig | None = None) -> BundleConfig:
    return BundleConfig(model=model or nano_config(), template=TemplateConfig(), max_length=MAX_LENGTH)


def weights(seed: int = 0, *, model: ModelConfig | None = None) -> dict[str, Tensor]:
    """Of every part; zeros of the initialisation get numbers, because a gate that is shut hides what is behind it."""
    built = build_model(bundle_config(model), tokenizer())
    initialize(built, seed)
    with torch.no_grad():
        for name, tensor in stored_tensors(built).items():
            if not tensor.any():
                tensor.normal_(0, 0.3, generator=torch_generator(seed, "wake", name))
    return stored_tensors(built)


def write_nano_bundle(uri: str, *, seed: int = 0, model: ModelConfig | None = None) -> None:
    """The nano preset, or another model of its size."""
    write_bundle(
        uri,
        config=bundle_config(model),
        tensors=weights(seed, model=model),
        tokenizer=tokenizer(),
        provenance={"seed": seed},
    )
