"""Serve configs as data: what `blip3o deploy` sends to a cluster, and how one step of a roll-out changes it. No I/O.

A face has the address; each bundle is an application of its own. So bundles come and go, and share the traffic, by the
face's routing table, which restarts nothing when it changes.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

from pydantic import ValidationError

from blip3o.errors import ServiceError, one_line
from serve.config.options import STAGES, ServeConfig, StageConfig
from serve.deployments.options import GENERATOR, INGRESS, STAGE_NAMES, ingress_options, model_options
from serve.routing import RoutingTable, Target

Config = dict[str, Any]  # the content of Serve's config file
FACE = "blip3o"  # the application that has the address
_FACE_PATH = "serve.app:face"
_MODEL_PATH = "serve.app:model"
NEXT = "@next"  # behind a model's name: the bundle that is tried out
_UNKNOWN_FORM = (
    "{where} of this cluster says no {what}, which `blip3o deploy` starts from: write it as serve/config/cpu.yaml "
    "does, and `serve deploy` that first"
)


def application_name(config: ServeConfig) -> str:
    """The application of a bundle: the same for the same replicas, however many there are."""
    what = json.dumps({**config.replica.model_dump(), **_layout_arguments(config)}, sort_keys=True)
    return f"{config.name}-{hashlib.sha256(what.encode()).hexdigest()[:8]}"


def model_application(config: ServeConfig) -> Config:
    """The application of a bundle. Only a change of its `args` replaces the replicas."""
    return _plain(
        {
            "name": application_name(config),
            "import_path": _MODEL_PATH,
            "route_prefix": None,
            "args": {
                "name": config.name,
                **config.replica.model_dump(exclude_defaults=True),
                **_layout_arguments(config),
            },
            "deployments": model_options(config),
        }
    )


def _layout_arguments(config: ServeConfig) -> dict[str, Any]:
    """What replicas of the split layout are built from, beyond what all replicas are."""
    if config.layout == "all-in-one":
        return {}
    differ = {
        stage: {"num_gpus": gpus} for stage in STAGES if (gpus := config.of_stage(stage).num_gpus) != config.num_gpus
    }
    return {"layout": config.layout} | ({"stages": differ} if differ else {})


def face_application(config: ServeConfig, table: RoutingTable) -> Config:
    """The application that has the address."""
    return _plain(
        {
            "name": FACE,
            "import_path": _FACE_PATH,
            "route_prefix": "/",
            "args": {
                "request_timeout_s": config.request_timeout_s,
                "http": config.http.model_dump(exclude_defaults=True),
            },
            "deployments": [ingress_options(config, table.model_dump()["models"])],
        }
    )


def _plain(value: Any) -> Any:  # noqa: ANN401 - a value of a config
    """The value as a person writes it: Serve restarts what has 20.0 where 20 was."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def first_config(config: ServeConfig, *, host: str, port: int) -> Config:
    """The config of a cluster that serves one bundle."""
    application = model_application(config)
    table = RoutingTable(models={config.name: (Target(application=application["name"]),)})
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port, "request_timeout_s": _plain(config.request_timeout_s)},
        "applications": [face_application(config, table), application],
    }


def deployed_config(details: Mapping[str, Any]) -> Config | None:
    """The config that a cluster runs, from the answer of Serve's REST API; None if it has no face.

    Raises `ServiceError` if something else has the face's name.
    """
    applications = {name: each.get("deployed_app_config") for name, each in details.get("applications", {}).items()}
    if FACE not in applications:
        return None
    face = applications[FACE]
    if face is None or face.get("import_path") != _FACE_PATH:
        raise ServiceError(
            f"this cluster serves an application '{FACE}' that `blip3o deploy` has not made: delete it, or deploy it "
            "the way it was deployed"
        )
    http = {name: details["http_options"][name] for name in ("host", "port")}
    kept = {"proxy_location": details["proxy_location"], "http_options": http}
    return {**kept, "applications": [each for each in applications.values() if each is not None]}


def routing_table(config: Config) -> RoutingTable:
    """The face's table. Raises `ServiceError` if a person has written the config without one."""
    try:
        return RoutingTable.model_validate(_part(_ingress(config), f"{FACE}.{INGRESS}", "user_config"))
    except ValidationError as error:
        raise ServiceError(f"{FACE}.{INGRESS}: user_config is no routing table: {one_line(error)}") from error


def with_table(config: Config, table: RoutingTable) -> Config:
    """The config with another table, and without the applications that lost their last route by that."""
    changed = deepcopy(config)
    gone = routing_table(config).applications - table.applications
    changed["applications"] = [each for each in changed["applications"] if each["name"] not in gone]
    _ingress(changed)["user_config"] = _plain(table.model_dump())
    return changed


def with_application(config: Config, application: Config) -> Config:
    """The config with an application more, or with another one of the same name."""
    others = [each for each in config["applications"] if each["name"] != application["name"]]
    return {**config, "applications": [*others, application]}


def draining(config: Config, target: Config) -> Config | None:
    """The target, with the split bundles that it drops from the config on their way out: none of their coordinators
    stays when it is idle. None if it drops no such bundle.

    Serve ends all deployments of an application at once. Requests between two stages would not survive that, so the
    coordinators go first.
    """
    kept = {each["name"] for each in target["applications"]}
    leaving = [deepcopy(each) for each in config["applications"] if each["name"] not in kept and _is_split(each)]
    for application in leaving:
        [coordinator] = [each for each in application["deployments"] if each["name"] == GENERATOR]
        coordinator["autoscaling_config"]["min_replicas"] = 0
    return {**target, "applications": [*target["applications"], *leaving]} if leaving else None


