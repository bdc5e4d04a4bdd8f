"""`blip3o data …`: what is in a set of shards, and what was found damaged in it."""

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from blip3o.config.shards import KeyRule

if TYPE_CHECKING:
    from blip3o.data.shards.ledger import LedgerEntry

app = typer.Typer(no_args_is_help=True, help="Look at a set of shards, and at what is damaged in it.")

SHOWN = 20


@app.command("ledger")
def data_ledger(
    uri: Annotated[str, typer.Argument(help="folder of a manifest or of a run, or a ledger itself")],
    stage: Annotated[list[str] | None, typer.Option(help="only entries of this stage of work; repeat")] = None,
    reason: Annotated[str | None, typer.Option(help="only entries whose reason contains this")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="everything as one JSON object on stdout")] = False,
) -> None:
    """Every sample that was found damaged, counted by stage and reason."""
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
    for (worked, kind), count in counts.most_common():
        print(f"{count:8d}  {worked:10s}  {kind}")
    for entry in entries[:SHOWN]:
        print(_line(entry))
    if len(entries) > SHOWN:
        print(f"… and {len(entries) - SHOWN} more: --json gives all")


def _line(entry: "LedgerEntry") -> str:
    covers = f" ({entry.count} inputs)" if entry.count != 1 else ""
    where = f"{entry.uri} [{entry.offset}, {entry.offset + entry.size})"
    return f"{entry.uid}  {where}  {entry.stage}: {entry.reason}{covers}"


@app.command("inspect")
def data_inspect(
    uri: Annotated[str, typer.Argument(help="folder of a manifest, or shards, with a `*` where they are many")],
    out: Annotated[str | None, typer.Option(help="URI of an HTML page to write")] = None,
    pictures: Annotated[int, typer.Option(min=1, max=500, help="samples shown on the page")] = 48,
    seed: Annotated[int, typer.Option(min=0, help="seed of the choice of samples")] = 0,
    key: Annotated[
        KeyRule, typer.Option(help="of shards: the dot at which the key of a tar member ends")
    ] = "first_dot",
    image: Annotated[str | None, typer.Option(help="of shards: extension, or Parquet column, of images")] = None,
    caption: Annotated[str | None, typer.Option(help="of shards: extension, or Parquet column, of captions")] = None,
) -> None:
    """Counts, sizes, shapes, caption lengths, near duplicates and a look at samples of a set."""
    from jobs.commands.inspection import inspect, scan_options

    print(inspect(uri, out=out, pictures=pictures, seed=seed, options=scan_options(key, image, caption)))
