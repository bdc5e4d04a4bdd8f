"""A nano model with all parameters random (zero-initialized gates hide errors), shared by the model tests."""

import torch
from torch import nn

from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.model.unified import PARTS, UnifiedModel, initialize

IMAGE_TOKEN = 5
PAD = 0


def nano_config() -> ModelConfig:
    return ModelConfig(**PRESETS["nano"])


def randomise(module: nn.Module, *, seed: int = 0, scale: float = 0.3) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * scale / max(parameter.shape[-1] if parameter.dim() > 1 else 1, 1) ** 0.5)


def nano_model(parts: tuple[str, ...] = PARTS) -> UnifiedModel:
    model = UnifiedModel(nano_config(), image_token_id=IMAGE_TOKEN, parts=parts, max_length=24)
    initialize(model, 0)
    randomise(model)
    return model
