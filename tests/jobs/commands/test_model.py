"""`blip3o model describe` prints what the library counts, and refuses what is no preset."""

from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from blip3o.config.load import preset_model
from blip3o.model import describe
from jobs.cli import app
from jobs.commands.model import svg

ROOT = Path(__file__).parents[3]


def test_describe_prints_parameters_and_costs():
    result = CliRunner().invoke(app, ["model", "describe", "nano", "--prompt-tokens", "20", "--depth", "1"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    whole = describe.count_parameters(describe.build_on_meta(preset_model("nano")))
    assert lines[0] == f"nano: {whole:,} parameters"
    assert any(line.startswith("  dit.layers") and " 2 x " in line for line in lines)
    assert not any("dit.layers.0" in line for line in lines)
    assert any(line.startswith("generating one image: ") and line.endswith("FLOP") for line in lines)
    assert any(line.split()[:4] == ["prompt", "of", "20", "tokens"] for line in lines)


def test_the_picture_in_the_docs_is_the_one_that_is_drawn(tmp_path):
    out = tmp_path / "model.svg"
    assert CliRunner().invoke(app, ["model", "draw", "8b", "--out", str(out)]).exit_code == 0
    drawn = out.read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert drawn == (ROOT / "docs/images/model.svg").read_text()


@pytest.mark.parametrize("preset", ["nano", "4b-sana"])
def test_every_kind_of_model_can_be_drawn(preset):
    assert "DiT" in svg(preset)


def test_an_unknown_preset_names_the_nearest():
    result = CliRunner().invoke(app, ["model", "describe", "8bb"])
    assert result.exit_code == 1
    assert "did you mean '8b'" in str(result.exception)
