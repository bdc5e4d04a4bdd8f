"""The files below a local folder. Each folder is read once, whatever links lead to it, and no picture in it twice.

A file under its own name comes before one that a link leads to. A link to a file elsewhere is a file of the link's
name: stores of data sets (a Hugging Face cache, git-annex, DVC) keep equal contents once, and link them under each of
their names. Names are as the system gives them, also where they are not UTF-8.
"""

import errno
import heapq
import os
import stat
from collections import Counter

from blip3o.data.sets.importing.items import file_entry
from blip3o.data.sets.importing.pictures import PICTURE_EXTENSIONS, extension
from blip3o.data.shards.ledger import LedgerEntry
from blip3o.storage import FileInfo
from blip3o.storage.system_files import is_system_file

READ_ALREADY = "links to what is read already"
# Where data sets keep their content, and what fetches it.
_FETCH = ((".git/annex/", "run git annex get"), ("dvc/", "run dvc pull"), ("/blobs/", "download the data set again"))


def system_kind(name: str) -> str:
    """What a system file is counted as, by its name in the folder: the system's folder or file; "" for any other."""
    parts = name.split("/")
    for number, part in enumerate(parts, start=1):
        if is_system_file("/".join(parts[:number])):
            return "._*" if part.startswith("._") else part if number == len(parts) else f"{part}/"
    return ""


class LocalFiles:
    """What is below an absolute local folder: regular `files` by path, `left_out` for what cannot be read, and in
    `skipped` by kind the links that are not followed.
    """

    def __init__(self, root: str) -> None:
        self.files: list[FileInfo] = []
        self.left_out: list[LedgerEntry] = []
        self.skipped: Counter[str] = Counter()
        self._root = root.rstrip("/")
        self._links: list[str] = []  # a heap
        self._to_files: dict[str, os.stat_result] = {}  # links, with facts of what they lead to
        self._seen: set[tuple[int, int]] = set()  # folders, and files under their own names
        self._enter(root)
        while self._links:
            self._follow(heapq.heappop(self._links))
        for link, facts in self._to_files.items():  # now it is known which files are there under their own names
            self._add_linked(link, facts)
        self.files.sort(key=lambda file: file.uri)

    def _name(self, path: str) -> str:
        return path.removeprefix(f"{self._root}/")

    def _leave_out(self, path: str, reason: str) -> None:
        kind = system_kind(self._name(path))
        if kind:
            self.skipped[kind] += 1
        else:
            self.left_out.append(file_entry(self._name(path), path, reason))

    def _enter(self, folder: str) -> None:
        """All that lies below a folder; links are noted for later."""
        self._see(os.stat(folder))
        folders = [folder]
        while folders:
            path = folders.pop()
            try:
                with os.scandir(path) as entries:
                    found = list(entries)
            except OSError as error:
                self._leave_out(path, f"folder cannot be read: {error.strerror}")
                continue
            for entry in found:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                self._note(entry)

    def _note(self, entry: "os.DirEntry[str]") -> None:
        try:
            facts = entry.stat(follow_symlinks=False)
        except OSError as error:
            self._leave_out(entry.path, f"file cannot be read: {error.strerror}")
            return
        if stat.S_ISLNK(facts.st_mode):
            heapq.heappush(self._links, entry.path)
            return
        if not system_kind(self._name(entry.path)):
            self._see(facts)
        if not stat.S_ISDIR(facts.st_mode):
            self._add(entry.path, facts)

    def _see(self, facts: os.stat_result) -> None:
        self._seen.add((facts.st_dev, facts.st_ino))

    def _add(self, path: str, facts: os.stat_result) -> None:
        if stat.S_ISREG(facts.st_mode):
            self.files.append(FileInfo(uri=path, size=facts.st_size, version=str(facts.st_mtime_ns)))
        else:
            self._leave_out(path, "is no regular file")

    def _follow(self, link: str) -> None:
        if kind := system_kind(self._name(link)):
            self.skipped[kind] += 1
            return
        try:
            facts = os.stat(link)
        except OSError as error:
            self._leave_out(link, _dead(link, error))
            return
        if not stat.S_ISDIR(facts.st_mode):
            self._to_files[link] = facts
        elif self._is_seen(facts) or self._leads_above(link):
            self.skipped[READ_ALREADY] += 1
        else:
            self._enter(link)

    def _is_seen(self, facts: os.stat_result) -> bool:
        return (facts.st_dev, facts.st_ino) in self._seen

    def _add_linked(self, link: str, facts: os.stat_result) -> None:
        """Adds what a link leads to. A picture of this folder is not added twice, but one text may serve several."""
        target = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)))
        is_here = self._is_seen(facts) or target in self._to_files
        if is_here and extension(link) in PICTURE_EXTENSIONS:
            self.skipped[READ_ALREADY] += 1
        else:
            self._add(link, facts)

    def _leads_above(self, link: str) -> bool:
        """Whether a link leads to a parent of the folder that is read."""
        target = os.path.realpath(link)
        return os.path.commonpath([target, os.path.realpath(self._root)]) == target


def _dead(link: str, error: OSError) -> str:
    target = os.readlink(link)
    if error.errno != errno.ENOENT:
        return f"link cannot be followed: {error.strerror}: '{target}'"
    fetch = next((how for mark, how in _FETCH if mark in target), "restore what it leads to, or delete it")
    return f"dead link: nothing is at '{target}': {fetch}"
