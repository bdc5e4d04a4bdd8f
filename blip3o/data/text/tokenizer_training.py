"""Trains the tokenizer of a small model on the captions and questions of a recipe's sources."""

import itertools
from collections.abc import Iterator

import numpy as np

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.data.batches import DESCRIBE
from blip3o.data.inputs import StageInputs
from blip3o.data.order.sample_order import SourceRows
from blip3o.data.order.selection import source_rows
from blip3o.data.shards.fetch import ShardReader
from blip3o.data.shards.locations import tokenizer_uri
from blip3o.data.shards.manifest import Manifest
from blip3o.data.text.conversations import conversation_pairs
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.types import RawSample, SampleRef

# Enough captions for stable merges, few enough to read in seconds from any set.
SAMPLES_PER_SOURCE = 4000


def train_tokenizer(recipe: Recipe) -> ChatTokenizer:
    """Trains on the captions and questions of every training source, and writes the tokenizer to `data.tokenizer`.

    Raises `DataError` if a source is not indexed.
    """
    manifests = StageInputs(recipe).manifests
    tokenizer = ChatTokenizer.train(list(_texts(recipe, manifests)), recipe.model.backbone.vocab_size)
    storage.write_bytes(tokenizer_uri(recipe.data), tokenizer.to_bytes())
    return tokenizer


def _texts(recipe: Recipe, manifests: list[Manifest]) -> Iterator[str]:
    template = recipe.data.template
    frame = [template.system, template.instruction.format(caption=""), DESCRIBE, "system\n", "user\n", "assistant\n"]
    # Repeated as often as a common question, so that the fixed text of every prompt becomes few tokens.
    yield from frame * SAMPLES_PER_SOURCE
    reader = ShardReader(manifests)
    for number, rows in enumerate(source_rows(recipe.data.sources, manifests)):
        for sample in reader.fetch(_spread_refs(number, rows)):
            yield from _sample_texts(sample)


def _spread_refs(source: int, rows: SourceRows) -> list[SampleRef]:
    """At most about `2 * SAMPLES_PER_SOURCE` samples of a source, at equal distances."""
    spread = np.arange(0, len(rows), max(len(rows) // SAMPLES_PER_SOURCE, 1))
    places = zip(*(array.tolist() for array in rows.locate(spread)), strict=True)
    return [SampleRef(source=source, shard=shard, row=row, pass_index=0) for shard, row in places]


def _sample_texts(sample: RawSample) -> Iterator[str]:
    yield from sample.meta.get("captions") or [sample.caption]
    for pair in [*(sample.meta.get("qa") or []), *(sample.meta.get("caption_qa") or [])]:
        yield str(pair["question"])
        yield str(pair["answer"])
    if sample.meta.get("conversations"):
        yield from itertools.chain.from_iterable(conversation_pairs(sample.meta["conversations"]))
