"""Links inside a tar: the bytes of the member that a link leads to, where that member comes before it."""

import posixpath
import tarfile

from blip3o.errors import quoted

Range = tuple[int, int]  # offset, size


class LinkTable:
    """The members of one tar so far, by path. A link that was followed is a member too, so links to links work."""

    def __init__(self) -> None:
        self._ranges: dict[str, Range] = {}

    def add(self, name: str, where: Range) -> None:
        """Notes a member; a later one of the same name takes its place, as when the tar is unpacked."""
        self._ranges[_plain(name)] = where

    def follow(self, name: str, kind: bytes, target: str) -> tuple[Range | None, str]:
        """The bytes that link `name` leads to, or None and the reason. `kind` is the type field of its header."""
        hard = kind == tarfile.LNKTYPE
        # A hard link names a member of the archive; a symbolic one is relative to its own folder.
        path = _plain(target if hard else posixpath.join(posixpath.dirname(name), target))
        where = self._ranges.get(path)
        if where is None:
            what = "hard link" if hard else "symbolic link"
            return None, f"{what}: {quoted(name)} leads to {quoted(target)}, which is no file before it in the tar"
        self.add(name, where)
        return where, ""


def _plain(path: str) -> str:
    return posixpath.normpath(path).lstrip("/")
