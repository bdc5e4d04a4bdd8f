"""blip3o: train and serve a unified image understanding and generation model (BLIP3-o) on Ray.

import blip3o
model = blip3o.load("s3://bucket/bundles/demo")
model.generate(["a red circle"], seeds=[1])[0].save("out.png")
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from blip3o.inference import Pipeline

__version__ = "0.1.0"


def load(uri: str, *, device: "torch.device | None" = None, dtype: "torch.dtype | None" = None) -> "Pipeline":
    """Loads a bundle from a folder or object store, to compute in `dtype` (fp32) on `device` (the CPU).

    Raises `BundleError` if it is not one.
    """
    import torch

    from blip3o.bundle.files import load_pipeline

    return load_pipeline(uri, device=device, dtype=dtype or torch.float32)
