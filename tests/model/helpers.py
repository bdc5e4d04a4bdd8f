"""A nano model with all parameters random (zero-initialized gates hide errors), shared by the model tests."""

import torch
from torch import nn

from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.inference.chat import Reply, ReplyBatch, ReplyText, write_replies
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


@torch.inference_mode()
def greedy(backbone, prompt, *, max_new_tokens, stop_ids, rows=None):
    """Greedy replies to the rows of a prompt, token ids, `rows` of them written together."""
    length = prompt.input_ids.shape[1]
    batch = ReplyBatch(backbone, rows=rows or len(prompt.input_ids), max_length=length)
    replies = [Reply(text=ReplyText(str), max_tokens=max_new_tokens, stop_ids=stop_ids) for _ in prompt.input_ids]
    for _ in write_replies(batch, zip(prompt.split(1), replies, strict=True)):
        pass
    return [reply.ids for reply in replies]
