"""Every command line of the documentation is one that the program takes, its recipes and overrides included."""

import importlib.util
import re

import pytest
import typer

from blip3o.config.pipeline import load_pipeline
from blip3o.config.recipe_files import shipped
from tests.docs_commands import PAGES, ROOT, commands_in, parse

COMMANDS = [command for page in PAGES for command in commands_in(page)]
MODULES = [it for it in COMMANDS if it.words[0] == "python"]
OURS = [it for it in COMMANDS if it.words[0] == "blip3o" or it in MODULES and it.words[2].startswith("jobs.")]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
PARTIAL = ("Missing ", "Option '")  # how errors begin of what a sentence may leave out: parameters, and their values


def test_the_documentation_has_commands():
    assert {"README.md", "docs/data.md", "docs/evaluation.md", "docs/serving.md"} <= {
        it.page for it in OURS if it.whole
    }
    named = {it.words[1] for it in OURS if it.words[0] == "blip3o"}
    assert {"data", "index", "train", "export", "evaluate", "generate", "chat", "serve", "convert"} <= named


@pytest.mark.parametrize("command", OURS, ids=str)
def test_a_command_of_ours_parses_and_its_recipe_resolves(command):
    if not command.whole and len(command.words) == 2:
        return  # the name of a group of commands, or of a verb, which `test_modules_exist` looks for
    try:
        parameters = parse(command.words)
    except typer.TyperException as error:
        message = error.format_message()
        assert not command.whole and message.startswith(PARTIAL), f"{command}: {message}"
        return
    recipe = str(parameters.get("recipe"))
    if recipe.partition(":")[0] in shipped():
        load_pipeline(recipe, list(parameters["overrides"]))


@pytest.mark.parametrize("command", MODULES, ids=str)
def test_modules_exist(command):
    assert importlib.util.find_spec(command.words[2]), command


@pytest.mark.parametrize("command", [it for it in COMMANDS if it.words[0] == "make"], ids=str)
def test_targets_of_make_exist(command):
    asked = [word for word in command.words[1:] if "=" not in word and not word.startswith("-")]
    assert set(asked) <= TARGETS, command


def test_commands_are_found_as_people_write_them(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text(
        "Run `blip3o runs --storage URI`, it's easy.\n\n"
        "    AWS_PROFILE=x .venv/bin/blip3o train tiny \\\n        --set a=1    # it's a comment\n"
        "    an example's text\n\n"
        "```bash\n$ ray job submit --working-dir . -- python -m jobs.index tiny\nmake test\n```\n"
    )
    monkeypatch.setattr("tests.docs_commands.ROOT", tmp_path)
    found = [(it.line, it.words, it.whole) for it in commands_in(page)]
    assert found == [
        (1, ("blip3o", "runs", "--storage", "URI"), False),
        (3, ("blip3o", "train", "tiny", "--set", "a=1"), True),
        (8, ("python", "-m", "jobs.index", "tiny"), True),
        (9, ("make", "test"), True),
    ]


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("blip3o", "dataset", "scenes"), "No such command 'dataset'"),
        (("blip3o", "convert", "import", "x", "--out", "y"), "No such command 'import'"),
        (("blip3o", "train", "tiny", "--steps", "3"), "No such option: --steps"),
        (("python", "-m", "jobs.serve", "--bundle", "x", "--port", "http"), "Invalid value for '--port'"),
        (("blip3o", "export", "tiny", "--out", "x"), "Missing option '--from'"),
    ],
)
def test_what_has_rotten_is_noticed(words, fault):
    with pytest.raises(typer.TyperException) as failed:
        parse(words)
    assert failed.value.format_message().startswith(fault)
