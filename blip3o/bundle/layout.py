"""The layout of a bundle: the folder that serving needs, and nothing else. Needs no torch.

It holds `config.json` (format, model, template), `model.safetensors`, `tokenizer.json`, `provenance.json` and, written
last, `bundle.json` with the sha256 of each: without it a folder is not a bundle, and a byte that differs is found on
loading. There is no pickle in it.
"""

from pydantic import Field

from blip3o.config.base import Frozen
from blip3o.config.model import ModelConfig
from blip3o.config.recipe import TemplateConfig

PARTS = ("encoder", "backbone", "queries", "dit", "head", "latent_scale", "coarse", "decoder")  # of a model, that serve
WEIGHTS = "model.safetensors"
TEXTS = ("config.json", "tokenizer.json", "provenance.json")
FILES = (*TEXTS, WEIGHTS)
SEAL = "bundle.json"
FORMAT = "blip3o-bundle-2"  # counted up whenever a reader of the last one would misread or refuse the new one


class BundleConfig(Frozen):
    """Everything but weights and tokens that inference needs."""

    format: str = Field(default=FORMAT, description="layout of this folder")
    model: ModelConfig = Field(description="sizes of every part, and the sampler's defaults")
    template: TemplateConfig = Field(description="fixed words of prompts")
    max_length: int = Field(gt=0, description="token positions to which every prompt is padded")
    parts: tuple[str, ...] = Field(
        default=PARTS, description="parts of the model whose weights are here; a released one may lack its decoder"
    )
