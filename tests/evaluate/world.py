"""A small held-out world for tests of the evaluation: indexed scenes and an untrained nano model as a bundle."""

from blip3o import storage
from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import build_model
from blip3o.bundle.writing import write_bundle
from blip3o.config.recipe import Recipe
from blip3o.data.sets.scenes import samples
from blip3o.data.sets.writer import Sample, shard_bytes
from blip3o.data.shards.manifest import write_manifest, write_shard_index
from blip3o.data.shards.scan import scan_shard
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.model.unified import initialize
from tests import recipes

HELD_OUT = 24  # scenes in each held-out source


def scenes(split: str = "heldout", *, size: int = HELD_OUT, seed: int = 0) -> list[Sample]:
    """Some scenes of one split."""
    counts = {"train": 0, "heldout": 0, split: size}
    return list(samples(**counts, seed=seed))


def add_source(root: str, name: str, content: list[Sample], *, per_shard: int = 10) -> None:
    """Writes samples as shards of a source and indexes them."""
    manifest = storage.join(root, "manifests", name)
    rows = []
    for shard, start in enumerate(range(0, len(content), per_shard)):
        uri = storage.join(root, name, f"part-{shard:05d}.tar")
        storage.write_bytes(uri, shard_bytes(content[start : start + per_shard]))
        scan = scan_shard(storage.stat(uri), source=name, shard=shard)
        rows.append(write_shard_index(manifest, storage.stat(uri), scan).row)
    write_manifest(manifest, name, rows)


def recipe(root: str, *sources: str, **evaluate: int) -> Recipe:
    """A nano recipe that evaluates on these sources below `root`."""
    named = [{"name": name, "shards": f"{name}/part-*.tar"} for name in sources]
    return recipes.recipe(data={"root": root}, evaluate={"sources": named, **evaluate})


def make_bundle(uri: str) -> None:
    """Writes the bundle of an untrained nano model."""
    settings = recipes.recipe()
    tokenizer = ChatTokenizer.train([caption for s in scenes() for caption in s.record["captions"]], 512)
    config = BundleConfig(model=settings.model, template=settings.data.template, max_length=128)
    model = build_model(config, tokenizer)
    initialize(model, 0)
    write_bundle(uri, config=config, tensors=dict(model.named_parameters()), tokenizer=tokenizer, provenance={})
