"""A run's metrics as rows, one a step: what is worked out from a row, and which of its columns are the run's alone.

Columns: step, loss, loss/TERM, grad_norm, lr, samples, tokens and flops/PART are the same whenever the run is repeated
or resumed. The others depend on the machine and its day: time (of the row, in seconds since 1970), seconds, data_wait
and checkpoint_stall (seconds), memory_bytes, and the rates.
"""

from collections.abc import Mapping
from typing import Any

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
