"""Offline checks of cluster files: `python -m cluster.validate FILE…`. No cloud, no credentials, nothing is started.

Launcher YAML: Ray's own preparation and schema, and EC2's RunInstances for the node configs. KubeRay manifests: the pod
templates against Kubernetes' schemas (strict), the embedded Serve config and runtime environment against Ray's, and the
whole against KubeRay's CRDs if KUBERAY_CRDS names a folder with their YAML.
Nothing that depends on an account or a cluster (quotas, profiles, images) is checked here.
"""

import copy
import functools
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from blip3o import log, settings
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import Blip3oError, ConfigError

if TYPE_CHECKING:
    from jsonschema import ValidationError

logger = logging.getLogger("cluster.validate")  # also when run as __main__

KUBERNETES_VERSION = "1.33"
_KUBERNETES_GRACE_S = 30  # of a pod that does not say
_GPU_INSTANCE = re.compile(r"(p|g)\d")  # EC2's families with NVIDIA GPUs
# Where each kind of manifest describes its cluster, below `spec`.
_CLUSTER_SPECS: dict[str, tuple[str, ...]] = {
    "RayCluster": (),
    "RayJob": ("rayClusterSpec",),
    "RayService": ("rayClusterConfig",),
}


def validate_file(path: Path) -> str:
    """Checks one YAML file by its kind, and returns what it was checked as.

    Raises `ConfigError` that names the file, the place in it and the fault.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {_one_line(error)}") from error
    document = load_yaml(data, str(path))
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: holds no mapping; expected a launcher config or a KubeRay manifest")
    crds = settings.get("KUBERAY_CRDS")
    try:
        if str(document.get("apiVersion", "")).startswith("ray.io/"):
            validate_kuberay(document, crds=Path(crds) if crds else None)
            return f"KubeRay {document['kind']}" + ("" if crds else " (without its CRD: KUBERAY_CRDS is not set)")
        validate_launcher(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    return "Ray cluster launcher config"


def validate_launcher(config: Mapping[str, Any]) -> None:
    """Checks a cluster-launcher config. Raises `ConfigError` naming the field."""
    prepared = _prepared(config)
    for name, node_type in prepared["available_node_types"].items():
        where = f"available_node_types.{name}"
        least, most = node_type.get("min_workers", 0), node_type["max_workers"]
        if most > prepared["max_workers"]:
            raise ConfigError(f"{where}.max_workers {most} exceeds max_workers {prepared['max_workers']}")
        if least > most:
            raise ConfigError(f"{where}.min_workers {least} exceeds its max_workers {most}")
        if prepared["provider"]["type"] == "aws":
            _check_ec2(f"{where}.node_config", node_type["node_config"])
            _check_image(f"{where}.node_config", node_type)
    _check_auth(prepared)


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
        raise ConfigError(_located(error)) from error
    except (ValueError, KeyError, RuntimeError, NotImplementedError) as error:
        raise ConfigError(_one_line(error)) from error
    return prepared


def _check_ec2(where: str, node_config: Mapping[str, Any]) -> None:
    import botocore.session
    from botocore.validate import ParamValidator

    ec2 = botocore.session.get_session().get_service_model("ec2")
    # Ray takes a list of subnets, and puts one of them in the request.
    given = {name: value for name, value in node_config.items() if name != "SubnetIds"}
    request = {"MinCount": 1, "MaxCount": 1, **given}
    faults = ParamValidator().validate(request, ec2.operation_model("RunInstances").input_shape)
    if faults.has_errors():
        raise ConfigError(f"{where}: {_one_line(faults.generate_report())}")


def _check_image(where: str, node_type: Mapping[str, Any]) -> None:
    """Raises `ConfigError` for a GPU node whose image Ray would choose."""
    node_config = node_type["node_config"]
    has_gpu = node_type["resources"].get("GPU", 0) or _GPU_INSTANCE.match(str(node_config.get("InstanceType", "")))
    if has_gpu and str(node_config.get("ImageId", "")).lower() in ("", "latest_dlami"):
        raise ConfigError(
            f"{where}.ImageId is missing: Ray would take its image of 2022, whose driver is too old for torch and for "
            "the node's GPUs: name one with an NVIDIA driver of version 580 or later, as cluster/aws.yaml does"
        )


def _check_auth(config: Mapping[str, Any]) -> None:
    for group in ("head_start_ray_commands", "worker_start_ray_commands"):
        for command in config.get(group, []):
            if "ray start" in command and "RAY_AUTH_MODE=" not in command:
                raise ConfigError(f"{group}: `ray start` without RAY_AUTH_MODE: write RAY_AUTH_MODE=token before it")


def validate_kuberay(manifest: Mapping[str, Any], *, crds: Path | None) -> None:
    """Checks a RayCluster, RayJob or RayService manifest; against its CRD too if `crds` is a folder that holds it.

    Raises `ConfigError` naming the field, or the CRD that is missing from the folder.
    """
    kind = manifest.get("kind")
    if kind not in _CLUSTER_SPECS:
        raise ConfigError(f"kind '{kind}' is unknown; expected one of {', '.join(_CLUSTER_SPECS)}")
    if crds is not None:
        _check_crd(manifest, crds)
    for where, template in _pod_templates(manifest):
        _check_pod_template(where, template)
    spec = manifest["spec"]
    if "serveConfigV2" in spec:
        served = _embedded(spec, "serveConfigV2")
        validate_serve(served)
        _check_grace(served, spec["rayClusterConfig"].get("workerGroupSpecs", []))
    if "runtimeEnvYAML" in spec:
        validate_runtime_env(_embedded(spec, "runtimeEnvYAML"))


def _embedded(spec: Mapping[str, Any], field: str) -> Any:  # noqa: ANN401 - whatever the YAML holds
    """The YAML that a field holds as text."""
    if not isinstance(spec[field], str):
        raise ConfigError(f"spec.{field} is {type(spec[field]).__name__}: write it as text, after `{field}: |`")
    return load_yaml(spec[field], f"spec.{field}")


def _pod_templates(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    path = ("spec", *_CLUSTER_SPECS[manifest["kind"]])
    cluster: Any = manifest
    for key in path:
        cluster = cluster.get(key) or {}
    if "headGroupSpec" not in cluster:
        raise ConfigError(f"{'.'.join(path)}.headGroupSpec is missing")
    yield f"{'.'.join(path)}.headGroupSpec.template", cluster["headGroupSpec"].get("template", {})
    for index, group in enumerate(cluster.get("workerGroupSpecs", [])):
        where = f"{'.'.join(path)}.workerGroupSpecs.{index}"
        least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
        if least > most:
            raise ConfigError(f"{where}: minReplicas {least} exceeds maxReplicas {most}")
        yield f"{where}.template", group.get("template", {})


def _check_pod_template(where: str, template: Mapping[str, Any]) -> None:
    import kubernetes_validate

    wrapped = {"apiVersion": "v1", "kind": "PodTemplate", "template": dict(template)}
    try:
        kubernetes_validate.validate(wrapped, KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        inside = ".".join(str(part) for part in list(error.path)[1:])
        raise ConfigError(f"{where}{'.' if inside else ''}{inside}: {_one_line(error.message)}") from error


def _check_crd(manifest: Mapping[str, Any], crds: Path) -> None:
    import jsonschema

    version = str(manifest["apiVersion"]).removeprefix("ray.io/")
    try:
        jsonschema.Draft202012Validator(_crd_schema(crds, manifest["kind"], version)).validate(dict(manifest))
    except jsonschema.ValidationError as error:
        raise ConfigError(_located(error)) from error


@functools.lru_cache
def _crd_schema(crds: Path, kind: str, version: str) -> dict[str, Any]:
    """The closed schema of one served version; kept, since a CRD is a megabyte of YAML."""
    file = crds / f"ray.io_{kind.lower()}s.yaml"
    if not file.exists():
        raise ConfigError(f"KUBERAY_CRDS={crds} has no {file.name}: copy it from KubeRay's helm chart, or unset it")
    crd = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    for served in crd["spec"]["versions"]:
        if served["name"] == version:
            schema: dict[str, Any] = served["schema"]["openAPIV3Schema"]
            _close(schema)
            return schema
    raise ConfigError(f"apiVersion: ray.io/{version} is not served by KubeRay")


def _close(schema: object) -> None:
    """Closes every object that lists its properties to all others, in place: the API server drops those silently."""
    if isinstance(schema, dict):
        for part in schema.values():
            _close(part)
        if isinstance(schema.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
            schema.setdefault("additionalProperties", False)
    elif isinstance(schema, list):
        for part in schema:
            _close(part)


def validate_serve(config: Mapping[str, Any]) -> None:
    """Checks a Serve config (the content of `serveConfigV2`). Raises `ConfigError` naming the field.

    Ray ignores unknown keys; here they are errors.
    """
    import pydantic
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import ServeDeploySchema

    try:
        understood = ServeDeploySchema.model_validate(config).model_dump(exclude_unset=True)
        for application in config["applications"]:
            for deployment in application.get("deployments", []):
                scaling = deployment.get("autoscaling_config")
                if scaling:
                    _refuse_unknown_keys("autoscaling_config", scaling, AutoscalingConfig(**scaling).model_dump())
            validate_runtime_env(application.get("runtime_env", {}))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {_one_line(first['msg'])}") from error
    _refuse_unknown_keys("serve config", config, understood)
    _check_drain(config)


def _drains(config: Mapping[str, Any]) -> dict[str, float]:
    """Seconds that replicas have for their last requests, by deployment."""
    from ray.serve._private.constants import DEFAULT_GRACEFUL_SHUTDOWN_TIMEOUT_S as DEFAULT

    return {
        f"{application['name']}.{deployment['name']}": deployment.get("graceful_shutdown_timeout_s", DEFAULT)
        for application in config["applications"]
        for deployment in application.get("deployments", [])
    }


def _check_drain(config: Mapping[str, Any]) -> None:
    """Raises `ConfigError` if a replica that is stopped may have requests that take longer than it has."""
    longest = config.get("http_options", {}).get("request_timeout_s")
    for name, seconds in _drains(config).items():
        if longest is not None and seconds <= longest:
            raise ConfigError(
                f"{name}: graceful_shutdown_timeout_s {seconds:g} is not above http_options.request_timeout_s "
                f"{longest:g}: its last requests would be cut off"
            )


def _check_grace(config: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ConfigError` if Kubernetes ends a pod before the replicas in it have drained."""
    drains = _drains(config)
    slowest = max(drains, key=lambda name: drains[name], default="")
    for group in groups:
        pod = group["template"].get("spec", {})
        grace = pod.get("terminationGracePeriodSeconds", _KUBERNETES_GRACE_S)
        if slowest and grace <= drains[slowest]:
            raise ConfigError(
                f"worker group {group['groupName']}: terminationGracePeriodSeconds {grace} is not above "
                f"graceful_shutdown_timeout_s {drains[slowest]:g} of {slowest}"
            )


