"""docs/your-pictures.md: the commands for a laptop, in their order, for a nano model; the dry run for one GPU."""

import base64
import io
import re
import subprocess
import sys

import pytest
from openai import OpenAI
from PIL import Image

from blip3o.bundle.layout import BundleConfig
from blip3o.bundle.reading import build_model, load_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.config.load import load_recipe
from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.model.empty_weights import stored_tensors
from blip3o.model.unified import initialize
from cluster.ports import free_ports
from jobs import cli
from jobs.serve import start
from tests.docs_commands import ROOT, commands_in, parse

PAGE = ROOT / "docs" / "your-pictures.md"
FILES = dict(re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL))
COMMANDS = [list(it.words) for it in commands_in(PAGE) if it.whole and it.words[0] == "blip3o"]
ON_A_LAPTOP = COMMANDS[: COMMANDS.index(next(words for words in COMMANDS if "from-released" in words))]
DRY_RUNS = [words for words in COMMANDS if "--dry-run" in words]
SMALLER = (
    "model.preset=nano", "optim.steps=4", "optim.warmup_steps=1", "optim.micro_batch_size=4", "stage.noise_draws=1",
    "checkpoint.every=4", "evaluate.every=4", "evaluate.samples=4", "evaluate.grid=1", "evaluate.grid_seeds=1",
    "parallel.workers=1", "model.sampler.num_inference_steps=2",
)  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """As after `make demo`, with a model that has learned nothing, and with the page's recipes."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    recipe = load_recipe("tiny-generate", SMALLER[:1])
    config = BundleConfig(model=recipe.model, template=recipe.data.template, max_length=recipe.data.max_length)
    tokenizer = ChatTokenizer.train(["The image shows a red circle."], 300)
    model = build_model(config, tokenizer)
    initialize(model, 0)
    write_bundle("runs/demo/bundle", config=config, tensors=stored_tensors(model), tokenizer=tokenizer, provenance={})
    return tmp_path


def run(words):
    """One line of the page, with overrides where it takes them."""
    smaller = [word for item in SMALLER for word in ("--set", item)] if "houses.yaml" in words else []
    assert cli.main([*words[1:], *smaller]) == 0, words


def test_from_a_folder_of_pictures_to_a_served_model(folder, ray_cluster, capsys):
    *before, serve = ON_A_LAPTOP
    verbs = ["data", "adopt", "train", "report", "export", "evaluate", "generate", "serve"]
    assert [words[1] for words in ON_A_LAPTOP] == verbs
    assert "    python docs/houses.py photos\n" in PAGE.read_text()
    subprocess.run([sys.executable, ROOT / "docs" / "houses.py", "photos"], check=True)
    for words in before:
        run(words)
    said = capsys.readouterr().out
    assert "no understanding: no held-out sample has questions" in said
    assert "no generation.r5 and " in said and "no generation.chance_r5" not in said  # a line for a reason
    bundle = parse(tuple(serve))["bundle"]
    trained, demo = (stored_tensors(load_bundle(uri).model) for uri in (bundle, "runs/demo/bundle"))
    changed = {name.partition(".")[0] for name, value in trained.items() if not value.equal(demo[name])}
    assert changed == {"queries", "dit"}
    assert sorted(path.stem for path in (folder / "runs/houses/validation").glob("*.png")) == ["00000004"]
    assert (folder / "houses.html").exists() and Image.open("house.png").size[0] > 0
    [port] = free_ports(1)
    handle = start(bundle, port=port)
    try:
        client = OpenAI(base_url=f"{handle.url}/v1", api_key="none")
        drawn = client.images.generate(prompt="a red house", extra_body={"seed": 1}).data[0].b64_json
    finally:
        handle.stop()
    assert Image.open(io.BytesIO(base64.b64decode(drawn))).size == (32, 32)


@pytest.mark.parametrize("words", DRY_RUNS, ids=" ".join)
def test_the_recipe_for_one_gpu_passes_its_dry_run(words, folder, capsys):
    assert cli.main(words[1:]) == 0
    said = capsys.readouterr().out
    for shown in re.findall(r"^    # (photos-\S+: .*)$", PAGE.read_text(), re.MULTILINE):
        assert shown.removesuffix("…") in said
