"""The key/value cache of replies that are written together, one token at a time.

It has a fixed number of rows and columns, so every step is the same arithmetic on the same shapes, whichever rows are
in use: a row's values do not depend on the others. Prompts are read one by one, for the same reason.

Legend: W rows, S columns, L tokens of a padded prompt, V vocabulary.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from blip3o.model.language.attention import additive_mask

if TYPE_CHECKING:
    from blip3o.model.backbone import Backbone, Prefilled, Prompt


class ReplyCache:
    """Keys and values of W conversations, each of at most S tokens with its padding. Rows come and go."""

    def __init__(self, backbone: "Backbone", *, rows: int, columns: int) -> None:
        config, weight = backbone.config, backbone.text.norm.weight
        self._backbone = backbone
        shape = (rows, config.kv_heads, columns, config.head_dim)
        self._cache = tuple((weight.new_zeros(shape), weight.new_zeros(shape)) for _ in range(config.layers))
        self._real = torch.zeros(rows, columns, dtype=torch.bool, device=weight.device)
        self._column = torch.zeros(rows, dtype=torch.long, device=weight.device)
        self._position = torch.zeros(rows, dtype=torch.long, device=weight.device)

    def put(self, row: int, prompt: "Prompt") -> Tensor:
        """Reads one prompt [1, L] into a row, over what was there; returns the logits [V] of the first token."""
        return self.place(row, prompt, self._backbone.prefill(prompt))

    def place(self, row: int, prompt: "Prompt", read: "Prefilled") -> Tensor:
        """As `put`, with a prompt that was read before."""
        width = prompt.input_ids.shape[1]
        for stored, new in zip(self._cache, read.cache, strict=True):
            for mine, theirs in zip(stored, new, strict=True):
                mine[row, :, :width] = theirs[0]
                mine[row, :, width:] = 0  # a masked column still counts 0 times its value, which may be NaN
        self._real[row] = False
        self._real[row, :width] = prompt.attention_mask[0].bool()
        self._column[row] = width
        self._position[row] = read.position[0]
        columns = torch.arange(width, device=self._column.device)
        last = (columns * prompt.attention_mask[0]).argmax()
        return self._backbone.logits(read.states[:1, last])[0]

    def step(self, tokens_W: Tensor, active_W: Tensor) -> Tensor:
        """Adds one token to each active row; returns the logits [W, V] of the next ones. Other rows stay as they are.

        A row that is not active must be `put` again before it is used: its next column is overwritten.
        """
        text = self._backbone.text
        rows = torch.arange(len(self._column), device=self._column.device)
        self._real[rows, self._column] |= active_W
        scores = additive_mask(self._real[:, None], text.norm.weight.dtype)
        states, _ = text(
            text.embed_tokens(tokens_W)[:, None], self._position[:, None], scores, self._cache, columns=self._column
        )
        self._column += active_W
        self._position += active_W
        # A reply may fill its row to the end; the row is not stepped again, but has to point into the cache.
        self._column.clamp_(max=self._real.shape[1] - 1)
        return self._backbone.logits(states[:, 0])
