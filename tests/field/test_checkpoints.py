"""Checkpoints and tokenizers as downloads and wrappers leave them, through `jobs.adopt` and `blip3o convert`."""

import base64
import json
import random
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save, save_file

import jobs.adopt
from blip3o.bundle.reading import load_bundle
from blip3o.errors import Blip3oError, BundleError
from blip3o.runs.paths import final_uri
from blip3o.runs.results import read_final
from blip3o.weights.safetensors_stream import read_entries, read_in_order
from jobs import cli
from tests import recipes
from tests.bundles import write_nano_bundle
from tests.convert import released_folder as toy

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 32 + b"\nsize 4976698672\n"
# A whole file: one tensor of FP8 and one of BF16.
SCALE_IN_FP8 = base64.b64decode(
    "4AAAAAAAAAB7Il9fbWV0YWRhdGFfXyI6IHsiZm9ybWF0IjogInB0In0sICJtb2RlbC5sYXllcnMuMC5tbHAuZG93bl9wcm9qLndlaWdodF9zY2Fs"
    "ZSI6IHsiZHR5cGUiOiAiRjhfRTVNMiIsICJzaGFwZSI6IFsxXSwgImRhdGFfb2Zmc2V0cyI6IFswLCAxXX0sICJtb2RlbC5ub3JtLndlaWdodCI6"
    "IHsiZHR5cGUiOiAiQkYxNiIsICJzaGFwZSI6IFs0XSwgImRhdGFfb2Zmc2V0cyI6IFsxLCA5XX19ICAgICAgIDyAP4A/gD+APw=="
)
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A nano bundle's folder, and the tensors of its encoder by their names without `encoder.`."""
    folder = tmp_path_factory.mktemp("bundle")
    write_nano_bundle(str(folder))
    tensors = load_file(folder / "model.safetensors")
    return folder, {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}


@pytest.fixture
def adopt(tmp_path, capsys):
    """Runs `jobs.adopt` for the encoder; returns the error's line, or None, and leaves the result to `adopted`."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.tree(run={"storage": f"{tmp_path}/runs"})))

    def run(uri):
        code = jobs.adopt.main([str(recipe), "--name", "new", "--part", f"encoder.={uri}"])
        err = capsys.readouterr().err
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == len(errors)
        return errors[0] if errors else None

    return run


def adopted(tmp_path):
    return {name.removeprefix("encoder."): t for name, t in read_final(final_uri(f"{tmp_path}/runs", "new"))[0].items()}


def command(capsys, *argv):
    """The output and the error's line of a `blip3o` command."""
    code = cli.main([*map(str, argv)])
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == len(errors)
    return out, "".join(errors)


