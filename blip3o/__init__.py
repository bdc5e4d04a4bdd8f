"""blip3o: train and serve a unified image understanding and generation model (BLIP3-o) on Ray.

>>> import blip3o
>>> pipeline = blip3o.load("runs/demo/bundle")
>>> pipeline.generate("a red circle", seed=1)[0].save("out.png")
>>> pipeline.chat("What color is the circle?", image="out.png")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blip3o.errors import (
    Blip3oError,
    BundleError,
    CheckpointError,
    ConfigError,
    DataError,
    PromptTooLongError,
    RequestError,
    ServiceError,
    StorageError,
)

if TYPE_CHECKING:
    from blip3o.bundle.reading import load_bundle as load
    from blip3o.config.load import load_recipe
    from blip3o.config.load import preset_model as preset
    from blip3o.inference.pipeline import Blip3oPipeline

__version__ = "0.1.0"
__all__ = [
    "Blip3oError",
    "Blip3oPipeline",
    "BundleError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "PromptTooLongError",
    "RequestError",
    "ServiceError",
    "StorageError",
    "__version__",
    "load",
    "load_recipe",
    "preset",
]

# Imported on first use: `import blip3o` does not import torch, which takes seconds.
_LAZY = {
    "Blip3oPipeline": ("blip3o.inference.pipeline", "Blip3oPipeline"),
    "load": ("blip3o.bundle.reading", "load_bundle"),
    "load_recipe": ("blip3o.config.load", "load_recipe"),
    "preset": ("blip3o.config.load", "preset_model"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - any of several things; type checkers read the imports above
    if name not in _LAZY:
        raise AttributeError(f"module 'blip3o' has no attribute '{name}'")
    module, attribute = _LAZY[name]
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
