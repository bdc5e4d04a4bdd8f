"""The `transformers` language model of a backbone's config: the other side of comparisons, here and in the tests.

It takes the state dict of `Backbone.hf`. `inner` returns the module that turns embeddings into hidden states.
"""

from typing import Any

from blip3o.config.backbone import BackboneConfig, VisionConfig


def transformers_model(config: BackboneConfig, *, image_token_id: int) -> Any:  # noqa: ANN401 - a transformers model
    """The family's model, uninitialised, with its language-model head; for Qwen2.5-VL also with its vision tower."""
    if config.family == "qwen2_5_vl":
        return _qwen2_5_vl(config, image_token_id)
    return _qwen3(config) if config.family == "qwen3" else _llama(config)


def inner(config: BackboneConfig, model: Any) -> Any:  # noqa: ANN401 - transformers modules
    """The language model without its head: embeddings [B, L, H] → `last_hidden_state` [B, L, H], after its norm."""
    return model.model.language_model if config.family == "qwen2_5_vl" else model.model


def qwen_vision_options(vision: VisionConfig, *, out_width: int) -> dict[str, Any]:
    """The `vision_config` of a Qwen2.5-VL. Blocks outside `full_layers` attend within windows."""
    every = tuple(range(vision.layers))
    options: dict[str, Any] = {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "intermediate_size": vision.mlp_width,
        "num_heads": vision.heads,
        "out_hidden_size": out_width,
        "patch_size": vision.patch_size,
        "spatial_merge_size": vision.merge,
        "fullatt_block_indexes": list(every if vision.window is None else vision.full_layers),
    }
    return options if vision.window is None else options | {"window_size": vision.window}


def _sizes(config: BackboneConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        # The tokenizer knows the BOS, EOS and padding tokens; the embedding needs no padding row.
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "rms_norm_eps": config.norm_eps,
    }


def _rope(config: BackboneConfig) -> dict[str, Any]:
    if config.rope_scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    return {"rope_type": "llama3", "rope_theta": config.rope_theta, **config.rope_scaling.model_dump()}


def _qwen2_5_vl(config: BackboneConfig, image_token_id: int) -> Any:  # noqa: ANN401
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    assert config.vision is not None  # the config's validator requires it of this family
    rope = {**_rope(config), "mrope_section": list(config.mrope_section)}
    return Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**_sizes(config), "rope_parameters": rope},
            vision_config=qwen_vision_options(config.vision, out_width=config.hidden_size),
            image_token_id=image_token_id,
            tie_word_embeddings=config.tied,
        )
    )


def _text_only(config: BackboneConfig) -> dict[str, Any]:
    return {
        **_sizes(config),
        "head_dim": config.head_dim,
        "rope_parameters": _rope(config),
        "tie_word_embeddings": config.tied,
    }


def _qwen3(config: BackboneConfig) -> Any:  # noqa: ANN401
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM(Qwen3Config(**_text_only(config)))


def _llama(config: BackboneConfig) -> Any:  # noqa: ANN401
    from transformers import LlamaConfig, LlamaForCausalLM

    options = _text_only(config)
    if config.rope_scaling is not None:
        stretched = config.rope_scaling.factor * config.rope_scaling.original_max_position_embeddings
        options["max_position_embeddings"] = int(stretched)
    return LlamaForCausalLM(LlamaConfig(**options))
