"""The FLOPs of a training step, part by part, as exact formulas of the sizes.

A multiply-add is two operations. Norms, activations, softmax and embeddings are not counted. Attention masks save
nothing. Recomputation by activation checkpointing is not counted, as usual for model FLOPs utilization (MFU). The
formulas equal the counts of torch's counter on the modules. Convolutional decoders have no formula:
`blip3o.model.flops.counted` counts them on the meta device.

`lengths` are the tokens of each row of a batch, which attend to their own row: with the padded width for every row, a
formula gives what is computed; with the number of real tokens, what would be computed without padding.
"""

from collections.abc import Sequence
from enum import Enum

from blip3o.config.backbone import BackboneConfig, VisionConfig
from blip3o.config.decoder import DecoderConfig
from blip3o.config.model import EncoderConfig, ModelConfig, TextTowerConfig

TEMPORAL_PATCH = 2  # frames that Qwen2.5-VL folds into one patch
TIME_FREQUENCIES = 256


class Grad(Enum):
    """How far the backward pass goes, as multiples of the forward pass for matrix products and for attention.

    The product of a matrix with its input has a gradient for each of the two; both factors of an attention have one.
    """

    NONE = (1, 1)  # forward only
    ONE = (2, 3)  # of a matrix and its input, one has a gradient: frozen weights pass it on, or trained ones read data
    BOTH = (3, 3)

    def cost(self, linear: int, attention: int = 0) -> int:
        """FLOPs of forward and backward, from those of the forward pass's matrix products and attention."""
        return self.value[0] * linear + self.value[1] * attention


def _entry(grad: Grad) -> Grad:
    """For the first matrix of a tower, whose input (pixels or noise) needs no gradient."""
    return Grad.ONE if grad is Grad.BOTH else Grad.NONE


def _block(*, lengths: Sequence[int], width: int, mlp_width: int, matrices: int, grad: Grad) -> int:
    """One transformer block with full attention within each row, and an MLP of `matrices` matrices."""
    linear = 2 * sum(lengths) * (4 * width * width + matrices * width * mlp_width)
    return grad.cost(linear, 4 * _pairs(lengths) * width)


def _pairs(lengths: Sequence[int]) -> int:
    """Pairs of tokens of the same row."""
    return sum(length * length for length in lengths)


def language_model(config: BackboneConfig, *, tokens: int, pairs: int, grad: Grad) -> int:
    """The decoder layers for `tokens` tokens in total.

    `pairs` is the total number of pairs of a token and a token that it attends to, cached ones included.
    """
    inner, kv = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = config.hidden_size * (2 * inner + 2 * kv + 3 * config.mlp_width)
    return grad.cost(2 * tokens * config.layers * matrices, 4 * config.layers * pairs * inner)


def language_head(config: BackboneConfig, *, tokens: int, grad: Grad) -> int:
    """Logits at `tokens` positions in total."""
    return grad.cost(2 * tokens * config.hidden_size * config.vocab_size)


def vision_tower(vision: VisionConfig, *, out_width: int, images: int, grad: Grad) -> int:
    """The backbone's vision tower, with the projection to the language model's width."""
    side = vision.grid * vision.merge
    patches, w = side * side, vision.width
    frames = TEMPORAL_PATCH if vision.kind == "qwen2_5_vl" else 1
    total = _entry(grad).cost(2 * images * patches * 3 * frames * vision.patch_size**2 * w)
    if vision.kind == "siglip2":
        block = _block(lengths=[patches] * images, width=w, mlp_width=vision.mlp_width, matrices=2, grad=grad)
        return total + vision.layers * block + grad.cost(2 * images * patches * (w + out_width) * out_width)
    pairs = vision.layers * patches**2
    if vision.window is not None:
        full = len(set(vision.full_layers))
        pairs = full * patches**2 + (vision.layers - full) * _windowed_pairs(vision, vision.window)
    linear = 2 * images * patches * vision.layers * (4 * w * w + 3 * w * vision.mlp_width)
    merged = w * vision.merge**2
    merger = 2 * images * vision.num_tokens * (merged * merged + merged * out_width)
    return total + grad.cost(linear + merger, 4 * images * pairs * w)


def _windowed_pairs(vision: VisionConfig, side: int) -> int:
    """Pairs of patches of one image that attend to each other, in windows of `side` pixels, smaller at the edge."""
    window = side // vision.merge // vision.patch_size
    sides = [min(window, vision.grid - start) for start in range(0, vision.grid, window)]
    return sum(each * each for each in sides) ** 2 * vision.merge**4


