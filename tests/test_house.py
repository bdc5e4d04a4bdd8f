"""Limits of the structure: how many files share a folder, and that no files import each other in a circle."""

from tests import house
from tests.test_style import ROOT

MAX_SIBLINGS = 16


def test_folders_hold_few_files():
    crowded = {folder: count for folder, count in house.siblings(ROOT).items() if count > MAX_SIBLINGS}
    assert not crowded, f"give these a room within the room: {crowded}"


def test_every_package_says_what_it_owns():
    packages = [path for path in house.modules(ROOT).values() if path.name == "__init__.py"]
    short = [str(path) for path in packages if len(path.read_text(encoding="utf-8")) < 60]
    assert not short, f"say in a sentence what these own and who calls them: {short}"
