"""Offline checks of manifests: what every workload here must have, plain Kubernetes kinds, and kustomizations.

Schemas know what may be written, not what must be: a token, a user that is not root, limits, a place for GPU pods, an
image with the right versions, a grace that is longer than a request.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError, one_line
from cluster.images import check_image, check_ray

KUBERNETES_VERSION = "1.33"
_GPU = "nvidia.com/gpu"
_HOSTS = ("hostNetwork", "hostPID", "hostIPC")
_SECRET = re.compile(r"SECRET|PASSWORD|TOKEN$|API_KEYS?$")
_KUSTOMIZATION = {"apiVersion", "kind", "namespace", "resources", "labels", "images", "patches"}
_POD_MONITOR = {"selector", "podTargetLabels", "podMetricsEndpoints", "namespaceSelector"}
Spec = Mapping[str, Any]


def validate_plain(manifest: Spec) -> None:
    """Checks a manifest of Kubernetes' own kinds. Raises `ConfigError` naming the field."""
    import kubernetes_validate

    try:
        kubernetes_validate.validate(dict(manifest), KUBERNETES_VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(str(part) for part in error.path)
        raise ConfigError(f"{where}{': ' if where else ''}{one_line(error.message)}") from error
    except kubernetes_validate.SchemaNotFoundError as error:
        raise ConfigError(f"kind '{manifest.get('kind')}' of {manifest.get('apiVersion')} is unknown") from error


def validate_kustomization(manifest: Spec, folder: Path) -> None:
    """Checks a kustomization and that what it lists exists. Raises `ConfigError`."""
    _known("kustomization", manifest, _KUSTOMIZATION)
    for name in manifest.get("resources", []):
        path = folder / name
        if not (path.is_file() or (path / "kustomization.yaml").is_file()):
            raise ConfigError(f"resources: {name} does not exist")
    listed = {Path(name).name for name in manifest.get("resources", [])}
    if forgotten := sorted({path.name for path in folder.glob("*.yaml")} - listed - {"kustomization.yaml"}):
        raise ConfigError(f"resources: {forgotten[0]} is in the folder and is not listed")


def validate_pod_monitor(manifest: Spec) -> None:
    """Checks the Prometheus operator's PodMonitor. Raises `ConfigError`."""
    spec = manifest.get("spec", {})
    _known("spec", spec, _POD_MONITOR)
    for needed in ("selector", "podMetricsEndpoints"):
        if not spec.get(needed):
            raise ConfigError(f"spec.{needed} is missing")


def _known(where: str, given: Spec, known: set[str]) -> None:
    if unknown := sorted(set(given) - known):
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'")


def check_workload(manifest: Spec, cluster: Spec, pods: Iterator[tuple[str, Spec]]) -> None:
    """What a RayCluster, RayJob or RayService must have here. Raises `ConfigError` naming the field."""
    check_ray("rayVersion", str(cluster.get("rayVersion")))
    if cluster.get("authOptions", {}).get("mode") != "token":
        raise ConfigError("authOptions.mode is not 'token': whoever reaches the dashboard could run code")
    if manifest["kind"] == "RayJob" and not manifest["spec"].get("activeDeadlineSeconds"):
        raise ConfigError("spec.activeDeadlineSeconds is missing: a job that hangs would keep its GPUs")
    for where, template in pods:
        _check_pod(f"{where}.spec", template.get("spec", {}))
    groups = cluster.get("workerGroupSpecs", [])
    labels = [group.get("labels", {}) for group in groups]
    for where, wanted in [*_selectors_of_job(manifest["spec"])]:
        check_labels(where, wanted, labels)


def check_labels(where: str, wanted: Spec, groups: list[Spec]) -> None:
    """Raises `ConfigError` if no group of nodes has all the wanted labels."""
    if not any(all(labels.get(key) == value for key, value in wanted.items()) for labels in groups):
        raise ConfigError(f"{where} wants nodes with {dict(wanted)}, and the worker groups have {groups}")


def _selectors_of_job(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """The labels that the recipe overrides of an entrypoint name."""
    words = shlex.split(spec.get("entrypoint", ""))
    for option, value in zip(words, words[1:], strict=False):
        key, _, labels = value.partition("=")
        if option == "--set" and key.endswith("_labels"):
            yield f"spec.entrypoint: {key}", load_yaml(labels, key)


def _check_pod(where: str, pod: Spec) -> None:
    if not pod.get("securityContext", {}).get("runAsNonRoot"):
        raise ConfigError(f"{where}.securityContext.runAsNonRoot is not true")
    for name in _HOSTS:
        if pod.get(name):
            raise ConfigError(f"{where}.{name} is true: no pod here needs what is its node's")
    for index, container in enumerate(pod.get("initContainers", [])):
        _check_rights(f"{where}.initContainers.{index}", container)
    for index, container in enumerate(pod.get("containers", [])):
        place = f"{where}.containers.{index}"
        _check_rights(place, container)
        check_image(f"{place}.image", str(container.get("image")))
        limits = container.get("resources", {}).get("limits", {})
        if "memory" not in limits:
            raise ConfigError(f"{place}.resources.limits.memory is missing: the pod could take the node's memory")
        if _GPU in limits:
            _check_gpu_pod(where, pod)


def _check_rights(where: str, container: Spec) -> None:
    """Nothing that takes back what the pod says, and no secret in plain sight."""
    context = container.get("securityContext", {})
    if context.get("allowPrivilegeEscalation") is not False:
        raise ConfigError(f"{where}.securityContext.allowPrivilegeEscalation is not false")
    if context.get("privileged") or context.get("runAsNonRoot") is False or context.get("runAsUser") == 0:
        raise ConfigError(f"{where}.securityContext makes the container root or privileged")
    for each in container.get("env", []):
        if "value" in each and _SECRET.search(str(each.get("name"))):
            raise ConfigError(f"{where}.env: {each['name']} is in the file: take it from a secret (valueFrom)")


def _check_gpu_pod(where: str, pod: Spec) -> None:
    if not pod.get("nodeSelector"):
        raise ConfigError(f"{where}.nodeSelector is missing: the pod could get any GPU")
    if not any(each.get("key") == _GPU for each in pod.get("tolerations", [])):
        raise ConfigError(f"{where}.tolerations has none for {_GPU}: nodes with GPUs are tainted")
