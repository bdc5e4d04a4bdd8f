"""Prices and rates by kind of GPU, and the assumptions of a budget, as a file that is easy to replace."""

from pathlib import Path

from pydantic import Field, ValidationError

from blip3o.config.base import Frozen
from blip3o.config.load import explain
from blip3o.config.yaml_reader import load_yaml
from blip3o.device import PEAK_BF16
from blip3o.errors import ConfigError, nearest


class GpuOffer(Frozen):
    """A node that one rents: its GPUs, processors, networks and price."""

    instance: str = Field(description="the provider's name of the node")
    usd_per_hour: float = Field(gt=0, description="list price of the node on demand, USD an hour")
    gpus: int = Field(gt=0, description="GPUs of the node")
    gpu_gib: float = Field(gt=0, description="memory of a GPU, GiB")
    cpus: int = Field(gt=0, description="logical CPUs of the node")
    memory_tb_s: float = Field(gt=0, description="memory bandwidth of a GPU, TB/s (data sheet)")
    link_gb_s: float = Field(gt=0, description="bandwidth of a GPU to the others of its node, GB/s in one direction")
    network_gbit_s: float = Field(gt=0, description="network of the node, Gbit/s")


class CpuOffer(Frozen):
    """A node for reading and decoding."""

    instance: str = Field(description="the provider's name of the node")
    usd_per_hour: float = Field(gt=0, description="list price of the node on demand, USD an hour")
    cpus: int = Field(gt=0, description="logical CPUs of the node")


class StoreOffer(Frozen):
    """An object store, read from its own region."""

    usd_per_gb_month: float = Field(ge=0, description="USD for a GB (10^9 bytes) and month")
    usd_per_million_gets: float = Field(ge=0, description="USD for a million GET requests")
    usd_per_gb_read: float = Field(default=0.0, ge=0, description="USD for a GB read; 0 within a region")


class Assumptions(Frozen):
    """Rates that no recipe says. Each can be replaced in the file."""

    mfu: float = Field(gt=0, le=1, description="share of the peak that useful FLOPs reach in training (MFU)")
    encode_mfu: float = Field(gt=0, le=1, description="the same of a frozen encoder without gradients")
    serve_mfu: float = Field(gt=0, le=1, description="the same of sampling and decoding")
    link_share: float = Field(gt=0, le=1, description="share of a link's bandwidth that collectives reach")
    library_gib: float = Field(ge=0, description="memory of driver and libraries on a GPU, GiB")
    headroom: float = Field(gt=0, le=1, description="share of a GPU's memory that a plan may fill")
    image_kb: float = Field(gt=0, description="an image in a shard, kB")
    caption_kb: float = Field(gt=0, description="a caption in a shard, kB")
    read_amplification: float = Field(ge=1, description="bytes read from shards over bytes needed")
    gets_per_sample: float = Field(gt=0, description="GET requests to shards a sample")
    decode_ms: float = Field(gt=0, description="one CPU's milliseconds to read, decode and scale an image")
    text_ms: float = Field(gt=0, description="one CPU's milliseconds for a sample with stored features")
    checkpoint_gb_s: float = Field(gt=0, description="rate at which a worker writes its part of a checkpoint, GB/s")
    restart_s: float = Field(ge=0, description="seconds from a failure to the next step")
    node_mtbf_h: float = Field(gt=0, description="mean hours between failures of one node, interruptions included")
    cache_months: float = Field(ge=0, description="months for which a feature cache is kept")


class Prices(Frozen):
    """The file."""

    as_of: str = Field(description="when these prices were known")
    source: str = Field(description="where they are from, and how far they may be trusted")
    gpus: dict[str, GpuOffer] = Field(description="by kind of GPU, in lower case")
    cpu: CpuOffer
    store: StoreOffer
    assumptions: Assumptions

    def gpu(self, kind: str) -> GpuOffer:
        """The node with this kind of GPU. Raises `ConfigError` with the known ones."""
        found = self.gpus.get(kind.lower())
        if found is None:
            raise ConfigError(f"--gpu {kind}: the prices file has {nearest(kind.lower(), list(self.gpus))}")
        return found


def peak_flops(kind: str) -> float:
    """Peak dense bf16 FLOP/s of a kind of GPU. Raises `ConfigError` for one that `PEAK_BF16` does not have."""
    found = {name.lower(): peak for name, peak in PEAK_BF16.items()}.get(kind.lower())
    if found is None:
        raise ConfigError(f"--gpu {kind}: no peak is known, only of {', '.join(PEAK_BF16)}")
    return found


def read_prices(file: str | Path) -> Prices:
    """Reads a prices file. Raises `ConfigError` if it is missing or wrong."""
    try:
        data = Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"prices file {file} cannot be read ({error.strerror}): name another one with --prices"
        ) from error
    try:
        return Prices.model_validate(load_yaml(data, f"prices file {file}"))
    except ValidationError as error:
        raise ConfigError(f"prices file {file}: " + "; ".join(explain(item) for item in error.errors())) from error
