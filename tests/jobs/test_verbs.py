"""`blip3o VERB` and `python -m jobs.VERB` are the same command, listed once, whose errors are one line."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

import jobs
from blip3o import settings
from blip3o.config.recipe_files import shipped
from jobs import cli, common

# Modules of jobs that are not verbs.
OTHERS = {"__init__", "cli", "common"}
MODULES = sorted({path.stem for path in Path(jobs.__file__).parent.glob("*.py")} - OTHERS)
PANELS = {panel: list(verbs) for panel, verbs in cli.VERBS.items()}
VERBS = [name for names in PANELS.values() for name in names]


@pytest.fixture(autouse=True)
def _wide(monkeypatch):
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 120)


def commands(command=None, path=()):
    """(path, command) of every command that is no group."""
    command = command or get_command(cli.app)
    inner = getattr(command, "commands", {})
    if not inner:
        yield path, command
    for name, child in inner.items():
        yield from commands(child, (*path, name))


def test_every_module_of_jobs_is_a_verb_of_its_own_name():
    assert set(MODULES) <= set(VERBS)
    table = {name: verb for verbs in cli.VERBS.values() for name, verb in verbs.items()}
    for name in MODULES:
        assert table[name] is importlib.import_module(f"jobs.{name}").command


@pytest.mark.parametrize("verb", MODULES)
def test_both_doors_print_the_same_help(verb, capsys):
    assert cli.main([verb, "--help"]) == 0
    ours = capsys.readouterr().out
    assert f"Usage: blip3o {verb} " in ours
    assert importlib.import_module(f"jobs.{verb}").main(["--help"]) == 0
    assert capsys.readouterr().out == ours


@pytest.mark.parametrize("verb", MODULES)
def test_a_module_runs_its_verb(verb, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [f"jobs/{verb}.py", "--no-such-option"])
    monkeypatch.delitem(sys.modules, f"jobs.{verb}")  # runpy warns of a module that is imported already
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"jobs.{verb}", run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: No such option: --no-such-option")


def test_help_groups_the_verbs_in_the_order_in_which_a_user_needs_them(capsys):
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    headings = [heading for heading in re.findall(r"^╭─ (\w+) ─", shown, re.MULTILINE) if heading != "Options"]
    assert headings == ["Start", "Data", "Train", "Result", "Serve"] == list(PANELS)
    parts = dict(zip(headings, re.split(r"^╭─ \w+ ─.*$", shown, flags=re.MULTILINE)[-len(headings) :], strict=True))
    listed = {heading: re.findall(r"^│ ([a-z-]+)  ", part, re.MULTILINE) for heading, part in parts.items()}
    assert listed == PANELS


def test_help_imports_neither_torch_nor_ray():
    program = (
        "import contextlib, io, json, sys\n"
        "from jobs import cli\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    codes = [cli.main([*words, '--help']) for words in json.loads(sys.argv[1])]\n"
        "heavy = {'torch', 'ray', 'transformers', 'diffusers', 'deepspeed', 'boto3'} & sys.modules.keys()\n"
        "print(json.dumps([sum(codes), sorted(heavy)]))\n"
    )
    requests = [[], *([name] for name in VERBS), *(list(path) for path, _ in commands())]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(requests)], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [0, []]


@pytest.mark.parametrize("verb", VERBS)
def test_a_misspelt_verb_names_the_nearest(verb, capsys):
    misspelt = f"{verb[:-2]}{verb[-1]}"
    assert cli.main([misspelt]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: No such command '{misspelt}'. Did you mean ") and f"'{verb}'" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (["data", "biuld"], "No such command 'biuld'. Did you mean 'build'?"),
        (["generate", "x", "--bundel", "y"], "No such option: --bundel (Possible options: --bundle"),
        (["train"], "Missing argument 'RECIPE'."),
        (["evaluate"], "give RECIPE --bundle URI for its held-out data, or --suite NAME --target URI for benchmarks"),
        (["evaluate", "tiny"], "a recipe needs --bundle: the folder that `blip3o export` wrote"),
        (["evaluate", "tiny", "--bundle", "x", "--limit", "3"], "--limit goes with --suite: give RECIPE --bundle"),
        (["evaluate", "tiny", "--suite", "scenes"], "--suite takes neither a recipe nor its options: give RECIPE"),
        (["evaluate", "--suite", "scenes", "--set", "a=1"], "--suite takes neither a recipe nor its options: give"),
        (["adopt", "tiny", "--name", "x", "--part", "vae"], "Invalid value: 'vae' is not PREFIX=URI"),
    ],
)
def test_errors_of_usage_are_one_line_and_exit_code_2(argv, fault, capsys):
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: {fault}") and said.err.count("\n") == 1 and not said.out


@pytest.mark.parametrize("argv", [[], ["data"], ["data", "build"], ["convert"], ["model"]])
def test_a_group_without_a_command_shows_its_help(argv, capsys):
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    assert f"Usage: {' '.join(['blip3o', *argv])} " in said.out and not said.err


def test_no_name_means_two_commands():
    names = [path[-1] for path, _ in commands()]
    assert len(names) == len(set(names))


def test_set_is_only_for_overrides():
    options = [(path, it) for path, command in commands() for it in command.params if "--set" in it.opts]
    assert len(options) > 8
    assert not [path for path, it in options if it.name != "overrides" or it.metavar != "KEY=VALUE"]


def test_ctrl_c_in_a_verb_is_130(capsys):
    def stopped() -> None:
        """Is interrupted by its user."""
        raise KeyboardInterrupt

    assert common.entry_point("stopped", stopped)([]) == common.INTERRUPTED == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_shells_complete_verbs_and_recipes():
    def completed(words: str) -> list[str]:
        environment = {"_BLIP3O_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-m", "jobs.cli"]
        done = subprocess.run(command, capture_output=True, text=True, env=settings.child_environment(environment))
        return done.stdout.split()

    assert completed("blip3o tra") == ["train"]
    assert completed("blip3o train tin") == [name for name in sorted(shipped()) if name.startswith("tin")]
