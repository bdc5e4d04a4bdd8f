"""How a bundle is served, as data: the arguments of `serve.app:app` and of `python -m jobs.serve`."""

from typing import Any

from pydantic import Field, model_validator

from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from serve.protocol import MAX_IMAGES


class ServeConfig(Frozen):
    """One application: a model by its bundle, and what its replicas may use."""

    bundle: str = Field(description="URI of the folder that `python -m jobs.export` wrote")
    name: str = Field(default="blip3o", min_length=1, description="the model's name in the API")
    min_replicas: int = Field(default=1, ge=1, description="replicas of the model that always run")
    max_replicas: int = Field(default=1, ge=1, description="replicas of the model under load")
    batch_size: int = Field(default=4, ge=1, description="images that one replica denoises together")
    max_waiting: int = Field(default=64, ge=MAX_IMAGES, description="images that may wait in a replica; then: 429")
    num_cpus: float = Field(default=1, ge=0, description="logical CPUs that one replica reserves; fractions are fine")
    num_gpus: float = Field(default=0, ge=0, description="GPUs that one replica reserves; 0 serves from the CPU")
    threads: int = Field(default=1, ge=1, description="torch's threads in one replica; replicas agree bit for bit")

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, values: Any) -> Any:  # noqa: ANN401 - whatever was passed
        """Numbers out of texts: `serve run serve.app:app batch_size=8` passes all values as texts."""
        if not isinstance(values, dict):
            return values
        texts = {key for key, field in cls.model_fields.items() if field.annotation is str}
        given = {key: value for key, value in values.items() if isinstance(value, str) and key not in texts}
        return {**values, **{key: load_yaml(value, f"option {key}") for key, value in given.items()}}
