"""A bundle to serve, and one image of a server."""

import base64
import json
import urllib.request

from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import build_model
from blip3o.bundle.writing import write_bundle
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import TemplateConfig
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.model.unified import initialize
from jobs.loadtest.workload import scenes

_TIMEOUT_S = 60


def write_untrained(uri: str, preset: str, *, max_length: int = 160) -> str:
    """Writes a bundle of random weights, whose images cost what those of trained ones do; returns its URI."""
    tokenizer = ChatTokenizer.train(scenes(100), 300)
    config = BundleConfig(model=ModelConfig(**PRESETS[preset]), template=TemplateConfig(), max_length=max_length)
    model = build_model(config, tokenizer)
    initialize(model, 0)
    write_bundle(uri, config=config, tensors=dict(model.named_parameters()), tokenizer=tokenizer, provenance={})
    return uri


def picture(url: str, *, model: str, seed: int, steps: int) -> bytes:
    """The file of one image."""
    body = {"model": model, "prompt": scenes(1)[0], "seed": seed, "num_inference_steps": steps}
    request = urllib.request.Request(
        f"{url}/v1/images/generations", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
        return base64.b64decode(json.load(response)["data"][0]["b64_json"])
