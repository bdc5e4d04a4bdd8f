"""Sizes of a released BLIP3o-Model checkpoint, from its config.json and from the shapes of its tensors; and back.

config.json describes the Qwen2.5-VL alone. Upstream's code knows the DiT by heart and finds its condition's width in
the folder's name ("3B" or "7B"); here both come from the shapes, so that any folder name will do. What neither tells
are facts of the one EVA-CLIP tower in use: heads of 112 channels, and its full size where the tower is not there.
"""

import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from blip3o.config.backbone import BackboneConfig, VisionConfig
from blip3o.config.decoder import KlConfig, SdxlDecoderConfig
from blip3o.config.model import DiTConfig, EncoderConfig, ModelConfig
from blip3o.config.presets.decoders import SDXL_1024
from blip3o.config.presets.released import EVA_448
from blip3o.config.resize import ResizeConfig
from blip3o.config.sampler import SamplerConfig
from blip3o.errors import BundleError, one_line

Json = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]

EVA_HEAD_WIDTH = 112
RELEASED_NORM_EPS = 1e-5  # of the DiT, which upstream has by heart
EVA_WHOLE: Json = {name: EVA_448[name] for name in ("image_size", "patch_size", "layers", "mlp_width")}
VISION_SIZE = 448  # side to which upstream scales images that the backbone is shown
# Saved configs leave out what is transformers' default for the tower.
QWEN_VISION: Json = {
    "depth": 32,
    "hidden_size": 1280,
    "num_heads": 16,
    "intermediate_size": 3420,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
# The decoder that the hub's folder holds, for checkpoints that come without it.
SDXL = SdxlDecoderConfig.model_validate(SDXL_1024)


def model_config(
    config: Json, shapes: Shapes, decoder: SdxlDecoderConfig | None, *, tied: bool, vision_size: int = VISION_SIZE
) -> ModelConfig:
    """The model of a released checkpoint. `shapes` are by our names, but the queries', which are [1, N, H].

    Sampling and positions are set to what upstream does with the released weights. Raises `BundleError` if config.json
    lacks a field, or if the two do not describe a model of this kind.
    """
    try:
        encoder = _encoder(config, shapes)
        return ModelConfig(
            num_queries=shapes["queries"][1],
            encoder=encoder,
            backbone=_backbone(config, tied=tied, vision_size=vision_size),
            dit=_dit(shapes, encoder.channels),
            decoder=decoder or SDXL,
            sampler=SamplerConfig(truncate_time=True),
        )
    except KeyError as error:
        raise BundleError(f"the checkpoint has no {error}: is it a BLIP3o-Model, and are all shards there?") from error
    except ValidationError as error:
        raise BundleError(f"config.json and weights make no model: {' '.join(str(error).split())[:300]}") from error


def _backbone(config: Json, *, tied: bool, vision_size: int) -> BackboneConfig:
    text: Json = {**config, **(config.get("text_config") or {})}
    vision: Json = {**QWEN_VISION, **config["vision_config"]}
    rope: Json = text.get("rope_scaling") or text.get("rope_parameters") or {}
    if text.get("use_sliding_window"):
        raise BundleError("config.json asks for sliding-window attention, which no released checkpoint has")
    backbone = BackboneConfig(
        family="qwen2_5_vl",
        vocab_size=text["vocab_size"],
        hidden_size=text["hidden_size"],
        layers=text["num_hidden_layers"],
        heads=text["num_attention_heads"],
        kv_heads=text["num_key_value_heads"],
        mlp_width=text["intermediate_size"],
        norm_eps=text["rms_norm_eps"],
        rope_theta=text.get("rope_theta") or rope["rope_theta"],
        positions="upstream",
        tied=tied,
        vision=VisionConfig(
            resize=ResizeConfig(mode="stretch"),
            image_size=vision_size,
            patch_size=vision["patch_size"],
            merge=vision["spatial_merge_size"],
            width=vision["hidden_size"],
            layers=vision["depth"],
            heads=vision["num_heads"],
            mlp_width=vision["intermediate_size"],
            window=vision["window_size"],
            full_layers=tuple(vision["fullatt_block_indexes"]),
        ),
    )
    if tuple(rope["mrope_section"]) != backbone.mrope_section:
        raise BundleError(
            f"config.json has mrope_section {rope['mrope_section']}, a head of {backbone.head_dim} channels has "
            f"{list(backbone.mrope_section)} here"
        )
    return backbone


def _encoder(config: Json, shapes: Shapes) -> EncoderConfig:
    name, pooling = str(config["gen_vision_tower"]), str(config["gen_pooling"])
    pool = re.fullmatch(r"early_pool2d_(\d+)", pooling)
    if "eva" not in name.lower() or pool is None:
        raise BundleError(f"gen_vision_tower '{name}' with gen_pooling '{pooling}' is none that this reads: EVA-CLIP")
    width = int(config["gen_hidden_size"])
    sizes = _tower_sizes(shapes) if "encoder.pos_embed" in shapes else EVA_WHOLE
    if width % EVA_HEAD_WIDTH:
        raise BundleError(f"gen_hidden_size {width} is not a multiple of {EVA_HEAD_WIDTH}, the width of EVA's heads")
    return EncoderConfig(width=width, heads=width // EVA_HEAD_WIDTH, pool=int(pool.group(1)), **sizes)


def _tower_sizes(shapes: Shapes) -> Json:
    patch = shapes["encoder.patch_embed.proj.weight"][-1]
    side = round((shapes["encoder.pos_embed"][1] - 1) ** 0.5)
    return {
        "image_size": side * patch,
        "patch_size": patch,
        "layers": _blocks(shapes, "encoder.blocks."),
        "mlp_width": shapes["encoder.blocks.0.mlp.fc1.weight"][0],
    }


def _dit(shapes: Shapes, channels: int) -> DiTConfig:
    dim, folded = shapes["dit.patch_embedder.proj.weight"]
    (heads,) = shapes["dit.layers.0.gate"]
    return DiTConfig(
        patch_size=round((folded / channels) ** 0.5),
        dim=dim,
        layers=_blocks(shapes, "dit.layers."),
        heads=heads,
        kv_heads=shapes["dit.layers.0.attn1.to_k.weight"][0] * heads // dim,
        mlp_width=shapes["dit.layers.0.feed_forward.linear_1.weight"][0],
        time_width=shapes["dit.time_caption_embed.timestep_embedder.linear_1.weight"][0],
    )


def _blocks(shapes: Shapes, prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in shapes if name.startswith(prefix))


def decoder_config(unet: Json, vae: Json) -> SdxlDecoderConfig:
    """The pixel decoder of the config.json of its U-Net and of its VAE. Raises `BundleError` for another kind."""
    try:
        blocks = zip(unet["down_block_types"], unet["transformer_layers_per_block"], strict=True)
        autoencoder = KlConfig(
            kind="kl",
            image_size=unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1),
            latent_channels=vae["latent_channels"],
            channels=tuple(vae["block_out_channels"]),
            scaling=vae["scaling_factor"],
            layers_per_block=vae["layers_per_block"],
            groups=vae["norm_num_groups"],
        )
        return SdxlDecoderConfig(
            kind="sdxl",
            autoencoder=autoencoder,
            null="prompt",
            channels=tuple(unet["block_out_channels"]),
            layers_per_block=unet["layers_per_block"],
            attention_layers=tuple(layers if kind.startswith("CrossAttn") else 0 for kind, layers in blocks),
            heads=tuple(unet["attention_head_dim"]),
            groups=unet["norm_num_groups"],
            size_width=unet["addition_time_embed_dim"],
        )
    except (KeyError, TypeError, ValueError) as error:  # pydantic's errors are ValueErrors
        raise BundleError(f"diffusion-decoder is no SDXL-type U-Net with its VAE ({one_line(error)})") from error


def config_json(model: ModelConfig, *, max_length: int) -> Json:
    """The config.json with which upstream's code reads a model that was trained here.

    Raises `BundleError` for a model that upstream has no place for: another backbone, features mapped or normalised.
    """
    backbone, encoder, vision = model.backbone, model.encoder, model.backbone.vision
    if backbone.family != "qwen2_5_vl" or vision is None or not {"encoder", "dit"} <= model.parts:
        raise BundleError(f"the released layout has no place for {model.objective} with a {backbone.family} backbone")
    plain = not (encoder.feature_dim or encoder.normalize or model.normalize_latents)
    if encoder.kind != "eva_clip" or not plain or encoder.width != EVA_HEAD_WIDTH * encoder.heads:
        raise BundleError(
            "the released layout has no place for mapped or normalised features, or heads other than EVA's"
        )
    if model.sampler.shift != 1 or model.dit.norm_eps != RELEASED_NORM_EPS or model.dit.patch_size != 1:
        raise BundleError(
            f"the released layout has no place for sampler.shift {model.sampler.shift:g}, dit.norm_eps "
            f"{model.dit.norm_eps:g} and dit.patch_size {model.dit.patch_size}: there they are 1, "
            f"{RELEASED_NORM_EPS:g} and 1"
        )
    return {
        "architectures": ["blip3oQwenForCausalLM"],
        "model_type": "blip3o_qwen",
        "vocab_size": backbone.vocab_size,
        "hidden_size": backbone.hidden_size,
        "intermediate_size": backbone.mlp_width,
        "num_hidden_layers": backbone.layers,
        "num_attention_heads": backbone.heads,
        "num_key_value_heads": backbone.kv_heads,
        "max_position_embeddings": 128000,
        "rms_norm_eps": backbone.norm_eps,
        "rope_theta": backbone.rope_theta,
        "rope_scaling": {"type": "mrope", "mrope_section": list(backbone.mrope_section)},
        "use_sliding_window": False,
        "tie_word_embeddings": backbone.tied,
        "vision_config": _vision_json(vision, out_width=backbone.hidden_size),
        "gen_vision_tower": "eva-clip-E-14-plus",
        "gen_hidden_size": encoder.width,
        "gen_pooling": f"early_pool2d_{encoder.pool}",
        "n_query": model.num_queries,
        "mm_projector_type": "mlp2x_gelu",
        "use_mm_proj": True,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "image_aspect_ratio": "square",
        "tokenizer_model_max_length": max_length,
        "tokenizer_padding_side": "right",
    }


def _vision_json(vision: VisionConfig, *, out_width: int) -> Json:
    windowed = vision.window is not None
    return {
        "depth": vision.layers,
        "hidden_size": vision.width,
        "num_heads": vision.heads,
        "intermediate_size": vision.mlp_width,
        "patch_size": vision.patch_size,
        "temporal_patch_size": 2,
        "spatial_merge_size": vision.merge,
        "out_hidden_size": out_width,
        "window_size": vision.window if windowed else vision.image_size,
        "fullatt_block_indexes": list(vision.full_layers if windowed else range(vision.layers)),
        "tokens_per_second": 2,
    }
