"""One canonical form of every URI, by the same rules on S3 and on disk."""

import os
import posixpath
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o import storage
from blip3o.config.recipe import DataConfig
from blip3o.data.shards.locations import below_root
from tests.data.shard_files import UNHURRIED

NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=6)
PARTS = st.lists(st.one_of(NAMES, st.sampled_from(["", ".", "..", "...", "%20", "a b", "C:", "~"])), max_size=7)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (
            "http://[x/a.png",
            r"^unknown scheme 'http' in http://\[x/a.png: use s3://bucket/key, file:///path",
        ),
        ("gs://bucket/a", "^unknown scheme 'gs' in gs://bucket/a: use s3://bucket/key"),
        ("HF://datasets/a", "^unknown scheme 'hf' in HF://datasets/a: use s3://"),
        ("az:/x", "^unknown scheme 'az'"),
        ("data:image/png;base64,AAAA", "^unknown scheme 'data'"),
        ("~nobody-of-that-name/x", "^~nobody-of-that-name/x: no user of that name has a home here: write the path"),
        ("/a\0.png", r"^/a\\x00.png holds a NUL"),
        ("file:///a%00.png", "^file:///a%00.png holds a NUL"),
        ("file:///a%FF", "^file:///a%FF is not UTF-8 when it is percent-decoded"),
        ("file://host/a", "^file://host/a names a file of the host 'host': use file:///path"),
        ("file:a", "^file:a names no file: use file:///path"),
        ("file://", "^file:// names no file"),
        ("/\ud800\n.png", r"^/\\ud800\\n.png .*is not UTF-8: correct the name"),
        ("", "^an empty path names no file: use s3://"),
        ("s3:///a.png", "^s3:///a.png names no object: use s3://bucket/key"),
        ("s3:/bucket/a.png", "names no object"),
        ("s3:bucket/a.png", "names no object"),
        ("s3://../a.png", "names no object"),
        ("s3://my bucket/a.png", "names no object"),
        ("s3://bucket/../a.png", "^s3://bucket/../a.png leads out of the bucket 'bucket'"),
        ("s3://bucket/a/./../../b", "leads out of the bucket 'bucket'"),
    ],
)
def test_what_no_file_can_be_called_is_told_in_one_line(uri, message):
    for call in (storage.normalize, storage.read_bytes, storage.exists, lambda uri: storage.write_bytes(uri, b"x")):
        with pytest.raises(storage.BadUriError, match=message) as caught:
            call(uri)
        assert len(str(caught.value).encode().splitlines()) == 1


@UNHURRIED
@given(PARTS)
def test_s3_and_disk_resolve_paths_alike(parts):
    path = "/".join(parts)
    inside = posixpath.normpath("/" + "/".join(["0"] * 8) + "/" + path).lstrip("/")
    found = storage.normalize("s3://b/" + "0/" * 8 + path)
    assert found.removeprefix("s3://b/") == inside == storage.normalize("/" + "0/" * 8 + path).lstrip("/")
    assert storage.normalize(found) == found == storage.normalize("S3:" + found.removeprefix("s3:") + "/")


@UNHURRIED
@given(st.sampled_from(["s3://b", "s3://b/x y/", "/data", "/", "here"]), st.lists(NAMES, min_size=1, max_size=3))
def test_a_name_that_is_joined_is_found_below_its_folder(folder, names):
    kept = [name for name in names if name not in (".", "..")]
    found, root = storage.normalize(storage.join(folder, *kept)), storage.normalize(folder)
    assert found.removeprefix(root).strip("/") == "/".join(kept)


@UNHURRIED
@given(st.lists(NAMES, min_size=1, max_size=3).filter(lambda names: not {".", ".."} & {*names}))
def test_a_file_uri_is_the_path_that_it_encodes(names):
    path = "/" + "/".join(names)
    encoded = Path(path).as_uri()
    assert storage.normalize(encoded) == path == storage.normalize(storage.join(Path(path).parent.as_uri(), names[-1]))


