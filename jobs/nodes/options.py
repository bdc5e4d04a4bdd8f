"""The options of `blip3o preflight --on-cluster`."""

from dataclasses import dataclass
from typing import Annotated

import typer

from blip3o.errors import ConfigError

PATIENCE_SECONDS = 90.0  # longer than a store is tried, whose error then says why


@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """Whether the nodes are probed, and where the result goes. Raises `ConfigError` for a file without a probe."""

    on_cluster: Annotated[
        bool, typer.Option("--on-cluster", help="Only probe each node of the cluster that this job runs on.")
    ] = False
    json: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write what --on-cluster finds; - for stdout, without the table.")
    ] = None
    patience: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="How long --on-cluster waits for the nodes.")
    ] = PATIENCE_SECONDS

    def __post_init__(self) -> None:
        """Refuses `--json` alone."""
        if self.json and not self.on_cluster:
            raise ConfigError("--json holds what --on-cluster finds: give both")
