"""The published 4B and 8B at full size, from the heads of their shards: tens of gigabytes that are all holes."""

import json
import math

import pytest

from blip3o.bundle.reading import build_model
from blip3o.config.load import preset_model
from blip3o.convert.from_released import plan_import, read_folder
from blip3o.model.empty_weights import init_empty_weights
from tests.convert.released_folder import CONFIG, slow_tokenizer_files

SIZES = {
    "4b": {"hidden": 2048, "layers": 36, "heads": 16, "kv": 2, "mlp": 11008, "tied": True},
    "8b": {"hidden": 3584, "layers": 28, "heads": 28, "kv": 4, "mlp": 18944, "tied": False},
}
VOCABULARY, DIM, FFN, TIME = 151668, 1792, 4864, 1024


def linear(name, rows, columns, *, bias=True):
    return {f"{name}.weight": (rows, columns)} | ({f"{name}.bias": (rows,)} if bias else {})


def norm(name, width, *, bias=True):
    return {f"{name}.weight": (width,)} | ({f"{name}.bias": (width,)} if bias else {})


def language(size):
    hidden, kv = size["hidden"], size["hidden"] // size["heads"] * size["kv"]
    found = {"model.embed_tokens.weight": (VOCABULARY, hidden), "model.norm.weight": (hidden,)}
    found |= {} if size["tied"] else {"lm_head.weight": (VOCABULARY, hidden)}
    for i in range(size["layers"]):
        at, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        found |= linear(f"{at}.q_proj", hidden, hidden) | linear(f"{at}.o_proj", hidden, hidden, bias=False)
        found |= linear(f"{at}.k_proj", kv, hidden) | linear(f"{at}.v_proj", kv, hidden)
        for name in ("gate_proj", "up_proj"):
            found |= linear(f"{mlp}.{name}", size["mlp"], hidden, bias=False)
        found |= linear(f"{mlp}.down_proj", hidden, size["mlp"], bias=False)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found |= norm(f"model.layers.{i}.{name}", hidden, bias=False)
    return found


def vision(size):
    found = {"visual.patch_embed.proj.weight": (1280, 3, 2, 14, 14), "visual.merger.ln_q.weight": (1280,)}
    found |= linear("visual.merger.mlp.0", 5120, 5120) | linear("visual.merger.mlp.2", size["hidden"], 5120)
    for i in range(32):
        block = f"visual.blocks.{i}"
        found |= norm(f"{block}.norm1", 1280, bias=False) | norm(f"{block}.norm2", 1280, bias=False)
        found |= linear(f"{block}.attn.qkv", 3840, 1280) | linear(f"{block}.attn.proj", 1280, 1280)
        found |= linear(f"{block}.mlp.gate_proj", 3420, 1280) | linear(f"{block}.mlp.up_proj", 3420, 1280)
        found |= linear(f"{block}.mlp.down_proj", 1280, 3420)
    return found


def dit(size):
    found = linear("caption_projection.linear_1", DIM, size["hidden"]) | linear("caption_projection.linear_2", DIM, DIM)
    found |= linear("patch_embedder.proj", DIM, DIM) | linear(
        "time_caption_embed.timestep_embedder.linear_1", TIME, 256
    )
    found |= linear("time_caption_embed.timestep_embedder.linear_2", TIME, TIME)
    found |= norm("time_caption_embed.caption_embedder.0", DIM) | linear(
        "time_caption_embed.caption_embedder.1", TIME, DIM
    )
    found |= linear("norm_out.linear_1", DIM, TIME) | linear("norm_out.linear_2", DIM, DIM)
    for i in range(24):
        found |= {f"layers.{i}.gate": (28,)} | linear(f"layers.{i}.norm1.linear", 4 * DIM, TIME)
        for attention in ("attn1", "attn2"):
            for name in ("to_q", "to_k", "to_v"):
                found |= linear(f"layers.{i}.{attention}.{name}", DIM, DIM, bias=False)
            found |= norm(f"layers.{i}.{attention}.norm_q", DIM) | norm(f"layers.{i}.{attention}.norm_k", DIM)
        found |= linear(f"layers.{i}.attn2.to_out.0", DIM, DIM, bias=False)
        for name, shape in {"linear_1": (FFN, DIM), "linear_2": (DIM, FFN), "linear_3": (FFN, DIM)}.items():
            found |= linear(f"layers.{i}.feed_forward.{name}", *shape, bias=False)
        for name in ("norm1.norm", "norm1_context", "norm2", "ffn_norm1", "ffn_norm2"):
            found |= norm(f"layers.{i}.{name}", DIM, bias=False)
    return {f"model.dit.model.{name}": shape for name, shape in found.items()}