def encoder(config: EncoderConfig, *, images: int, grad: Grad) -> int:
    """The vision tower whose pooled features are generated."""
    patches = config.patches**2
    tokens = patches + (1 if config.kind == "eva_clip" else 0)  # EVA has a class token
    total = _entry(grad).cost(2 * images * patches * 3 * config.patch_size**2 * config.width)
    block = _block(lengths=[tokens] * images, width=config.width, mlp_width=config.mlp_width, matrices=2, grad=grad)
    total += config.layers * block
    if config.feature_dim:
        total += grad.cost(2 * images * config.num_tokens * config.width * config.feature_dim)
    return total


def contrastive(config: TextTowerConfig, *, features: int, lengths: Sequence[int], grad: Grad = Grad.BOTH) -> int:
    """The text tower, both projections, and all image-text pairs; `features` is the size of one image's features."""
    rows = len(lengths)
    block = _block(lengths=lengths, width=config.width, mlp_width=4 * config.width, matrices=2, grad=grad)
    projections = 2 * rows * config.embed_dim * (config.width + features)
    return config.layers * block + grad.cost(projections + 2 * rows * rows * config.embed_dim)


def coarse_head(config: DecoderConfig, *, channels: int, grid: int, images: int, features: Grad) -> int:
    """The trained coarse head; `features` is ONE if no gradient reaches the features, else BOTH."""
    side = config.image_size // grid
    places = 2 * images * grid * grid
    expand, render = places * 9 * channels * config.coarse_width, places * config.coarse_width * 3 * side * side
    return features.cost(expand) + Grad.BOTH.cost(render)


def diffusion_transformer(model: ModelConfig, *, rows: int, draws: int) -> int:
    """The trained DiT: the condition of `rows` samples, and the velocity at `draws` noise draws of each."""
    dit, patch = model.dit, model.dit.patch_size
    c, t, n = dit.dim, dit.time_width, model.num_queries
    kv = c // dit.heads * dit.kv_heads
    folded = model.latent_channels * patch**2
    tokens = (model.latent_grid // patch) ** 2
    condition = rows * n * (model.backbone.hidden_size * c + c * c + 2 * dit.layers * c * kv) + rows * c * t
    wide = rows * draws
    block = tokens * (3 * c * c + 2 * c * kv + 3 * c * dit.mlp_width) + 4 * c * t
    ends = tokens * c * folded + t * t + t * c
    attention = 4 * wide * dit.layers * tokens * (tokens + n) * c
    entry = Grad.ONE.cost(2 * wide * (tokens * folded * c + TIME_FREQUENCIES * t))
    return entry + Grad.BOTH.cost(2 * (condition + wide * (dit.layers * block + ends)), attention)


def regression_head(model: ModelConfig, *, rows: int) -> int:
    """The trained regression head: one linear map from each query's state to one feature."""
    return Grad.BOTH.cost(2 * rows * model.num_queries * model.backbone.hidden_size * model.latent_channels)


def prompt_and_queries(
    model: ModelConfig, *, lengths: Sequence[int], context: Sequence[int] | None = None
) -> dict[str, int]:
    """Prefill of the frozen prompts, and the trained queries after them.

    The queries of a row attend to as many prompt tokens as `context` says, by default its own: prompts that are packed
    for their prefill are padded for the queries.
    """
    queries, backbone, tokens = model.num_queries, model.backbone, sum(lengths)
    # Only the prompt's keys and values are needed: the last layer computes no queries, attention, output and MLP.
    inner = backbone.heads * backbone.head_dim
    unread = 2 * tokens * backbone.hidden_size * (2 * inner + 3 * backbone.mlp_width) + 4 * _pairs(lengths) * inner
    asked = len(lengths) * queries
    read = queries * (sum(lengths if context is None else context) + asked)
    return {
        "prompt": language_model(backbone, tokens=tokens, pairs=_pairs(lengths), grad=Grad.NONE) - unread,
        "queries": language_model(backbone, tokens=asked, pairs=read, grad=Grad.ONE),
    }


def joint_pass(model: ModelConfig, *, lengths: Sequence[int]) -> int:
    """Prompts and queries in one pass, with gradients through both."""
    whole = [length + model.num_queries for length in lengths]
    return language_model(model.backbone, tokens=sum(whole), pairs=_pairs(whole), grad=Grad.BOTH)


def understanding(backbone: BackboneConfig, *, lengths: Sequence[int], images: int, judged: int) -> dict[str, int]:
    """A micro-batch that trains the whole backbone on text: `judged` positions have logits."""
    whole = language_model(backbone, tokens=sum(lengths), pairs=_pairs(lengths), grad=Grad.BOTH)
    parts = {"backbone": whole, "logits": language_head(backbone, tokens=judged, grad=Grad.BOTH)}
    if backbone.vision is not None:
        parts["vision"] = vision_tower(backbone.vision, out_width=backbone.hidden_size, images=images, grad=Grad.BOTH)
    return parts
