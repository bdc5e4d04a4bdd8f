"""The frozen encoder of a stage, without the trainer: for the feature cache and the stream's encoding actors.

It has the weights that the trainer would load from the runs in `stage.start_from`, in the trainer's precision
(`parallel.precision`). They are read tensor by tensor, so computing only their sha256 needs little memory.
"""

import functools
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.config.resize import DecodeConfig
from blip3o.data.features.files import FeatureFolder, provenance_sha256, require_features
from blip3o.data.features.reader import feature_folders, record_format
from blip3o.data.features.records import to_bf16_bits
from blip3o.data.shards.manifest import Manifest
from blip3o.device import download, upload
from blip3o.errors import CheckpointError, ConfigError
from blip3o.model.empty_weights import init_empty_weights
from blip3o.model.encoder import TargetEncoder, build_encoder, tensors_sha256
from blip3o.runs.hashes import stored_hash
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_description, read_shapes, read_tensors

PREFIX = "encoder."
_TORCH_TYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class FeatureCache:
    """The stored features that a recipe trains on: their provenance and their folders."""

    recipe: Recipe
    provenance: dict[str, Any]

    @classmethod
    def of(cls, recipe: Recipe) -> "FeatureCache":
        """Reads every weight of the encoder, unless their hash is stored. Raises `ConfigError` as `require_encoder`."""
        weights = _weights_sha256(recipe)
        encoder = _empty_encoder(recipe).provenance_of(weights, _TORCH_TYPE[recipe.parallel.precision])
        stored = {"stored": asdict(record_format(recipe))} | _rounding(recipe) | _decoding(recipe)
        return cls(recipe=recipe, provenance={**asdict(encoder), **stored})

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of the provenance."""
        return provenance_sha256(self.provenance)

    def sources(self, manifests: Sequence[Manifest]) -> list[tuple[Manifest, FeatureFolder]]:
        """Each of these manifests with the folder of its source's features."""
        folders = feature_folders(self.recipe, self.sha256)
        return [(manifest, folders[manifest.name]) for manifest in manifests]

    def require(self, manifests: Sequence[Manifest]) -> None:
        """Raises `DataError`, naming file and values, unless every shard has features of exactly this provenance."""
        for manifest, folder in self.sources(manifests):
            require_features(folder, manifest, self.provenance)


def _rounding(recipe: Recipe) -> dict[str, int]:
    """What kernels round by, where it is not the default: the size of batches of their own, and compiled layers."""
    size = recipe.parallel.encoder_batch_size
    batches = {} if size is None else {"batch_size": size}
    return {**batches, "compiled": True} if recipe.parallel.compiles else batches


def _decoding(recipe: Recipe) -> dict[str, str]:
    """What decodes and resizes the pictures, where it is not the default."""
    engine = recipe.data.decode.engine
    return {} if engine == DecodeConfig().engine else {"decode_engine": engine}


def _weights_sha256(recipe: Recipe) -> str:
    """The sha256 of the encoder's weights in the recipe's precision: EVA-CLIP's 8.7 GB are not read each time."""
    sources = _tensor_sources(recipe)
    used = set(sources.values())
    runs = [run for run in recipe.stage.start_from if final_uri(recipe.run.storage, run) in used]
    origin = hashlib.sha256(json.dumps(sources).encode()).hexdigest()  # which run each tensor comes from
    about = {"part": PREFIX, "precision": recipe.parallel.precision, "sources": origin}
    return stored_hash(recipe.run.storage, runs, about, lambda: tensors_sha256(_encoder_tensors(recipe)))


def require_encoder(recipe: Recipe) -> None:
    """Raises `ConfigError` if a run in `stage.start_from` has not finished or if none of them holds the encoder, and
    `CheckpointError` if the encoder has other shapes.
    """
    _tensor_sources(recipe)


def _empty_encoder(recipe: Recipe) -> TargetEncoder:
    """The encoder without memory for its weights."""
    with init_empty_weights():
        return build_encoder(recipe.model.encoder)


def _tensor_sources(recipe: Recipe) -> dict[str, str]:
    """For each of the encoder's tensors, sorted by name, the URI of the result that holds it. Raises as
    `require_encoder`.
    """
    needed = f"data.features '{recipe.data.features}' needs the encoder's weights before training begins"
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for run in recipe.stage.start_from:
        uri = final_uri(recipe.run.storage, run)
        if read_description(uri) is None:
            raise ConfigError(
                f"{needed}, and run '{run}' in stage.start_from has not finished under {recipe.run.storage}: train it "
                "first"
            )
        # Later runs override earlier ones, as in the trainer.
        found |= {name: (uri, shape) for name, shape in read_shapes(uri).items()}
    sources = {}
    for name, tensor in sorted(_empty_encoder(recipe).state_dict().items()):
        if PREFIX + name not in found:
            runs = ", ".join(recipe.stage.start_from) or "empty"
            raise ConfigError(
                f"{needed}, and stage.start_from ({runs}) holds no {PREFIX}{name}: name the run that does"
            )
        sources[name], shape = found[PREFIX + name]
        if shape != tuple(tensor.shape):
            raise CheckpointError(
                f"{sources[name]}: {PREFIX}{name} has shape {shape}, the model needs {tuple(tensor.shape)}: use the "
                "same model preset"
            )
    return sources


def _encoder_tensors(recipe: Recipe) -> Iterator[tuple[str, Tensor]]:
    """Names without prefix, sorted, and weights in the recipe's precision, one at a time."""
    for uri, group in itertools.groupby(_tensor_sources(recipe).items(), key=lambda item: item[1]):
        names = [name for name, _ in group]
        for name, tensor in zip(names, read_tensors(uri, [PREFIX + name for name in names]), strict=True):
            yield name, tensor.to(_TORCH_TYPE[recipe.parallel.precision])


class FrozenEncoder:
    """The encoder with its weights: pixels to features, bit-identical to those that the recipe's trainer computes.

    This holds for batches of the trainer's size on the trainer's kind of device: the rounding of matrix kernels depends
    on shapes. Compiled layers (`parallel.compile`) promise no such equality.

    Threads may call it at the same time. They launch one after the other, and while one waits for its features, the GPU
    works on the next one's: two threads keep it busy.
    """

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        """Raises `ConfigError` as `require_encoder` does."""
        torch.set_num_threads(recipe.parallel.threads)
        self._device, self._half = device, recipe.parallel.precision == "bf16"
        self._encoder = _empty_encoder(recipe).requires_grad_(requires_grad=False)
        self._encoder.load_state_dict(dict(_encoder_tensors(recipe)), assign=True)
        self._encoder.to(device).eval()
        self._launching = threading.Lock()
        if recipe.parallel.compiles:
            self._encoder.compile_layers()

    @functools.cached_property
    def weights_sha256(self) -> str:
        """The sha256 of the loaded weights."""
        return self._encoder.provenance().weights_sha256

    @torch.inference_mode()
    def __call__(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        """uint8 [B, S, S, 3] → features float32 [B, N, F]."""
        with self._launching:
            features = download(self._encoder(upload(pixels_BSS3, self._device)).float())
        return features().numpy()

    def column(self, pixels_BSS3: np.ndarray) -> np.ndarray:
        """Features as a column of a micro-batch: in bf16 precision as the bits of bfloat16, uint16."""
        features = self(pixels_BSS3)
        return to_bf16_bits(features) if self._half else features
