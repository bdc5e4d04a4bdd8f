"""What a stage loads of a bundle: the parts of the model that it computes with."""

from typing import Any

from blip3o.bundle.reading import load_bundle, open_bundle
from blip3o.config.model import ModelConfig
from blip3o.errors import BundleError
from blip3o.inference.pipeline import Blip3oPipeline
from serve.config.options import Stage

_DECODES = ("coarse", "decoder")


def parts_of(stage: Stage, model: ModelConfig) -> tuple[str, ...]:
    """The parts that a stage computes with; of a bundle's, those that the model has."""
    return {
        "condition": ("backbone", "queries"),
        "denoise": (model.generation.predictor, "latent_scale"),
        "decode": _DECODES,
        "chat": ("backbone",),
    }[stage]


def load_stage(stage: Stage, uri: str, **options: Any) -> Blip3oPipeline:  # noqa: ANN401 - those of `load_bundle`
    """The pipeline of a stage; `options` as for `load_bundle`.

    What the decoder's unconditional branch gets is computed here, once, by parts that are given up afterwards.

    Raises `BundleError` as `load_bundle` does, or if the bundle generates no images.
    """
    bundle = open_bundle(uri).config
    needed = parts_of(stage, bundle.model)
    if missing := {"queries", bundle.model.generation.predictor, "decoder"} - set(bundle.parts):
        raise BundleError(f"{uri} has no {min(missing)} and generates no images: serve it with layout all-in-one")
    branch = bundle.model.decoder.null_branch if stage == "decode" else None
    once = {None: (), "black": ("encoder",), "prompt": ("backbone", "queries", *parts_of("denoise", bundle.model))}[
        branch
    ]
    pipeline = load_bundle(uri, parts={*needed, *once}, **options)
    if branch is not None:
        _ = pipeline.null_features
        for part in once:
            if pipeline.model.has(part):
                delattr(pipeline.model, part)
    return pipeline
