"""`blip3o serve --bundle URI [--port 8000] [--batch-size 8 …]`: serves a bundle over HTTP until Ctrl-C.

For your own machine, and for the demo: it listens on 127.0.0.1. On a cluster, use a Serve config or
`serve run serve.app:app bundle=URI`.
"""

import inspect
import signal
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.config.load import explain
from blip3o.errors import BundleError, ConfigError, ServiceError
from cluster.ports import LOOPBACK, require_free
from jobs.common import entry_point, join_ray, with_parameters
from serve.config.options import ServeConfig

HOST = LOOPBACK
APP = "blip3o"
# Where they differ from `ServeConfig`'s: a laptop has few cores.
DEFAULTS: dict[str, Any] = {"num_cpus": 0.5, "ingress_replicas": 1}
# Serve gives its proxy 5 s to start and kills it after the third time; a busy laptop may need longer.
_CONTROLLER = {"env_vars": {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60"}}


@dataclass(frozen=True, kw_only=True)
class ServeHandle:
    """A running server; `url` without a trailing slash."""

    url: str

    def stop(self) -> None:
        """Ends the server, its replicas and its proxy. Ray keeps running."""
        from ray import serve as ray_serve

        ray_serve.shutdown()


def start(bundle: str, *, port: int = 8000, options: dict[str, Any] | None = None) -> ServeHandle:
    """Starts the server on this machine and returns when it answers. `options` are further fields of `ServeConfig`.

    Raises `BundleError` if there is no bundle, `ConfigError` for an unknown option or a bad value, `ServiceError` if
    the port is taken, the cluster serves something already, or the model does not come up.
    """
    # A replica has another current folder.
    config = build_config({"bundle": storage.absolute(bundle), **DEFAULTS, **(options or {})})
    _check(config, port)
    join_ray()
    from ray import serve as ray_serve

    from serve.deployments.applications import build_app

    if others := ray_serve.status().applications:
        # Port and proxy would still be theirs, and stopping this server would stop them too.
        raise ServiceError(
            f"this Ray serves {', '.join(others)} already: deploy next to it with `serve run serve.app:app "
            "bundle=URI`, or start without RAY_ADDRESS"
        )
    http = {"host": HOST, "port": port, "request_timeout_s": config.request_timeout_s}
    ray_serve.start(proxy_location="HeadOnly", http_options=http, controller_options={"runtime_env": _CONTROLLER})
    try:
        ray_serve.run(build_app(config), name=APP, route_prefix="/")
    except RuntimeError as error:
        ray_serve.shutdown()
        raise ServiceError(f"{bundle} could not be served: {' '.join(str(error).split())[-600:]}") from error
    return ServeHandle(url=f"http://{HOST}:{port}")


def build_config(values: dict[str, Any]) -> ServeConfig:
    """The config of these fields. Raises `ConfigError` with the known ones."""
    try:
        return ServeConfig(**values)
    except ValidationError as error:
        known = ", ".join(ServeConfig.model_fields)
        first = error.errors()[0]
        raise ConfigError(f"option {first['loc'][0]}: {explain(first)} (options: {known})") from error


def _check(config: ServeConfig, port: int) -> None:
    if not storage.exists(storage.join(storage.normalize(config.bundle), SEAL)):
        raise BundleError(f"{config.bundle} is not a bundle (no {SEAL}): give the folder that `blip3o export` wrote")
    require_free(port)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def options_of_config(defaults: dict[str, Any] | None) -> list[inspect.Parameter]:
    """The options of a command that are `ServeConfig`'s: described there, and only there.

    Their defaults are the config's, other than `defaults`; with None, an option that is not given is None.
    """

    def parameter(name: str, field: FieldInfo) -> inspect.Parameter:
        kind: Any = field.annotation
        if defaults is None:
            kind = kind | None
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None if defaults is None else defaults.get(name, field.default),
            annotation=Annotated[kind, typer.Option(help=_sentence(field.description or ""))],
        )

    fields = ServeConfig.model_fields.items()
    return [parameter(name, field) for name, field in fields if name not in ("bundle", "bundle_sha256")]


@with_parameters(options_of_config(DEFAULTS))
def command(
    bundle: Annotated[str, typer.Option(metavar="URI", help="The bundle to serve, as `blip3o export` wrote it.")],
    *,
    port: Annotated[int, typer.Option(help=f"Port on {HOST}.")] = 8000,
    **options: Any,  # noqa: ANN401 - the fields of `ServeConfig`
) -> None:
    """Serve a bundle over HTTP on this machine, until Ctrl-C: OpenAI's API and a web page."""
    handle = start(bundle, port=port, options=options)
    print(f"serving {bundle} at {handle.url} (Ctrl-C stops it)")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("stopping")
    finally:
        handle.stop()


main = entry_point("serve", command)

if __name__ == "__main__":
    sys.exit(main())
