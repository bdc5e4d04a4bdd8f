"""No input ends a command in a traceback or makes the server answer 500: seeded mutants through the real doors.

A few rounds each by default. `pytest tests/field/test_fuzz.py --minutes 10 --fuzz-seed 7` runs for that long;
a failure names the round's seed, and `--fuzz-seed` with it repeats the round first.
"""

import http.client
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from blip3o.bundle.reading import load_bundle
from jobs import cli, evaluate, index
from serve.api import build_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from tests import recipes
from tests.bundles import write_nano_bundle
from tests.field import mutants
from tests.serve.client import Server

DOORS = 5  # share the minutes


@pytest.fixture
def rounds(request, tmp_path):
    """Calls a function with a generator and an empty folder, again and again: `rounds(function, least)`."""
    seconds = 60 * request.config.getoption("--minutes") / DOORS
    first = request.config.getoption("--fuzz-seed")

    def run(one_round: Callable[[random.Random, Path], None], least: int) -> None:
        began, number = time.monotonic(), first
        while number < first + least or time.monotonic() - began < seconds:
            folder = tmp_path / str(number)
            folder.mkdir()
            try:
                one_round(random.Random(number), folder)
            except Exception as error:
                raise AssertionError(f"round with --fuzz-seed {number}: {error!r}") from error
            number += 1

    return run


@pytest.fixture
def ends_well(capsys):
    """Runs a command in this process and returns its exit code: 0, or 1 or 2 with a line that says why."""

    def run(*argv: str) -> int:
        name, *rest = argv
        if name == "blip3o":
            code = cli.main(rest)
        else:
            code = {"index": index.main, "evaluate": evaluate.main}[name](rest)
        said = capsys.readouterr()
        assert "Traceback" not in said.out + said.err, said.err
        assert code == 0 or (code in (1, 2) and said.err.strip()), f"{argv} ended with {code}: {said.err}"
        return code

    return run


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("fuzz") / "bundle")
    write_nano_bundle(folder)
    return folder


def test_no_folder_or_table_breaks_the_import(rounds, ends_well):
    def one_round(rng, folder):
        source = folder / "in"
        source.mkdir()
        mutants.fill_folder(rng, source)
        given = mutants.write_table(rng, source) if rng.random() < 0.6 else source
        out = str(folder / "out")
        if ends_well("blip3o", "data", "import", str(given), "--out", out, "--heldout", "0.3") == 0:
            ends_well("blip3o", "data", "inspect", f"{out}/*.tar", "--out", f"{out}/page.html")
            ends_well("blip3o", "data", "ledger", out)

    rounds(one_round, 40)


def test_no_shard_breaks_the_index(rounds, ends_well, ray_cluster):
    def one_round(rng, folder):
        ending, make = rng.choice([("tar", mutants.tar), ("parquet", mutants.parquet)])
        for number in range(rng.randint(1, 3)):
            (folder / f"{number}.{ending}").write_bytes(make(rng))
        source = {"name": "fuzz", "shards": f"*.{ending}"}
        tree = recipes.tree(data={"root": str(folder), "sources": [source], "max_bad_share": rng.choice([0.05, 0.9])})
        recipe = folder / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(tree))
        ends_well("index", str(recipe))
        ends_well("blip3o", "data", "inspect", f"{folder}/*.{ending}")
        ends_well("blip3o", "data", "inspect", f"{folder}/0.{ending}", "--out", f"{folder}/page.html")

    rounds(one_round, 6)


def test_no_picture_breaks_a_question(rounds, ends_well, bundle):
    def one_round(rng, folder):
        ext, data = mutants.picture(rng)
        picture = folder / f"picture.{ext}"
        picture.write_bytes(data)
        ends_well("blip3o", "chat", "what is it?", "--bundle", bundle, "--image", str(picture), "--max-tokens", "1")

    rounds(one_round, 12)


def test_no_question_file_breaks_an_evaluation(rounds, ends_well, bundle):
    def one_round(rng, folder):
        source = mutants.write_table(rng, folder)
        suite = rng.choice(["vqa", "mme", "choice", "geneval", "dpg", "wise", "wise-verified", "mjhq", "ocr", "gedit"])
        out = str(folder / "out")
        ends_well("evaluate", "--suite", suite, "--source", f"{suite}={source}", "--stage", "prepare", "--out", out)

    rounds(one_round, 20)


def test_no_request_breaks_the_server(rounds, bundle):
    engine = Engine(load_bundle(bundle))
    engine.start()

    def one_round(rng, folder):
        method, path, headers, body = mutants.request(rng)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        said = answer.read().decode()
        connection.close()
        assert answer.status < 500 and "Traceback" not in said, f"{method} {path} {body!r}: {answer.status} {said}"

    try:
        with Server(build_api(LocalBackend(engine), "nano")) as server:
            rounds(one_round, 150)
    finally:
        engine.close()
