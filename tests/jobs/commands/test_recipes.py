"""`blip3o recipes` on the command line: every shipped one in a line, and one that can be saved and run."""

import pytest
from typer.testing import CliRunner

from blip3o.config.pipeline import load_pipeline
from blip3o.config.recipe_files import shipped
from blip3o.errors import ConfigError
from jobs.cli import app


def run(*arguments):
    result = CliRunner().invoke(app, ["recipes", *arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_every_shipped_recipe_has_a_line():
    lines = run().splitlines()
    assert [line.split()[0] for line in lines] == list(shipped())
    assert all(len(line.split()) > 5 for line in lines)


def test_what_is_shown_can_be_saved_and_run(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(run("show", "debug", "--set", "generate:optim.steps=9"))
    assert load_pipeline(path) == load_pipeline("debug", ["generate:optim.steps=9"])
    path.write_text(run("show", "debug:generate"))
    assert load_pipeline(path) == load_pipeline("debug:generate")


def test_a_recipe_that_is_not_there_is_not_shown():
    with pytest.raises(ConfigError, match="did you mean 'debug'"):
        run("show", "debugg")
