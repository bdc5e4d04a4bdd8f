"""The metrics of a run as rows, one per step: how they are stored, derived rates, and which columns are reproducible.

The columns step, loss, loss/TERM, grad_norm, lr, samples, tokens, flops/PART, useful_flops/PART and padding are the
same whenever the run is repeated or resumed. The others depend on the machine and its load: time (of the row, in
seconds since 1970), seconds, data_wait and checkpoint_stall (seconds), memory_bytes, and the rates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import metrics_folder

FLOPS = "flops/"  # prefix of the columns that count operations
USEFUL_FLOPS = "useful_flops/"  # the same without those on padding; a part without such a column has no padding
PADDING = "padding"
TOKENS = "tokens"
MFU = "mfu"
_TIMING_COLUMNS = (
    "time",
    "seconds",
    "data_wait",
    "checkpoint_stall",
    "memory_bytes",
    "samples_per_second",
    "tokens_per_second",
)

Row = dict[str, Any]


def with_rates(row: Mapping[str, Any], *, peak_flops: float | None) -> Row:
    """Adds samples and tokens per second to a step's row, and two shares: padding and MFU.

    `padding` is the share of the computed operations that were spent on padding. MFU is the rate of the useful
    operations, as a share of the peak of all workers: padding does not raise it.

    `peak_flops` is the peak of all workers together in operations per second; with None there is no MFU. The columns
    `mfu/PART` add up to `mfu`. They divide by the time of the complete step, since parts are not timed separately.
    """
    seconds = row["seconds"]
    rates = {"samples_per_second": row["samples"] / seconds}
    if TOKENS in row:
        rates["tokens_per_second"] = row[TOKENS] / seconds
    flops = {name.removeprefix(FLOPS): value for name, value in row.items() if name.startswith(FLOPS)}
    useful = {name: row.get(USEFUL_FLOPS + name, value) for name, value in flops.items()}
    if any(name.startswith(USEFUL_FLOPS) for name in row):
        rates[PADDING] = 1 - sum(useful.values()) / operations(row)
    if peak_flops is not None and flops:
        shares = {f"{MFU}/{name}": value / seconds / peak_flops for name, value in useful.items()}
        rates |= {MFU: sum(shares.values()), **shares}
    return {**row, **rates}


def operations(row: Mapping[str, Any]) -> int:
    """The floating-point operations that a step computed, those on padding included."""
    return sum(value for name, value in row.items() if name.startswith(FLOPS))


def reproducible(row: Mapping[str, Any]) -> Row:
    """The columns of a row that are bit-identical in a repeated or resumed run."""
    return {name: value for name, value in row.items() if name not in _TIMING_COLUMNS and name.split("/")[0] != MFU}


def write_rows(folder: str, rows: Sequence[Row]) -> None:
    """Writes the rows of a non-empty interval as a file, named by the number of steps done at its end.

    Writing the same interval again replaces its file. Raises `StorageError`.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(storage.join(folder, f"step-{rows[-1]['step'] + 1:08d}.jsonl"), lines.encode())


def read_rows(storage_uri: str, run: str) -> list[Row]:
    """All rows of a run so far, ordered by step."""
    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    rows = [json.loads(line) for file in files for line in storage.read_bytes(file.uri).splitlines()]
    # After a fallback to an older checkpoint, intervals may overlap. The newest row of a step counts.
    ordered = sorted(rows, key=lambda row: (row["step"], row.get("time", 0.0)))
    return list({row["step"]: row for row in ordered}.values())


def rows_of(recipe: Recipe) -> list[Row]:
    """All rows of a recipe's run so far, ordered by step."""
    return read_rows(recipe.run.storage, recipe.run.name)


def newest_row(storage_uri: str, run: str) -> Row | None:
    """The last row of the last interval, reading only that file; None if there is no row yet."""
    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    return json.loads(storage.read_bytes(files[-1].uri).splitlines()[-1]) if files else None
