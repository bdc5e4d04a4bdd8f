"""How a bundle is served, as data: the arguments of `serve.app:app` and of `blip3o serve`.

`ReplicaConfig` is what a replica is built from, so a change of it replaces the replicas. The rest of `ServeConfig` is
how many there are and what they may use; on a running server, a change of it restarts nothing.
"""

from typing import Any, Literal

from pydantic import Field, model_validator

from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from blip3o.device import Execution
from blip3o.inference.precision import DESCRIPTION, Precision
from serve.http.config import HttpConfig
from serve.protocol import MAX_IMAGES

Layout = Literal["all-in-one", "split"]
Stage = Literal["condition", "denoise", "decode", "chat"]
STAGES: tuple[Stage, ...] = ("condition", "denoise", "decode", "chat")
DRAIN_MARGIN_S = 30  # from the timeout of a request to that of a replica that drains


class ReplicaConfig(Frozen):
    """The model of one replica and how it computes."""

    bundle: str = Field(description="URI of the folder that `blip3o export` wrote")
    bundle_sha256: str = Field(
        default="",
        pattern="^([0-9a-f]{64})?$",
        description="sha256 of the bundle's bundle.json; a replica that finds another bundle there does not start",
    )
    batch_size: int = Field(default=4, ge=1, description="images that one replica denoises together")
    decode_batch_size: int | None = Field(
        default=None,
        ge=1,
        description="images that are decoded to pixels together; if omitted, 1, or batch_size for the pixel decoder",
    )
    precision: Precision = Field(default="auto", description=DESCRIPTION)
    execution: Execution = Field(
        default="eager",
        description="how the denoiser runs. compile: by torch.compile, when the replica starts; graph: recorded once "
        "and replayed, on a GPU",
    )
    max_waiting: int = Field(
        default=64, ge=MAX_IMAGES, description="images that may wait in one replica; beyond that, requests get 429"
    )
    num_gpus: float = Field(default=0, ge=0, description="GPUs per replica, may be a fraction; 0 serves from the CPU")
    threads: int = Field(
        default=1, ge=1, description="torch's CPU threads per replica; equal on all replicas, so images are too"
    )
    stuck_after_s: float = Field(
        default=120,
        gt=0,
        description="seconds without progress, while there is work, after which a replica is replaced. Longer than one "
        "step, one decode and one token take",
    )

    @property
    def max_requests(self) -> int:
        """The most requests that one replica holds at a time, each of one image, or a conversation.

        Images are in slots, wait for one, wait for the decoder or are in it; as many conversations wait as images.
        """
        decoded = self.decode_batch_size or self.batch_size
        return self.batch_size + max(self.batch_size, decoded) + decoded + 2 * self.max_waiting

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was passed
        """Parses numbers from strings: `serve run serve.app:app batch_size=8` passes all values as strings."""
        if not isinstance(values, dict):
            return values
        texts = {key for key, field in cls.model_fields.items() if field.annotation is str}
        given = {key: value for key, value in values.items() if isinstance(value, str) and key not in texts}
        return {**values, **{key: load_yaml(value, f"option {key}") for key, value in given.items()}}


class StageConfig(Frozen):
    """What a stage of the split layout has instead of the options of the same names; null: the same."""

    min_replicas: int | None = Field(default=None, ge=1, description="smallest number of replicas of this stage")
    max_replicas: int | None = Field(default=None, ge=1, description="largest number of them, under load")
    target_rows: float | None = Field(default=None, ge=0, description="rows in work per replica; 0: batch_size")
    num_cpus: float | None = Field(default=None, ge=0, description="logical CPUs per replica")
    num_gpus: float | None = Field(default=None, ge=0, description="GPUs per replica; 0 runs it on the CPU")


class StagesConfig(Frozen):
    """The stages of the split layout. A row is a prompt, an image that is denoised or decoded, or a conversation."""

    condition: StageConfig = Field(default=StageConfig(), description="reads prompts")
    denoise: StageConfig = Field(default=StageConfig(), description="makes features")
    decode: StageConfig = Field(default=StageConfig(), description="makes pixels")
    chat: StageConfig = Field(default=StageConfig(), description="answers conversations")


