"""Trains the tokenizer of a small model on its own captions and questions: `python -m jobs.tokenizer RECIPE`.

A model that starts from a released backbone uses that backbone's tokenizer.json and does not need this.
"""

import itertools
import sys
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
from jobs.common import DryRun, RecipeName, StageOverrides, entry_point, show_pipeline

# Enough captions for stable merges, few enough to read in seconds from any set.
SAMPLES_PER_SOURCE = 4000


def train_tokenizer(recipe: Recipe) -> ChatTokenizer:
    """Reads captions and questions of every source and writes the tokenizer where the recipe expects it."""
    manifests = StageInputs(recipe).manifests
    texts = list(_texts(recipe, manifests))
    tokenizer = ChatTokenizer.train(texts, recipe.model.backbone.vocab_size)
    storage.write_bytes(tokenizer_uri(recipe.data), tokenizer.to_bytes())
    return tokenizer


def _texts(recipe: Recipe, manifests: list[Manifest]) -> Iterator[str]:
    words = recipe.data.template
    frame = [words.system, words.instruction.format(caption=""), DESCRIBE, "system\n", "user\n", "assistant\n"]
    # As often as a common question, so that the fixed words of every prompt become few tokens.
    yield from frame * SAMPLES_PER_SOURCE
    reader = ShardReader(manifests)
    for number, rows in enumerate(source_rows(recipe.data.sources, manifests)):
        for sample in reader.fetch(_first_refs(number, rows)):
            yield from _sample_texts(sample)


def _first_refs(source: int, rows: SourceRows) -> list[SampleRef]:
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


def command(recipe: RecipeName, *, overrides: StageOverrides, dry_run: DryRun = False) -> None:
    """Train the tokenizer of a small model on the sources of a recipe, or of a pipeline's first stage."""
    pipeline = show_pipeline(recipe, overrides)
    if not dry_run:
        train_tokenizer(pipeline.stages[0])


main = entry_point("tokenizer", command)

if __name__ == "__main__":
    sys.exit(main())
