"""The vision-language backbone behind one adaptor: Qwen2.5-VL, Qwen3 or Llama, of any size.

It embeds prompts with images, computes query states against a cached prompt (the frozen prefix) or in one full pass,
and gives logits for the text loss. `language.replies` writes replies with it. Prompts may be padded on either side;
padding never changes a sample's result.

Legend: B batch, L prompt tokens, N queries, H hidden channels, S image side, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from blip3o.config.backbone import BackboneConfig
from blip3o.model.encoder import normalize_pixels
from blip3o.model.language.attention import causal_mask
from blip3o.model.language.build import LanguageModel
from blip3o.model.language.decoder import Cache, Decoder
from blip3o.model.language.packing import groups_of_rows, packed_index, padded_cache
from blip3o.model.layers import rows_at_once
from blip3o.model.positions import (
    branched_mask,
    branched_positions,
    multimodal_positions,
    next_position,
    sequential_positions,
)
from blip3o.model.vision import SiglipVision

Numbering = Literal["native", "upstream"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids [B, L], attention mask [B, L] (1 on real tokens, padding on either side), and images.

    `pixels` holds one uint8 image [B, S, S, 3] per row; it is ignored in a row without image tokens. With `branches`
    [B, L], a row holds several texts with a common prefix: tokens of branch 0, then of 1, 2, …. Branches do not attend
    to each other, and each has the positions that it would have on its own. Only `Backbone.hidden` supports them.

    `lengths` are the real tokens of each row, int64 [B] on the CPU. With them, `Backbone.query_states` packs prompts,
    and computes nothing for padding. The last bits of a row then depend on its company: training may have that,
    sampling may not.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor | None = None
    branches: Tensor | None = None
    lengths: Tensor | None = None

    def split(self, rows: int) -> "Iterator[Prompt]":
        """The same prompts in chunks of `rows` rows; the last chunk may be smaller. Drops `branches` and `lengths`."""
        for start in range(0, self.input_ids.shape[0], rows):
            part = slice(start, start + rows)
            pixels = None if self.pixels is None else self.pixels[part]
            yield Prompt(input_ids=self.input_ids[part], attention_mask=self.attention_mask[part], pixels=pixels)


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """Keys and values of prompts: the cache [B, L] of each layer, its attention mask [B, L], the next position [B]."""

    cache: Cache
    attention_mask: Tensor
    position: Tensor


@dataclass(frozen=True, kw_only=True)
class Prefilled(PromptCache):
    """A cache and the hidden states [B, L, H] of the tokens that were last added to it."""

    states: Tensor


class Backbone(nn.Module):
    """A language model and its vision tower, if it has one."""

    def __init__(self, config: BackboneConfig, *, image_token_id: int) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = image_token_id
        self.hf = LanguageModel(config)
        if config.vision is not None and config.vision.kind == "siglip2":
            self.vision = SiglipVision(config.vision, out_width=config.hidden_size)

    @property
    def text(self) -> Decoder:
        """The language model without its head."""
        return self.hf.decoder

    def embed(self, prompt: Prompt) -> Tensor:
        """Token embeddings [B, L, H], where the vision tower's embeddings replace those of image tokens."""
        embeddings = self.text.embed_tokens(prompt.input_ids)
        if prompt.pixels is None:
            return embeddings
        mask = prompt.input_ids == self.image_token_id
        shown = prompt.pixels[mask.any(dim=1)]
        if not shown.shape[0] and torch.is_grad_enabled():
            # Ranks with images wait in their collectives for this rank's tower and its gradients, so it adds zeros.
            return embeddings + 0 * self.embed_images(prompt.pixels[:1], dtype=embeddings.dtype).sum()
        if not shown.shape[0]:
            return embeddings
        tokens = self.embed_images(shown, dtype=embeddings.dtype)
        return embeddings.masked_scatter(mask[..., None].expand_as(embeddings), tokens)

    def embed_images(self, pixels_BSS3: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Images, uint8 [B, S, S, 3] → the embeddings of their image tokens, concatenated, [B · tokens, H]."""
        vision = self.config.vision
        assert vision is not None  # the template of a text-only backbone makes no image tokens
        if vision.kind == "siglip2":
            return self.vision(pixels_BSS3).flatten(0, 1).to(dtype)
        return self.hf.tower(normalize_pixels(pixels_BSS3)).flatten(0, 1).to(dtype)

    def positions(self, images_BL: Tensor, attention_mask_BL: Tensor, numbering: Numbering) -> Tensor:
        """Position ids, [3, B, L] or, if all axes are equal, [B, L]; `images_BL` marks image tokens."""
        vision = self.config.vision
        if numbering == "upstream" or vision is None or vision.kind == "siglip2":
            return sequential_positions(attention_mask_BL)
        return multimodal_positions(images_BL, attention_mask_BL, vision.grid)

    def hidden(self, prompt: Prompt) -> Tensor:
        """Hidden states after the final norm, [B, L, H], with native position ids."""
        embeddings = self.embed(prompt)
        mask = prompt.attention_mask
        positions = self.positions(prompt.input_ids == self.image_token_id, mask, "native")
        if prompt.branches is not None:
            positions = branched_positions(positions, prompt.branches)
            scores = branched_mask(mask, prompt.branches, embeddings.dtype)
        else:
            scores = causal_mask(mask, mask.shape[1], embeddings.dtype)
        return self.text(embeddings, positions, scores)[0]

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., H] → next-token logits [..., V]."""
        return self.hf.lm_head(states)

    def prefill(self, prompt: Prompt, *, numbering: Numbering = "native") -> Prefilled:
        """Runs a prompt once into a key/value cache."""
        embeddings, mask = self.embed(prompt), prompt.attention_mask
        positions = self.positions(prompt.input_ids == self.image_token_id, mask, numbering)
        scores = causal_mask(mask, mask.shape[1], embeddings.dtype)
        states, cache = self.text(embeddings, positions, scores, keep=True)
        return Prefilled(cache=cache, attention_mask=mask, position=next_position(positions), states=states)

    def extend(self, cached: PromptCache, embeddings_BNH: Tensor, *, keep: bool = True) -> Prefilled:
        """Runs N more token embeddings [B, N, H] against a cache; the new `states` are theirs, [B, N, H].

        The given cache does not change. Without `keep`, the new one holds no keys and values.
        """
        batch, count = embeddings_BNH.shape[:2]
        mask = torch.cat([cached.attention_mask, cached.attention_mask.new_ones(batch, count)], dim=1)
        positions = cached.position[:, None] + torch.arange(count, device=mask.device)
        scores = causal_mask(mask, count, embeddings_BNH.dtype)
        states, cache = self.text(embeddings_BNH, positions, scores, cached.cache, keep=keep)
        return Prefilled(cache=cache, attention_mask=mask, position=cached.position + count, states=states)

    def query_states_full(self, prompt: Prompt, queries_NH: Tensor) -> Tensor:
        """Query states [B, N, H] by one pass over prompt and queries, with gradients in both: the slow reference."""
        batch, count = prompt.input_ids.shape[0], queries_NH.shape[0]
        embeddings = torch.cat([self.embed(prompt), queries_NH.expand(batch, -1, -1)], dim=1)
        mask = torch.cat([prompt.attention_mask, prompt.attention_mask.new_ones(batch, count)], dim=1)
        images = torch.cat(
            [prompt.input_ids == self.image_token_id, mask.new_zeros(batch, count, dtype=torch.bool)], dim=1
        )
        positions = self.positions(images, mask, self.config.positions)
        return self.text(embeddings, positions, causal_mask(mask, mask.shape[1], embeddings.dtype))[0][:, -count:]

    def query_states(self, prompt: Prompt, queries_NH: Tensor) -> Tensor:
        """Query states [B, N, H] with a frozen prefix: prefills the prompt without gradient, then runs the queries.

        The values and the queries' gradient equal those of `query_states_full`, as nothing before the queries trains.
        """
        with torch.no_grad():
            cached = self.fill(prompt)
        queries = queries_NH.expand(prompt.input_ids.shape[0], -1, -1)
        return self.extend(cached, queries, keep=False).states

    def fill(self, prompt: Prompt) -> PromptCache:
        """As `prefill`, but without states, which saves most of the last layer, and with the config's numbering.

        Prompts with `lengths` are packed, unless all of them are empty.
        """
        if prompt.lengths is not None and prompt.lengths.any():
            return self._fill_packed(prompt, prompt.lengths)
        return self._fill_padded(prompt)

    def _fill_padded(self, prompt: Prompt) -> PromptCache:
        rows = max(self._tokens_at_once(prompt.input_ids.flatten()) // prompt.input_ids.shape[1], 1)
        return concat_caches([self._fill(part) for part in prompt.split(rows)])

    def _fill(self, prompt: Prompt) -> PromptCache:
        embeddings, mask = self.embed(prompt), prompt.attention_mask
        positions = self.positions(prompt.input_ids == self.image_token_id, mask, self.config.positions)
        cache = self.text.fill(embeddings, positions, causal_mask(mask, mask.shape[1], embeddings.dtype))
        return PromptCache(cache=cache, attention_mask=mask, position=next_position(positions))

    def _fill_packed(self, prompt: Prompt, lengths: Tensor) -> PromptCache:
        """The cache of `_fill_padded`, computed for the real tokens only."""
        mask, counts = prompt.attention_mask, lengths.tolist()
        positions = self.positions(prompt.input_ids == self.image_token_id, mask, self.config.positions)
        index = packed_index(mask, sum(counts))
        embeddings, numbers = self.embed(prompt).flatten(0, 1)[index], positions.flatten(-2)[..., index]
        most = self._tokens_at_once(index)
        parts = [
            self.text.fill(embeddings[None, tokens], numbers[..., None, tokens], lengths=lengths[rows])
            for rows, tokens in groups_of_rows(counts, most)
        ]
        return PromptCache(cache=padded_cache(parts, mask), attention_mask=mask, position=next_position(positions))

    def _tokens_at_once(self, tokens: Tensor) -> int:
        """How many of the tokens a frozen pass should take at once, by its widest activation; see `rows_at_once`."""
        # Under ZeRO-3 (a partitioned weight is empty), each pass gathers the weights from all ranks, so they must make
        # equally many passes.
        if any(weight.numel() == 0 for weight in self.text.parameters()):
            return len(tokens)
        return rows_at_once(tokens, self.config.mlp_width * self.text.norm.weight.element_size())


def concat_caches(parts: Sequence[PromptCache]) -> PromptCache:
    """Joins prompts that were prefilled in chunks to one batch."""
    if len(parts) == 1:
        return parts[0]
    layers = zip(*(part.cache for part in parts), strict=True)
    return PromptCache(
        cache=tuple((torch.cat([k for k, _ in layer]), torch.cat([v for _, v in layer])) for layer in layers),
        attention_mask=torch.cat([part.attention_mask for part in parts]),
        position=torch.cat([part.position for part in parts]),
    )