def _is_split(application: Config) -> bool:
    return bool(application.get("args", {}).get("layout") == "split")


def without_strays(config: Config, name: str) -> Config:
    """The config without bundles of a model to which no route leads: a roll-out that was killed has left them."""
    routed_to = routing_table(config).applications

    def is_stray(application: Config) -> bool:
        is_bundle = application.get("import_path") == _MODEL_PATH and application["name"] not in routed_to
        return is_bundle and application.get("args", {}).get("name") == name

    return {**config, "applications": [each for each in config["applications"] if not is_stray(each)]}


def placed_like(application: Config, name: str | None, config: Config) -> Config:
    """The application on the nodes of another one of a config, by what its file says beyond CPUs and GPUs."""
    others = [each for each in config["applications"] if each["name"] == name]
    said = {
        deployment["name"]: deployment.get("ray_actor_options", {})
        for other in others
        for deployment in other.get("deployments", ())
    }
    placed = deepcopy(application)
    for deployment in placed["deployments"]:
        old = said.get(deployment["name"], said.get(GENERATOR, {}))  # another layout may have had other deployments
        deployment["ray_actor_options"] = {**old, **deployment["ray_actor_options"]}
    return placed


def running(table: RoutingTable, name: str) -> str | None:
    """The application that most of a model's requests go to; None if there is no such model."""
    targets = table.models.get(name, ())
    return max(targets, key=lambda target: target.share).application if targets else None


def routed(table: RoutingTable, name: str, shares: Mapping[str, float], candidate: str = "") -> RoutingTable:
    """The table with these shares of a model's applications; `candidate` is reachable under the name with `NEXT`.

    Without shares, there is no such model.
    """
    models = {each: targets for each, targets in table.models.items() if each != name + NEXT}
    if shares:
        models[name] = tuple(Target(application=application, share=share) for application, share in shares.items())
    if candidate:
        models[name + NEXT] = (Target(application=candidate),)
    return RoutingTable(models=models)


def _ingress(config: Config) -> Config:
    return _named(_part(_named(config["applications"], FACE, ""), FACE, "deployments"), INGRESS, FACE)


def _named(parts: Sequence[Config], name: str, where: str) -> Config:
    """The application or deployment of that name. Raises `ServiceError` if there is none."""
    for part in parts:
        if part.get("name") == name:
            return part
    raise ServiceError(_UNKNOWN_FORM.format(where=where or "the Serve config", what=name))


def _part(config: Config, where: str, *keys: str) -> Any:  # noqa: ANN401 - a value of a config
    """What a config says below these keys. Raises `ServiceError` if it does not."""
    found: Any = config
    for key in keys:
        if not isinstance(found, dict) or key not in found:
            raise ServiceError(_UNKNOWN_FORM.format(where=where, what=".".join(keys)))
        found = found[key]
    return found


def options_of(config: Config, name: str) -> dict[str, Any]:
    """The options that a cluster's config says, by the names of `ServeConfig` and `HttpConfig`.

    Those of replicas are there only if it serves a model `name`.
    """
    said = _named(config["applications"], FACE, "").get("args") or {}
    options = {
        "ingress_replicas": _part(_ingress(config), f"{FACE}.{INGRESS}", "num_replicas"),
        **{key: value for key, value in said.items() if key != "http"},
        **said.get("http", {}),
    }
    application = running(routing_table(config), name)
    if application is None:
        return options
    model = _named(config["applications"], application, "")
    own = {**options, **_part(model, application, "args")}
    deployments = _part(model, application, "deployments")
    generator = _named(deployments, GENERATOR, application)
    if not _is_split(model):
        return own | _scaling(generator, application)
    stages = {stage: _scaling(_named(deployments, STAGE_NAMES[stage], application), application) for stage in STAGES}
    # What an option of the whole changes is what no stage has otherwise.
    whole = {**stages["denoise"], "num_gpus": own.get("num_gpus", 0)}
    differ = {
        stage: {name: found[name] for name in StageConfig.model_fields if found[name] != whole[name]}
        for stage, found in stages.items()
    }
    return {
        **own,
        **whole,
        "coordinator_replicas": _part(generator, f"{application}.{GENERATOR}", "autoscaling_config", "min_replicas"),
        "stages": {stage: found for stage, found in differ.items() if found},
    }


def _scaling(deployment: Config, application: str) -> dict[str, Any]:
    """The options of scaling that a deployment's config says. Raises `ServiceError` if it lacks one of them."""
    where = f"{application}.{deployment['name']}"
    said = functools.partial(_part, deployment, where, "autoscaling_config")
    policy = said("policy", "policy_kwargs")
    return {
        **{name: said(name) for name in ("max_replicas", "upscale_delay_s", "downscale_delay_s")},
        "min_replicas": said("min_replicas") - policy.get("spare_replicas", 0),
        "target_rows": said("target_ongoing_requests"),
        **policy,
        **{name: _part(deployment, where, "ray_actor_options", name) for name in ("num_cpus", "num_gpus")},
    }
