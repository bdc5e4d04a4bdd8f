"""A cluster as a run is checked against it, real or pretended: `4x8xH100`, or a YAML file with these fields."""

import re
from pathlib import Path

from pydantic import Field, ValidationError

from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError

# GiB of memory by the makers' data sheets.
GPU_GIB = {"B200": 180.0, "H200": 141.0, "H100": 80.0, "A100": 80.0, "L40S": 48.0, "L4": 24.0}
_SHORT = re.compile(r"(\d+)x(\d+)x([A-Za-z0-9-]+)")


class ClusterConfig(Frozen):
    """Nodes of one kind."""

    nodes: int = Field(gt=0, description="nodes")
    gpus: int = Field(default=0, ge=0, description="GPUs of a node")
    gpu: str | None = Field(default=None, description="kind of GPU, as H100")
    gpu_gib: float | None = Field(default=None, gt=0, description="memory of a GPU, GiB; by its kind if left out")
    cpus: float = Field(gt=0, description="logical CPUs of a node")
    memory_gib: float = Field(gt=0, description="memory of a node, GiB")
    disk_gib: float | None = Field(default=None, gt=0, description="free disk of a node, GiB; not checked if left out")

    @property
    def total_cpus(self) -> float:
        """Logical CPUs of all nodes."""
        return self.nodes * self.cpus

    @property
    def total_gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus

    @property
    def gpu_memory_gib(self) -> float | None:
        """Memory of one GPU, None where neither it nor a known kind is named."""
        return self.gpu_gib or GPU_GIB.get(self.gpu or "")


def parse_cluster(text: str) -> ClusterConfig:
    """Reads `NODESxGPUSxKIND`, or a YAML file of `ClusterConfig`'s fields.

    The short form takes 12 logical CPUs and 128 GiB of memory for each GPU, less than the large clouds' nodes have.
    Raises `ConfigError` for what is neither, and for a kind of GPU that `GPU_GIB` does not know.
    """
    short = _SHORT.fullmatch(text)
    if short is None:
        return _read(text)
    nodes, gpus, kind = int(short[1]), int(short[2]), short[3].upper()
    if kind not in GPU_GIB:
        known = ", ".join(GPU_GIB)
        raise ConfigError(f"cluster '{text}': GPU {kind} is not known ({known}): give a YAML file with gpu_gib")
    return _checked(text, {"nodes": nodes, "gpus": gpus, "gpu": kind, "cpus": 12 * gpus, "memory_gib": 128 * gpus})


def _read(text: str) -> ClusterConfig:
    try:
        data = Path(text).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path that no file can have
        raise ConfigError(f"cluster '{text}' is neither NODESxGPUSxKIND, as 4x8xH100, nor a YAML file") from error
    return _checked(text, load_yaml(data, f"cluster '{text}'"))


def _checked(text: str, tree: object) -> ClusterConfig:
    from blip3o.config.load import explain

    try:
        return ClusterConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"cluster '{text}': " + "; ".join(explain(item) for item in error.errors())) from error
