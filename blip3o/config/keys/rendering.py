"""The reference of recipe keys as text of 80 columns, and as the page `docs/recipe-keys.md`."""

import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from blip3o.config.keys.reference import EVERY_STAGE, RecipeKey

WIDTH = 80
_MARK = re.compile(r"([*_\[\]])")
_INTRODUCTION = """\
# Recipe keys

Every key of a [recipe](recipes.md), from the descriptions of its fields. `blip3o recipes explain KEY` prints the same
for one key or a section, and `blip3o recipes show RECIPE` what a recipe sets. `blip3o recipes explain --markdown`
prints this page.

- `[]` in a name stands for each member of a list: `data.sources[].weight` is `data: {sources: [{weight: 2.0}]}`.
- Required keys have no default. A section that is left out has the defaults of its keys.
- "Read by" names the stages that read a key, where not every stage does; in parentheses, the `model.objective` or
  `model.decoder.kind` with which it does. Such a key is refused in the section of another stage, and in a recipe of
  another stage; in the sections that the stages of a pipeline share, the other stages leave it at its default.
"""


def as_text(keys: Sequence[RecipeKey]) -> str:
    """The keys one below the other, in lines of at most 80 columns."""
    return "\n\n".join("\n".join(_lines(key)) for key in keys)


def overview(keys: Sequence[RecipeKey]) -> str:
    """One line for each section on the top level."""
    sections = [key for key in keys if key.is_section and "." not in key.name]
    width = max(len(key.name) for key in sections)
    wrapped = [
        textwrap.fill(key.about, WIDTH, initial_indent=f"{key.name:<{width}}  ", subsequent_indent=" " * (width + 2))
        for key in sections
    ]
    return "\n".join(wrapped)


def as_markdown(keys: Sequence[RecipeKey]) -> str:
    """The page: a table for each section on the top level, after the keys of the file itself."""
    parts = [_INTRODUCTION]
    for section, members in groupby(keys, key=_section):
        rows = list(members)
        head = next((key for key in rows if key.name == section), None)
        title = f"{section}: {head.about}" if head else "The file"
        table = [_row(key) for key in rows if key is not head]
        parts.append("\n".join([f"## {title}", "", "| key | value | default | |", "|---|---|---|---|", *table, ""]))
    return "\n".join(parts)


def _section(key: RecipeKey) -> str:
    section = key.name.split(".")[0]
    return "" if section in ("extends", "pipeline") else section


def _lines(key: RecipeKey) -> Iterator[str]:
    yield key.name + (f"  (kind: {key.only})" if key.only else "")
    facts = [key.form] if key.is_section else [key.form, _default(key)]
    for text in ("; ".join(facts), f"read by {_stages(key)}" if not key.is_section else "", key.about):
        yield from textwrap.wrap(text, WIDTH - 2, initial_indent="  ", subsequent_indent="  ")


def _default(key: RecipeKey) -> str:
    return "required" if key.default is None else f"default {key.default}"


def _stages(key: RecipeKey) -> str:
    return ", ".join(key.stages)


def _row(key: RecipeKey) -> str:
    name = f"`{key.name}`" + (f" ({key.only})" if key.only else "")
    default = "" if key.is_section else "required" if key.default is None else f"`{key.default}`"
    about = key.about if key.stages == EVERY_STAGE else f"{key.about}. Read by {_stages(key)}"
    return "| " + " | ".join(map(_cell, (name, key.form, default, about))) + " |"


def _cell(text: str) -> str:
    """A text in a cell of a table: what Markdown and HTML would read as marks stays plain, except in code."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [_MARK.sub(r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)
