"""Names of tensors in the released BLIP3o-Model-4B/-8B checkpoints, and the names of the same tensors here.

One table serves both directions. The released names are those of transformers 4.51; from 4.52 on Qwen2.5-VL's parts
have other names, which are read too, as are the older names of the attention in a VAE of diffusers. Prefixes are
spelled out: `model.` also begins `model.latent_queries`, `model.dit.` and `model.gen_vision_tower.`.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

QUERIES = "model.latent_queries"
HEAD = "lm_head.weight"
HEAD_HERE = "backbone.hf.lm_head.weight"
EMBEDDING_HERE = "backbone.hf.model.language_model.embed_tokens.weight"
DIT = "model.dit.model."
TOWER = "model.gen_vision_tower.vision_tower.model."
DECODER = "diffusion-decoder/"

# A released prefix and ours, in the order in which they are tried.
PREFIXES = (
    (QUERIES, "queries"),
    (DIT, "dit."),
    (TOWER, "encoder."),
    ("model.embed_tokens.", "backbone.hf.model.language_model.embed_tokens."),
    ("model.layers.", "backbone.hf.model.language_model.layers."),
    ("model.norm.", "backbone.hf.model.language_model.norm."),
    ("visual.", "backbone.hf.model.visual."),
    ("lm_head.", "backbone.hf.lm_head."),
    (f"{DECODER}unet/", "decoder.unet."),
    (f"{DECODER}vae/", "decoder.vae."),
)
NEWER_PREFIXES = (
    ("model.language_model.", "backbone.hf.model.language_model."),
    ("model.visual.", "backbone.hf.model.visual."),
)
OLDER_VAE = re.compile(r"(mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.")
NEWER_VAE = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
# What upstream's checkpoints hold besides the model, and why it is skipped.
IGNORED = (
    (re.compile(r"model\.vae\."), "FLUX VAE left over from an older version, used by nothing"),
    (re.compile(r"model\.dit\.model\.pad_token$"), "parameter of Lumina-Next that BLIP3-o's forward pass never reads"),
    (re.compile(r".*\.inv_freq$"), "rotary frequencies, which are computed"),
)
# Prefixes under which a tower published on its own may name its tensors.
CLASS_TOKEN = "cls_token"
TOWER_PREFIXES = (TOWER, "vision_tower.model.", "model.", "visual.", "")


@dataclass(frozen=True, kw_only=True)
class KeyReport:
    """What became of every tensor of a released folder, and what the model wanted and did not find.

    `mapped` gives our name for each released one, `ignored` the reason. Names in the decoder's folder begin with
    `diffusion-decoder/unet/` and `diffusion-decoder/vae/`. `unknown` ones have no place in the model and no reason to
    be left out; `missing` are our names.
    """

    mapped: dict[str, str]
    ignored: dict[str, str]
    unknown: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def summary(self) -> str:
        """One line of counts."""
        return (
            f"{len(self.mapped)} tensors mapped, {len(self.ignored)} ignored, {len(self.unknown)} unknown, "
            f"{len(self.missing)} missing"
        )


def to_here(released: str) -> str | None:
    """Our name for a released one; None if it is of no known part."""
    for theirs, ours in (*PREFIXES, *NEWER_PREFIXES):
        if released.startswith(theirs):
            name = ours + released.removeprefix(theirs)
            return OLDER_VAE.sub(lambda found: f"{found[1]}.{NEWER_VAE[found[2]]}.", name)
    return None


def to_released(here: str) -> str | None:
    """The released name for one of ours; None for parts that the released layout does not have."""
    for theirs, ours in PREFIXES:
        if here.startswith(ours):
            return theirs + here.removeprefix(ours)
    return None


def ignored_because(released: str) -> str | None:
    """Why a released tensor is left out; None if it is not."""
    return next((reason for pattern, reason in IGNORED if pattern.match(released)), None)


def tower_names(keys: Collection[str]) -> dict[str, str]:
    """Released names for the tensors of a tower that was published on its own, by their names there."""
    known = (prefix for prefix in TOWER_PREFIXES if f"{prefix}{CLASS_TOKEN}" in keys)
    wrapped = (key.removesuffix(CLASS_TOKEN) for key in sorted(keys) if key.endswith(f".{CLASS_TOKEN}"))
    prefix = next(known, next(wrapped, ""))
    return {key: TOWER + key.removeprefix(prefix) for key in keys if key.startswith(prefix)}


def report_keys(released: Iterable[str], needed: Collection[str], *, tied: bool) -> KeyReport:
    """Sorts released names by what becomes of them, given the names that the model needs.

    A head next to tied embeddings is a copy of the embedding.
    """
    mapped: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unknown: list[str] = []
    for key in released:
        reason = ignored_because(key)
        here = to_here(key)
        if tied and key == HEAD:
            ignored[key] = "the same as model.embed_tokens.weight, to which it is tied"
        elif reason is not None:
            ignored[key] = reason
        elif here in needed:
            mapped[key] = str(here)
        else:
            unknown.append(key)
    missing = sorted(set(needed) - set(mapped.values()))
    return KeyReport(mapped=mapped, ignored=ignored, unknown=tuple(unknown), missing=tuple(missing))
