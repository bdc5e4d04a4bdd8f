"""Sources of samples: which shards, how they are read, limits on samples, and which of these to train on."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from blip3o import settings, storage
from blip3o.config.base import Frozen, require

# Hard limits: the decoder and the readers enforce them too.
MAX_PIXELS = 100_000_000
MAX_CAPTION_CHARS = 100_000


def _full(uri: str) -> str:
    """A relative path as a full one: workers and actors have other current folders than the driver."""
    try:
        full = storage.absolute(uri)
    except storage.BadUriError as error:
        raise ValueError(str(error)) from error
    require(
        full == uri or not settings.get("RAY_JOB_ID"),
        f"'{uri}' is a relative path, and a submitted job runs in a copy of your folder that is deleted with it: give "
        "an s3:// URI, or the full path of a folder that all nodes share, for data.root and for run.storage",
    )
    return full


# A folder, as a URI; a relative path is one below the current folder.
FolderUri = Annotated[str, AfterValidator(_full)]


class LimitsConfig(Frozen):
    """Limits on samples. Indexing records samples beyond them in the ledger. Index again after a change."""

    max_pixels: int = Field(
        default=2**26,
        gt=0,
        le=MAX_PIXELS,
        description="most pixels of an image (width x height); larger ones are rejected by their header, undecoded",
    )
    max_caption_chars: int = Field(
        default=MAX_CAPTION_CHARS, gt=0, le=MAX_CAPTION_CHARS, description="most characters of a caption"
    )


class ColumnsConfig(Frozen):
    """Columns of a Parquet source, if they do not have the usual names. Index again after a change."""

    image: str | None = Field(
        default=None,
        description="column of image bytes, or of structs with a field `bytes`; null: found by its usual names",
    )
    caption: str | None = Field(default=None, description="column of captions; null: found by its usual names")
    record: tuple[str, ...] | None = Field(
        default=None, description="columns that make up the record; null: all other columns except those of bytes"
    )


KeyRule = Literal["first_dot", "last_dot"]
Extension = Annotated[str, StringConstraints(to_lower=True, pattern=r"^[^./]([^/]*[^./])?$")]


class MembersConfig(Frozen):
    """Members of a tar source by extension, if they do not have the usual ones. Index again after a change.

    An extension is the part of a member's name after the key, in upper or lower case: `input.jpg` of `0001.input.jpg`.
    If one is set here, other members of its kind are not used.
    """

    image: Extension | None = Field(
        default=None, description="extension of pictures, e.g. input.jpg; null: the usual ones"
    )
    caption: Extension | None = Field(default=None, description="extension of captions, e.g. outputs.txt; null: txt")
    record: Extension | None = Field(default=None, description="extension of records, e.g. meta.json; null: json")

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        named = [name for name in (self.image, self.caption, self.record) if name is not None]
        require(len(set(named)) == len(named), f"members: {', '.join(named)}: name each extension once")
        return self


# A bound or the accepted values of one field.
Rule = dict[Literal["min", "max", "in"], float | tuple[bool | int | float | str, ...]]


class SelectConfig(Frozen):
    """Bounds that a sample must satisfy to be used. By default, every sample is used."""

    min_side: int | None = Field(default=None, gt=0, description="least length of the image's shorter side, pixels")
    max_aspect: float | None = Field(default=None, ge=1, description="largest ratio of the longer to the shorter side")
    min_caption_chars: int | None = Field(default=None, gt=0, description="fewest characters of the caption")
    max_caption_chars: int | None = Field(default=None, gt=0, description="most characters of the caption")
    where: dict[str, Rule] = Field(
        default={},
        description="rules for values of the sample's record, by name, e.g. {score: {min: 5.0}, language: {in: [en]}}; "
        "bounds are inclusive, and a sample without one of these values is not used",
    )

    @model_validator(mode="after")
    def _possible(self) -> Self:
        low, high = self.min_caption_chars or 0, self.max_caption_chars
        require(high is None or low <= high, f"select: min_caption_chars {low} is above max_caption_chars {high}")
        for name, rule in self.where.items():
            bounds = [rule.get("min"), rule.get("max")]
            require(bool(rule), f"select.where: '{name}' has no rule: give min, max or in")
            require(
                not any(isinstance(bound, tuple) for bound in bounds),
                f"select.where: min and max of '{name}' are single numbers, and one is a list: use in",
            )
            require(
                isinstance(rule.get("in", ()), tuple) and rule.get("in") != (),
                f"select.where: in of '{name}' is a list of the accepted values, with at least one",
            )
        return self

    @property
    def empty(self) -> bool:
        """Whether every sample is used."""
        return self == SelectConfig()


class SourceConfig(Frozen):
    """One set of shards."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="name in logs, uids and the ledger")
    shards: str = Field(
        description="URI pattern of the shards, e.g. s3://bucket/emoji/train-*.tar (or *.parquet); a relative one is "
        "resolved against data.root"
    )
    weight: float = Field(default=1.0, gt=0, description="sampling weight of this source, relative to the others")
    task: Literal["chat", "generate", "both"] = Field(
        default="both",
        description="what stage joint trains on this source's samples. chat: questions about the image; generate: "
        "requests for the image; both",
    )
    select: SelectConfig = SelectConfig()
    columns: ColumnsConfig = ColumnsConfig()
    # Omitted from a dump at their defaults, so that runs from before these fields keep their identity.
    key: KeyRule = Field(
        default="first_dot",
        exclude_if=lambda rule: rule == "first_dot",
        description="where a tar member's key ends in the base name of its path. first_dot: as in WebDataset; "
        "last_dot: cat.1.jpg and cat.2.jpg are two samples",
    )
    members: MembersConfig = Field(
        default=MembersConfig(),
        exclude_if=lambda members: members == MembersConfig(),
        description="which tar members make a sample",
    )

    @model_validator(mode="after")
    def _extensions_fit_the_key(self) -> Self:
        for name in (self.members.image, self.members.caption, self.members.record):
            require(
                self.key == "first_dot" or name is None or "." not in name,
                f"source '{self.name}': members names '{name}', but with key: last_dot no extension has a dot",
            )
        return self
