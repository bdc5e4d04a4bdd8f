"""Low-rank adapters on linear layers of the backbone (LoRA, arXiv 2106.09685), using the optional dependency peft.

A stage with `stage.lora` trains W + (alpha / rank) B A with W frozen. Adapters only exist during training and in its
checkpoints. The stage's result holds the merged weights under W's own name, so later stages and bundles need no peft.
"""

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from blip3o.config.training import LoraConfig
from blip3o.errors import ConfigError
from blip3o.model.unified import UnifiedModel
from blip3o.rng import torch_generator
from blip3o.train.stages import ADAPTER

_PREFIX = "backbone.hf."
_A, _B, _BASE = ".lora_A.default.weight", ".lora_B.default.weight", ".base_layer.weight"


def adapted_layers(model: UnifiedModel, config: LoraConfig) -> list[str]:
    """Names of the backbone's linear layers that get an adapter, as they are before it is added.

    Raises `ConfigError` for a pattern that matches no layer.
    """
    linear = [_PREFIX + name for name, part in model.backbone.hf.named_modules() if isinstance(part, nn.Linear)]
    for pattern in config.match:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ConfigError(
                f"stage.lora.match '{pattern}' matches no linear layer of the backbone (it has, e.g., {linear[0]})"
            )
    return [name for name in linear if any(fnmatchcase(name, pattern) for pattern in config.match)]


def add_adapters(model: UnifiedModel, config: LoraConfig, seed: int) -> None:
    """Adds an adapter to each matched layer. Raises `ConfigError` if peft is not installed.

    A is normal with standard deviation fan_in^(-1/2), drawn from a random stream of its own. B is zero, so that
    training starts from the base model. Both are fp32, as all that trains until the engine rounds it.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError("stage.lora needs peft: pip install 'blip3o[lora]'") from error
    names = [name.removeprefix(_PREFIX) for name in adapted_layers(model, config)]
    peft_config = peft.LoraConfig(
        r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0, bias="none"
    )
    peft.inject_adapter_in_model(peft_config, model.backbone.hf)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ADAPTER in name:
                parameter.data = parameter.data.float()  # peft takes the dtype of the frozen weights
            if name.endswith(_A):
                value = torch.empty(parameter.shape)
                value.normal_(0, 1 / math.sqrt(parameter.shape[1]), generator=torch_generator(seed, "init", name))
                parameter.copy_(value)
            elif name.endswith(_B):
                parameter.zero_()


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The frozen base weights of adapted layers, under the names they have without adapters."""
    return {name.removesuffix(_BASE) + ".weight": p for name, p in model.named_parameters() if name.endswith(_BASE)}


def merge_adapters(
    tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], config: LoraConfig | None
) -> dict[str, Tensor]:
    """The trained tensors, with each adapter replaced by its merged weight W + (alpha / rank) B A.

    The sum is computed in fp32 and rounded to the adapter's dtype: a moving average stays fp32.
    """
    found = {name: tensor for name, tensor in tensors.items() if ADAPTER not in name}
    if config is None:
        return found
    for name, weight in base.items():
        layer = name.removesuffix(".weight")
        if layer + _A in tensors:
            low, high = tensors[layer + _A], tensors[layer + _B]
            product = high.float() @ low.float() * (config.alpha / config.rank)
            found[name] = (weight.float() + product).to(low.dtype)
    return found
