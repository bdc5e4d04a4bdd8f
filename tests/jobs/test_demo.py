"""The demo's sizes: each is a shipped pipeline whose data its sets provide."""

import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from blip3o.errors import ConfigError
from jobs import cli
from jobs.commands.demo_console import closing_lines
from jobs.commands.demo_store import BASE
from jobs.demo import FULL, QUICK, STAGES, USUAL, Demo, main, run_demo
from jobs.index import stages_with_new_sources


@pytest.mark.parametrize("scale", [QUICK, USUAL, FULL], ids=["quick", "usual", "full"])
def test_every_size_reads_only_sets_that_it_makes(tmp_path, scale):
    demo = Demo(out=tmp_path, scale=scale)
    stages = demo.pipeline().stages
    assert tuple(stage.stage.name for stage in stages) == STAGES
    # In its store, wherever the shipped recipe has them: every step goes through S3.
    assert {(stage.run.storage, stage.data.root) for stage in stages} == {(f"{BASE}/runs", f"{BASE}/data")}
    for stage in stages:
        sources = [*stage.data.sources, *stage.evaluate.sources]
        assert {source.shards.partition("/")[0] for source in sources} <= {"scenes", "curated"}
    indexed = {source.name for recipe in stages_with_new_sources(demo.pipeline()) for source in recipe.data.sources}
    assert indexed == {source.name for stage in stages for source in stage.data.sources}


def test_two_sizes_at_once_are_refused(tmp_path, capsys):
    assert main(["--quick", "--full", "--out", str(tmp_path / "demo")]) == 2
    assert "give one of them" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


def test_a_fresh_demo_deletes_no_folder_that_is_not_a_demos(tmp_path, monkeypatch):
    monkeypatch.setattr(Demo, "run", lambda _: pytest.fail("the demo started"))
    (tmp_path / "mine").write_text("of a year")
    with pytest.raises(ConfigError, match="--fresh deletes .*, which holds no demo"):
        run_demo(tmp_path, scale=QUICK, fresh=True)
    assert (tmp_path / "mine").read_text() == "of a year"


CONTROLS = {"shuffled": 0.1, "upper_bound": 0.9}
SUMMARY = {
    "understanding": {"accuracy": 0.9, "chance": 0.2, "before_generate": {"accuracy": 0.91}},
    "generation": {"r5": 0.5, "chance_r5": 0.04, "shuffled_r5": 0.05},
    "seconds_total": 565.4,
}


@pytest.mark.parametrize(
    "scenes", [{"overall": 0.75, "by_parts": {"all_correct": 0.5}, **CONTROLS}, {"all_correct": 0.75, **CONTROLS}]
)
def test_the_demo_ends_with_its_scores_in_words_and_commands_of_at_most_80_columns(tmp_path, scenes):
    lines = closing_lines(SUMMARY | {"scenes": scenes}, Path("runs/demo"), program=".venv/bin/blip3o")
    assert lines[0] == "done in 9:25"
    assert "  drawings  75 % show what was asked (for other prompts 10 %; possible 90 %)" in lines
    assert "  answers   90 % right (by chance 20 %; before it learned to draw 91 %)" in lines
    assert all(len(line) <= 80 for line in lines)


def test_the_commands_to_go_on_are_commands(tmp_path):
    """Each is parsed by the real command line; what they do is tested where they are."""
    folder = tmp_path / "a demo's"
    commands = closing_lines(SUMMARY | {"scenes": {"all_correct": 1.0, **CONTROLS}}, folder, program="blip3o")[-3:]
    words = [shlex.split(line) for line in commands]
    assert [line[1] for line in words] == ["generate", "serve", "store"]
    group = get_command(cli.app)
    for _, verb, *rest in words:
        command = group.get_command(None, verb)
        with command.make_context(verb, list(rest)) as context:
            assert str(folder) in " ".join(map(str, context.params.values()))
