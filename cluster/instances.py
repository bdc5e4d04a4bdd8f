"""What a launcher file needs to know of a machine type: CPUs, GPUs, network cards. From AWS's and GCP's own lists."""

from dataclasses import dataclass

from blip3o.errors import ConfigError

MIN_DRIVER = 580  # NVIDIA's driver branch for CUDA 13, which torch's wheels bring


@dataclass(frozen=True)
class Machine:
    """`efa_cards` is the number of network cards that carry EFA; 0 where a group gets no EFA interface from us."""

    cpus: int
    gpus: int = 0
    efa_cards: int = 0


MACHINES = {
    "m6i.2xlarge": Machine(8),
    "m6i.4xlarge": Machine(16),
    "m6i.8xlarge": Machine(32),
    "m7i.2xlarge": Machine(8),
    "m7i.4xlarge": Machine(16),
    "m7i.8xlarge": Machine(32),
    "c6i.4xlarge": Machine(16),
    "c7i.4xlarge": Machine(16),
    "g5.4xlarge": Machine(16, 1),  # A10G, 24 GB
    "g5.12xlarge": Machine(48, 4),
    "g6.4xlarge": Machine(16, 1),  # L4, 24 GB
    "g6.12xlarge": Machine(48, 4),
    "g6e.4xlarge": Machine(16, 1),  # L40S, 48 GB
    "g6e.48xlarge": Machine(192, 8),
    "p4d.24xlarge": Machine(96, 8, 4),  # A100, 40 GB
    "p4de.24xlarge": Machine(96, 8, 4),  # A100, 80 GB
    "p5.48xlarge": Machine(192, 8, 32),  # H100, 80 GB
    "p5e.48xlarge": Machine(192, 8, 32),  # H200, 141 GB
    "p5en.48xlarge": Machine(192, 8, 16),
    "n2-standard-8": Machine(8),
    "n2-standard-16": Machine(16),
    "g2-standard-16": Machine(16, 1),  # L4
    "a2-highgpu-8g": Machine(96, 8),  # A100, 40 GB
    "a3-highgpu-8g": Machine(208, 8),  # H100, 80 GB
}


def machine(name: str) -> Machine:
    """The facts of a machine type. Raises `ConfigError` for one that is not listed."""
    if name not in MACHINES:
        raise ConfigError(f"machine type '{name}' is unknown: add its CPUs, GPUs and network cards to {__name__}")
    return MACHINES[name]
