"""Files that operating systems, editors and file managers leave among data: never samples, wherever they are found."""

import re

# Of files and of folders, in any case. Hidden names (a leading dot) are matched separately: `.DS_Store`, `._photo.jpg`,
# `.ipynb_checkpoints`, `.Trash-1000`, `.thumbnails`, `.@__thumb`, `.git` and the like.
SYSTEM_NAMES = frozenset(
    {
        "__macosx",  # macOS archives
        "@eadir",  # Synology thumbnails
        "#recycle",  # Synology, QNAP
        "@recycle",
        "@recently-snapshot",
        "$recycle.bin",  # Windows
        "system volume information",
        "thumbs.db",
        "ehthumbs.db",
        "desktop.ini",
        "lost+found",  # ext file systems
        "paxheader",  # what tars with PAX headers leave when an old tool unpacks them
    }
)
_NUMBERED = re.compile(r"paxheaders\.[0-9]+", re.IGNORECASE)


def is_system_file(path: str) -> bool:
    """Whether a file is the system's own: its name, or that of a folder on the way to it, is hidden or in the list.

    `path` is relative to the folder or archive of the data, with `/` or `\\` between its parts; `.` and `..` are no
    names.
    """
    return any(map(_is_system_name, path.replace("\\", "/").split("/")))


def _is_system_name(name: str) -> bool:
    hidden = name.startswith(".") and name not in (".", "..")
    return hidden or name.lower() in SYSTEM_NAMES or _NUMBERED.fullmatch(name) is not None
