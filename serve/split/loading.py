"""What a stage loads of a bundle: the parts of the model that it computes with."""

from typing import Any

from blip3o.bundle.reading import load_bundle, open_bundle
from blip3o.config.model import ModelConfig
from blip3o.errors import BundleError
from blip3o.inference.pipeline import Blip3oPipeline
from serve.config.options import STAGES, Stage

_DECODES = ("coarse", "decoder")


def parts_of(stage: Stage, model: ModelConfig) -> tuple[str, ...]:
    """The parts that a stage computes with; of a bundle's, those that the model has."""
    return {
        "condition": ("backbone", "queries"),
        "denoise": (model.generation.predictor, "latent_scale"),
        "decode": _DECODES,
        "chat": ("backbone",),
    }[stage]


def parts_to_serve(model: ModelConfig) -> tuple[str, ...]:
    """The parts that a replica of the layout all-in-one computes with: those of all stages, and of the null branch."""
    stages = [parts_of(stage, model) for stage in STAGES]
    return tuple(sorted({part for parts in (*stages, _null_parts(model)) for part in parts}))


def _null_parts(model: ModelConfig) -> tuple[str, ...]:
    """The parts that compute what the decoder's unconditional branch gets, once."""
    if model.decoder.null_branch == "black":
        return ("encoder",)
    return ("backbone", "queries", *parts_of("denoise", model)) if model.decoder.null_branch == "prompt" else ()


def load_whole(uri: str, **options: Any) -> Blip3oPipeline:  # noqa: ANN401 - those of `load_bundle`
    """The pipeline of a replica that does everything, without the parts that serving does not use."""
    return load_bundle(uri, parts=parts_to_serve(open_bundle(uri).config.model), **options)


def load_stage(stage: Stage, uri: str, **options: Any) -> Blip3oPipeline:  # noqa: ANN401 - those of `load_bundle`
    """The pipeline of a stage; `options` as for `load_bundle`.

    What the decoder's unconditional branch gets is computed here, once, by parts that are given up afterwards.

    Raises `BundleError` as `load_bundle` does, or if the bundle generates no images.
    """
    bundle = open_bundle(uri).config
    needed = parts_of(stage, bundle.model)
    if missing := {"queries", bundle.model.generation.predictor, "decoder"} - set(bundle.parts):
        raise BundleError(f"{uri} has no {min(missing)} and generates no images: serve it with layout all-in-one")
    once = _null_parts(bundle.model) if stage == "decode" else ()
    pipeline = load_bundle(uri, parts={*needed, *once}, **options)
    if once:
        _ = pipeline.null_features
        for part in once:
            if pipeline.model.has(part):
                delattr(pipeline.model, part)
    return pipeline
