"""URIs as text: their one canonical form, and how they are joined. The same rules hold for S3 and for local files.

`.`, `..` and repeated slashes are resolved in both. A `file:` URI is percent-decoded, as RFC 8089 has it; S3 URIs and
plain paths are taken literally, so `%20`, `?` and `#` in them are part of the name.
"""

import os
import posixpath
import re
from pathlib import Path
from urllib.parse import unquote

from blip3o.errors import StorageError


class BadUriError(StorageError):
    """A URI that no file can have, whatever the state of the store."""


FORMS = "use s3://bucket/key, file:///path or a plain path"
# One letter before the colon is a drive of Windows. Without a slash after it, most names with a colon are file names.
_SCHEME = re.compile(r"(s3|file|data(?=:[;,])|data(?=:[\w.+-]+/)|[a-z][a-z0-9+.-]+(?=:/)):", re.IGNORECASE)
_OBJECT = re.compile(r"//([A-Za-z0-9._:-]+)(/.*)?", re.DOTALL)
_FILE = re.compile(r"(?://([^/]*)|(?!//))(/.*)", re.DOTALL)
_IMPOSSIBLE = re.compile("[\x00\ud800-\udfff]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def shown(uri: str) -> str:
    """A URI as one line that can be encoded: control characters and lone surrogates are escaped."""
    return _UNPRINTABLE.sub(lambda found: found.group().encode("unicode_escape").decode(), uri)


def normalize(uri: str) -> str:
    """The canonical form of a URI: `s3://bucket/key` or an absolute local path, without `.`, `..` or a trailing slash.

    Raises `BadUriError` for an impossible name.
    """
    if not uri:
        raise BadUriError(f"an empty path names no file: {FORMS}")
    _require_possible(uri, uri)
    scheme, rest = _split(uri)
    if scheme == "s3":
        return _object_path(uri, rest)
    if scheme not in ("", "file"):
        raise BadUriError(f"unknown scheme '{scheme}' in {shown(uri)[:300]}: {FORMS}")
    return _local_path(_file_path(uri, rest) if scheme else _expanded(uri))


def is_absolute(uri: str) -> bool:
    """Whether a URI does not depend on the folder it is mentioned in: it has a scheme, or begins with `/` or `~/`."""
    return bool(_split(uri)[0]) or uri.startswith(("/", "~/"))


def absolute(uri: str) -> str:
    """`uri` itself if it is absolute, else the full path of what it names below the current folder."""
    return uri if is_absolute(uri) else normalize(uri)


def is_canonical(uri: str) -> bool:
    """Whether `normalize` returns this URI unchanged, so that it is the only name of its file."""
    try:
        return normalize(uri) == uri
    except BadUriError:
        return False


def join(uri: str, *parts: str) -> str:
    """`uri` and the names `parts`, joined by single slashes. Parts are taken literally, also below a `file:` URI."""
    scheme, rest = _split(uri)
    base = _file_path(uri, rest) if scheme == "file" else uri
    return posixpath.join(base.rstrip("/") or base[:1], *parts)


def within(folder: str, uri: str) -> str:
    """`uri` itself if it is absolute, else its place in `folder`."""
    return uri if is_absolute(uri) else join(folder, uri)


def _require_possible(uri: str, path: str) -> None:
    if _IMPOSSIBLE.search(path):
        raise BadUriError(f"{shown(uri)} holds a NUL or is not UTF-8: correct the name, or rename the file")


def _split(uri: str) -> tuple[str, str]:
    """The scheme in lower case and what follows its colon; an empty scheme for a plain path."""
    found = _SCHEME.match(uri)
    return (found[1].lower(), uri[found.end() :]) if found else ("", uri)


def _object_path(uri: str, rest: str) -> str:
    found = _OBJECT.fullmatch(rest)
    if not found or found[1] in (".", ".."):
        raise BadUriError(f"{shown(uri)} names no object: use s3://bucket/key")
    parts: list[str] = []
    for part in (found[2] or "").split("/"):
        if part == ".." and not parts:
            raise BadUriError(f"{shown(uri)} leads out of the bucket '{found[1]}': write fewer '..'")
        if part == "..":
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join([f"s3://{found[1]}", *parts])


def _file_path(uri: str, rest: str) -> str:
    """The decoded path of a `file:` URI."""
    found = _FILE.fullmatch(rest)
    if not found:
        raise BadUriError(f"{shown(uri)} names no file: use file:///path")
    if (found[1] or "localhost").lower() != "localhost":
        host = shown(found[1])
        raise BadUriError(f"{shown(uri)} names a file of the host '{host}': use file:///path for a local file")
    try:
        path = unquote(found[2], errors="strict")
    except UnicodeDecodeError as error:
        raise BadUriError(f"{shown(uri)} is not UTF-8 when it is percent-decoded: use a plain path") from error
    _require_possible(uri, path)
    return path


def _expanded(uri: str) -> str:
    try:
        return str(Path(uri).expanduser()) if uri.startswith("~") else uri
    except RuntimeError as error:
        raise BadUriError(
            f"{shown(uri)}: no user of that name has a home here: write the path in full, or ./~name for a file"
        ) from error


def _local_path(path: str) -> str:
    """An absolute path in which `..` means what it means to the kernel: the parent of where a link leads."""
    place = "/"
    for part in (path if path.startswith("/") else f"{_here(path)}/{path}").split("/"):
        if part == "..":
            place = posixpath.dirname(os.path.realpath(place) if os.path.islink(place) else place)
        elif part not in ("", "."):
            place = posixpath.join(place, part)
    return place


def _here(path: str) -> str:
    try:
        return os.getcwd()
    except FileNotFoundError as error:
        raise BadUriError(f"{shown(path)}: the current folder is gone: write a full path") from error
