"""`blip3o budget`: one report, one JSON object, two plots, and errors of one line."""

import json

import pytest
from typer.testing import CliRunner

from jobs.cli import app, main

TINY = ["budget", "tiny:generate", "--gpu", "l4", "--count", "2", "--set", "parallel.device=gpu"]
TINY += ["--set", "parallel.precision=bf16", "--set", "optim.muon=[]"]


def test_the_report_fits_a_terminal_and_plots_are_written(tmp_path):
    result = CliRunner().invoke(app, [*TINY, "--sweep", "--load", "5", "--took", "1", "--plots", str(tmp_path)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "tiny-generate on 2 x L4"
    assert any("unverified" in line for line in lines)
    for word in ("peak", "training:", "object store", "stored features", "nodes:", "replicas", "1 days on 2"):
        assert any(word in line for line in lines), word
    rows = [line.split() for line in lines[lines.index("  ZeRO  activations  peak GiB a GPU") + 1 :][:8]]
    stages = [row[:2] for row in rows]
    assert {file.name for file in tmp_path.iterdir()} == {"cost.png", "memory.png"}
    assert stages == [[str(stage), kind] for stage in range(4) for kind in ("stored", "recomputed")]


def test_json_has_the_figures_and_what_they_rest_on():
    result = CliRunner().invoke(app, ["budget", "tiny:encoder", *TINY[2:-2], "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    memory = found["memory"]
    held = memory["weights"] + memory["optimizer"] + memory["average"]
    summed = memory["gradients"] if memory["summed_before"] else 0
    backward = held + summed + memory["activations"] + memory["buffers"]
    assert memory["peak"] == pytest.approx(max(backward, held + memory["gradients"] + memory["step"]))
    assert [row["workers"] for row in found["by_count"]] == [1, 2]
    assert found["prices"]["assumptions"]["mfu"] == 0.4
    assert found["serving"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny:generate"], "--set parallel.device=gpu --set parallel.precision=bf16"),
        ([*TINY[1:], "--count", "3"], "2 micro-batches a step, which 1, 2 GPUs divide"),
        ([*TINY[1:], "--gpu", "l44"], "did you mean 'l4'"),
        ([*TINY[1:], "--set", "stage.lora={}"], "leave out stage.lora"),
    ],
)
def test_what_cannot_be_planned_is_one_line(words, message, capsys):
    assert main(["budget", *words]) == 1
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error
