"""What the grid of an evaluation shows, by rules that were fixed before the result.

Scenes come first, one prompt of each family. Of every other source the first prompts are drawn, if its drawings are
recognisable: at least half of them retrieve their own image before all others of the source. A source that is not shows
what else is asked about it: pictures, questions and replies. Within a source, nothing is chosen by its result.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from blip3o.data.sets.scenes_world import FAMILIES
from blip3o.evaluate.heldout.outputs import DecodedImages, Drawings, Variants
from blip3o.evaluate.heldout.scene_accuracy import is_scene
from blip3o.evaluate.heldout.selection import HeldOutSample
from blip3o.evaluate.reports.grid import AskedCard, AskedSection, GridRow, GridSection
from blip3o.evaluate.reports.heldout import AnsweredPicture
from blip3o.inference.pipeline import Blip3oPipeline

RECOGNISABLE = 0.5  # R@1 within a source, from which on its drawings are shown
ROWS, CARDS = 4, 6  # prompts, and questions, of a source


def rows_to_show(items: Sequence[HeldOutSample], retrieval: Mapping[str, Any]) -> dict[str, list[int]]:
    """The rows of each source whose drawings are shown, scenes first. All sources, if none would be left.

    `retrieval` has the figures within each source, `by_source`; a source without R@1 is shown.
    """
    by_source: dict[str, list[int]] = {}
    for row, item in enumerate(items):
        by_source.setdefault(item.source, []).append(row)
    scenes = {name: rows for name, rows in by_source.items() if is_scene(items[rows[0]].record)}
    others = {name: rows[:ROWS] for name, rows in by_source.items() if name not in scenes}
    found = {name: it["r1"] for name, it in retrieval["by_source"].items() if it["r1"] is not None}
    clear = {name: rows for name, rows in others.items() if found.get(name, 1.0) >= RECOGNISABLE}
    shown = {name: _one_of_each_family(items, rows) for name, rows in scenes.items()} | clear
    return shown or others


def _one_of_each_family(items: Sequence[HeldOutSample], rows: Sequence[int]) -> list[int]:
    """The first row of each family, in the order of the families."""
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(items[row].record["family"], row)
    return [first[family] for family in FAMILIES if family in first]


def grid_sections(
    pipeline: Blip3oPipeline,
    drawings: Drawings,
    pictures: DecodedImages,
    *,
    shown: Mapping[str, list[int]],
    variants: Variants,
) -> list[GridSection]:
    """The `shown` rows of each source (those of `variants`) with all their drawings; the first is the scored one."""
    further = pipeline.decode(
        variants.features[:, 1:].flatten(0, 1), seeds=[n for of_row in variants.seeds for n in of_row[1:]]
    )
    each = len(further) // len(variants.rows)
    others = {row: further[place * each : (place + 1) * each] for place, row in enumerate(variants.rows)}
    return [
        GridSection(
            title=source, rows=tuple(_grid_row(drawings.items[row], pictures, row, others[row]) for row in places)
        )
        for source, places in shown.items()
    ]


def _grid_row(item: HeldOutSample, pictures: DecodedImages, row: int, further: Sequence[Image.Image]) -> GridRow:
    return GridRow(
        caption=item.caption,
        truth=item.image,
        decoded=pictures.decoded[row],
        drawn=(pictures.drawn[row], *further),
        label=item.record["family"].replace("_attr", " attribution").replace("_", " ") if is_scene(item.record) else "",
    )


def asked_sections(
    answered: Sequence[AnsweredPicture], shown: Mapping[str, list[int]], retrieval: Mapping[str, Any]
) -> list[AskedSection]:
    """The first questions about each source whose drawings are not shown."""
    by_source: dict[str, list[AnsweredPicture]] = {}
    for item in answered:
        by_source.setdefault(item.record.source, []).append(item)
    return [
        AskedSection(title=_why(source, retrieval), cards=tuple(map(_card, items[:CARDS])))
        for source, items in by_source.items()
        if source not in shown
    ]


def _why(source: str, retrieval: Mapping[str, Any]) -> str:
    figures = retrieval["by_source"].get(source)
    if figures is None:  # asked about, and never drawn
        return source
    found = f"{figures['r1']:.0%} of {figures['n']} drawings find their own image first, less than {RECOGNISABLE:.0%}"
    return f"{source}: {found}, so questions are shown"


def _card(item: AnsweredPicture) -> AskedCard:
    record = item.record
    return AskedCard(
        image=item.image, question=record.question, reply=record.reply, answer=record.answer, right=record.correct
    )
