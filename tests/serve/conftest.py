"""A nano model as a bundle and as a pipeline, with random parts, so that every input affects the output."""

import shutil
import tarfile
from copy import deepcopy
from dataclasses import replace

import pytest
import torch

from blip3o import storage
from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import build_model, load_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.config.recipe import TemplateConfig
from blip3o.data.sets.npm import NpmPackage, fetch
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.model.unified import initialize
from blip3o.rng import torch_generator
from tests.serve.client import output

MAX_LENGTH = 160
# The newest that names no newest Node.js: Debian's is older.
OPENAI = NpmPackage(
    name="openai",
    version="6.49.0",
    sha256="e48de0f4c5dbecebdeb864233f5ea49be07cd3e0ff3bd3e1e6745dc5e168cced",
)
WIDTHS = ("prompt_widths", "denoiser_widths", "decode_widths", "reply_rows")


def _wake(name, parameter):
    """Zeros of the initialisation (gates, last layers) get numbers: a model that is the identity proves nothing."""
    if not parameter.any():
        parameter.normal_(0, 0.3, generator=torch_generator(0, "wake", name))


@pytest.fixture(scope="session")
def bundle(tmp_path_factory):
    """The URI of a nano bundle."""
    tokenizer = ChatTokenizer.train(["a red circle above a blue square", "What colour is it? It is green."], 300)
    config = BundleConfig(model=ModelConfig(**PRESETS["nano"]), template=TemplateConfig(), max_length=MAX_LENGTH)
    model = build_model(config, tokenizer)
    initialize(model, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _wake(name, parameter)
    uri = storage.normalize(str(tmp_path_factory.mktemp("bundle")))
    write_bundle(uri, config=config, tensors=dict(model.named_parameters()), tokenizer=tokenizer, provenance={})
    return uri


@pytest.fixture(scope="session")
def reference(bundle):
    """The pipeline that the server's images are compared with. Not to be patched."""
    return load_bundle(bundle)


@pytest.fixture
def pipeline(reference):
    """A copy that a test may patch."""
    copied = replace(reference, model=deepcopy(reference.model))
    # Found once: a test that counts passes of a network then sees none that only look for widths.
    copied.__dict__.update({name: getattr(reference, name) for name in WIDTHS})
    return copied


@pytest.fixture(scope="session")
def talking(reference):
    """The pipeline with a head that knows only words: replies of the random one hold no text."""
    pipeline = replace(reference, model=deepcopy(reference.model))
    table = pipeline.model.get_parameter("backbone.hf.model.language_model.embed_tokens.weight")
    words = [i for i in range(len(table)) if i < len(pipeline.tokenizer) and pipeline.tokenizer.decode([i]).isalpha()]
    with torch.no_grad():
        table[[i for i in range(len(table)) if i not in words]] = 0
    return pipeline


@pytest.fixture(scope="session")
def javascript(tmp_path_factory):
    """Runs a module of JavaScript in a folder that has the `openai` package; returns what it prints."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install npm")
    folder = tmp_path_factory.mktemp("javascript")
    with tarfile.open(fetch(OPENAI)) as archive:
        archive.extractall(folder, filter="data")
    (folder / "node_modules").mkdir()
    (folder / "package").rename(folder / "node_modules" / "openai")

    def run(source, *arguments):
        (folder / "example.mjs").write_text(source)
        return output(["node", "example.mjs", *arguments], folder)

    run.folder = folder
    return run
