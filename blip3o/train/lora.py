"""Low-rank adapters on linear layers of the backbone (LoRA, arXiv 2106.09685), by peft, an optional dependency.

A stage with `stage.lora` trains W + (alpha / rank) B A with W frozen. Adapters exist while it trains and in its
checkpoints. Its result is the sum under W's own name, so that later stages and bundles know nothing of adapters.
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
    """Names of the linear layers of the backbone that get an adapter, before they have it.

    Raises `ConfigError` for a pattern that matches none.
    """
    linear = [_PREFIX + name for name, part in model.backbone.hf.named_modules() if isinstance(part, nn.Linear)]
    for pattern in config.match:
        if not any(fnmatchcase(name, pattern) for name in linear):
            raise ConfigError(
                f"stage.lora.match '{pattern}' matches no linear layer of the backbone (it has, e.g., {linear[0]})"
            )
    return [name for name in linear if any(fnmatchcase(name, pattern) for pattern in config.match)]


def add_adapters(model: UnifiedModel, config: LoraConfig, seed: int) -> None:
    """Puts an adapter beside each layer: A normal with deviation fan_in^(-1/2), each from its own stream, B zero.

    Raises `ConfigError` if peft is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError("stage.lora needs peft: pip install 'blip3o[lora]'") from error
    names = [name.removeprefix(_PREFIX) for name in adapted_layers(model, config)]
    made = peft.LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=names, lora_dropout=0.0, bias="none")
    peft.inject_adapter_in_model(made, model.backbone.hf)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(_A):
                parameter.normal_(0, 1 / math.sqrt(parameter.shape[1]), generator=torch_generator(seed, "init", name))
            elif name.endswith(_B):
                parameter.zero_()


def base_weights(model: nn.Module) -> dict[str, Tensor]:
    """The frozen weights that have an adapter beside them, by the names they have without; none without adapters."""
    return {_plain(name): p for name, p in model.named_parameters() if name.endswith(_BASE)}


def _plain(name: str) -> str:
    return name.removesuffix(_BASE) + ".weight"


def merged(tensors: Mapping[str, Tensor], base: Mapping[str, Tensor], config: LoraConfig | None) -> dict[str, Tensor]:
    """What a stage trained, with each adapter's tensors replaced by the sum of its product and its base weight.

    The sum is fp32, rounded to the adapter's dtype: an average in fp32 stays so.
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
