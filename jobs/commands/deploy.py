"""`blip3o deploy --bundle URI --address http://HEAD:8265`: a bundle onto a cluster, without a failed request.

`jobs.deployment` does the work; this is its command line.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.errors import BundleError, ConfigError
from jobs.common import parameters_of, with_parameters
from jobs.serve import build_config, options_of_config

if TYPE_CHECKING:
    from jobs.deployment.cluster import ServeCluster

_SAFETY = "Roll-out"


def _option(help_text: str, metavar: str | None = None, **rest: Any) -> typer.models.OptionInfo:  # noqa: ANN401 - typer's
    return typer.Option(help=help_text, metavar=metavar, rich_help_panel=_SAFETY, **rest)


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """Where the bundle goes, and what it must do before it gets all of the traffic."""

    address: Annotated[str, _option("The dashboard of the Ray cluster.", "URL")] = "http://127.0.0.1:8265"
    url: Annotated[str, _option("Where the server answers, or where a new one will listen.", "URL")] = (
        "http://127.0.0.1:8000"
    )
    suite: Annotated[
        list[str],
        _option("Suite on which the new bundle may not be worse. Repeatable.", "NAME", default_factory=list),
    ] = field(default_factory=list)
    limit: Annotated[int | None, _option("Only the first N items of each suite.", "N", min=1)] = None
    tolerance: Annotated[float, _option("By how much a score may be worse.", min=0)] = 0.0
    canary_share: Annotated[float, _option("Share of the requests during the trial.", min=0, max=0.5)] = 0.1
    canary_seconds: Annotated[float, _option("Length of the trial; 0 leaves it out.", min=0)] = 60
    start_timeout_seconds: Annotated[float, _option("How long the replicas may take to start.", min=1)] = 1800
    config_out: Annotated[Path | None, _option("Also write the Serve config that results.", "FILE", dir_okay=False)] = (
        None
    )
    dry_run: Annotated[bool, _option("Print the Serve config of a first deployment, and stop.")] = False


@with_parameters([*parameters_of(RolloutOptions), *options_of_config(None)])
def deploy(
    bundle: Annotated[str, typer.Option(metavar="URI", help="The bundle to serve, as `blip3o export` wrote it.")],
    **values: Any,  # noqa: ANN401 - the fields of `RolloutOptions` and `ServeConfig`
) -> None:
    """Serve a bundle on a cluster in place of another one, without a failed request; roll back if it is worse.

    Options that you omit keep their value on the cluster.
    """
    names = RolloutOptions.__dataclass_fields__
    options = RolloutOptions(**{name: value for name, value in values.items() if name in names})
    location = storage.absolute(bundle)
    given = {name: value for name, value in values.items() if name not in names and value is not None}
    given |= {"bundle": location, "bundle_sha256": _sha256(location)}
    host, port = _listening(options.url)
    if options.dry_run:
        import yaml

        from serve.deployments.configs import first_config

        print(yaml.safe_dump(first_config(build_config(given), host=host, port=port), sort_keys=False), end="")
        return
    from jobs.deployment.checks import Gate
    from jobs.deployment.cluster import ServeCluster
    from jobs.deployment.rollout import Canary, Rollout, resolved

    cluster = ServeCluster(options.address)
    Rollout(
        cluster=cluster,
        config=build_config(resolved(cluster, given)),
        url=options.url.rstrip("/"),
        gate=Gate(suites=tuple(options.suite), limit=options.limit, tolerance=options.tolerance),
        canary=Canary(share=options.canary_share, seconds=options.canary_seconds),
        start_timeout_s=options.start_timeout_seconds,
        echo=print,
    ).run(host=host, port=port)
    if options.config_out:
        write_config(cluster, options.config_out)


def write_config(cluster: "ServeCluster", path: Path) -> None:
    """Writes what a cluster serves, for `serve deploy` and for a manifest. Raises `ServiceError`."""
    import yaml

    from serve.deployments.configs import deployed_config

    path.write_text(yaml.safe_dump(deployed_config(cluster.details()), sort_keys=False), encoding="utf-8")
    print(f"{path}: what the cluster serves now")


def _sha256(bundle: str) -> str:
    seal = storage.join(storage.normalize(bundle), SEAL)
    if not storage.exists(seal):
        raise BundleError(f"{bundle} is not a bundle (no {SEAL}): give the folder that `blip3o export` wrote")
    return hashlib.sha256(storage.read_bytes(seal)).hexdigest()


def _listening(url: str) -> tuple[str, int]:
    """Host and port for a new server: this machine only for a loopback address, all interfaces for another one."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--url {url} is no address: write http://HOST:PORT")
    local = parts.hostname in ("127.0.0.1", "localhost")
    return ("127.0.0.1" if local else "0.0.0.0"), parts.port or 8000