def _refuse_unknown_keys(where: str, given: object, understood: object) -> None:
    """Raises `ConfigError` for the first key of `given` that parsing dropped."""
    if isinstance(given, dict) and isinstance(understood, dict):
        for key, value in given.items():
            if key not in understood:
                raise ConfigError(f"{where}: unknown key '{key}'")
            _refuse_unknown_keys(f"{where}.{key}", value, understood[key])
    elif isinstance(given, list) and isinstance(understood, list):
        for index, (value, parsed) in enumerate(zip(given, understood, strict=True)):
            _refuse_unknown_keys(f"{where}.{index}", value, parsed)


def validate_runtime_env(environment: Mapping[str, Any]) -> None:
    """Checks a Ray runtime environment. Raises `ConfigError` naming the field; unknown keys are errors too."""
    from ray.runtime_env import RuntimeEnv

    if not isinstance(environment, Mapping):
        raise ConfigError("runtime env: expected a mapping")
    unknown = sorted(set(environment) - set(RuntimeEnv.known_fields))
    if unknown:
        raise ConfigError(f"runtime env: unknown key '{unknown[0]}'")
    try:
        RuntimeEnv(**environment)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"runtime env: {_one_line(error)}") from error


def _located(error: "ValidationError") -> str:
    where = ".".join(str(part) for part in error.absolute_path) or "top level"
    return f"{where}: {_one_line(error.message)}"


def _one_line(message: object) -> str:
    return " ".join(str(message).split())[:300]


def main(arguments: list[str]) -> int:
    """Checks each named file; returns 1 if one of them is invalid, 2 if none is named."""
    log.configure()
    if not arguments:
        logger.error("usage: python -m cluster.validate FILE…")
        return 2
    faults = 0
    for name in arguments:
        try:
            logger.info("%s: valid %s", name, validate_file(Path(name)))
        except Blip3oError as error:
            logger.error("%s", error)
            faults += 1
    return min(faults, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
