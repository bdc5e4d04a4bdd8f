"""The language model with its head and, for Qwen2.5-VL, its vision tower, under the names of published weights."""

from typing import cast

from torch import nn

from blip3o.config.backbone import BackboneConfig
from blip3o.model.language.decoder import Decoder
from blip3o.model.vision import QwenVision


class _WithTower(nn.Module):
    """Qwen2.5-VL's model: the vision tower next to the decoder. It only names them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        assert config.vision is not None  # the config's validator requires it of this family
        self.visual = QwenVision(config.vision, out_width=config.hidden_size)
        self.language_model = Decoder(config)


class LanguageModel(nn.Module):
    """A decoder and its language-model head; the head shares the embedding's weights if the config ties them."""

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.model = _WithTower(config) if config.family == "qwen2_5_vl" else Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.decoder.embed_tokens.weight

    @property
    def decoder(self) -> Decoder:
        """The language model without its head."""
        return self.model if isinstance(self.model, Decoder) else self.model.language_model

    @property
    def tower(self) -> QwenVision:
        """Qwen2.5-VL's vision tower. Raises `AttributeError` for other families."""
        return cast("_WithTower", self.model).visual
