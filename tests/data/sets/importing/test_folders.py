"""Folders as phones, notebooks, servers and versioned data sets leave them: every file is read, or accounted for."""

import hashlib
import json
import os
import re
import unicodedata
from pathlib import Path

import pytest

from blip3o import storage
from blip3o.data.sets.imported import import_set
from blip3o.data.sets.importing import items
from blip3o.data.sets.importing.folders import list_folder
from blip3o.data.shards.ledger import read_ledger
from blip3o.errors import DataError, StorageError
from tests.data.sets.importing.fuzzing import check_account, fuzz_folder, fuzz_table
from tests.data.sets.importing.made import samples
from tests.data.shard_files import png


@pytest.fixture
def folder(tmp_path):
    """0.png and 1.png with captions."""
    root = tmp_path / "in"
    for number in range(2):
        put(root, f"{number}.png", png(number))
        put(root, f"{number}.txt", f"caption {number}")
    return root


def put(root: Path, name: str, data: bytes | str = b"") -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())


def imported_from(root: Path):
    done = import_set(str(root), f"{root.parent}/out")
    check_account(done, root)
    return done


def captions(done) -> list[str]:
    return [caption for _, caption, _ in samples(done)]


def reasons(entries) -> dict[str, str]:
    return {os.path.basename(entry.uri): entry.reason for entry in entries}


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("x.txt", "said"),
        ("x.TXT", "said"),
        ("x.caption", "said\n"),
        ("x.jpg.txt", "said"),
        ("x.jpg.caption", "\ufeffsaid"),
        ("x.json", '{"caption": "said"}'),
        ("x.jpg.json", '{"captions": ["said", "more"]}'),
        ("metadata.csv", "file_name,text\nx.jpg,said\n"),
        ("metadata.csv", "file_name;Caption;score\nx.jpg;said;3\n"),
        ("METADATA.CSV", "file_name,text\nx.jpg,said\n"),
        ("metadata.jsonl", '{"file_name": "./x.jpg", "caption": "said"}'),
        ("metadata.jsonl", '{"file_name": "x.jpg", "caption": ["said", "more"]}'),
        ("x.txt", "said".encode("utf-16")),
    ],
)
@pytest.mark.parametrize("below", ["", "deep/er/"])
def test_a_caption_is_found_however_its_file_is_called(folder, name, data, below):
    put(folder, f"{below}x.jpg", png(7))
    put(folder, f"{below}{name}", data)
    done = imported_from(folder)
    assert captions(done) == ["caption 0", "caption 1", "said"] and not done.damage and not done.unused


def test_a_caption_is_found_in_another_form_of_unicode(folder):
    for form, stem in (("NFD", "caf\u00e9"), ("NFC", "nai\u0308ve")):
        put(folder, f"{stem}.jpg", png(3))
        put(folder, f"{unicodedata.normalize(form, stem)}.txt", stem)
    assert captions(imported_from(folder))[2:] == ["caf\u00e9", "nai\u0308ve"]
    put(folder, "cafe\u0301.txt", "apart")
    put(folder, "cafe\u0301.jpg", png(4))  # as it is spelled comes first
    put(folder, "caf\u00e9.txt", "composed")
    storage.delete(f"{folder.parent}/out")
    done = imported_from(folder)
    assert captions(done)[2:] == ["apart", "composed", "nai\u0308ve"] and not done.damage


