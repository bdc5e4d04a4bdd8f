"""The vision-language backbone behind one adaptor: a Qwen2.5-VL of `transformers`, any size.

It offers what the system needs and hides what it does not: embedding of prompts with images, query states against a
cached prompt (the frozen prefix) or in one full pass, logits for the text loss, and greedy text generation with a KV
cache. Prompts are padded on the right; padding never changes a sample's result.

Legend: B batch, L prompt tokens, N queries, H hidden channels, S image side, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip3o.config.model import BackboneConfig
from blip3o.model.encoder import normalize_pixels
from blip3o.model.positions import multimodal_positions, next_position

TEMPORAL_PATCH = 2


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """Token ids [B, L], attention mask [B, L] (1 on real tokens), and images.

    `pixels` holds one uint8 image [B, S, S, 3] per row; a row without image tokens does not look at its own.
    """

    input_ids: Tensor
    attention_mask: Tensor
    pixels: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class PromptCache:
    """A prompt after one pass: key/value cache, its mask [B, L], next position [B], last hidden states [B, L, H]."""

    cache: Any
    attention_mask: Tensor
    position: Tensor
    states: Tensor


def _hf_config(config: BackboneConfig, image_token_id: int) -> Any:  # noqa: ANN401 - a transformers config
    from transformers import Qwen2_5_VLConfig

    vision = config.vision
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": config.vocab_size,
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
            "hidden_size": config.hidden_size,
            "intermediate_size": config.mlp_width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "num_key_value_heads": config.kv_heads,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": config.rope_theta,
                "mrope_section": list(config.mrope_section),
            },
        },
        vision_config={
            "depth": vision.layers,
            "hidden_size": vision.width,
            "intermediate_size": vision.mlp_width,
            "num_heads": vision.heads,
            "out_hidden_size": config.hidden_size,
            "patch_size": vision.patch_size,
            "spatial_merge_size": vision.merge,
            "fullatt_block_indexes": list(range(vision.layers)),
        },
        image_token_id=image_token_id,
        tie_word_embeddings=config.tied,
    )


def patchify(images_B3SS: Tensor, patch: int, merge: int) -> Tensor:
    """Images → rows of patches in Qwen's order: the merge x merge patches of one language token stand together.

    [B, 3, S, S] → [B · (S / patch)², 3 · 2 · patch²]; the frame is doubled along time.
    """
    batch, side = images_B3SS.shape[0], images_B3SS.shape[-1] // (patch * merge)
    x = images_B3SS.view(batch, 3, side, merge, patch, side, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)[:, :, :, :, :, :, None]
    return x.expand(-1, -1, -1, -1, -1, -1, TEMPORAL_PATCH, -1, -1).reshape(batch * (side * merge) ** 2, -1)


class Backbone(nn.Module):
    """A Qwen2.5-VL language and vision model."""

    def __init__(self, config: BackboneConfig, *, image_token_id: int) -> None:
        super().__init__()
        from transformers import Qwen2_5_VLForConditionalGeneration

        self.config = config
        self.image_token_id = image_token_id
        self.hf = Qwen2_5_VLForConditionalGeneration(_hf_config(config, image_token_id))

    @property
    def text(self) -> Any:  # noqa: ANN401 - the transformers module
        """The language model without its head."""
        return self.hf.model.language_model

    def embed(self, prompt: Prompt) -> Tensor:
        """Token embeddings with image tokens replaced by the vision tower's output, [B, L, H]."""
        embeddings = self.text.embed_tokens(prompt.input_ids)
        if prompt.pixels is None:
            return embeddings
        mask = prompt.input_ids == self.image_token_id
        shown = prompt.pixels[mask.any(dim=1)]
        if not shown.shape[0]:
            return embeddings
        vision = self.config.vision
        patches = patchify(normalize_pixels(shown), vision.patch_size, vision.merge)
        side = vision.grid * vision.merge
        grid_thw = torch.tensor([[1, side, side]]).expand(shown.shape[0], 3).to(patches.device)
        tokens = self.hf.model.visual(patches.to(embeddings.dtype), grid_thw=grid_thw).pooler_output
        return embeddings.masked_scatter(mask[..., None].expand_as(embeddings), tokens.to(embeddings.dtype))

    def _positions(self, prompt: Prompt) -> Tensor:
        return multimodal_positions(
            prompt.input_ids == self.image_token_id, prompt.attention_mask, self.config.vision.grid
        )

    def hidden(self, prompt: Prompt) -> Tensor:
        """Hidden states after the final norm, [B, L, H]."""
        output = self.text(
            inputs_embeds=self.embed(prompt),
            attention_mask=prompt.attention_mask,
            position_ids=self._positions(prompt),
            use_cache=False,
        )
        return output.last_hidden_state

    def logits(self, states: Tensor) -> Tensor:
        """Hidden states [..., H] → next-token logits [..., V]."""
        return self.hf.lm_head(states)

    def prefill(self, prompt: Prompt) -> PromptCache:
        """Runs a prompt once into a key/value cache."""
        output = self.text(
            inputs_embeds=self.embed(prompt),
            attention_mask=prompt.attention_mask,
            position_ids=self._positions(prompt),
            use_cache=True,
        )
        images = prompt.input_ids == self.image_token_id
        return PromptCache(
            cache=output.past_key_values,
            attention_mask=prompt.attention_mask,
            position=next_position(images, prompt.attention_mask, self.config.vision.grid),
            states=output.last_hidden_state,
        )

    def extend(self, cached: PromptCache, embeddings_BNH: Tensor) -> PromptCache:
        """Runs N more tokens, given as embeddings, against a cache (which grows); `states` are theirs, [B, N, H]."""
        batch, count = embeddings_BNH.shape[:2]
        mask = torch.cat([cached.attention_mask, cached.attention_mask.new_ones(batch, count)], dim=1)
        steps = torch.arange(count, device=mask.device)
        positions = (cached.position[:, None] + steps).expand(3, batch, count)
        output = self.text(
            inputs_embeds=embeddings_BNH,
            attention_mask=mask,
            position_ids=positions,
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
        positions = multimodal_positions(images, mask, self.config.vision.grid)
        output = self.text(inputs_embeds=embeddings, attention_mask=mask, position_ids=positions, use_cache=False)
        return output.last_hidden_state[:, -count:]

    def query_states(self, prompt: Prompt, queries_NH: Tensor) -> Tensor:
        """Query states [B, N, H] by the frozen prefix: the prompt goes into a cache without gradient, then the queries.

        Equal to `query_states_full` in value and in the queries' gradient, as nothing before the queries is trained.
        """
        with torch.no_grad():
            cached = self.prefill(prompt)
        return self.extend(cached, queries_NH.expand(prompt.input_ids.shape[0], -1, -1)).states

    @torch.no_grad()
    def greedy(self, prompt: Prompt, *, max_new_tokens: int, stop_ids: frozenset[int]) -> list[list[int]]:
        """The most likely continuation of each row, token by token, up to a stop token (which is left out)."""
        cached = self.prefill(prompt)
        last = prompt.attention_mask.long().sum(1) - 1
        token = self.logits(cached.states[torch.arange(last.shape[0]), last]).argmax(-1)
        done = [False] * last.shape[0]
        replies: list[list[int]] = [[] for _ in done]
        for _ in range(max_new_tokens):
            for row, value in enumerate(token.tolist()):
                done[row] = done[row] or value in stop_ids
                if not done[row]:
                    replies[row].append(value)
            if all(done):
                break
            cached = self.extend(cached, self.text.embed_tokens(token)[:, None])
            token = self.logits(cached.states[:, -1]).argmax(-1)
        return replies
