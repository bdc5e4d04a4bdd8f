"""How a bundle is served, as data: the arguments of `serve.app:app` and of `blip3o serve`."""

from typing import Any

from pydantic import Field, model_validator

from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from blip3o.device import Execution
from blip3o.inference.precision import DESCRIPTION, Precision
from serve.protocol import MAX_IMAGES


class ServeConfig(Frozen):
    """One application: the model's bundle, its replicas, and their resources."""

    bundle: str = Field(description="URI of the folder that `blip3o export` wrote")
    name: str = Field(default="blip3o", min_length=1, description="the model's name in the API")
    min_replicas: int = Field(default=1, ge=1, description="smallest number of replicas")
    max_replicas: int = Field(default=1, ge=1, description="largest number of replicas, under load")
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
    num_cpus: float = Field(default=1, ge=0, description="logical CPUs per replica; may be a fraction")
    num_gpus: float = Field(default=0, ge=0, description="GPUs per replica, may be a fraction; 0 serves from the CPU")
    threads: int = Field(
        default=1, ge=1, description="torch's CPU threads per replica; equal on all replicas, so images are too"
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
