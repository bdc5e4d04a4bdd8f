"""The layout of a bundle: the folder with everything that serving needs. Imports no torch.

It holds `config.json` (format, model, template), `model.safetensors`, `tokenizer.json`, `provenance.json` and, written
last, the seal: `bundle.json` with the sha256 of each file. Without a seal, a folder is not a bundle; loading detects
every byte that differs from it. A bundle has no pickles.
"""

from typing import Any

from pydantic import Field

from blip3o.config.base import Frozen
from blip3o.config.model import ModelConfig
from blip3o.config.recipe import TemplateConfig

# The parts of a model that inference uses.
PARTS = ("encoder", "backbone", "queries", "dit", "head", "latent_scale", "coarse", "decoder")
WEIGHTS = "model.safetensors"
TEXTS = ("config.json", "tokenizer.json", "provenance.json")
FILES = (*TEXTS, WEIGHTS)
SEAL = "bundle.json"
FORMAT = "blip3o-bundle-2"  # increased whenever readers of the previous format would misread or reject the new one


class BundleConfig(Frozen):
    """Everything that inference needs besides weights and tokenizer."""

    format: str = Field(default=FORMAT, description="format of this folder")
    model: ModelConfig = Field(description="sizes of every part, and the sampler's defaults")
    template: TemplateConfig = Field(description="fixed text of prompts")
    max_length: int = Field(gt=0, description="length that every prompt is padded to, tokens")
    parts: tuple[str, ...] = Field(
        default=PARTS,
        description="parts of the model whose weights are included; a released model may come without its decoder",
    )

    def settings(self) -> dict[str, Any]:
        """What it says of the model and its prompts, by the names of a recipe's sections."""
        return {
            "model": self.model.model_dump(mode="json"),
            "data": {"template": self.template.model_dump(mode="json")},
        }
