"""Only `blip3o.runs` joins a path below the folder of a run."""

import ast

import pytest

from tests.test_style import ROOT, SOURCES

OWNER = "blip3o/runs/"
JOINERS = ("join", "within", "joinpath")


def joins(tree):
    """Lines that join something to `….run.storage`: by a call, an f-string with a slash behind it, `+`, or `/`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in JOINERS:
            found = any(is_storage(it) for it in node.args) and len(node.args) > 1
        elif isinstance(node, ast.JoinedStr):
            pairs = zip(node.values, node.values[1:], strict=False)
            found = any(
                is_storage(value) and ast.unparse(after).strip("f'\"").startswith("/") for value, after in pairs
            )
        else:
            found = isinstance(node, ast.BinOp) and is_storage(node.left)
        if found:
            yield node.lineno


def is_storage(node):
    node = node.value if isinstance(node, ast.FormattedValue) else node
    return isinstance(node, ast.Attribute) and ast.unparse(node).endswith("run.storage")


@pytest.mark.parametrize(
    "line",
    [
        'storage.join(recipe.run.storage, "x")',
        'f"{self.recipe.run.storage}/x"',
        'recipe.run.storage + "/x"',
        'Path(root) and recipe.run.storage / "x"',
    ],
)
def test_a_joined_path_is_found(line):
    assert list(joins(ast.parse(line))) == [1]


@pytest.mark.parametrize("line", ["final_uri(recipe.run.storage, run)", 'f"not below {recipe.run.storage}: train"'])
def test_mentioning_the_storage_is_not_joining_a_path(line):
    assert not list(joins(ast.parse(line)))


def test_no_other_package_joins_a_path_of_a_run():
    others = [path for path in SOURCES if not str(path).startswith(OWNER)]
    assert not [f"{path}:{line}" for path in others for line in joins(ast.parse((ROOT / path).read_text()))]