@pytest.mark.parametrize(
    ("folder", "parts", "form"),
    [
        ("file:///data/my%20photos/", ["100%25.jpg"], "/data/my photos/100%25.jpg"),
        ("file://localhost/data", ["a b", "c%20d"], "/data/a b/c%20d"),
        ("/data", ["100%25.jpg"], "/data/100%25.jpg"),
        ("s3://bucket/", ["a", "b%20.tar"], "s3://bucket/a/b%20.tar"),
        ("/", ["a"], "/a"),
        ("", ["a"], "a"),
        ("s3://bucket/data", ["../a"], "s3://bucket/data/../a"),
    ],
)
def test_names_are_joined_literally(folder, parts, form):
    assert storage.join(folder, *parts) == form


@pytest.mark.parametrize(
    ("uri", "form"),
    [
        ("s3://bucket/a/", "s3://bucket/a"),
        ("S3://bucket/./a/../b//c/", "s3://bucket/b/c"),
        ("s3://Old.Bucket/A", "s3://Old.Bucket/A"),
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket//a", "s3://bucket/a"),
        ("s3://bucket/a/..", "s3://bucket"),
        ("s3://bucket/100%25 of?x=1#é.tar", "s3://bucket/100%25 of?x=1#é.tar"),
        ("s3://bucket/a\\b\n", "s3://bucket/a\\b\n"),
        ("s3://bucket/...", "s3://bucket/..."),
        ("file:///data/my%20photos", "/data/my photos"),
        ("FILE:///data/caf%C3%A9/", "/data/café"),
        ("file:/data/x", "/data/x"),
        ("file://localhost/data/100%", "/data/100%"),
        ("file:///data/%25%32%30", "/data/%20"),
        ("file:///a/./b/../c", "/a/c"),
        ("/data/my%20photos", "/data/my%20photos"),
        ("//data///x//", "/data/x"),
        ("/../x", "/x"),
        ("a", "{here}/a"),
        ("./a/../b", "{here}/b"),
        ("~/x", "{here}/of me/x"),
        ("./~x", "{here}/~x"),
        ("x/~/y", "{here}/x/~/y"),
        ("C:\\data\\x.jpg", "{here}/C:\\data\\x.jpg"),
        ("12:30.jpg", "{here}/12:30.jpg"),
        ("photo: me.jpg", "{here}/photo: me.jpg"),
        ("{here}/a://b", "{here}/a:/b"),
    ],
)
def test_uris_have_one_form(tmp_path, monkeypatch, uri, form):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", f"{tmp_path}/of me")
    found = storage.normalize(uri.replace("{here}", str(tmp_path)))
    assert found == form.replace("{here}", str(tmp_path)) == storage.normalize(found)


def test_the_parent_of_a_link_is_the_parent_of_where_it_leads(tmp_path):
    (tmp_path / "far/away").mkdir(parents=True)
    (tmp_path / "far/x").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "far/away")
    assert storage.normalize(f"{tmp_path}/link/../x") == f"{tmp_path}/far/x"
    assert storage.normalize(f"{tmp_path}/link/x") == f"{tmp_path}/link/x"
    assert storage.read_bytes(f"{tmp_path}/link/../x") == b"x"


def test_a_folder_that_is_gone_is_named(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    os.rmdir(tmp_path / "gone")
    with pytest.raises(storage.BadUriError, match="^x: the current folder is gone"):
        storage.normalize("x")
    assert storage.normalize("/x") == "/x"


def test_what_is_absolute_does_not_join_the_root():
    data = DataConfig.model_construct(root="s3://bucket/data/")
    for uri in ("s3://other/x", "S3://other/x", "file:///x", "file:/x", "/x", "~/x"):
        assert below_root(data, uri) == uri
    for uri in ("x", "./x", "../x", "12:30.tar", "C:\\x", "~x"):
        assert below_root(data, uri) == f"s3://bucket/data/{uri}"


def test_files_are_read_and_written_by_any_of_their_names(s3, tmp_path):
    for root in (str(tmp_path), f"{s3}/names"):
        for number, name in enumerate(("a b", "100%25", "x?y#z", "two\nlines", "é~")):
            data = str(number).encode()
            storage.write_bytes(f"{root}/./deep/../{name}//file", data)
            assert storage.read_bytes(f"{root}/{name}/file") == data
            assert storage.stat(f"{root}/{name}/./file").uri == f"{root}/{name}/file"
            assert [it.uri for it in storage.list_files(f"{root}/{name}/../{name}/")] == [f"{root}/{name}/file"]
    storage.write_bytes(f"file://{tmp_path}/my%20photos/a", b"x")
    assert (tmp_path / "my photos/a").read_bytes() == b"x"