def test_rows_of_metadata_join_what_files_say(folder):
    rows = [
        {"file_name": "0.png", "text": "not read", "lang": "en"},
        {"file_name": "sub/2.png", "caption": "two", "lang": "de"},
        {"file_name": "sub/2.png", "caption": "again"},
        {"file_name": "gone.png", "caption": "x"},
        {"caption": "no name"},
    ]
    put(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows)))
    put(folder, "1.json", '{"lang": "fr"}')
    put(folder, "sub/2.png", png(2))
    done = imported_from(folder)
    assert [(caption, record.get("lang")) for _, caption, record in samples(done)] == [
        ("caption 0", "en"),
        ("caption 1", "fr"),
        ("two", "de"),
    ]
    assert [entry.reason for entry in done.unused] == [
        "row 3 is not read: 'sub/2.png' has another row already",
        "row 4 is not read: 'gone.png' is no picture of this folder",
        "row names no image: row 5 has nothing in any of image, img_path, image_path, file_name, filename, file, path "
        "(or --image-column), its columns are 'caption'",
    ]
    put(folder, "metadata.jsonl", "\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(DataError, match="holds a set made with digest"):  # a table of pictures is a part of them
        imported_from(folder)


def test_metadata_that_cannot_be_read_is_named_where_it_is_missed(folder):
    put(folder, "sub/metadata.csv", "id,label\n1,cat\n")
    put(folder, "sub/2.png", png(2))
    done = imported_from(folder)
    assert "metadata.csv is not read, and no NAME.txt" in done.damage[0].reason
    assert "no column names an image: found 'id', 'label'" in done.unused[0].reason


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("x.tags", "x.tags lies next to it, but captions are NAME.txt, NAME.caption or NAME.json"),
        ("x.jpg.xmp", "x.jpg.xmp lies next to it"),
        ("X.txt", "X.txt lies next to it"),
        ("y.txt", "no NAME.txt, NAME.caption or NAME.json lies next to it"),
    ],
)
def test_what_lies_next_to_a_picture_without_a_caption_is_named(folder, name, hint):
    put(folder, "x.jpg", png(5))
    put(folder, name, "said")
    assert reasons(imported_from(folder).damage)["x.jpg"].startswith(f"missing caption: {hint}")


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        (
            "x.jpg.json",
            b'{"title": "x.jpg", "description": "a dog"}',
            "no text is under .*; the record has title, descr",
        ),
        ("x.json", b'{"caption": null}', "no text is under .*; the record has caption$"),
        ("x.json", b"{}", "x.json lies next to it"),
        ("x.txt", "said".encode("utf-16-le"), "undecodable caption: holds NUL bytes, as UTF-16 without its byte order"),
        ("x.json", '{"caption": "x"}'.encode("utf-16-be"), "undecodable record: holds NUL bytes"),
    ],
)
def test_a_text_that_gives_no_caption_says_what_it_has(folder, name, data, reason):
    put(folder, "x.jpg", png(5))
    put(folder, name, data)
    assert re.search(reason, reasons(imported_from(folder).damage)["x.jpg"])


def test_tables_and_shards_in_a_folder_are_pointed_to(folder):
    put(folder, "sub/2.png", png(2))
    put(folder, "sub/captions.csv", "image,caption\n2.png,two\n")
    found = reasons(imported_from(folder).damage)["2.png"]
    assert found.endswith("lies next to it; import captions.csv, or call it metadata.csv")
    put(folder.parent, "shards/0.tar", "x")
    with pytest.raises(
        DataError, match=r"found 1 x .tar: check the path; shards .* need no import: python -m jobs.index"
    ):
        imported_from(folder.parent / "shards")


def test_texts_without_a_picture_are_listed(folder):
    for name in ("alone.txt", "alone.json", "0.caption", "0.png.txt", "UP.txt", "notes.md"):
        put(folder, name, "{}")
    put(folder, "up.jpg", png(5))
    done = imported_from(folder)
    assert reasons(done.unused) == {
        "alone.txt": "belongs to no picture: none next to it has its name",
        "alone.json": "belongs to no picture: none next to it has its name",
        "0.caption": "is not read: '0.png' has another one",
        "0.png.txt": "is not read: '0.png' has another one",
        "UP.txt": "is not read: 'up.jpg' is spelled otherwise",
    }
    assert dict(done.listing.ignored) == {".md": 1}
    assert done.account()[-1] == (
        "11 files: 5 are or describe these pictures, 5 belong to none and are listed, 0 skipped, "
        "1 of other kinds (1 x .md)"
    )


SYSTEM = [
    *(".ipynb_checkpoints/0-checkpoint.png", ".ipynb_checkpoints/0-checkpoint.txt", "._0.png", ".hidden.png"),
    *("@eaDir/0.png/SYNOFILE_THUMB_M.jpg", "sub/__MACOSX/._0.png", "$RECYCLE.BIN/x.jpg", "lost+found/x.jpg"),
    *("System Volume Information/x.jpg", ".Trash-1000/files/x.jpg", "#recycle/x.jpg", ".thumbnails/x.png"),
    *("Thumbs.db", "desktop.ini", ".git/lfs/x.png", ".DS_Store"),
]


def test_files_of_systems_are_skipped_and_counted(folder):
    for name in SYSTEM:
        put(folder, name, png(9))
    done = imported_from(folder)
    assert captions(done) == ["caption 0", "caption 1"] and not done.unused and not done.damage
    assert sum(done.listing.skipped.values()) == len(SYSTEM)
    assert done.listing.skipped["._*"] == 1 and done.listing.skipped[".ipynb_checkpoints/"] == 2
    assert "16 skipped (2 x .ipynb_checkpoints/, " in done.account()[-1] and "other kinds)" in done.account()[-1]


