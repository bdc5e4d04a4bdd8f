"""Where a recipe's data live: shards, manifests, tokenizer. Relative URIs join `data.root`."""

from collections.abc import Sequence
from dataclasses import dataclass

from blip3o import storage
from blip3o.config.recipe import DataConfig
from blip3o.config.shards import ColumnsConfig, KeyRule, MembersConfig, SourceConfig


@dataclass(frozen=True, kw_only=True)
class SourceLocation:
    """One source's name, its shards (with a `*`), its manifest, and how samples are made of what its files hold."""

    name: str
    shards: str
    manifest: str
    columns: ColumnsConfig
    key: KeyRule
    members: MembersConfig


def below_root(data: DataConfig, uri: str) -> str:
    """`uri` itself if it is absolute, else `data.root` joined with it."""
    return storage.within(data.root, uri)


def source_locations(data: DataConfig, sources: Sequence[SourceConfig] | None = None) -> list[SourceLocation]:
    """Shards and manifest of each source (the training sources unless others are given), in order."""
    return [
        SourceLocation(
            name=source.name,
            shards=below_root(data, source.shards),
            manifest=storage.join(data.root, "manifests", source.name),
            columns=source.columns,
            key=source.key,
            members=source.members,
        )
        for source in (data.sources if sources is None else sources)
    ]


def tokenizer_uri(data: DataConfig) -> str:
    """Where the tokenizer.json is."""
    return below_root(data, data.tokenizer)
