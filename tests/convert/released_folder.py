"""A folder in the layout of BLIP3o-Model-4B/-8B at toy size, made by the libraries that made the real ones.

The language model and its tower are transformers', the pixel decoder is diffusers', each saved by itself; names are
turned into those of transformers 4.51, in which the checkpoints were published. All numbers are random and bf16.
"""

import json
import re

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

HIDDEN, LAYERS, HEADS, KV_HEADS = 64, 2, 2, 1
QUERIES, DIT, TOWER = 8, 32, 112
TEXTS = ["Please generate image based on the following caption: a red circle", "You are a helpful assistant.", "user"]
ADDED = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "[IMG]",
    "[/IMG]",
    "<image>",
)
CONFIG = {
    "architectures": ["blip3oQwenForCausalLM"],
    "model_type": "blip3o_qwen",
    "torch_dtype": "bfloat16",
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 128000,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "sliding_window": 32768,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
    "vision_config": {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "intermediate_size": 48,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": HIDDEN,
        "window_size": 28,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
    "gen_vision_tower": "eva-clip-E-14-plus",
    "gen_hidden_size": TOWER,
    "gen_pooling": "early_pool2d_4",
    "n_query": QUERIES,
    "tokenizer_model_max_length": 96,
}


def slow_tokenizer_files() -> dict[str, bytes]:
    """What a slow Qwen2 tokenizer saves: vocabulary, merges, and the tokens added to them."""
    tokenizer = Tokenizer(models.BPE())
    # Plain splitting will do: how Qwen2 parts words is not in these files.
    words = r"\p{L}+|\p{N}|[^\p{L}\p{N}]+"
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = "#version: 0.2\n" + "".join(f"{first} {second}\n" for first, second in model["merges"])
    added = {token: len(model["vocab"]) + number for number, token in enumerate(ADDED)}
    return {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": merges.encode(),
        "added_tokens.json": json.dumps(added).encode(),
    }


def vocabulary() -> dict[str, int]:
    files = slow_tokenizer_files()
    return json.loads(files["vocab.json"]) | json.loads(files["added_tokens.json"])


def hf_model(*, tied: bool = False):
    """The Qwen2.5-VL inside, in fp32 with numbers that bf16 holds."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    text = {name: CONFIG[name] for name in (*names, "rms_norm_eps")}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]}
    tokens = vocabulary()
    vision = {name: value for name, value in CONFIG["vision_config"].items()}
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(
            text_config={**text, "vocab_size": len(tokens), "rope_parameters": rope, "pad_token_id": None},
            vision_config=vision,
            image_token_id=tokens["<|image_pad|>"],
            tie_word_embeddings=tied,
        )
    )
    _fill(model)
    return model.eval()


def _fill(module, *, seed=0) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            width = parameter.shape[-1] if parameter.dim() > 1 else 1
            value = torch.randn(parameter.shape, generator=generator) / width**0.5
            value = value + 1 if parameter.dim() == 1 else value
            parameter.copy_(value.bfloat16())


def dit_shapes() -> dict[str, tuple[int, ...]]:
    """The reference's table of the DiT, at this size."""
    shapes = {
        "caption_projection.linear_1": (DIT, HIDDEN, True),
        "caption_projection.linear_2": (DIT, DIT, True),
        "patch_embedder.proj": (DIT, TOWER, True),
        "time_caption_embed.timestep_embedder.linear_1": (16, 256, True),
        "time_caption_embed.timestep_embedder.linear_2": (16, 16, True),
        "time_caption_embed.caption_embedder.1": (16, DIT, True),
        "norm_out.linear_1": (DIT, 16, True),
        "norm_out.linear_2": (TOWER, DIT, True),
    }
    vectors = {"time_caption_embed.caption_embedder.0": True}
    for i in range(2):
        layer = f"layers.{i}"
        for attention in ("attn1", "attn2"):
            shapes |= {f"{layer}.{attention}.{name}": (DIT, DIT, False) for name in ("to_q", "to_k", "to_v")}
            vectors |= {f"{layer}.{attention}.{name}": True for name in ("norm_q", "norm_k")}
        shapes[f"{layer}.attn2.to_out.0"] = (DIT, DIT, False)
        shapes[f"{layer}.feed_forward.linear_1"] = shapes[f"{layer}.feed_forward.linear_3"] = (40, DIT, False)
        shapes[f"{layer}.feed_forward.linear_2"] = (DIT, 40, False)
        shapes[f"{layer}.norm1.linear"] = (4 * DIT, 16, True)
        vectors |= {
            f"{layer}.{name}": False for name in ("norm1.norm", "norm1_context", "norm2", "ffn_norm1", "ffn_norm2")
        }
    found = {f"{name}.weight": (rows, columns) for name, (rows, columns, _) in shapes.items()}
    found |= {f"{name}.bias": (rows,) for name, (rows, _, bias) in shapes.items() if bias}
    found |= {f"{name}.weight": (DIT,) for name in vectors} | {
        f"{n}.bias": (DIT,) for n, bias in vectors.items() if bias
    }
    return found | {f"layers.{i}.gate": (2,) for i in range(2)}


def tower_shapes() -> dict[str, tuple[int, ...]]:
    """The reference's table of the EVA-CLIP tower, at this size: 112 pixels, 8 x 8 patches, one head."""
    found = {
        "cls_token": (1, 1, TOWER),
        "pos_embed": (1, 65, TOWER),
        "patch_embed.proj.weight": (TOWER, 3, 14, 14),
        "patch_embed.proj.bias": (TOWER,),
    }
    for i in range(2):
        linear = {"attn.qkv": (336, TOWER), "attn.proj": (TOWER, TOWER), "mlp.fc1": (64, TOWER), "mlp.fc2": (TOWER, 64)}
        for name, shape in linear.items():
            found |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            found |= {f"blocks.{i}.{name}.weight": (TOWER,), f"blocks.{i}.{name}.bias": (TOWER,)}
    return found


def random_tensors(shapes, *, seed) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        scale = (shape[-1] if len(shape) > 1 else 4) ** -0.5
        offset = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
        tensors[name] = (torch.randn(shape, generator=generator) * scale + offset).bfloat16()
    return tensors


def tower_tensors() -> dict[str, torch.Tensor]:
    return random_tensors(tower_shapes(), seed=2)


def main_tensors(*, tied=False, tower=True, newer=False) -> dict[str, torch.Tensor]:
    """Every tensor of the shards by its published name, those that nothing uses among them."""
    tensors = {
        _published(name, newer=newer): t.detach().bfloat16() for name, t in hf_model(tied=tied).state_dict().items()
    }
    if tied:
        del tensors["lm_head.weight"]
    queries = torch.randn(1, QUERIES, HIDDEN, generator=torch.Generator().manual_seed(5))
    tensors["model.latent_queries"] = queries.bfloat16()
    tensors |= {f"model.dit.model.{name}": t for name, t in random_tensors(dit_shapes(), seed=1).items()}
    if tower:
        tensors |= {f"model.gen_vision_tower.vision_tower.model.{n}": t for n, t in tower_tensors().items()}
    tensors["model.dit.model.pad_token"] = torch.ones(DIT).bfloat16()
    tensors["model.vae.encoder.conv_in.weight"] = torch.ones(4, 3, 3, 3).bfloat16()
    return tensors


def _published(name: str, *, newer: bool) -> str:
    if newer:
        return name
    return re.sub(r"^model\.visual\.", "visual.", name).replace("model.language_model.", "model.")


def write_folder(folder, *, tied=False, tower=True, newer=False, decoder=True) -> dict[str, torch.Tensor]:
    """Writes the folder with two shards; the second holds what nothing uses. Returns the tensors of the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = main_tensors(tied=tied, tower=tower, newer=newer)
    names = sorted(tensors)
    second = {name for name in names if name.startswith(("model.vae", "model.dit"))}
    shards = {
        "model-00001-of-00002.safetensors": [name for name in names if name not in second],
        "model-00002-of-00002.safetensors": sorted(second),
    }
    for file, members in shards.items():
        save_file({name: tensors[name].contiguous() for name in members}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, members in shards.items() for name in members}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    config = CONFIG | {"vocab_size": len(vocabulary()), "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    for name, data in slow_tokenizer_files().items():
        (folder / name).write_bytes(data)
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    (folder / "training_args.bin").write_bytes(b"a pickle that nobody should open")
    if decoder:
        write_decoder(folder / "diffusion-decoder")
    return tensors


def write_decoder(folder) -> None:
    """U-Net and VAE as diffusers saves them, and the small files next to them."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TOWER,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        norm_num_groups=4,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=TOWER + 6 * 8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.13025,
    )
    unet.bfloat16().save_pretrained(folder / "unet", variant="bf16")
    vae.bfloat16().save_pretrained(folder / "vae", variant="bf16")
    EulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text('{"_class_name": ["pipeline_llava_gen", "EmuVisualGenerationPipeline"]}')
    (folder / "pipeline_llava_gen.py").write_text("# the hub's own pipeline file\n")
