"""Offline checks of cluster-launcher files: Ray's schema, EC2's, and what these clusters must be whatever those say.

Private nodes, encrypted disks, metadata of version 2, images whose driver runs torch, one zone for what trains
together, tokens, and the versions that are installed here.
"""

import copy
import functools
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip3o.errors import ConfigError, one_line
from cluster.images import check_image
from cluster.instances import MACHINES, MIN_DRIVER
from cluster.render import SUBCLUSTERS

if TYPE_CHECKING:
    from botocore.model import Shape
    from jsonschema import ValidationError

_GPU_INSTANCE = re.compile(r"((p|g)\d)|((a|g)\d-)")  # families with NVIDIA GPUs, of EC2 and of GCP
_LABEL = "ray-subcluster"
_NOTICE = "cluster.notice"


def validate_launcher(config: Mapping[str, Any]) -> None:
    """Checks a cluster-launcher config. Raises `ConfigError` naming the field."""
    prepared = _prepared(config)
    cloud = prepared["provider"]["type"]
    for name, node_type in prepared["available_node_types"].items():
        where = f"available_node_types.{name}"
        if cloud in ("aws", "gcp"):
            _check_label(where, node_type, is_head=name == prepared["head_node_type"])
        _check_numbers(where, node_type, prepared)
        if cloud == "aws":
            _check_aws(f"{where}.node_config", node_type, prepared)
        elif cloud == "gcp":
            _check_gcp(f"{where}.node_config", node_type)
    if cloud in ("aws", "gcp") and not prepared["provider"].get("use_internal_ips"):
        raise ConfigError("provider.use_internal_ips is not true: nodes would have public addresses")
    for where, image in _images(prepared):
        check_image(where, image)
    _check_commands(prepared)


def _prepared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config with Ray's defaults filled in, checked against Ray's schema before and after that."""
    import jsonschema
    import ray.autoscaler
    from ray.autoscaler._private.util import prepare_config, validate_config

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text(encoding="utf-8"))
    try:
        jsonschema.Draft7Validator(schema).validate(dict(config))
        prepared = prepare_config(copy.deepcopy(dict(config)))
        validate_config(prepared)
    except jsonschema.ValidationError as error:
        raise ConfigError(located(error)) from error
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(one_line(error)) from error
    return prepared


def located(error: "ValidationError") -> str:
    """The place and the message of a schema's error, in one line."""
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    return f"{where}: {one_line(error.message)}"


