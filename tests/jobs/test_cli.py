"""Bad input on a command line: one line that names the thing, its value and the fix; exit code 1; never a traceback."""

import json
import socket
import subprocess
import sys

import pytest
from PIL import Image

from blip3o import storage
from blip3o.data.shards.manifest import ShardRow, write_manifest
from jobs import ablate, cli, export, index, serve, tokenizer, train
from tests.bundles import MAX_LENGTH, write_nano_bundle
from tests.jobs import world


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "bundle"
    write_nano_bundle(str(folder))
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command and returns the error that it ends with; before it may stand the remains of a progress bar."""

    def run(main, *argv):
        assert main(list(argv)) == 1
        said = capsys.readouterr().err
        assert said.count("error: ") == 1 and "Traceback" not in said
        return said.splitlines()[-1].removeprefix("error: ")

    return run


@pytest.fixture
def environment(monkeypatch):
    """Sets variables of the AWS chain; the client made with them is forgotten after the test."""

    def change(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)
        storage.forget_clients()

    yield change
    storage.forget_clients()


@pytest.fixture
def recipe(base, tmp_path):
    """A recipe file that would run, if nothing were wrong."""
    return world.write_recipe(tmp_path / "recipe.yaml", base, run={"name": "cli"})


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_the_exit_code_of_a_process_is_1_and_there_is_no_traceback():
    command = [sys.executable, "-m", "jobs.train", "tiny-generate", "--set", "optim.stepz=3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("error: unknown key 'optim.stepz': did you mean 'steps'?")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.stepz=3", "unknown key 'optim.stepz': did you mean 'steps'?"),
        ("model.encoder.image_size=33", "encoder: image_size 33 is not a multiple of patch_size 8"),
        ("model.backbone.heads=5", "backbone: hidden_size 32 is not a multiple of heads 5"),
        ("optim.lr=-1", "'optim.lr' = -1: input should be greater than 0"),
        (
            "data.template.instruction=Draw {caption} {size}",
            "instruction 'Draw {caption} {size}' has braces other than {caption}: double them",
        ),
    ],
)
def test_a_recipe_that_cannot_be(refused, recipe, override, expected):
    assert expected in refused(train.main, recipe, "--set", override)


def test_a_recipe_that_is_not_there(refused):
    line = refused(train.main, "tiny-generat")
    assert "recipe 'tiny-generat' is neither a file nor a shipped recipe (shipped: " in line


@pytest.mark.parametrize("job", [train, index, tokenizer], ids=lambda job: job.__name__)
def test_a_missing_bucket(refused, recipe, job):
    line = refused(job.main, recipe, "--set", "data.root=s3://blip3o-no-such-bucket/data")
    assert line.startswith("s3://blip3o-no-such-bucket/data/")
    assert "does not exist: " in line


@pytest.mark.parametrize("job", [train, index], ids=lambda job: job.__name__)
def test_wrong_credentials(refused, recipe, environment, base, job):
    environment(AWS_SECRET_ACCESS_KEY="wrong")
    line = refused(job.main, recipe)
    assert line.startswith(base)
    assert "AWS_SECRET_ACCESS_KEY" in line


def test_a_store_that_does_not_answer(refused, recipe, environment, base):
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        environment(AWS_ENDPOINT_URL=nobody, AWS_ENDPOINT_URL_S3=nobody, BLIP3O_STORE_PATIENCE_S="0.1")
        line = refused(train.main, recipe)
    assert line.startswith(base)
    assert "the store does not answer: check AWS_ENDPOINT_URL" in line


def test_sources_that_are_not_indexed_and_shards_that_are_not_there(refused, recipe, base):
    elsewhere = ("--set", f"data.root={base}/elsewhere")
    line = refused(tokenizer.main, recipe, *elsewhere)
    fix = "index the source first, with `python -m jobs.index RECIPE`"
    assert line.endswith(f"manifest.parquet does not exist: {fix}")
    line = refused(index.main, recipe, *elsewhere)
    assert line.startswith(f"no file matches {base}/elsewhere/scenes/train-*.tar (0 files lie in ")


def test_runs_that_have_not_finished(refused, recipe, base):
    line = refused(train.main, recipe, "--set", "stage.start_from=[nothing]")
    assert line.startswith(
        f"not ready to train: no finished run 'nothing' in {base}/runs. In this order: `blip3o adopt"
    )
    line = refused(train.main, recipe, "--set", "stage.start_from=[world-encoder]")
    assert line.startswith("frozen parts backbone have no weights")
    line = refused(export.main, recipe, "--from", "nothing", "--out", "/nonexistent")
    assert "holds no finished run: train it first" in line


def test_weights_of_another_size(refused, recipe):
    line = refused(train.main, recipe, "--set", "model.encoder.mlp_width=64")
    assert line.startswith("world-encoder: encoder.")
    assert line.endswith("use the same model preset")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (("parallel.workers=64", "optim.micro_batches=64"), "parallel asks for 64.5 CPUs and 0 GPUs"),
        (("parallel.device=gpu",), "parallel asks for 2.5 CPUs and 2 GPUs"),
    ],
)
def test_more_than_this_machine_has(refused, recipe, overrides, expected):
    line = refused(train.main, recipe, *(part for item in overrides for part in ("--set", item)))
    assert line.startswith(expected)


def test_what_is_no_bundle(refused, tmp_path):
    commands = [
        (cli.main, "generate", "a red circle"),
        (cli.main, "chat", "what is it?"),
        (serve.main,),
    ]
    for main, *argv in commands:
        line = refused(main, *argv, "--bundle", str(tmp_path))
        assert line.startswith(f"{tmp_path} is not a bundle (no bundle.json): give the folder that")


def test_a_damaged_bundle(refused, bundle, tmp_path):
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    data = bytearray((tmp_path / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(bytes(data))
    line = refused(cli.main, "generate", "a red circle", "--bundle", str(tmp_path))
    assert line.startswith(f"{tmp_path}: model.safetensors is not what was exported")


def test_ports_that_cannot_be(refused, bundle, taken_port):
    line = refused(serve.main, "--bundle", str(bundle), "--port", str(taken_port))
    assert line == f"port {taken_port} of 127.0.0.1 is taken: give another one with --port"
    for port in ("0", "70000"):
        line = refused(serve.main, "--bundle", str(bundle), "--port", port)
        assert line == f"port {port} is not between 1 and 65535: give another one with --port"


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (
            ("--batch-sise", "4"),
            2,
            "No such option: --batch-sise (Possible options: --batch-size, --decode-batch-size",
        ),
        (("--batch-size", "many"), 2, "Invalid value for '--batch-size': "),
        (("--batch-size", "0"), 1, "option batch_size: "),
        (("--set", "batch_size=4"), 2, "No such option: --set"),
    ],
)
def test_a_wrong_option_of_the_server(bundle, capsys, options, code, expected):
    assert serve.main(["--bundle", str(bundle), *options]) == code
    assert capsys.readouterr().err.startswith(f"error: {expected}")


def test_prompts_that_cannot_be_drawn(refused, bundle):
    line = refused(cli.main, "generate", " ", "--bundle", str(bundle))
    assert line == "the prompt is empty: say what to generate"
    line = refused(cli.main, "generate", "?!" * MAX_LENGTH, "--bundle", str(bundle))
    assert line.endswith(f"tokens, this model reads {MAX_LENGTH}: shorten it")
    line = refused(cli.main, "chat", "?!" * MAX_LENGTH, "--bundle", str(bundle))
    assert line.endswith(f"tokens, this model reads {MAX_LENGTH}: shorten it")
    assert refused(cli.main, "chat", "\n", "--bundle", str(bundle)) == "the question is empty: say what to ask"
    for command in ("generate", "chat"):
        line = refused(cli.main, command, "caf\udce9", "--bundle", str(bundle))  # a byte that is not UTF-8
        assert line == "the prompt has a lone surrogate (U+DCE9 at position 3), which is not valid text: send UTF-8"


@pytest.mark.parametrize(
    "options",
    [
        ("-n", "0"),
        ("-n", "65"),
        ("--seed", "-1"),
        ("--seed", "1.5"),
        ("--num-inference-steps", "0"),
        ("--guidance-scale", "inf"),
        ("--guidance-scale", "nan"),
        ("--guidance-scale", "-1"),
        ("-o", "a\0b"),
    ],
)
def test_options_out_of_range_are_named(bundle, capsys, options):
    assert cli.main(["generate", "a red circle", "--bundle", str(bundle), *options]) == 2
    said = capsys.readouterr().err
    assert f"'{options[0]}'" in said and "Traceback" not in said


def test_pictures_that_cannot_be_read(refused, bundle, tmp_path):
    whole = tmp_path / "whole.png"
    Image.new("RGB", (64, 64), "red").save(whole)
    (tmp_path / "cut.png").write_bytes(whole.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no picture")
    for name in ("missing.png", "cut.png", "text.png", "."):
        line = refused(cli.main, "chat", "what is it?", "--image", str(tmp_path / name), "--bundle", str(bundle))
        assert line.startswith(f"{tmp_path / name} is not an image that can be read: ")
    assert "Is a directory" in line and line.count(str(tmp_path)) == 1


@pytest.mark.parametrize("name", ["picture.xyz", "picture", "."])
def test_pictures_that_cannot_be_written(refused, bundle, tmp_path, name):
    out = tmp_path / name
    line = refused(
        cli.main, "generate", "a red circle", "--num-inference-steps", "1", "--bundle", str(bundle), "-o", str(out)
    )
    assert line.startswith(f"{out} cannot be written: ")


@pytest.mark.parametrize("uri", ["s3://bucket/a.png", "file:///tmp/a.png"])
def test_a_uri_is_no_local_path(refused, bundle, tmp_path, monkeypatch, uri):
    monkeypatch.chdir(tmp_path)
    ways = (("generate", "x", "--num-inference-steps", "1", "-o", uri), ("chat", "x", "--image", uri))
    for way in ways:
        line = refused(cli.main, *way, "--bundle", str(bundle))
        assert line.startswith(f"{uri.partition(':')[0]}:// begins a URI")
    assert not list(tmp_path.iterdir())


def test_an_empty_place_is_not_the_current_folder(refused, bundle, monkeypatch):
    monkeypatch.chdir(bundle)
    for main, *argv in (
        (cli.main, "generate", "x", "--num-inference-steps", "1", "--bundle", ""),
        (serve.main, "--bundle", ""),
        (cli.main, "report", "x", "--storage", "", "--out", "x.html"),
        (ablate.main, "--root", ""),
    ):
        assert refused(main, *argv).startswith("an empty path names no file")


@pytest.mark.parametrize("tflops", ["nan", "inf", "0", "-1"])
def test_operations_that_cannot_be(refused, tmp_path, tflops):
    line = refused(ablate.main, "--root", str(tmp_path), "--tflops", tflops)
    assert line == f"--tflops {tflops} is no number above 0" and not list(tmp_path.iterdir())


def test_a_demo_in_what_is_no_folder(refused, tmp_path):
    (tmp_path / "file").touch()
    line = refused(cli.main, "demo", "--quick", "--out", str(tmp_path / "file"))
    assert line == f"--out {tmp_path / 'file'} cannot be made a folder (File exists): give another one"


def test_sets_that_cannot_be(refused, tmp_path):
    line = refused(cli.main, "data", "build", "scenes", "--size", "4", "--out", str(tmp_path))
    assert line.startswith("train=4000, heldout=400, size=4: need 1 scene at least, and 48 to 4096 pixels")
    line = refused(cli.main, "data", "build", "scenes", "--size", "100000000", "--out", str(tmp_path))
    assert line.endswith("size=100000000: need 1 scene at least, and 48 to 4096 pixels")
    line = refused(
        cli.main, "data", "build", "curated", "--from", str(tmp_path / "none"), "--out", str(tmp_path / "out")
    )
    assert str(tmp_path / "none") in line


def test_what_is_right_works(bundle, tmp_path, capsys):
    out = tmp_path / "new" / "row.png"
    arguments = ["a red circle", "--bundle", str(bundle), "-n", "2", "--num-inference-steps", "1", "-o", str(out)]
    assert cli.main(["generate", *arguments]) == 0
    assert Image.open(out).size == (64, 32)
    assert capsys.readouterr().out == f"wrote {out} (2 images, seed 0 to 1)\n"
    assert cli.main(["chat", "what is it?", "--image", str(out), "--bundle", str(bundle), "--max-tokens", "2"]) == 0


def test_a_dry_run_prints_the_recipe_and_stops(recipe, capsys):
    import yaml

    from blip3o.config.load import build_recipe

    assert train.main([recipe, "--dry-run", "--set", "optim.lr=0.5"]) == 0
    out = capsys.readouterr().out
    printed = build_recipe(yaml.safe_load(out))
    assert printed.optim.lr == 0.5
    assert out.splitlines()[-1].startswith(f"# cli: scenes: {world.SCENES - 1} samples in 3 shards; ")
    assert json.loads(printed.model_dump_json())["run"]["name"] == "cli"


def test_a_dry_run_reports_how_well_the_order_shuffles_once_the_data_are_indexed(tmp_path, capsys):
    recipe = world.write_recipe(tmp_path / "recipe.yaml", str(tmp_path))
    assert train.main([recipe, "--dry-run"]) == 0
    unknown = f"# quiet: order not known yet: {tmp_path}/data/manifests/scenes/manifest.parquet does not exist: "
    assert capsys.readouterr().out.splitlines()[-1].startswith(unknown)
    write_manifest(
        f"{tmp_path}/data/manifests/scenes",
        "scenes",
        [ShardRow(shard=n, uri=f"/{n}", size=1, version="1", rows=5000, bad_rows=(7,)) for n in range(50)],
    )
    assert train.main([recipe, "--dry-run"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("# quiet: scenes: 249,950 samples in 50 shards; samples move ")
    assert "keep their neighbour in a batch of 16" in last