def tower():
    found = {"cls_token": (1, 1, DIM), "pos_embed": (1, 1025, DIM)}
    found |= {"patch_embed.proj.weight": (DIM, 3, 14, 14), "patch_embed.proj.bias": (DIM,)}
    for i in range(64):
        found |= norm(f"blocks.{i}.norm1", DIM) | norm(f"blocks.{i}.norm2", DIM)
        found |= linear(f"blocks.{i}.attn.qkv", 5376, DIM) | linear(f"blocks.{i}.attn.proj", DIM, DIM)
        found |= linear(f"blocks.{i}.mlp.fc1", 15360, DIM) | linear(f"blocks.{i}.mlp.fc2", DIM, 15360)
    return {f"model.gen_vision_tower.vision_tower.model.{name}": shape for name, shape in found.items()}


def write_holes(path, shapes):
    """A safetensors file of these bf16 tensors whose bytes were never written: it takes a few blocks of the disk."""
    head, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        head[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(head).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def as_released(preset):
    """The preset, numbered and sampled as upstream does with the released weights."""
    backbone = preset.backbone.model_copy(update={"positions": "upstream"})
    sampler = preset.sampler.model_copy(update={"truncate_time": True})
    return preset.model_copy(update={"backbone": backbone, "sampler": sampler})


@pytest.mark.parametrize("name", SIZES)
def test_a_checkpoint_of_full_size_is_planned_from_its_heads_alone(name, tmp_path):
    size = SIZES[name]
    shapes = {"model.latent_queries": (1, 64, size["hidden"])} | language(size) | vision(size) | dit(size) | tower()
    write_holes(tmp_path / "model.safetensors", shapes)
    for file, data in slow_tokenizer_files().items():
        (tmp_path / file).write_bytes(data)
    # transformers saves of a tower's config what is not its default.
    eye = {"hidden_size": 1280, "out_hidden_size": size["hidden"], "spatial_patch_size": 14, "tokens_per_second": 2}
    config = CONFIG | {
        "vocab_size": VOCABULARY,
        "hidden_size": size["hidden"],
        "intermediate_size": size["mlp"],
        "num_hidden_layers": size["layers"],
        "num_attention_heads": size["heads"],
        "num_key_value_heads": size["kv"],
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "tie_word_embeddings": size["tied"],
        "vision_config": eye,
        "gen_hidden_size": DIM,
        "tokenizer_model_max_length": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    plan = plan_import(read_folder(str(tmp_path)))
    assert set(plan.report.mapped) == set(shapes)
    assert not plan.report.ignored and not plan.report.unknown
    model = plan.config.model
    assert (model.encoder.heads, model.encoder.num_tokens, model.encoder.channels) == (16, 64, DIM)
    assert (model.dit.heads, model.dit.kv_heads, model.dit.mlp_width, model.dit.patch_size) == (28, 28, FFN, 1)
    assert (model.backbone.vision.window, model.backbone.vision.full_layers) == (112, (7, 15, 23, 31))
    assert (model.backbone.vision.num_tokens, model.sampler.num_inference_steps, model.sampler.guidance_scale) == (
        256,
        30,
        3.0,
    )
    assert model == as_released(preset_model(name))
    with init_empty_weights():
        built = build_model(plan.config, plan.tokenizer)
    count = {part: sum(p.numel() for p in getattr(built, part).parameters()) for part in ("dit", "encoder")}
    assert count["dit"] == pytest.approx(1.37e9, rel=0.01)
    assert count["encoder"] == 4_350_208_256  # the 4.4 billion of the paper