def test_the_folder_itself_may_be_hidden(tmp_path):
    put(tmp_path, ".cache/@eaDir/0.png", png(0))
    put(tmp_path, ".cache/@eaDir/0.txt", "said")
    assert captions(imported_from(tmp_path / ".cache/@eaDir")) == ["said"]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("loop", ".."),
        ("self", "."),
        ("sub/up", "../.."),
        ("sub/loop", "../sub"),
        ("again", "sub"),
        ("above", "../../.."),
    ],
)
def test_links_that_lead_round_add_nothing(folder, link, target):
    put(folder, "sub/2.png", png(2))
    put(folder, "sub/2.txt", "caption 2")
    (folder / link).symlink_to(target)
    done = imported_from(folder)
    assert captions(done) == ["caption 0", "caption 1", "caption 2"]
    assert dict(done.listing.skipped) == {"links to what is read already": 1} and not done.unused


def test_a_linked_folder_is_read_once_and_a_linked_file_where_it_is_not_read_itself(folder, tmp_path):
    for name in ("far/2.png", "objects/K1", "in/.git/annex/objects/K2"):
        put(tmp_path, name, png(len(name)))
    put(tmp_path, "far/2.txt", "caption 2")
    for link, target in {
        "b": "../far",
        "a": "../far",
        "z.png": "../objects/K1",
        "y.png": ".git/annex/objects/K2",
        "0again.png": "0.png",
        "zz.png": "z.png",
    }.items():
        (folder / link).symlink_to(target)
    for name in "zy":
        put(folder, f"{name}.txt", f"caption {name}")
    done = imported_from(folder)
    assert [record["file"] for _, _, record in samples(done)] == ["0.png", "1.png", "a/2.png", "y.png", "z.png"]
    assert done.listing.skipped["links to what is read already"] == 3


@pytest.mark.parametrize("blobs", ["../blobs", ".git/annex/objects"])
def test_links_to_one_content_are_files_of_their_own_names(folder, blobs):
    """As in a Hugging Face cache, git-annex and DVC, which keep equal captions and pictures once."""
    put(folder, f"{blobs}/c0", "a photo of a dog")
    put(folder, f"{blobs}/c1", "the same, said otherwise")
    put(folder, f"{blobs}/p0", png(2))
    put(folder, f"{blobs}/p1", png(3))
    for name, content in {"a": ("p0", "c0"), "b": ("p1", "c0"), "c": ("p0", "c1")}.items():
        for ext, target in zip(("png", "txt"), content, strict=True):
            (folder / f"{name}.{ext}").symlink_to(f"{blobs}/{target}")
    done = imported_from(folder)
    assert captions(done)[2:] == ["a photo of a dog", "a photo of a dog", "the same, said otherwise"]
    assert not done.damage and "links to what is read already" not in done.listing.skipped


def test_a_linked_text_serves_several_pictures(folder):
    put(folder, "2.png", png(2))
    (folder / "2.txt").symlink_to("0.txt")
    (folder / "copy.png").symlink_to("0.png")
    done = imported_from(folder)
    assert captions(done) == ["caption 0", "caption 1", "caption 0"]
    assert dict(done.listing.skipped) == {"links to what is read already": 1}


def test_dead_links_and_what_is_no_file_are_listed(folder, tmp_path):
    for link, target in {
        "annex.png": ".git/annex/objects/aa/bb",
        "dvc.png": "/nowhere/dvc/files/md5/aa",
        "gone.txt": "nowhere.txt",
        "knot.png": "knot.png",
    }.items():
        (folder / link).symlink_to(target)
    os.mkfifo(folder / "pipe.png")
    found = reasons(imported_from(folder).unused)
    assert found["annex.png"] == "dead link: nothing is at '.git/annex/objects/aa/bb': run git annex get"
    assert found["dvc.png"].endswith(": run dvc pull")
    assert found["gone.txt"] == "dead link: nothing is at 'nowhere.txt': restore what it leads to, or delete it"
    assert found["knot.png"].startswith("link cannot be followed: ") and found["pipe.png"] == "is no regular file"


