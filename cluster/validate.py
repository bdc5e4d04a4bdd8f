"""Offline checks of cluster files: `python -m cluster.validate FILE…`. No cloud, no credentials, nothing is started.

Launcher YAML: `cluster.launchers`. Manifests: Kubernetes' schemas (strict), the embedded Serve config and runtime
environment by Ray's, the arguments in it by their own classes, the whole by KubeRay's CRDs if KUBERAY_CRDS names a
folder with their YAML, and `cluster.manifests`. IAM policies: `cluster.policies`. Dockerfiles: `cluster.images`.
Nothing that depends on an account or a cluster (quotas, profiles, images) is checked here.
"""

import functools
import importlib
import inspect
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic
import yaml

from blip3o import log, settings
from blip3o.config.load import explain
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import Blip3oError, ConfigError, one_line
from cluster.images import validate_dockerfile
from cluster.launchers import located, validate_launcher
from cluster.manifests import (
    KUBERNETES_VERSION,
    check_labels,
    check_workload,
    validate_kustomization,
    validate_plain,
    validate_pod_monitor,
)
from cluster.policies import validate_policy
from cluster.render import load_values

logger = logging.getLogger("cluster.validate")  # also when run as __main__

_KUBERNETES_GRACE_S = 30  # of a pod that does not say
# Where each kind of manifest describes its cluster, below `spec`.
_CLUSTER_SPECS: dict[str, tuple[str, ...]] = {
    "RayCluster": (),
    "RayJob": ("rayClusterSpec",),
    "RayService": ("rayClusterConfig",),
}


def validate_file(path: Path) -> str:
    """Checks one file by its kind, and returns what it was checked as.

    Raises `ConfigError` that names the file, the place in it and the fault.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {one_line(error)}") from error
    is_dockerfile = path.name == "Dockerfile"
    document = None if is_dockerfile else load_yaml(text.encode(), str(path))
    try:
        if is_dockerfile:
            validate_dockerfile(text)
            return "Dockerfile"
        if not isinstance(document, dict):
            raise ConfigError("holds no mapping; expected a launcher config, a manifest, a policy or a Dockerfile")
        return _validate_document(path, document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _validate_document(path: Path, document: dict[str, Any]) -> str:
    kind = str(document.get("kind"))
    group = str(document.get("apiVersion", "")).partition("/")[0]
    if group == "ray.io":
        crds = settings.get("KUBERAY_CRDS")
        validate_kuberay(document, crds=Path(crds) if crds else None)
        return f"KubeRay {kind}" + ("" if crds else " (without its CRD: KUBERAY_CRDS is not set)")
    if group == "kustomize.config.k8s.io":
        validate_kustomization(document, path.parent)
    elif group == "monitoring.coreos.com":
        validate_pod_monitor(document)
    elif group:
        validate_plain(document)
    elif path.suffix == ".json":
        validate_policy(path.stem, document)
        return "IAM policy"
    elif {"bucket", "images"} <= document.keys():
        load_values(path)
        return "values file"
    else:
        validate_launcher(document)
        return "Ray cluster launcher config"
    return f"Kubernetes {kind}"


def validate_kuberay(manifest: Mapping[str, Any], *, crds: Path | None) -> None:
    """Checks a RayCluster, RayJob or RayService manifest; against its CRD too if `crds` is a folder that holds it.

    Raises `ConfigError` naming the field, or the CRD that is missing from the folder.
    """
    kind = manifest.get("kind")
    if kind not in _CLUSTER_SPECS:
        raise ConfigError(f"kind '{kind}' is unknown; expected one of {', '.join(_CLUSTER_SPECS)}")
    if crds is not None:
        _check_crd(manifest, crds)
    pods = list(_pod_templates(manifest))
    for where, template in pods:
        _check_pod_template(where, template)
    spec = manifest["spec"]
    check_workload(manifest, _cluster_spec(manifest), iter(pods))
    if "serveConfigV2" in spec:
        serve = _embedded(spec, "serveConfigV2")
        validate_serve(serve)
        groups = _cluster_spec(manifest).get("workerGroupSpecs", [])
        for where, wanted in _selectors(serve):
            check_labels(f"spec.serveConfigV2: {where}", wanted, [group.get("labels", {}) for group in groups])
        _check_grace(serve, groups)
    if "runtimeEnvYAML" in spec:
        validate_runtime_env(_embedded(spec, "runtimeEnvYAML"))


def _selectors(serve: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The labels of the nodes that each deployment wants."""
    for application in serve["applications"]:
        for deployment in application.get("deployments", []):
            wanted = deployment.get("ray_actor_options", {}).get("label_selector", {})
            yield f"{application['name']}.{deployment['name']}", wanted


def _embedded(spec: Mapping[str, Any], field: str) -> Any:  # noqa: ANN401 - whatever the YAML holds
    """The YAML that a field holds as text."""
    if not isinstance(spec[field], str):
        raise ConfigError(f"spec.{field} is {type(spec[field]).__name__}: write it as text, after `{field}: |`")
    return load_yaml(spec[field], f"spec.{field}")


def _cluster_spec(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    cluster: Any = manifest
    for key in ("spec", *_CLUSTER_SPECS[manifest["kind"]]):
        cluster = cluster.get(key) or {}
    return cluster if isinstance(cluster, Mapping) else {}


def _pod_templates(manifest: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    path = ("spec", *_CLUSTER_SPECS[manifest["kind"]])
    cluster = _cluster_spec(manifest)
    if "headGroupSpec" not in cluster:
        raise ConfigError(f"{'.'.join(path)}.headGroupSpec is missing")
    yield f"{'.'.join(path)}.headGroupSpec.template", cluster["headGroupSpec"].get("template", {})
    if "submitterPodTemplate" in manifest["spec"]:
        yield "spec.submitterPodTemplate", manifest["spec"]["submitterPodTemplate"]
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
        raise ConfigError(f"{where}{'.' if inside else ''}{inside}: {one_line(error.message)}") from error


def _check_crd(manifest: Mapping[str, Any], crds: Path) -> None:
    import jsonschema

    version = str(manifest["apiVersion"]).removeprefix("ray.io/")
    try:
        jsonschema.Draft202012Validator(_crd_schema(crds, manifest["kind"], version)).validate(dict(manifest))
    except jsonschema.ValidationError as error:
        raise ConfigError(located(error)) from error


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
            _check_arguments(application)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{'.'.join(map(str, first['loc']))}: {one_line(first['msg'])}") from error
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


def _check_arguments(application: Mapping[str, Any]) -> None:
    """Imports what the application is built by, and reads its `args` as that does.

    Raises `ConfigError` if there is no such function, and pydantic's error for the arguments.
    """
    path = application["import_path"]
    module, _, name = path.replace(":", ".").rpartition(".")
    try:
        build = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"import_path '{path}' cannot be imported: {one_line(error)}") from error
    expected = [parameter.annotation for parameter in inspect.signature(build).parameters.values()]
    if expected and issubclass(expected[0], pydantic.BaseModel):
        try:
            expected[0].model_validate(application.get("args", {}))
        except pydantic.ValidationError as error:
            raise ConfigError(f"{path}: args: " + "; ".join(explain(item) for item in error.errors())) from error


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
        raise ConfigError(f"runtime env: {one_line(error)}") from error


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
