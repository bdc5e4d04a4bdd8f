"""`import blip3o`: what it offers, what it costs, and the README's example."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import blip3o
from tests.bundles import write_nano_bundle

ROOT = Path(__file__).parent.parent


def test_what_is_offered_is_there_and_listed():
    assert {"load", "load_recipe", "preset", "Blip3oPipeline", "Blip3oError"} <= set(blip3o.__all__) <= set(dir(blip3o))
    for name in blip3o.__all__:
        assert getattr(blip3o, name) is getattr(blip3o, name)
    assert blip3o.preset("nano").decoder.image_size == 32


def test_every_kind_of_error_is_offered():
    from blip3o import errors

    kinds = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert kinds <= set(blip3o.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'blip3o' has no attribute 'lod'"):
        _ = blip3o.lod
    with pytest.raises(ImportError):
        from blip3o import lod  # noqa: F401


def _loaded(code):
    """Which heavy libraries some code imports, in an interpreter of its own."""
    code += "; import sys; print(*{'torch', 'ray', 'pydantic', 'PIL', 'transformers'} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    return set(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split())


def test_importing_is_cheap_until_something_is_used():
    assert _loaded("import blip3o; dir(blip3o); blip3o.RequestError") == set()
    assert "torch" not in _loaded("import blip3o; blip3o.load_recipe; blip3o.preset('8b')")
    assert "torch" not in _loaded("import serve.api, blip3o.bundle.layout, blip3o.inference.messages")
    assert "torch" in _loaded("import blip3o; blip3o.load")


def test_types_are_shipped():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in ("blip3o", "jobs", "serve", "cluster"):
        assert "py.typed" in data[package]
        assert (ROOT / package / "py.typed").is_file()


def test_the_readmes_python_runs(tmp_path):
    text = (ROOT / "README.md").read_text()
    [example] = re.findall(r"^In Python[^\n]*:\n\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    code = re.sub("^    ", "", example, flags=re.MULTILINE)
    assert code.count('blip3o.load("runs/demo/bundle")') == 1
    write_nano_bundle(str(tmp_path / "runs/demo/bundle"))
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "out.png").is_file()