def test_files_and_folders_that_may_not_be_read_are_listed(folder, monkeypatch):
    """As permissions do it where the tests do not run as root."""
    put(folder, "2.png", png(2))
    put(folder, "2.txt", "x")
    put(folder, "closed/3.png", png(3))
    scandir, read = os.scandir, storage.read_bytes

    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    def refused(uri: str) -> bytes:
        try:
            return refuse(uri) if uri.endswith("/2.png") else read(uri)
        except OSError as error:
            raise StorageError(f"{uri}: denied") from error

    monkeypatch.setattr(os, "scandir", lambda path: refuse(path) if str(path).endswith("/closed") else scandir(path))
    monkeypatch.setattr(storage, "read_bytes", refused)
    done = import_set(str(folder), f"{folder.parent}/out")
    assert reasons(done.damage) == {"2.png": "image cannot be read: Permission denied"}
    assert reasons(done.unused) == {"closed": "folder cannot be read: Permission denied"}


def test_names_that_are_not_text_are_read_and_can_be_told(folder):
    put(folder, "caf\udce9/na\udcefve.png", png(5))
    put(folder, "caf\udce9/na\udcefve.txt", "latin")
    put(folder, "new\nline.png", png(6))
    put(folder, "caf\udce9.json", "{}")
    (folder / "dead\udce9.png").symlink_to("nowhere\udce9")
    done = imported_from(folder)
    assert [(caption, record["file"]) for _, caption, record in samples(done)][2] == (
        "latin",
        "caf\\udce9/na\\udcefve.png",
    )
    assert {*reasons(done.damage)} == {"new\\nline.png"}
    assert {*reasons(done.unused)} == {"caf\\udce9.json", "dead\\udce9.png"}


def test_pictures_of_any_size_are_refused_before_they_are_read(folder, monkeypatch):
    put(folder, "2.png", png(2, (40, 40)))
    put(folder, "2.txt", "x")
    put(folder, "1.txt", "y" * 5000)
    monkeypatch.setattr("blip3o.data.sets.importing.folders.MAX_MEMBER_BYTES", 4000)
    monkeypatch.setattr(items, "MAX_MEMBER_BYTES", 4000)
    done = imported_from(folder)
    assert {name: reason.split(":")[0] for name, reason in reasons(done.damage).items()} == {
        "1.png": "caption too large",
        "2.png": "image too large",
    }


def test_a_listing_is_the_one_that_storage_gives(folder):
    """So that a set of an earlier release is known again."""
    for name in ("b/1.png", "b.png", "b-1.png", "B.png"):
        put(folder, name, png(3))
    there = [file for file in storage.list_files(str(folder)) if file.uri.endswith(".png")]
    listing = list_folder(str(folder), f"{folder.parent}/out")
    assert [item.image for item in listing.items] == [file.uri for file in there]
    used = [(file.uri, file.size, file.version) for file in storage.list_files(str(folder))]
    assert listing.digest == hashlib.sha256(json.dumps(used).encode()).hexdigest()


def test_an_import_again_tells_the_same_and_keeps_up_with_other_files(folder):
    put(folder, "alone.txt", "x")
    done = imported_from(folder)
    put(folder, "alone.txt", "y")
    put(folder, "other.json", "{}")
    again = imported_from(folder)
    assert not again.summary.built and {*reasons(again.unused)} == {"alone.txt", "other.json"}
    assert again.account()[0] == done.account()[0] == "2 of 2 pictures became samples, 0 are left out"


def test_shards_in_the_folder_itself_are_no_part_of_it(folder):
    done = import_set(str(folder), str(folder))
    again = import_set(str(folder), str(folder))
    assert not again.summary.built and dict(again.listing.skipped) == {"shards of this set": 3}
    assert again.account()[0] == done.account()[0] and not again.unused


def test_where_nothing_can_be_used_the_ledger_says_why(tmp_path):
    put(tmp_path, "in/x.jpg", png(1))
    put(tmp_path, "in/alone.txt", "x")
    with pytest.raises(
        DataError, match="none of 1 samples can be used, the first: .*x.jpg: missing caption: no NAME.txt"
    ):
        imported_from(tmp_path / "in")
    assert {*reasons(read_ledger(f"{tmp_path}/out/ledger.parquet"))} == {"x.jpg", "alone.txt"}
    assert not storage.exists(f"{tmp_path}/out/dataset.json")


def test_a_folder_without_pictures_says_what_it_holds(tmp_path):
    for name in ("film.mp4", "other.mp4", "x.txt", "noext"):
        put(tmp_path / "in", name, "x")
    with pytest.raises(
        DataError, match="names no image .*: found 2 x .mp4, 1 x no extension; .*x.txt: belongs to no picture"
    ):
        imported_from(tmp_path / "in")


@pytest.mark.parametrize("seed", range(24))
def test_random_folders_and_tables_are_accounted_for(tmp_path, seed):
    fuzz_folder(seed, tmp_path / "folder")
    fuzz_table(seed, tmp_path / "table")
