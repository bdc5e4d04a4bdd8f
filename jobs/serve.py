"""`blip3o serve --bundle URI [--port 8000] [--batch-size 8 …]`: serves a bundle over HTTP until Ctrl-C.

`--demo` instead of `--bundle` serves what `blip3o demo` left, from its store, which is started next to the server.
For your own machine, and for the demo: it listens on 127.0.0.1. For a cluster, there is `blip3o deploy`.
"""

import inspect
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from blip3o import settings, storage
from blip3o.bundle.layout import SEAL
from blip3o.config.load import explain
from blip3o.errors import BundleError, ConfigError, ServiceError
from cluster.local_s3 import LocalS3
from cluster.ports import LOOPBACK, require_free
from jobs.commands.curl import examples
from jobs.commands.demo_store import BUNDLE, FOLDER, find_store
from jobs.common import UsageError, entry_point, join_ray, with_parameters
from serve.config.options import ServeConfig
from serve.http.config import HttpConfig

HOST = LOOPBACK
APP = "blip3o"
# Where they differ from `ServeConfig`'s: a laptop has few cores.
DEFAULTS: dict[str, Any] = {"num_cpus": 0.5, "ingress_replicas": 1, "coordinator_replicas": 1}
_NO_OPTIONS = ("bundle", "bundle_sha256", "http")  # the first is an argument, the last has options of its own
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
            f"this Ray serves {', '.join(others)} already: add to it with `blip3o deploy --bundle URI --address "
            "DASHBOARD`, or start without RAY_ADDRESS"
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
    """The config of options, of which those of `HttpConfig` are its field `http`. Raises `ConfigError`."""
    http: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in values.items()
        if name in HttpConfig.model_fields
    }
    rest = {name: value for name, value in values.items() if name not in http}
    try:
        return ServeConfig(**rest, http=HttpConfig(**http))
    except ValidationError as error:
        known = ", ".join([*(name for name in ServeConfig.model_fields if name != "http"), *HttpConfig.model_fields])
        first = error.errors()[0]
        if not first["loc"]:  # options that do not fit each other
            raise ConfigError(explain(first)) from error
        raise ConfigError(f"option {'.'.join(map(str, first['loc']))}: {explain(first)} (options: {known})") from error


def _check(config: ServeConfig, port: int) -> None:
    if not storage.exists(storage.join(storage.normalize(config.bundle), SEAL)):
        raise BundleError(f"{config.bundle} is not a bundle (no {SEAL}): give the folder that `blip3o export` wrote")
    require_free(port)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def options_of_config(defaults: dict[str, Any] | None) -> list[inspect.Parameter]:
    """The options of a command that are `ServeConfig`'s and its `http`'s: described there, and only there.

    Their defaults are the configs', other than `defaults`; with None, an option that is not given is None.
    """
    fields = [
        *((name, field) for name, field in ServeConfig.model_fields.items() if name not in _NO_OPTIONS),
        *HttpConfig.model_fields.items(),
    ]
    return [_option(name, field, defaults) for name, field in fields]


def _option(name: str, field: FieldInfo, defaults: dict[str, Any] | None) -> inspect.Parameter:
    """A field of a config as an option; several values are one option several times, a group of fields is YAML."""
    several = field.annotation == tuple[str, ...]
    is_group = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    kind: Any = list[str] if several else str if is_group else field.annotation
    if defaults is None:
        kind, default = kind | None, None
    else:
        default = list(field.default) if several else "{}" if is_group else defaults.get(name, field.default)
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, typer.Option(help=_sentence(field.description or ""))],
    )


@with_parameters(options_of_config(DEFAULTS))
def command(
    *,
    bundle: Annotated[
        str | None, typer.Option(metavar="URI", help="The bundle to serve, as `blip3o export` wrote it.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Serve what a demo left, from its store.")] = False,
    folder: Annotated[Path | None, typer.Option(help=f"The demo's folder, with --demo; {FOLDER} if omitted.")] = None,
    port: Annotated[int, typer.Option(help=f"Port on {HOST}.")] = 8000,
    **options: Any,  # noqa: ANN401 - the fields of `ServeConfig`
) -> None:
    """Serve a bundle over HTTP on this machine, until Ctrl-C: OpenAI's API and a web page."""
    if demo == (bundle is not None) or (folder is not None and not demo):
        raise UsageError("Missing option '--bundle', or --demo, which --folder belongs to: give one of them")
    with ExitStack() as running:
        if demo:
            store = running.enter_context(LocalS3(data_dir=find_store(folder or FOLDER)))
            settings.override(store.environment)
            bundle = BUNDLE
        assert bundle is not None
        handle = start(bundle, port=port, options=options)
        running.callback(handle.stop)
        print("\n".join(_announcement(bundle, handle.url)), flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            signal.pause()
        except KeyboardInterrupt:
            print("stopping", flush=True)


def _announcement(bundle: str, url: str) -> Iterator[str]:
    """Where the server is, and what to paste into another terminal."""
    yield f"serving {bundle} at {url} (Ctrl-C stops it)"
    yield f"the page: {url}/  in another terminal:"
    for example in examples(url):
        yield ""
        yield example


main = entry_point("serve", command)

if __name__ == "__main__":
    sys.exit(main())
