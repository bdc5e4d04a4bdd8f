"""A run's metrics as rows, one a step: where they are kept, what is worked out from a row, and which of its columns
only depend on the run.

Columns: step, loss, loss/TERM, grad_norm, lr, samples, tokens and flops/PART are the same whenever the run is repeated
or resumed. The others depend on the machine and its day: time (of the row, in seconds since 1970), seconds, data_wait
and checkpoint_stall (seconds), memory_bytes, and the rates.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from blip3o import storage
from blip3o.config.recipe import Recipe
from blip3o.runs.paths import metrics_folder

FLOPS = "flops/"  # how the names of counts of operations begin
TOKENS = "tokens"
MFU = "mfu"
_CLOCKED = (
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
    """A step's row with samples and tokens a second, and MFU, the share of the peak of all workers that it reached.

    `peak_flops` are operations a second of all workers together; None leaves MFU out. `mfu/PART` are the shares of its
    parts, and add up to `mfu`: a part that is slow for its size shows only in the whole, as parts have no times.
    """
    seconds = row["seconds"]
    rates = {"samples_per_second": row["samples"] / seconds}
    if TOKENS in row:
        rates["tokens_per_second"] = row[TOKENS] / seconds
    flops = {name.removeprefix(FLOPS): value for name, value in row.items() if name.startswith(FLOPS)}
    if peak_flops is not None and flops:
        shares = {f"{MFU}/{name}": value / seconds / peak_flops for name, value in flops.items()}
        rates |= {MFU: sum(shares.values()), **shares}
    return {**row, **rates}


def reproducible(row: Mapping[str, Any]) -> Row:
    """The columns of a row that a repeated or resumed run has bit for bit."""
    return {name: value for name, value in row.items() if name not in _CLOCKED and name.split("/")[0] != MFU}


def write_rows(folder: str, rows: Sequence[Row]) -> None:
    """Writes the rows of an interval, not empty, as a file named by the steps that are done at its end.

    The same interval again replaces its file. Raises `StorageError`.
    """
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    storage.write_bytes(storage.join(folder, f"step-{rows[-1]['step'] + 1:08d}.jsonl"), lines.encode())


def read_rows(storage_uri: str, run: str) -> list[Row]:
    """All rows of a run so far, in the order of steps."""
    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    rows = [json.loads(line) for file in files for line in storage.read_bytes(file.uri).splitlines()]
    # The intervals of a run that fell back to an older checkpoint may overlap: the newest row of a step counts.
    ordered = sorted(rows, key=lambda row: (row["step"], row.get("time", 0.0)))
    return list({row["step"]: row for row in ordered}.values())


def rows_of(recipe: Recipe) -> list[Row]:
    """All rows of a recipe's run so far, in the order of steps."""
    return read_rows(recipe.run.storage, recipe.run.name)


def newest_row(storage_uri: str, run: str) -> Row | None:
    """The last row of the last interval, by reading only that file; None where there is no row yet."""
    files = storage.list_files(metrics_folder(storage_uri, run), suffix=".jsonl")
    return json.loads(storage.read_bytes(files[-1].uri).splitlines()[-1]) if files else None
