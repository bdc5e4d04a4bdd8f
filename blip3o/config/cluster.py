"""The cluster that a recipe is checked against, real or hypothetical: `4x8xH100`, or a YAML file with these fields."""

import re
from pathlib import Path

from pydantic import Field, ValidationError

from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError

# GPU memory in GiB, from the vendors' data sheets.
GPU_GIB = {"B200": 180.0, "H200": 141.0, "H100": 80.0, "A100": 80.0, "L40S": 48.0, "L4": 24.0}
_SHORT = re.compile(r"(\d+)x(\d+)x([A-Za-z0-9-]+)")


class ClusterConfig(Frozen):
    """Nodes of one kind."""

    nodes: int = Field(gt=0, description="number of nodes")
    gpus: int = Field(default=0, ge=0, description="GPUs per node")
    gpu: str | None = Field(default=None, description="GPU model, e.g. H100")
    gpu_gib: float | None = Field(
        default=None, gt=0, description="memory per GPU, GiB; if omitted, that of the GPU model"
    )
    cpus: float = Field(gt=0, description="logical CPUs per node")
    memory_gib: float = Field(gt=0, description="memory per node, GiB")
    disk_gib: float | None = Field(default=None, gt=0, description="free disk per node, GiB; if omitted, not checked")

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
        """Memory per GPU in GiB; None if neither `gpu_gib` nor a known GPU model is given."""
        return self.gpu_gib or GPU_GIB.get(self.gpu or "")


def parse_cluster(text: str) -> ClusterConfig:
    """Parses `NODESxGPUSxMODEL`, or reads a YAML file with the fields of `ClusterConfig`.

    The short form assumes 12 logical CPUs and 128 GiB of memory per GPU, less than nodes of the large clouds have.
    Raises `ConfigError` if the text is neither, or if the GPU model is not in `GPU_GIB`.
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
        raise ConfigError(f"cluster '{text}' is neither NODESxGPUSxMODEL, e.g. 4x8xH100, nor a YAML file") from error
    return _checked(text, load_yaml(data, f"cluster '{text}'"))


def _checked(text: str, tree: object) -> ClusterConfig:
    from blip3o.config.load import explain

    try:
        return ClusterConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"cluster '{text}': " + "; ".join(explain(item) for item in error.errors())) from error
