"""The table of objectives: one row per objective, as data. Imports no torch, so recipes and data actors can read it.

A row holds what recipes, data actors and reports need: the task of the samples, the parts to build, what trains, and
the terms of the loss. The arithmetic (counts, loss, FLOPs) is one class in one file in `blip3o.train.objectives`, named
by `implementation`. A new objective is that file and a row here.

`objective_of` maps the name of a recipe's stage to the row that the stage trains.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Annotated, Literal

from pydantic import AfterValidator, WithJsonSchema
from pydantic_core import PydanticCustomError


class Task(Enum):
    """What a sample is turned into."""

    CONTRAST = "contrast"  # caption and image, for the encoder stage
    CHAT = "chat"  # questions and answers about an image
    GENERATE = "generate"  # request for an image, and the image in the encoder's pixels
    GENERATE_PIXELS = "generate-pixels"  # the same, in the decoder's pixels
    PIXELS = "pixels"  # image only, for the decoder stage
    JOINT = "joint"  # CHAT and GENERATE of the same sample, or one of them, as `data.sources` says
    JOINT_PIXELS = "joint-pixels"  # the same with GENERATE_PIXELS

    @property
    def shows_images(self) -> bool:
        """Whether the backbone's vision tower reads images."""
        return self in (Task.CHAT, *_BOTH)

    @property
    def mixes(self) -> bool:
        """Whether a sample may serve for chat, for generation, or both; `data.sources` says which."""
        return self in _BOTH


