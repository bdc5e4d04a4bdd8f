"""What a stage reads besides weights, opened once: indexed sources, tokenizer, chat template, and the sample order.

Each process opens its own `StageInputs` and passes it on: the driver checks it, a worker takes the tokenizer of it, an
actor of the stream joins it to a micro-batch function.
"""

import hashlib
from functools import cached_property
from typing import Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.data.images.simd import require_simd
from blip3o.data.order.length_buckets import BucketedOrder, CaptionLengths
from blip3o.data.order.sample_order import SampleOrder
from blip3o.data.order.selection import source_rows
from blip3o.data.shards.locations import source_locations, tokenizer_uri
from blip3o.data.shards.manifest import Manifest, read_manifest
from blip3o.data.text.templates import ChatTemplate
from blip3o.data.text.tokenizer import IMAGE_PAD, PAD, ChatTokenizer
from blip3o.data.text.tokenizer_files import read_tokenizer_json


class StageInputs:
    """The inputs of a recipe's stage. Each is read when it is first asked for, and not again.

    `features_sha256` is the sha256 of the provenance of stored features; None if the stage trains on none. Raises
    `ConfigError` if the packages of `data.decode.engine` are not installed.
    """

    def __init__(self, recipe: Recipe, *, features_sha256: str | None = None) -> None:
        if recipe.data.decode.engine == "simd":
            require_simd()
        self.recipe, self.features_sha256 = recipe, features_sha256

    @cached_property
    def manifests(self) -> list[Manifest]:
        """Of each training source, in order. Raises `DataError` if one is not indexed."""
        return [read_manifest(location.manifest) for location in source_locations(self.recipe.data)]

    @cached_property
    def order(self) -> SampleOrder:
        """The sample order, without what selections leave out. Raises `DataError` if one has not been worked out."""
        recipe, manifests = self.recipe, self.manifests
        sources = source_rows(recipe.data.sources, manifests)
        options: dict[str, Any] = {
            "weights": [source.weight for source in recipe.data.sources],
            "seed": recipe.run.seed,
            "micro_batch": recipe.optim.micro_batch_size,
            "chunk": recipe.data.chunk,
            "window": recipe.data.window,
        }
        if recipe.data.group_by_length:
            lengths = CaptionLengths(manifests)
            return BucketedOrder(sources, lengths=lengths, version=lengths.version, **options)
        return SampleOrder(sources, **options)

    @cached_property
    def _tokenizer_json(self) -> bytes:
        uri = tokenizer_uri(self.recipe.data)
        try:
            return read_tokenizer_json(uri)
        except storage.MissingFileError as error:
            raise storage.MissingFileError(
                f"{uri} does not exist: `blip3o tokenizer RECIPE` trains the one of a small model; a released backbone "
                "needs a copy of its own there"
            ) from error

    @cached_property
    def tokenizer(self) -> ChatTokenizer:
        """Raises as `read_tokenizer_json`."""
        return ChatTokenizer.from_bytes(self._tokenizer_json)

    @property
    def image_token_id(self) -> int:
        """The token that stands for a piece of an image."""
        return self.tokenizer.ids[IMAGE_PAD]

    @property
    def pad_id(self) -> int:
        """The token that fills a row."""
        return self.tokenizer.ids[PAD]

    @cached_property
    def template(self) -> ChatTemplate:
        """The conversation template of the recipe."""
        words = self.recipe.data.template
        return ChatTemplate(
            system=words.system,
            instruction=words.instruction,
            image_tokens=self.recipe.model.backbone.image_tokens,
            style=words.style,
        )

    @property
    def sha256(self) -> list[str]:
        """Of everything that decides the numbers: order, manifests, tokenizer, and stored features if there are any.

        Part of a run's identity (`blip3o.train.checkpoint.state`).
        """
        data = [self.order.fingerprint(), *[manifest.fingerprint for manifest in self.manifests]]
        features = [self.features_sha256] if self.features_sha256 else []
        return [*data, hashlib.sha256(self._tokenizer_json).hexdigest(), *features]
