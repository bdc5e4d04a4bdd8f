"""Serve applications from a `ServeConfig`: a bundle with its face, or each by itself.

`options` are the arguments of deployments in the form of Serve's config files, so that Python and YAML say the same.
"""

from typing import Any, cast

from ray import serve as ray_serve
from ray.serve import Application

from serve.config.options import FaceConfig, ServeConfig, Stage
from serve.deployments.ingress import Ingress
from serve.deployments.options import (
    INGRESS,
    coordinator_options,
    generator_options,
    ingress_options,
    stage_options,
)
from serve.deployments.replica import Generator
from serve.deployments.stages import Condition, Coordinator, Decode, Denoise

_STARTS = 2  # of a replica that fails in its constructor, until its deployment has failed; no config file may say it


def build_app(config: ServeConfig) -> Application:
    """A bundle with a face of its own: `Ingress` in front of `Generator`."""
    options = ingress_options(config, {config.name: [{"application": ""}]})
    face = _deployment(ray_serve.ingress()(Ingress), options)
    return cast(Application, face.bind(build_model(config), config.http, config.request_timeout_s))


def build_model(config: ServeConfig) -> Application:
    """The replicas of a bundle, for a face of its own application or of another one."""
    if config.layout == "all-in-one":
        return _bound(Generator, generator_options(config), config.replica)
    stages = [
        _stage(config, "condition", Condition),
        _stage(config, "denoise", Denoise),
        _stage(config, "decode", Decode),
        _stage(config, "chat", Generator, "chat"),
    ]
    return _bound(Coordinator, coordinator_options(config), *stages, config.replica)


def _stage(config: ServeConfig, stage: Stage, target: Any, *more: Any) -> Application:  # noqa: ANN401 - as below
    return _bound(target, stage_options(config, stage), config.of_stage(stage).replica, *more)


def _bound(target: Any, options: dict[str, Any], *arguments: Any) -> Application:  # noqa: ANN401 - a class of ours
    options = options | {"max_constructor_retry_count": _STARTS}
    return cast(Application, _deployment(target, options).bind(*arguments))


def build_face(config: FaceConfig) -> Application:
    """The HTTP API alone; the routing table comes from the Serve config (`user_config`), with everything else."""
    face = _deployment(ray_serve.ingress()(Ingress), {"name": INGRESS})
    return cast(Application, face.bind(None, config.http, config.request_timeout_s))


def _deployment(target: Any, options: dict[str, Any]) -> Any:  # noqa: ANN401 - Serve's decorators are untyped
    return ray_serve.deployment(target, **options)
