"""Files that are no weights: each is known by its first bytes, with the fix; weights and plain bytes are not."""

import bz2
import gzip
import io
import lzma
import random
import zipfile

import pytest
import torch
from safetensors.torch import save

from blip3o.data.foreign import SNIFFED_BYTES, recognise

WEIGHTS = save({"a": torch.ones(64)})


def archive(name, data=b"x"):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        file.writestr(name, data)
    return out.getvalue()


def pickled(*, new):
    out = io.BytesIO()
    torch.save({"a": torch.ones(3)}, out, _use_new_zipfile_serialization=new)
    return out.getvalue()


POINTER = b"version https" + b"://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 4976698672\n"
FILES = {
    "pointer": (POINTER, "is a Git LFS pointer to 4976698672 bytes: run `git lfs pull`"),
    "pointer, CRLF": (POINTER.replace(b"\n", b"\r\n"), "pointer to 4976698672 bytes"),
    "pointer, marked": (b"\xef\xbb\xbf" + POINTER, "run `git lfs pull`"),
    "pointer, old": (b"version https" + b"://hawser.github.com/spec/v1\noid x\n", "run `git lfs pull`"),
    "annex": (b"/annex/objects/SHA256E-s1--a.safetensors\n", "run `git annex get`"),
    "page": (b"<!DOCTYPE html><html><title>Sign\n in</title>", "is an HTML page ('Sign in')"),
    "page, upper": (b"\r\n <HTML lang=en>", "is an HTML page"),
    "page, comment": (b"<!-- saved -->\n<html>", "is an HTML page"),
    "xhtml": (b'<?xml version="1.0"?><!DOCTYPE html PUBLIC "">', "is an HTML page"),
    "store": (b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code>', "is an XML reply (AccessDenied)"),
    "json": (b'{"error":"Invalid username"}', 'is JSON text (\'{"error":"Invalid username"}\')'),
    "text": (b"Entry not found", "is text ('Entry not found')"),
    "short": (b"ok", "is text ('ok')"),
    "cut character": (("é" * SNIFFED_BYTES).encode()[: SNIFFED_BYTES - 1], "is text"),
    "empty": (b"", "is empty"),
    "zeros": (bytes(4096), "begins with zeros"),
    "zip": (archive("model.safetensors"), "is a zip archive: unpack it"),
    "pickle": (pickled(new=True), "is a PyTorch pickle: run `blip3o convert unpickle"),
    "pickle, old": (pickled(new=False), "is a PyTorch pickle"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(40), "is a GGUF file"),
    "gzip": (gzip.compress(WEIGHTS, mtime=0), "is compressed by gzip: unpack it"),
    "xz": (lzma.compress(WEIGHTS), "is compressed by xz"),
    "bzip2": (bz2.compress(WEIGHTS), "is compressed by bzip2"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(40), "is compressed by zstd"),
    "tar": (b"model".ljust(257, b"\0") + b"ustar\x0000", "is a tar archive"),
    "numpy": (b"\x93NUMPY\x01\0", "is a NumPy array"),
    "hdf5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_foreign_file_is_named_with_its_fix(name):
    data, clause = FILES[name]
    found = recognise(data[:SNIFFED_BYTES], size=len(data))
    assert clause in found
    assert "\n" not in found


@pytest.mark.parametrize("data", [WEIGHTS, WEIGHTS[:-5], WEIGHTS[:40], b"\x07\x08\xff" * 9, b"f\xfcr"])
def test_what_is_not_known_is_not_guessed(data):
    assert recognise(data[:SNIFFED_BYTES], size=len(data)) is None


def test_text_tells_nothing_where_text_is_wanted():
    assert recognise(b'{"version": "1.0"}', size=18, is_text=True) is None
    assert "git lfs" in recognise(POINTER, size=len(POINTER), is_text=True)
    assert "HTML" in recognise(b"<html>", size=6, is_text=True)


def test_any_bytes_give_one_line_or_nothing():
    draw = random.Random(5)
    for _ in range(2000):
        data = bytearray(draw.choice([*[data for data, _ in FILES.values()], WEIGHTS])[:400])
        for _ in range(draw.randint(0, 6)):
            data[draw.randrange(len(data) + 1) :][:1] = draw.randbytes(1)
            if data:
                data[draw.randrange(len(data))] = draw.randrange(256)
        found = recognise(bytes(data), size=len(data))
        assert found is None or "\n" not in found