def renamed(head, old, new):
    """A safetensors file with a type in its head that its writer here does not know."""
    length = int.from_bytes(head[:8], "little")
    text = head[8 : 8 + length].replace(old, new)
    return len(text).to_bytes(8, "little") + text + head[8 + length :]


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (POINTER, "is a Git LFS pointer to 4976698672 bytes: run `git lfs pull`"),
        (b"<!DOCTYPE html><title>Sign in</title>", "is an HTML page ('Sign in')"),
        (b"", "is empty: fetch the file itself again"),
        (b'{"error": "Repository not found"}', 'is JSON text (\'{"error": "Repository not found"}\')'),
        (b"Access denied", "is text ('Access denied')"),
        (b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl", "is a PyTorch pickle: run `blip3o convert unpickle"),
        (b"\x1f\x8b\x08\0\0\0\0\0" + bytes(99), "is compressed by gzip: unpack it"),
        (SCALE_IN_FP8[:-3], "has 238 bytes, its header describes 241: it is truncated"),
        (SCALE_IN_FP8[:100], "its header has 224 bytes, the file 100: it is truncated"),
        (SCALE_IN_FP8, "is missing 16 of 16 tensors of encoder.*, e.g. encoder.blocks.0.attn.proj.bias, "),
    ],
)
def test_a_file_that_is_no_such_checkpoint_is_named_with_the_fix(adopt, capsys, monkeypatch, tmp_path, data, fault):
    file = tmp_path / "weights.safetensors"
    file.write_bytes(data)
    assert fault in adopt(file)
    if "lacks" not in fault:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "model.safetensors").write_bytes(data)
        assert fault in command(capsys, "convert", "from-released", tmp_path / "folder", "--out", tmp_path / "o")[1]


@pytest.mark.parametrize(
    "data", [POINTER, b"<html>", b"", b"Not Found", b"\x80\x02", b"PK\x03\x04", bytes(300), b"GGUF" * 9]
)
def test_what_is_no_pickle_is_refused_in_one_line(capsys, monkeypatch, tmp_path, data):
    (tmp_path / "pytorch_model.bin").write_bytes(data)
    _, error = command(
        capsys, "convert", "unpickle", tmp_path / "pytorch_model.bin", "--out", tmp_path / "o.safetensors"
    )
    assert "pytorch_model.bin is not a pickle of tensors" in error
    assert ("git lfs pull" in error) == (data == POINTER)


def test_a_pickle_gives_tensors_of_any_type_and_nothing_else(capsys, monkeypatch, tmp_path):
    file, out = tmp_path / "pytorch_model.bin", tmp_path / "o.safetensors"
    tensors = {"scale": torch.ones(3).to(torch.float8_e4m3fn), "w": torch.ones(2, dtype=torch.uint16)}
    torch.save(tensors, file)
    printed, error = command(capsys, "convert", "unpickle", file, "--out", out)
    assert (printed, error) == (f"wrote {out}: 2 tensors\n", "")
    assert {name: tensor.dtype for name, tensor in load_file(out).items()} == {n: t.dtype for n, t in tensors.items()}
    for odd in (
        [torch.ones(1)],
        {"a": torch.ones(2).to_sparse()},
        {"a": torch.ones(2, device="meta")},
        {"a": {"b": 1}},
    ):
        torch.save(odd, file)
        assert "a state dictionary and nothing else" in command(capsys, "convert", "unpickle", file, "--out", out)[1]


def test_tensors_that_are_not_needed_may_be_of_any_type(adopt, tmp_path, weights):
    spare = {
        "a.weight_scale": torch.ones(3).to(torch.float8_e5m2),
        "b.qweight": torch.ones(2, dtype=torch.uint32),
        "c": torch.ones(2, dtype=torch.complex64),
        "d": torch.ones(3, dtype=torch.uint8),
    }
    data = save({**weights[1], **spare})
    for old, new in [
        (b"", b""),
        (b'"F8_E5M2"', b'"F8_E4M3"'),
        (b'"F8_E5M2"', b'"F9_NEW"'),
        (b'"dtype":"U8"', b'"dtype":"Q8"'),
    ]:
        file = tmp_path / "weights.safetensors"
        file.write_bytes(renamed(data, old, new))
        assert adopt(file) is None
        assert all(torch.equal(tensor, weights[1][name]) for name, tensor in adopted(tmp_path).items())


@pytest.mark.parametrize(
    ("dtype", "code"),
    [
        (torch.float8_e4m3fn, "F8_E4M3"),
        (torch.float8_e5m2, "F8_E5M2"),
        (torch.uint32, "U32"),
        (torch.int8, "I8"),
        (torch.bool, "BOOL"),
        (torch.complex64, "C64"),
    ],
)
def test_a_needed_tensor_of_a_type_that_is_not_read_is_named(adopt, tmp_path, weights, dtype, code):
    file = tmp_path / "weights.safetensors"
    save_file({**weights[1], "pos_embed": weights[1]["pos_embed"].to(dtype)}, file)
    assert f"pos_embed is stored as {code}: bf16, fp16, fp32 are read" in adopt(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precisions_are_read(adopt, tmp_path, weights, dtype):
    save_file({name: tensor.to(dtype) for name, tensor in weights[1].items()}, tmp_path / "w.safetensors")
    assert adopt(tmp_path / "w.safetensors") is None
    assert all(torch.equal(tensor, weights[1][name].to(dtype)) for name, tensor in adopted(tmp_path).items())


@pytest.mark.parametrize(
    "wrapper", ["module.", "_orig_mod.", "base_model.model.", "model.model.", "module.encoder.", "encoder."]
)
def test_a_wrapper_around_all_names_is_removed(adopt, tmp_path, weights, wrapper):
    save_file({f"{wrapper}{name}": tensor for name, tensor in weights[1].items()}, tmp_path / "w.safetensors")
    assert adopt(tmp_path / "w.safetensors") is None
    assert adopted(tmp_path).keys() == weights[1].keys()


def test_a_wrapper_around_some_names_and_adapters_are_named(adopt, tmp_path, weights):
    file = tmp_path / "w.safetensors"
    save_file({**{f"visual.{name}": t for name, t in weights[1].items()}, "text.weight": torch.ones(1)}, file)
    error = adopt(file)
    assert "there as visual.blocks.0.attn.proj.bias, and other names do not begin with visual." in error
    save_file({"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(1)}, file)
    assert "it holds LoRA adapters: merge them" in adopt(file)


def test_a_folder_with_shards_that_are_missing_or_none_is_refused_by_their_names(adopt, tmp_path, weights):
    folder = tmp_path / "shards"
    folder.mkdir()
    names = sorted(weights[1])
    shards = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, members in shards.items():
        save_file({name: weights[1][name] for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / "._a.safetensors").write_bytes(b"\0\5\26\7" + bytes(99))
    hidden = folder / ".ipynb_checkpoints" / "b.safetensors"
    hidden.parent.mkdir()
    hidden.write_bytes(b"")
    assert adopt(folder) is None
    shutil.rmtree(hidden.parent)
    (folder / "b.safetensors").write_bytes(POINTER)
    assert "b.safetensors is a Git LFS pointer" in adopt(folder)
    (folder / "b.safetensors").unlink()
    assert f"{INDEX} names {folder}/b.safetensors (1 such), which is not there: fetch it" in adopt(folder)
    for data in (b"[]", b'{"weight_map": [1]}', b'{"weight_map": {"a": 1}}', POINTER, b""):
        (folder / INDEX).write_bytes(data)
        assert INDEX in adopt(folder)
    for file in folder.iterdir():
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"x")
    assert "(there are pytorch_model.bin; `blip3o convert unpickle` makes safetensors of a pickle)" in adopt(folder)


def test_a_bundle_whose_files_are_pointers_says_so(weights, tmp_path):
    for name in ("model.safetensors", "tokenizer.json"):
        folder = tmp_path / name
        folder.mkdir()
        for file in weights[0].iterdir():
            (folder / file.name).write_bytes(POINTER if file.name == name else file.read_bytes())
        with pytest.raises(BundleError, match=rf"{name} is a Git LFS pointer .*: run `git lfs pull`"):
            load_bundle(str(folder))


def _released(folder, *, wrapper=""):
    """A released folder without decoder and tower, whose vocabulary is the toy's; its names behind a wrapper."""
    folder.mkdir()
    tensors = {f"{wrapper}{name}": t.contiguous() for name, t in toy.main_tensors(tower=False).items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(toy.CONFIG | {"vocab_size": len(toy.vocabulary())}))
    for name, data in toy.slow_tokenizer_files().items():
        (folder / name).write_bytes(data)
    return tensors


def test_a_released_folder_behind_a_wrapper_with_its_bases_tokenizer_becomes_a_bundle(tmp_path, capsys, monkeypatch):
    from blip3o.data.text.tokenizer_files import complete_tokenizer

    folder = tmp_path / "folder"
    _released(folder, wrapper="module.")
    config = (folder / "config.json").read_text()
    whole = json.loads(complete_tokenizer(toy.slow_tokenizer_files(), source=""))
    whole["added_tokens"] = [token for token in whole["added_tokens"] if token["content"].startswith("<|")]
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    out, error = command(capsys, "convert", "from-released", folder, "--out", tmp_path / "bundle", "--vision-size", 56)
    assert not error
    assert "0 unknown, 0 missing" in out
    tokenizer = load_bundle(str(tmp_path / "bundle")).tokenizer
    assert {name: tokenizer.special(name) for name in toy.ADDED} == {name: toy.vocabulary()[name] for name in toy.ADDED}
    assert tokenizer.decode(tokenizer.encode("[IMG]<image>")) == "[IMG]<image>"
    assert not set(tokenizer.encode("[IMG]<image>")) & set(map(tokenizer.special, toy.ADDED))

    for changes in (
        {"vision_config": None},
        {"vision_config": 5},
        {"text_config": [1]},
        {"vocab_size": "309"},
        {"tokenizer_model_max_length": "96"},
        {"rope_scaling": {"mrope_section": 5}},
        {"gen_hidden_size": 0},
        {"gen_hidden_size": {}},
        {"num_attention_heads": 0},
    ):
        (folder / "config.json").write_text(json.dumps({**json.loads(config), **changes}))
        _, error = command(capsys, "convert", "from-released", folder, "--out", tmp_path / "b")
        assert str(folder) in error or "config.json" in error
    (folder / "config.json").write_text(config)
    (folder / "added_tokens.json").write_text(json.dumps({"[IMG]": 301}))
    _, error = command(capsys, "convert", "from-released", folder, "--out", tmp_path / "b", "--vision-size", 56)
    assert "added_tokens.json gives [IMG] the id 301, tokenizer.json gives that to <|im_start|>" in error


def test_a_damaged_head_is_read_or_refused_in_one_line(tmp_path):
    draw = random.Random(21)
    whole = save({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0)})
    length = int.from_bytes(whole[:8], "little")
    swaps = [b"[", b"{", b'"', b"-", b"9" * 30, b"1e9", b"null", b"\\ud800", b"[[", b"\xff", b"true", b"1.5", b","]
    file = tmp_path / "w.safetensors"
    read = 0
    for _ in range(700):
        head, data = bytearray(whole[8 : 8 + length]), whole[8 + length :]
        for _ in range(draw.randint(0, 2)):
            place = draw.randrange(len(head))
            head[place : place + draw.randint(0, 2)] = draw.choice([*swaps, draw.randbytes(1)])
        claimed = draw.choice([len(head)] * 8 + [0, len(head) - 1, len(head) + 1, 2**63])
        file.write_bytes(claimed.to_bytes(8, "little") + bytes(head) + data[: draw.choice([len(data)] * 4 + [5])])
        try:
            entries = read_entries(str(file))
            read += len(list(read_in_order(str(file), _Digest()))) == len(entries)
        except Blip3oError as error:
            assert "\n" not in str(error)
    assert read


class _Digest:
    def update(self, data):
        """Takes bytes, and keeps nothing of them."""
