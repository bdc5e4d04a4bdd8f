"""`blip3o data …`: builds, imports, inspects and copies sets of shards, and lists what is damaged in them."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o.config.shards import KeyRule
from blip3o.data.sets.importing.splits import GroupBy
from jobs.common import UsageError, new_app

if TYPE_CHECKING:
    from blip3o.data.sets.writer import SetSummary
    from blip3o.data.shards.ledger import LedgerEntry

app = new_app(help="Build, import, inspect and copy sets of shards, and list what is damaged in them.")
build = new_app(help="Build the image-text sets that ship with the project.")
app.add_typer(build, name="build")

SHOWN = 20  # entries of a ledger that are printed
SHOWN_INPUTS = 10  # unused inputs of each kind that an import prints

Out = Annotated[str, typer.Option(help="Folder to write to: s3://bucket/prefix or a local path.")]


def _report(summary: "SetSummary") -> None:
    counts = ", ".join(f"{count} {split}" for split, count in summary.counts.items())
    state = "wrote" if summary.built else "already there:"
    print(f"{state} {counts} samples at {summary.uri}")


@build.command("emoji")
def build_emoji_set(
    out: Out,
    size: Annotated[int | None, typer.Option(help="Side in pixels; as published if omitted.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of captions and questions.")] = 0,
) -> None:
    """Build emoji in two styles with their names, groups and keywords (fetched with npm, checked by sha256)."""
    from blip3o.data.sets.emoji import build_emoji
    from jobs.commands.progress import bar

    with bar("emoji") as progress:
        summary = build_emoji(out, size=size, seed=seed, on_progress=progress)
    _report(summary)


@build.command("scenes")
def build_scenes_set(
    out: Out,
    train: Annotated[int, typer.Option(help="Training scenes.")] = 4000,
    heldout: Annotated[int, typer.Option(help="Scenes of held-out compositions.")] = 400,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of everything drawn.")] = 0,
) -> None:
    """Build scenes of coloured shapes, drawn by code, so that every fact about a picture is known."""
    from blip3o.data.sets.scenes import build_scenes
    from jobs.commands.progress import bar

    with bar("scenes") as progress:
        summary = build_scenes(out, train=train, heldout=heldout, size=size, seed=seed, on_progress=progress)
    _report(summary)


@build.command("curated")
def build_curated_set(
    out: Out,
    sets: Annotated[
        list[str], typer.Option("--from", metavar="URI", help="URI of a built set to choose from. Repeatable.")
    ],
    samples: Annotated[int, typer.Option(help="Samples to select.")] = 600,
    seed: Annotated[int, typer.Option(help="Seed of the selection.")] = 0,
) -> None:
    """Build a small balanced selection with one caption per sample, for the instruct stage."""
    from blip3o.data.sets.curated import build_curated

    _report(build_curated(out, sets=sets, samples=samples, seed=seed))


@app.command("import")
def data_import(
    source: Annotated[
        str,
        typer.Argument(help="Folder of pictures with .txt or .json next to them, or a .csv, .json, .jsonl, .parquet."),
    ],
    out: Out,
    heldout: Annotated[float, typer.Option(min=0, max=0.9, help="Share of samples that are never trained on.")] = 0.0,
    group_by: Annotated[
        GroupBy, typer.Option(help="What --heldout chooses; caption keeps samples of equal captions on one side.")
    ] = "picture",
    image_column: Annotated[str | None, typer.Option(help="Column of a table that names the picture.")] = None,
    caption_column: Annotated[str | None, typer.Option(help="Column of a table that holds the caption.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of a CSV: one character, or tab.")] = None,
) -> None:
    """Import your own images and texts as shards. Inputs that cannot be used are listed."""
    from blip3o.data.sets.imported import import_set
    from blip3o.data.sets.importing.columns import TableOptions
    from jobs.commands.progress import bar

    if group_by != "picture" and not heldout:
        raise UsageError(f"--group-by {group_by} says what --heldout chooses: give --heldout, e.g. 0.1")
    options = TableOptions(
        image_column=image_column, caption_column=caption_column, delimiter="\t" if delimiter == "tab" else delimiter
    )
    with bar("import") as progress:
        imported = import_set(source, out, heldout=heldout, group_by=group_by, options=options, on_progress=progress)
    _report(imported.summary)
    for what, entries in (("samples", imported.damage), ("other files", imported.unused)):
        if entries:
            print(f"left out {len(entries)} {what}: blip3o data ledger {imported.ledger}")
        for entry in entries[:SHOWN_INPUTS]:
            print(f"  {entry.uri}: {entry.reason}")
    for line in imported.account():
        print(line)


@app.command("copy")
def data_copy(
    source: Annotated[str, typer.Argument(help="Folder to copy, e.g. of manifests, stored features or a bundle.")],
    target: Annotated[str, typer.Argument(help="Folder to copy it to. Files that are there already are replaced.")],
) -> None:
    """Copy all files of a folder, to another bucket or back: a backup of what does not change any more."""
    from blip3o.storage.copying import copy_folder
    from blip3o.storage.sizes import readable
    from jobs.commands.progress import bar

    with bar("copy") as progress:
        size = copy_folder(source, target, on_progress=progress)
    print(f"copied {readable(size)} to {target}")


@app.command("ledger")
def data_ledger(
    uri: Annotated[str, typer.Argument(help="Folder of a manifest or of a run, or a ledger itself.")],
    stage: Annotated[list[str] | None, typer.Option(help="Only entries of this stage of work. Repeatable.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only entries whose reason contains this.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print all entries as one JSON object.")] = False,
) -> None:
    """List the samples that were found damaged, counted by stage and reason."""
    from blip3o.data.shards.ledger import find_ledger, kind_of, read_ledger

    entries = [
        entry
        for entry in read_ledger(find_ledger(uri))
        if (not stage or entry.stage in stage) and (reason or "") in entry.reason
    ]
    counts = Counter((entry.stage, kind_of(entry.reason)) for entry in entries)
    if as_json:
        listed = [{"stage": stage, "reason": kind, "entries": count} for (stage, kind), count in counts.most_common()]
        print(json.dumps({"counts": listed, "entries": [asdict(entry) for entry in entries]}))
        return
    print(f"{len(entries)} entries")
    for (entry_stage, kind), count in counts.most_common():
        print(f"{count:8d}  {entry_stage:10s}  {kind}")
    for entry in entries[:SHOWN]:
        print(_line(entry))
    if len(entries) > SHOWN:
        print(f"… and {len(entries) - SHOWN} more: --json prints all")


def _line(entry: "LedgerEntry") -> str:
    covers = f" ({entry.count} inputs)" if entry.count != 1 else ""
    where = f"{entry.uri} [{entry.offset}, {entry.offset + entry.size})"
    return f"{entry.uid}  {where}  {entry.stage}: {entry.reason}{covers}"


@app.command("inspect")
def data_inspect(
    uri: Annotated[str, typer.Argument(help="Folder of a manifest, or shards: a file, or a pattern with `*`.")],
    out: Annotated[str | None, typer.Option(help="URI of an HTML page to write.")] = None,
    pictures: Annotated[int, typer.Option(min=1, max=500, help="Samples on the page.")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="Seed that chooses the samples.")] = 0,
    key: Annotated[
        KeyRule, typer.Option(help="For shards: the dot at which the key of a tar member ends.")
    ] = "first_dot",
    image: Annotated[str | None, typer.Option(help="For shards: extension, or Parquet column, of images.")] = None,
    caption: Annotated[str | None, typer.Option(help="For shards: extension, or Parquet column, of captions.")] = None,
) -> None:
    """Show a set: counts, sizes, shapes, caption lengths, near duplicates and sample images."""
    from jobs.commands.inspection import inspect, scan_options

    print(inspect(uri, out=out, pictures=pictures, seed=seed, options=scan_options(key, image, caption)))
