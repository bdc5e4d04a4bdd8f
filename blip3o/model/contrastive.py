"""Contrastive pretraining of a small encoder: a text tower, and projections into a shared image-text space.

The loss is SigLIP's (arXiv 2303.15343): a binary classification of every image-text pair in a micro-batch. It does not
depend on how micro-batches are spread over workers.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip3o.config.model import TextTowerConfig


class TextTower(nn.Module):
    """Maps caption ids to one vector: token and position embeddings, pre-norm blocks, masked mean, projection."""

    def __init__(self, config: TextTowerConfig, *, vocab_size: int, max_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, config.width)
        self.positions = nn.Parameter(torch.zeros(1, max_length, config.width))
        block = nn.TransformerEncoderLayer(
            config.width,
            config.heads,
            4 * config.width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, config.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(config.width)
        self.project = nn.Linear(config.width, config.embed_dim, bias=False)

    def forward(self, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """[B, L] ids and mask → unit vectors [B, embed_dim]."""
        x = self.tokens(input_ids_BL) + self.positions[:, : input_ids_BL.shape[1]]
        x = self.norm(self.blocks(x, src_key_padding_mask=~attention_mask_BL.bool()))
        weights = attention_mask_BL[..., None].to(x.dtype)
        return F.normalize(self.project((x * weights).sum(1) / weights.sum(1)), dim=-1)


class ContrastiveHead(nn.Module):
    """The text tower, the image projection, and SigLIP's learnable scale and bias."""

    def __init__(self, config: TextTowerConfig, *, features: int, vocab_size: int, max_length: int) -> None:
        """`features`: number of values in one image's features, tokens x channels."""
        super().__init__()
        self.text = TextTower(config, vocab_size=vocab_size, max_length=max_length)
        self.image_project = nn.Linear(features, config.embed_dim, bias=False)
        # One element, not zero-dimensional: DeepSpeed flattens parameters byte by byte.
        self.log_scale = nn.Parameter(torch.empty(1))
        self.bias = nn.Parameter(torch.empty(1))

    def image_vectors(self, features_BLF: Tensor) -> Tensor:
        """Pooled features [B, L, F] → unit vectors [B, embed_dim]."""
        return F.normalize(self.image_project(features_BLF.flatten(1)), dim=-1)

    def forward(self, features_BLF: Tensor, input_ids_BL: Tensor, attention_mask_BL: Tensor) -> Tensor:
        """SigLIP loss of each image against all captions of the micro-batch, [B]."""
        logits = self.image_vectors(features_BLF) @ self.text(input_ids_BL, attention_mask_BL).T
        logits = logits * self.log_scale.exp() + self.bias
        sign = 2 * torch.eye(logits.shape[0], device=logits.device) - 1
        return -F.logsigmoid(sign * logits).sum(1)
