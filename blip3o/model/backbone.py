"""The vision-language backbone behind one adaptor: a Qwen2.5-VL, Qwen3 or Llama of `transformers`, any size.

It offers what the system needs and hides what it does not: embedding of prompts with images, query states against a
cached prompt (the frozen prefix) or in one full pass, logits for the text loss, and greedy text generation with a KV
cache, token by token. Prompts may be padded at either side; padding never changes a sample's result.

Legend: B batch, L prompt tokens, N queries, H hidden channels, S image side, V vocabulary.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from blip3o.config.backbone import BackboneConfig
from blip3o.model.encoder import normalize_pixels
from blip3o.model.language import build_language_model, inner
from blip3o.model.layers import rows_at_once
from blip3o.model.positions import (
    branched_mask,
    branched_positions,
    multimodal_positions,
    next_position,
    sequential_positions,
)
from blip3o.model.vision import SiglipVision, patchify

Numbering = Literal["native", "upstream"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids [B, L], attention mask [B, L] (1 on real tokens, padding at either side), and images.

    `pixels` holds one uint8 image [B, S, S, 3] per row; a row without image tokens does not look at its own. With
    `branches` [B, L] a row is several texts with a common beginning: tokens of branch 0, then those of 1, 2, …, each
    branch blind to the others and at the positions that it would have by itself. Only `Backbone.hidden` takes them.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor | None = None
    branches: Tensor | None = None

    def split(self, rows: int) -> "Iterator[Prompt]":
        """The same prompts in groups of `rows`; the last group may have fewer."""
        for start in range(0, self.input_ids.shape[0], rows):
            part = slice(start, start + rows)
            pixels = None if self.pixels is None else self.pixels[part]
            yield Prompt(input_ids=self.input_ids[part], attention_mask=self.attention_mask[part], pixels=pixels)


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """A prompt after one pass: key/value cache, its mask [B, L], next position [B], last hidden states [B, L, H]."""

    cache: Any
    attention_mask: Tensor
    position: Tensor
    states: Tensor


class Backbone(nn.Module):
    """A language model and the vision tower that feeds it, if it has one."""

    def __init__(self, config: BackboneConfig, *, image_token_id: int) -> None:
        super().__init__()
        self.config = config
        self.image_token_id = image_token_id
        self.hf = build_language_model(config, image_token_id=image_token_id)
        if config.vision is not None and config.vision.kind == "siglip2":
            self.vision = SiglipVision(config.vision, out_width=config.hidden_size)

    @property
    def text(self) -> Any:  # noqa: ANN401 - the transformers module
        """The language model without its head."""
        return inner(self.config, self.hf)

    def embed(self, prompt: Prompt) -> Tensor:
        """Token embeddings with image tokens replaced by what the vision tower makes of the images, [B, L, H]."""
        embeddings = self.text.embed_tokens(prompt.input_ids)
        if prompt.pixels is None:
            return embeddings
        mask = prompt.input_ids == self.image_token_id
        shown = prompt.pixels[mask.any(dim=1)]
        if not shown.shape[0] and torch.is_grad_enabled():
            # Other ranks show images, and wait in their collectives for this one's tower and its gradients: zeros.
            return embeddings + 0 * self.embed_images(prompt.pixels[:1], dtype=embeddings.dtype).sum()
        if not shown.shape[0]:
            return embeddings
        tokens = self.embed_images(shown, dtype=embeddings.dtype)
        return embeddings.masked_scatter(mask[..., None].expand_as(embeddings), tokens)

    def embed_images(self, pixels_BSS3: Tensor, *, dtype: torch.dtype) -> Tensor:
        """Images, uint8 [B, S, S, 3] → the tokens that stand for them, one after another, [B · tokens, H]."""
        vision = self.config.vision
        assert vision is not None  # a template of a text-only backbone makes no image tokens
        if vision.kind == "siglip2":
            return self.vision(pixels_BSS3).flatten(0, 1).to(dtype)
        patches = patchify(normalize_pixels(pixels_BSS3), vision.patch_size, vision.merge)
        side = vision.grid * vision.merge
        grid_thw = torch.tensor([[1, side, side]]).expand(pixels_BSS3.shape[0], 3).to(patches.device)
        return self.hf.model.visual(patches.to(dtype), grid_thw=grid_thw).pooler_output.to(dtype)

    def positions(self, images_BL: Tensor, attention_mask_BL: Tensor, numbering: Numbering) -> Tensor:
        """Positions of tokens of which `images_BL` marks those of images: [3, B, L] or, all axes alike, [B, L]."""
        vision = self.config.vision
        if numbering == "upstream" or vision is None or vision.kind == "siglip2":
            return sequential_positions(attention_mask_BL)
        return multimodal_positions(images_BL, attention_mask_BL, vision.grid)

    def hidden(self, prompt: Prompt) -> Tensor:
        """Hidden states after the final norm, [B, L, H], at native positions."""
        embeddings = self.embed(prompt)
        mask = prompt.attention_mask
        positions = self.positions(prompt.input_ids == self.image_token_id, mask, "native")
        if prompt.branches is not None:
            positions = branched_positions(positions, prompt.branches)
            mask = branched_mask(mask, prompt.branches, embeddings.dtype)
        output = self.text(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., H] → next-token logits [..., V]."""
        return self.hf.lm_head(states)

    def prefill(self, prompt: Prompt, *, numbering: Numbering = "native") -> PromptCache:
        """Runs a prompt once into a key/value cache."""
        images = prompt.input_ids == self.image_token_id
        positions = self.positions(images, prompt.attention_mask, numbering)
        output = self.text(
            inputs_embeds=self.embed(prompt),
            attention_mask=prompt.attention_mask,
            position_ids=positions,
            use_cache=True,
        )
        return PromptCache(
            cache=output.past_key_values,
            attention_mask=prompt.attention_mask,
            position=next_position(positions),
            states=output.last_hidden_state,
        )

    def extend(self, cached: PromptCache, embeddings_BNH: Tensor) -> PromptCache:
        """Runs N more tokens, given as embeddings, against a cache (which grows); `states` are theirs, [B, N, H]."""
        batch, count = embeddings_BNH.shape[:2]
        mask = torch.cat([cached.attention_mask, cached.attention_mask.new_ones(batch, count)], dim=1)
        steps = torch.arange(count, device=mask.device)
        output = self.text(
            inputs_embeds=embeddings_BNH,
            attention_mask=mask,
            position_ids=cached.position[:, None] + steps,
            past_key_values=cached.cache,
            use_cache=True,
        )
        return PromptCache(
            cache=output.past_key_values,
            attention_mask=mask,
            position=cached.position + count,
            states=output.last_hidden_state,
        )

    def query_states_full(self, prompt: Prompt, queries_NH: Tensor) -> Tensor:
        """Query states [B, N, H] by one pass over prompt and queries, gradients through both: the slow reference."""
        batch, count = prompt.input_ids.shape[0], queries_NH.shape[0]
        embeddings = torch.cat([self.embed(prompt), queries_NH.expand(batch, -1, -1)], dim=1)
        mask = torch.cat([prompt.attention_mask, prompt.attention_mask.new_ones(batch, count)], dim=1)
        images = torch.cat(
            [prompt.input_ids == self.image_token_id, mask.new_zeros(batch, count, dtype=torch.bool)], dim=1
        )
        positions = self.positions(images, mask, self.config.positions)
        output = self.text(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state[:, -count:]

    def query_states(self, prompt: Prompt, queries_NH: Tensor) -> Tensor:
        """Query states [B, N, H] by the frozen prefix: the prompt goes into a cache without gradient, then the queries.

        Equal to `query_states_full` in value and in the queries' gradient, as nothing before the queries is trained.
        """
        with torch.no_grad(), skip_last_mlp(self.text.layers):
            widest = self.config.mlp_width * prompt.input_ids.shape[1] * self.text.embed_tokens.weight.element_size()
            rows = rows_at_once(prompt.input_ids, widest)
            cached = concat_caches([self.prefill(part, numbering=self.config.positions) for part in prompt.split(rows)])
        return self.extend(cached, queries_NH.expand(prompt.input_ids.shape[0], -1, -1)).states

    @torch.no_grad()
    def stream(
        self, prompt: Prompt, *, max_new_tokens: int, stop_ids: Collection[int]
    ) -> Iterator[tuple[int | None, ...]]:
        """The most likely continuation as it grows: at each step one token id per row, None for a row that has stopped.

        A stop token ends its row and is left out; when all rows have stopped, so does the stream. Each token costs one
        pass of one token against the cache, and is computed only when it is asked for.
        """
        cached = self.prefill(prompt)
        token = self.logits(last_token_states(cached.states, prompt.attention_mask)).argmax(-1)
        done = [False] * token.shape[0]
        for step in range(max_new_tokens):
            if step:
                cached = self.extend(cached, self.text.embed_tokens(token)[:, None])
                token = self.logits(cached.states[:, -1]).argmax(-1)
            values = token.tolist()
            done = [ended or value in stop_ids for ended, value in zip(done, values, strict=True)]
            if all(done):
                return
            yield tuple(None if ended else value for ended, value in zip(done, values, strict=True))

    def greedy(self, prompt: Prompt, *, max_new_tokens: int, stop_ids: Collection[int]) -> list[list[int]]:
        """The most likely continuation of each row, up to a stop token, which is left out."""
        replies: list[list[int]] = [[] for _ in range(prompt.input_ids.shape[0])]
        for tokens in self.stream(prompt, max_new_tokens=max_new_tokens, stop_ids=stop_ids):
            for reply, token in zip(replies, tokens, strict=True):
                if token is not None:
                    reply.append(token)
        return replies


@contextmanager
def skip_last_mlp(layers: nn.ModuleList) -> Iterator[None]:
    """Skips the last layer's MLP: a pass that only fills the key/value cache does not need what comes after it."""
    last = layers[-1]
    mlp, last.mlp = last.mlp, nn.Identity()
    try:
        yield
    finally:
        last.mlp = mlp


def concat_caches(parts: Sequence[PromptCache]) -> PromptCache:
    """Prompts that were run in groups as one batch; the first part's cache becomes that of all."""
    if len(parts) == 1:
        return parts[0]
    for layers in zip(*(part.cache.layers for part in parts), strict=True):
        layers[0].keys = torch.cat([layer.keys for layer in layers])
        layers[0].values = torch.cat([layer.values for layer in layers])
    return PromptCache(
        cache=parts[0].cache,
        attention_mask=torch.cat([part.attention_mask for part in parts]),
        position=torch.cat([part.position for part in parts]),
        states=torch.cat([part.states for part in parts]),
    )


def last_token_states(states_BLH: Tensor, attention_mask_BL: Tensor) -> Tensor:
    """The states [B, H] at each row's last real token, whichever side the padding is on."""
    columns = torch.arange(attention_mask_BL.shape[1], device=attention_mask_BL.device)
    last = (columns * attention_mask_BL).argmax(dim=1)
    return states_BLH[torch.arange(states_BLH.shape[0], device=last.device), last]
