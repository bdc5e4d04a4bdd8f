"""Everything that can be known before the first step: `python -m jobs.preflight RECIPE [--cluster 4x8xH100] [--ranks]`.

The recipe, memory and disk, storage and clocks, data, weights and features, and what the cluster offers. `--ranks`
starts the recipe's workers, adds a number over all of them, and compares what each reads of the weights to start from.
`jobs.train` makes the cheap ones of these checks by itself.
"""

import argparse
import sys
from collections.abc import Iterator

from blip3o import log, settings
from blip3o.config.cluster import parse_cluster
from blip3o.config.pipeline import load_pipeline
from blip3o.errors import ConfigError
from blip3o.train.preflight.checks import Check, require
from jobs.common import guarded, recipe_parser
from jobs.training.preflight import preflight


def tell(found: Iterator[tuple[str, Check]], *, mark: str = "") -> list[Check]:
    """Prints checks as they come, a line each; returns them."""
    checks = []
    for name, check in found:
        print(f"{mark}{name}: {check}")
        checks.append(check)
    return checks


def run(recipe: str, overrides: list[str], cluster: str | None, *, ranks: bool) -> None:
    """Makes all checks and prints them. Raises `ConfigError` that names what is wrong."""
    pretended = parse_cluster(cluster) if cluster else None
    if ranks and pretended:
        raise ConfigError(f"--ranks starts workers, and --cluster {cluster} is pretended: leave one of them out")
    require(tell(preflight(load_pipeline(recipe, overrides), pretended, ranks=ranks)))


def cluster_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--cluster`."""
    parser.add_argument("--cluster", help="check against a pretended cluster: 4x8xH100, or a YAML file")


def main(argv: list[str] | None = None) -> int:
    """Entry point."""
    log.configure()
    settings.configure_ray()
    parser = recipe_parser("preflight", "Everything that can be known before the first step.")
    cluster_option(parser)
    parser.add_argument("--ranks", action="store_true", help="start the workers, and see that they agree")

    def check() -> None:
        options = parser.parse_args(argv)
        run(options.recipe, options.set, options.cluster, ranks=options.ranks)

    return guarded(check)


if __name__ == "__main__":
    sys.exit(main())
