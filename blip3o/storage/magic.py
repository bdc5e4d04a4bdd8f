"""Recognises by its first bytes a file that should hold weights or a tokenizer and does not.

Downloads bring all kinds of files instead of a checkpoint: Git LFS pointers, login pages, errors as JSON. Whoever knows
which one it is knows the fix.
"""

import codecs
import re

from blip3o.errors import one_line

SNIFFED_BYTES = 2048  # more than enough to recognise a file
SHOWN = 80
_FETCH = "fetch the file itself"

_MAGICS = (
    (b"GGUF", "is a GGUF file, whose weights are for llama.cpp: give the safetensors files of the model"),
    (b"lmgg", "is a GGML file, whose weights are for llama.cpp: give the safetensors files of the model"),
    (b"\x1f\x8b", "is compressed by gzip: unpack it"),
    (b"\x28\xb5\x2f\xfd", "is compressed by zstd: unpack it"),
    (b"\xfd7zXZ", "is compressed by xz: unpack it"),
    (b"BZh", "is compressed by bzip2: unpack it"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"\x93NUMPY", "is a NumPy array: give safetensors files"),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them: give safetensors files"),
    (b"PAR1", "is a Parquet file: give safetensors files"),
)
FIX_OF_A_PICKLE = "run `blip3o convert unpickle FILE --out NAME.safetensors`, and give the result"
_PICKLE = f"is a PyTorch pickle: {FIX_OF_A_PICKLE}"
_POINTER = re.compile(rb"version https://[^\n]*\b(git-lfs|hawser)\b")
_ANNEX = re.compile(rb"(\.\./)*(\.git|/annex)/(annex/)?objects/")
_PAGE = re.compile(rb"(<\?xml[^>]*>|<!--.*?-->|\s)*<(!doctype\s+html|html|head|body|title|script)\b", re.I | re.S)
_TITLE = re.compile(rb"<title[^>]*>(.*?)</title>", re.I | re.S)
# PyTorch's archives begin with the pickle or a note, in a folder of any name; its older files are bare pickles.
_TORCH_MEMBER = re.compile(rb"[^/]{1,200}/(data\.pkl|byteorder|\.format_version|version)")
_OLD_PICKLE = re.compile(rb"\x80[\x02-\x05][\x8a\x95}\](c)]")
_SIZE = re.compile(rb"^size (\d+)\r?$", re.M)


def recognise(start: bytes, *, size: int, is_text: bool = False) -> str | None:
    """What a file is, and the fix, as the end of a sentence that begins with its name; None if that is not known.

    `start`: its first bytes, `SNIFFED_BYTES` or all; `size`: bytes of the whole; `is_text`: whether it should be text
    (a tokenizer.json), so that being text means nothing.
    """
    if size == 0:
        return f"is empty: {_FETCH} again"
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    found = _pointer(text) or _page(text) or _archive(start)
    if found is None:
        found = next((clause for magic, clause in _MAGICS if start.startswith(magic)), None)
    if found is None and start[257:262] == b"ustar":
        return "is a tar archive: unpack it"
    if found is None and not any(start[:64]):
        return f"begins with zeros, as an interrupted download leaves it: {_FETCH} again"
    return found or (None if is_text else _text(text))


def _pointer(text: bytes) -> str | None:
    if _POINTER.match(text):
        size = _SIZE.search(text)
        stands = f" to {int(size[1])} bytes" if size else ""
        return f"is a Git LFS pointer{stands}: run `git lfs pull`"
    if _ANNEX.match(text):
        return "is a git-annex pointer: run `git annex get`"
    return None


def _page(text: bytes) -> str | None:
    if _PAGE.match(text):
        title = _TITLE.search(text)
        named = f" ('{_quoted(title[1])}')" if title else ""
        return f"is an HTML page{named}, such as a viewer or a login: {_FETCH}"
    if text.startswith(b"<?xml") or re.match(rb"<Error>", text):
        code = re.search(rb"<Code>(.*?)</Code>", text, re.S)
        named = f" ({_quoted(code[1])})" if code else ""
        return f"is an XML reply{named}, such as the error of a store: {_FETCH}"
    return None


def _archive(start: bytes) -> str | None:
    if start.startswith(b"PK\x03\x04"):
        return _PICKLE if _TORCH_MEMBER.match(start[30:]) else "is a zip archive: unpack it"
    return _PICKLE if _OLD_PICKLE.match(start) else None


def _text(text: bytes) -> str | None:
    """Describes a text file by its first words."""
    kind = "JSON text" if text[:1] in (b"{", b"[") else "text"
    try:
        words = codecs.getincrementaldecoder("utf-8")().decode(text)  # the last character may be truncated
    except UnicodeDecodeError:
        return None
    if not words or any(ord(char) < 32 and char not in "\t\r\n\f" for char in words):
        return None
    return f"is {kind} ('{_quoted(text)}'), such as the error of a download: {_FETCH}"


def _quoted(text: bytes) -> str:
    return one_line(text.decode(errors="replace"), limit=SHOWN)
