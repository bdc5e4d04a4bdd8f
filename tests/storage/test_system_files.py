"""Names that systems leave among data, and names of data."""

import pytest

from blip3o.storage.system_files import is_system_file


@pytest.mark.parametrize(
    "path",
    [
        ".DS_Store",
        "photos/._cat.jpg",
        "./.hidden.jpg",
        "__MACOSX/photos/cat.jpg",
        "photos/@eaDir/cat.jpg/SYNOPHOTO_THUMB_M.jpg",
        "photos/Thumbs.db",
        "photos\\THUMBS.DB",
        "desktop.ini",
        "$RECYCLE.BIN/a.jpg",
        "System Volume Information/a.jpg",
        ".ipynb_checkpoints/cat-checkpoint.jpg",
        ".Trash-1000/files/cat.jpg",
        ".thumbnails/large/cat.png",
        "#recycle/cat.jpg",
        "lost+found/cat.jpg",
        ".@__thumb/cat.jpg",
        "./PaxHeaders.4711/cat.jpg",
        "PaxHeader/cat.jpg",
    ],
)
def test_what_systems_leave_is_recognised_wherever_it_lies(path: str) -> None:
    assert is_system_file(path)


@pytest.mark.parametrize(
    "path",
    ["cat.jpg", "./cat.jpg", "../cat.jpg", "a.b/cat.1.jpg", "thumbs/cat.jpg", "my __macosx/cat.jpg", "", "cat.", "..."],
)
def test_data_is_not(path: str) -> None:
    assert is_system_file(path) == (path == "...")