class FaceConfig(Frozen):
    """The HTTP API in front of models."""

    request_timeout_s: float = Field(
        default=300, gt=0, description="seconds after which a request is ended, queueing included"
    )
    http: HttpConfig = Field(default=HttpConfig(), description="who may ask, and what leaves the server")


class ServeConfig(ReplicaConfig, FaceConfig):
    """A bundle under a name: its replicas, how many there are, and the HTTP face in front of them."""

    name: str = Field(default="blip3o", min_length=1, description="the model's name in the API")
    min_replicas: int = Field(default=1, ge=1, description="smallest number of replicas; 2 survive the loss of one")
    max_replicas: int = Field(default=1, ge=1, description="largest number of replicas, under load")
    spare_replicas: int = Field(
        default=0,
        ge=0,
        description="replicas beyond those that the load or min_replicas needs, up to max_replicas: ready when one is "
        "lost, or when the load jumps",
    )
    target_rows: float = Field(
        default=0,
        ge=0,
        description="images in work per replica, denoised or waiting, that the autoscaler aims at; 0: batch_size",
    )
    target_wait_s: float = Field(
        default=20, gt=0, description="seconds of work ahead of a replica that the autoscaler aims at"
    )
    upscale_delay_s: float = Field(default=5, ge=0, description="seconds of overload before a replica is added")
    downscale_delay_s: float = Field(default=300, ge=0, description="seconds of idleness before one is removed")
    ingress_replicas: int = Field(default=2, ge=1, description="processes of the HTTP API, spread over the nodes")
    num_cpus: float = Field(default=1, ge=0, description="logical CPUs per replica; may be a fraction")
    layout: Layout = Field(
        default="all-in-one",
        description="all-in-one: each replica does all of the work. split: prompts, denoising, decoding and "
        "conversations have replicas of their own, which scale by themselves",
    )
    stages: StagesConfig = Field(
        default=StagesConfig(),
        description="with layout split, what differs for a stage, as YAML: '{decode: {max_replicas: 4}}'",
    )
    coordinator_replicas: int = Field(
        default=2, ge=1, description="with layout split, processes that take requests from stage to stage"
    )

    def of_stage(self, stage: Stage) -> "ServeConfig":
        """The config with what a stage has instead."""
        differs: StageConfig = getattr(self.stages, stage)
        return self.model_copy(update=differs.model_dump(exclude_none=True))

    @property
    def drain_timeout_s(self) -> float:
        """Seconds that a replica that is stopped has for its last requests: longer than any of them may take."""
        return self.request_timeout_s + DRAIN_MARGIN_S

    @property
    def replica(self) -> ReplicaConfig:
        """The part that a replica is built from."""
        return ReplicaConfig(**{name: getattr(self, name) for name in ReplicaConfig.model_fields})

    @model_validator(mode="after")
    def _ordered(self) -> "ServeConfig":
        self._check_replicas("")
        return self

    def _check_replicas(self, where: str) -> None:
        least = self.min_replicas + self.spare_replicas
        if least > self.max_replicas:
            spare = f" with {self.spare_replicas} to spare" if self.spare_replicas else ""
            raise ValueError(
                f"{where}min_replicas {self.min_replicas}{spare} is above max_replicas {self.max_replicas}: raise that"
            )

    @model_validator(mode="after")
    def _stages_agree(self) -> "ServeConfig":
        if self.layout == "all-in-one":
            return self
        stages = {stage: self.of_stage(stage) for stage in STAGES}
        for stage, own in stages.items():
            own._check_replicas(f"stages.{stage}: ")
        if self.precision == "auto" and len({own.num_gpus > 0 for own in stages.values()}) > 1:
            raise ValueError("precision auto is another one on a GPU than on the CPU, and stages differ: say which")
        return self
