"""Limits of the structure: how many files share a folder, and that no files import each other in a circle."""

from tests import house
from tests.test_style import ROOT

MAX_SIBLINGS = 16
# One place each: which parts a model has, what ZeRO-3 marks, diffusers' two results, an object that was never built.
DECIDED_BY_NAME = {
    "blip3o/model/unified.py": 1,
    "blip3o/train/deepspeed/gather.py": 1,
    "blip3o/model/decoders/autoencoder.py": 1,
    "serve/deployments/replica.py": 1,
}


def test_folders_hold_few_files():
    crowded = {folder: count for folder, count in house.siblings(ROOT).items() if count > MAX_SIBLINGS}
    assert not crowded, f"give these a room within the room: {crowded}"


def test_no_files_import_each_other_in_a_circle():
    assert not house.circles(house.edges(ROOT))


def test_every_package_says_what_it_owns():
    packages = [path for path in house.modules(ROOT).values() if path.name == "__init__.py"]
    short = [str(path) for path in packages if len(path.read_text(encoding="utf-8")) < 60]
    assert not short, f"say in a sentence what these own and who calls them: {short}"


def test_nothing_is_decided_by_the_name_of_a_stage_an_objective_or_a_decoder():
    """`blip3o.config.objectives` and the configs of decoders have the facts."""
    found = {
        file: count for file, count in house.name_comparisons(ROOT).items() if count > DECIDED_BY_NAME.get(file, 0)
    }
    assert not found, f"ask a fact of recipe.objective, model.generation or model.decoder: {found}"