_BOTH = (Task.JOINT, Task.JOINT_PIXELS)
_JOINT_TASK = {Task.GENERATE: Task.JOINT, Task.GENERATE_PIXELS: Task.JOINT_PIXELS}


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How an objective generates: the part that predicts, the part that makes the targets, whether noise is drawn."""

    predictor: Literal["dit", "head"]
    targets: Literal["encoder", "decoder"]
    draws_noise: bool

    @property
    def pixels(self) -> str:
        """The column of a batch from which targets are made."""
        return f"{self.targets}_pixels"


@dataclass(frozen=True, kw_only=True)
class ObjectiveSpec:
    """One objective.

    - `stages`: names of the stages that train it. Where objectives share a stage, `selected_by` decides: the value of
      `model.objective` or `model.decoder.kind` that selects this one.
    - `parts`: the parts of the model that are built.
    - `trainable`: patterns of the parameter names that train by default.
    - `reached`: patterns of the parameters that get gradients from the loss; `trainable` if empty.
    - `implementation`: the class, as `module:Class`.
    - `combines`: the objectives whose losses it adds, for a joint one.
    """

    stages: tuple[str, ...]
    task: Task
    parts: tuple[str, ...]
    trainable: tuple[str, ...]
    terms: tuple[str, ...]
    implementation: str
    reached: tuple[str, ...] = ()
    selected_by: str | None = None
    generation: Generation | None = None
    combines: tuple[str, ...] = ()
    stored_features: bool = False  # whether features of the frozen encoder may come from a cache or a stream

    @property
    def draws_noise(self) -> bool:
        """Whether it trains a flow whose noise levels and draws a recipe can set."""
        return self.generation is not None and self.generation.draws_noise

    def reads(self, key: str) -> bool:
        """Whether a stage with this objective reads a key of a recipe, `section.field`."""
        return key not in PARTIAL or PARTIAL[key](self)


def _asks(spec: ObjectiveSpec) -> bool:
    return spec.task.shows_images


def _builds_backbone(spec: ObjectiveSpec) -> bool:
    return "backbone" in spec.parts


def _stores_features(spec: ObjectiveSpec) -> bool:
    return spec.stored_features


def _generates(spec: ObjectiveSpec) -> bool:
    return spec.generation is not None


# The keys of a recipe that not every objective reads. A key that is not here is read in every stage, or belongs to the
# workers and actors that serve all stages of a pipeline.
PARTIAL: dict[str, Callable[[ObjectiveSpec], bool]] = {
    "data.questions": _asks,
    "data.question_weights": _asks,
    "data.independent_questions": _asks,
    "data.form_share": _asks,
    "data.grey_share": _asks,
    "data.features": _stores_features,
    "data.feature_dtype": _stores_features,
    "stage.noise_draws": lambda spec: spec.draws_noise,
    "stage.flow": lambda spec: spec.draws_noise,
    "stage.query_questions": _generates,
    "stage.feature_noise": lambda spec: "coarse" in spec.parts,
    "stage.lora": _builds_backbone,
    "parallel.activation_checkpointing": _builds_backbone,
    "parallel.encoder_batch_size": _stores_features,
    "evaluate.sigma_bins": lambda spec: spec.draws_noise,
    "evaluate.grid_seeds": _generates,
    "evaluate.grid_from": _generates,
}

_HERE = "blip3o.train.objectives"


def _generating(name: str, generation: Generation, *, terms: tuple[str, ...], implementation: str) -> ObjectiveSpec:
    predicted = f"{generation.predictor}.*"
    return ObjectiveSpec(
        stages=("generate", "instruct"),
        selected_by=name,
        task=Task.GENERATE if generation.targets == "encoder" else Task.GENERATE_PIXELS,
        parts=(generation.targets, "latent_scale", "backbone", "queries", generation.predictor),
        trainable=("queries", predicted),
        reached=("backbone.*", "queries", predicted),
        terms=terms,
        implementation=f"{_HERE}.{implementation}",
        generation=generation,
        stored_features=generation.targets == "encoder",
    )


def _joint(name: str, generating: ObjectiveSpec) -> ObjectiveSpec:
    return replace(
        generating,
        stages=("joint",),
        task=_JOINT_TASK[generating.task],
        trainable=generating.reached,
        terms=("text", *generating.terms),
        implementation=f"{_HERE}.joint:Joint",
        combines=("text", name),
    )


def _latent_decoder(kind: str, *trained: str) -> ObjectiveSpec:
    return ObjectiveSpec(
        stages=("decoder",),
        selected_by=kind,
        task=Task.PIXELS,
        parts=("encoder", "decoder"),
        trainable=tuple(f"decoder.{module}.*" for module in trained),
        terms=("latents",),
        implementation=f"{_HERE}.latent_decoder:LatentDecoding",
    )


_FLOW = Generation(predictor="dit", targets="encoder", draws_noise=True)
_GENERATING = {
    "clip_flow": _generating("clip_flow", _FLOW, terms=("flow",), implementation="flow:FlowMatching"),
    "clip_mse": _generating(
        "clip_mse",
        Generation(predictor="head", targets="encoder", draws_noise=False),
        terms=("mse",),
        implementation="regression:Regression",
    ),
    "vae_flow": _generating(
        "vae_flow", replace(_FLOW, targets="decoder"), terms=("flow",), implementation="flow:FlowMatching"
    ),
}

OBJECTIVES: dict[str, ObjectiveSpec] = {
    "contrastive": ObjectiveSpec(
        stages=("encoder",),
        task=Task.CONTRAST,
        parts=("encoder", "contrastive", "coarse"),
        trainable=("encoder.*", "contrastive.*", "coarse.*"),
        terms=("contrastive", "dense"),
        implementation=f"{_HERE}.contrastive:Contrastive",
    ),
    "text": ObjectiveSpec(
        stages=("understand",),
        task=Task.CHAT,
        parts=("backbone",),
        trainable=("backbone.*",),
        terms=("text",),
        implementation=f"{_HERE}.text:TextPrediction",
    ),
    **_GENERATING,
    **{f"joint_{name}": _joint(name, spec) for name, spec in _GENERATING.items()},
    "pixel_decoder": ObjectiveSpec(
        stages=("decoder",),
        selected_by="pixel",
        task=Task.PIXELS,
        parts=("encoder", "coarse", "decoder"),
        trainable=("coarse.*", "decoder.*"),
        terms=("coarse", "clean"),
        implementation=f"{_HERE}.pixel_decoder:PixelDecoding",
        stored_features=True,
    ),
    "sdxl_decoder": _latent_decoder("sdxl", "unet"),
    "sana_decoder": _latent_decoder("sana", "connector", "transformer"),
}


def stage_names() -> tuple[str, ...]:
    """The names that `stage.name` may have, in training order."""
    return tuple(dict.fromkeys(stage for spec in OBJECTIVES.values() for stage in spec.stages))


def readers(key: str) -> tuple[str, ...]:
    """The stages that read a key of a recipe, `section.field`; where the model decides, with what it needs: `decoder
    (pixel)`.
    """
    found = []
    for stage in stage_names():
        specs = [spec for spec in OBJECTIVES.values() if stage in spec.stages]
        reading = [spec for spec in specs if spec.reads(key)]
        if len(reading) == len(specs):
            found.append(stage)
        elif reading:
            found.append(f"{stage} ({', '.join(str(spec.selected_by) for spec in reading)})")
    return tuple(found)


def generation_of(objective: str) -> Generation:
    """How a `model.objective` generates. Raises `KeyError` for a name that `GeneratingName` rejects."""
    return _generations()[objective]


def objective_of(stage: str, *, selectors: tuple[str, ...]) -> ObjectiveSpec | None:
    """The objective of a stage; `selectors` are the model's `objective` and `decoder.kind`. None if there is none."""
    fitting = [spec for spec in OBJECTIVES.values() if stage in spec.stages]
    return next((spec for spec in fitting if spec.selected_by is None or spec.selected_by in selectors), None)


def _generations() -> dict[str, Generation]:
    """The generation of each objective that `model.objective` can select, by its value."""
    return {name: spec.generation for name, spec in OBJECTIVES.items() if spec.generation and not spec.combines}


def _one_of(value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise PydanticCustomError("unknown_name", "known are {known}", {"known": ", ".join(known)})
    return value


StageName = Annotated[
    str, AfterValidator(lambda value: _one_of(value, stage_names())), WithJsonSchema({"enum": list(stage_names())})
]
GeneratingName = Annotated[
    str,
    AfterValidator(lambda value: _one_of(value, tuple(_generations()))),
    WithJsonSchema({"enum": list(_generations())}),
]