def _check_numbers(where: str, node_type: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
    least, most = node_type.get("min_workers", 0), node_type["max_workers"]
    if most > prepared["max_workers"]:
        raise ConfigError(f"{where}.max_workers {most} exceeds max_workers {prepared['max_workers']}")
    if least > most:
        raise ConfigError(f"{where}.min_workers {least} exceeds its max_workers {most}")
    has = MACHINES.get(_machine(node_type))
    for name, amount in (("CPU", has.cpus), ("GPU", has.gpus)) if has else ():
        if node_type["resources"].get(name, 0) not in (0, amount):
            raise ConfigError(
                f"{where}.resources.{name} is {node_type['resources'][name]}: a {_machine(node_type)} has {amount}"
            )


def _machine(node_type: Mapping[str, Any]) -> str:
    node_config = node_type["node_config"]
    return str(node_config.get("InstanceType") or node_config.get("machineType") or "")


def _check_label(where: str, node_type: Mapping[str, Any], *, is_head: bool) -> None:
    label = node_type.get("labels", {}).get(_LABEL)
    if is_head:
        if node_type["resources"].get("CPU") != 0:
            raise ConfigError(f"{where}.resources.CPU is not 0: tasks would run next to the drivers")
    elif label not in SUBCLUSTERS.values():
        known = ", ".join(SUBCLUSTERS.values())
        raise ConfigError(f"{where}.labels.{_LABEL} is {label!r}: recipes and Serve configs choose nodes of {known}")


def _check_aws(where: str, node_type: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
    node_config = node_type["node_config"]
    _check_ec2(where, node_config)
    _check_ami(where, node_type, prepared)
    if node_config.get("MetadataOptions", {}).get("HttpTokens") != "required":
        raise ConfigError(f"{where}.MetadataOptions.HttpTokens is not 'required': any request gets the role's keys")
    if "IamInstanceProfile" not in node_config:
        raise ConfigError(f"{where}.IamInstanceProfile is missing: the node could not read the bucket")
    for index, disk in enumerate(node_config.get("BlockDeviceMappings") or [{}]):
        if not disk.get("Ebs", {}).get("Encrypted"):
            raise ConfigError(f"{where}.BlockDeviceMappings.{index}.Ebs.Encrypted is not true")
    _check_network(where, node_type)


def _check_network(where: str, node_type: Mapping[str, Any]) -> None:
    """Subnets and groups of its own, since Ray would make a group that is open to the internet."""
    node_config = node_type["node_config"]
    cards = node_config.get("NetworkInterfaces", [])
    for index, card in enumerate(cards):
        if card.get("AssociatePublicIpAddress"):
            raise ConfigError(f"{where}.NetworkInterfaces.{index}.AssociatePublicIpAddress gives a public address")
    subnets = {card.get("SubnetId") for card in cards} or set(node_config.get("SubnetIds", []))
    groups = {group for card in cards for group in card.get("Groups", [])} or node_config.get("SecurityGroupIds")
    if not subnets or not groups:
        missing = "SecurityGroupIds" if subnets else "SubnetIds"
        raise ConfigError(f"{where}.{missing} is missing: Ray would choose one that is open to the internet")
    if node_type.get("labels", {}).get(_LABEL) == SUBCLUSTERS["trainer"]:
        if len(subnets) != 1:
            raise ConfigError(f"{where}.SubnetIds has {len(subnets)}: the nodes of a training job must be in one zone")
        if "GroupName" not in node_config.get("Placement", {}):
            raise ConfigError(f"{where}.Placement.GroupName is missing: the nodes of a job must be near each other")


def _check_ec2(where: str, node_config: Mapping[str, Any]) -> None:
    from botocore.validate import ParamValidator

    # Ray takes a list of subnets, and puts one of them in the request.
    given = {name: value for name, value in node_config.items() if name != "SubnetIds"}
    request = {"MinCount": 1, "MaxCount": 1, **given}
    faults = ParamValidator().validate(request, _run_instances())
    if faults.has_errors():
        raise ConfigError(f"{where}: {one_line(faults.generate_report())}")


@functools.lru_cache
def _run_instances() -> "Shape":
    """The parameters of EC2's RunInstances; kept, since the model of EC2 is megabytes of JSON."""
    import botocore.session

    ec2 = botocore.session.get_session().get_service_model("ec2")
    return ec2.operation_model("RunInstances").input_shape


def _has_gpu(node_type: Mapping[str, Any]) -> bool:
    return bool(node_type["resources"].get("GPU", 0) or _GPU_INSTANCE.match(_machine(node_type)))


def _check_ami(where: str, node_type: Mapping[str, Any], prepared: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a GPU node whose image Ray would choose, or whose driver does not run torch."""
    if not _has_gpu(node_type):
        return
    if str(node_type["node_config"].get("ImageId", "")).lower() in ("", "latest_dlami"):
        raise ConfigError(
            f"{where}.ImageId is missing: Ray would take its image of 2022, whose driver is too old for torch and for "
            f"the node's GPUs: name one with NVIDIA's driver {MIN_DRIVER} or later, as cluster/values.yaml does"
        )
    _check_driver("metadata.nvidia_driver", (prepared.get("metadata") or {}).get("nvidia_driver"))


def _check_driver(where: str, driver: object) -> None:
    if not isinstance(driver, int) or driver < MIN_DRIVER:
        raise ConfigError(f"{where} is {driver}: torch needs an image with NVIDIA's driver {MIN_DRIVER} or later")


def _check_gcp(where: str, node_type: Mapping[str, Any]) -> None:
    node_config = node_type["node_config"]
    for index, card in enumerate(node_config.get("networkInterfaces") or [{}]):
        if "subnetwork" not in card:
            raise ConfigError(f"{where}.networkInterfaces.{index}.subnetwork is missing: Ray would choose one")
        if "accessConfigs" in card:
            raise ConfigError(f"{where}.networkInterfaces.{index}.accessConfigs gives the node a public address")
    if _has_gpu(node_type):
        image = str(node_config["disks"][0]["initializeParams"].get("sourceImage"))
        found = re.search(r"nvidia-(\d+)", image)
        _check_driver(f"{where}.disks.0: the driver of '{image}'", int(found[1]) if found else None)


def _images(prepared: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    places = {"docker": prepared.get("docker") or {}}
    for name, node_type in prepared["available_node_types"].items():
        places[f"available_node_types.{name}.docker"] = node_type.get("docker") or {}
    for where, docker in places.items():
        for key in ("image", "head_image", "worker_image"):
            if key in docker:
                yield f"{where}.{key}", str(docker[key])


def _check_commands(config: Mapping[str, Any]) -> None:
    for group in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config.get(group, []):
            if "ray start" in command and "RAY_AUTH_MODE=token" not in command:
                raise ConfigError(f"{group}: `ray start` without RAY_AUTH_MODE: write RAY_AUTH_MODE=token before it")
    types = config["available_node_types"].values()
    spot = any("spot" in str(each["node_config"].get("InstanceMarketOptions", "")) for each in types)
    if spot and not any(_NOTICE in command for command in config.get("worker_start_ray_commands", [])):
        raise ConfigError(f"worker_start_ray_commands: spot nodes without `python -m {_NOTICE}` lose work")
