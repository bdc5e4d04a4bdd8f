"""The verb `evaluate` on held-out data: where it writes, and errors in one line."""

import pytest
import yaml

from jobs.evaluate import main
from tests.evaluate.world import add_source, make_bundle, recipe, scenes


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("evaluate"))
    add_source(folder, "first", scenes())
    make_bundle(f"{folder}/bundle")
    return folder


def test_command_line(root, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    tree = recipe(root, "first", questions=4, images=4).model_dump(mode="json")
    file.write_text(yaml.safe_dump(tree))
    assert main([str(file), "--bundle", f"{root}/bundle", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert f"written to {tmp_path}/out" in printed
    assert "\nHeld out: compositions. Whether training has their captions is not known: " in printed
    assert "\nno generation.r5 and 9 more: R@5 of 4 images is 1 by chance: it needs more than 5\n" in printed
    assert main([str(file), "--bundle", f"{root}/first"]) == 1
    assert "is not a bundle" in capsys.readouterr().err.splitlines()[-1]
