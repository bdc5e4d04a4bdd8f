"""How large things are, for what a command says at its end."""

from blip3o.storage.files import list_files


def folder_bytes(uri: str) -> int:
    """The bytes of all files below a folder; 0 if there is none. Raises `StorageError`."""
    return sum(file.size for file in list_files(uri))


def readable(size: float) -> str:
    """A size in bytes to three digits, as 16.1 MB. Units are powers of 1000, as disks and stores are sold."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
