"""What names shards: a file's own name, wildcards, braces; and what is said when nothing is found."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o import storage
from blip3o.errors import DataError
from blip3o.storage import patterns
from blip3o.storage.patterns import find_shards
from tests.data.shard_files import UNHURRIED

NAMES = [
    "train[1].tar",
    "train1.tar",
    "train-000.tar",
    "train-001.tar",
    "train-003.tar",
    "{a,b}.tar",
    "a.tar",
    "odd*.tar",
]


@pytest.fixture(scope="module", params=["local", "s3"])
def folder(request, tmp_path_factory):
    base = str(tmp_path_factory.mktemp("patterns"))
    found = base if request.param == "local" else f"{request.getfixturevalue('s3')}/patterns"
    for name in [*NAMES, "sub/train-009.tar", "sub/odd1.tar", "other/x.parquet"]:
        storage.write_bytes(f"{found}/{name}", name.encode())
    return found


def names(folder, pattern):
    return [file.uri.removeprefix(f"{folder}/") for file in find_shards(f"{folder}/{pattern}")]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("train[1].tar", ["train[1].tar"]),
        ("./sub/../train[1].tar", ["train[1].tar"]),
        ("{a,b}.tar", ["{a,b}.tar"]),
        ("odd*.tar", ["odd*.tar"]),
        ("train[[]1].tar", ["train[1].tar"]),
        ("train-*.tar", ["train-000.tar", "train-001.tar", "train-003.tar"]),
        ("train-00[01].tar", ["train-000.tar", "train-001.tar"]),
        ("train-00?.tar", ["train-000.tar", "train-001.tar", "train-003.tar"]),
        ("train-{000..001}.tar", ["train-000.tar", "train-001.tar"]),
        ("train-{003,000}.tar", ["train-000.tar", "train-003.tar"]),
        ("train-00{1..3..2}.tar", ["train-001.tar", "train-003.tar"]),
        ("train-{00{0..1},003}.tar", ["train-000.tar", "train-001.tar", "train-003.tar"]),
        ("{.,sub}/train-{000,009}.tar", DataError),
        ("{train-000,sub/train-009}.tar", ["sub/train-009.tar", "train-000.tar"]),
        ("{train-0*,train-00*,a}.tar", ["a.tar", "train-000.tar", "train-001.tar", "train-003.tar"]),
        ("{,sub/}odd*.tar", ["odd*.tar", "sub/odd1.tar"]),
    ],
)
def test_a_pattern_names_its_files_sorted_and_once(folder, pattern, expected):
    if expected is DataError:
        with pytest.raises(DataError):
            names(folder, pattern)
    else:
        assert names(folder, pattern) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "x*.tar",
            r"no file matches F/x*.tar (8 files lie in F: a.tar, odd*.tar, train-000.tar and 5 more): check the",
        ),
        ("none/x.tar", "no file matches F/none/x.tar (0 files lie in F/none): check the place, or write"),
        ("odd[9].tar", "and 5 more): check the pattern; a [ in a name is written [[]"),
        ("sub", "F/sub is a folder, of 2 files: name the shards in it, as F/sub/*.tar"),
        ("other/", "F/other/ is a folder, of 1 files: name the shards in it, as F/other/*.parquet"),
        ("s*/train-*.tar", "no file matches F/s*/train-*.tar: only the last part of a path may hold wildcards"),
        (
            "train-{000..004}.tar",
            "2 of the 5 files that F/train-{000..004}.tar names are missing: train-002.tar, train-004",
        ),
        (
            "train-{10..20}.tar",
            "11 of the 11 files that F/train-{10..20}.tar names are missing: train-10.tar, train-11.tar",
        ),
        ("train-{a}.tar", "no file matches F/train-{a}.tar (8 files"),
        ("train-{0..999999999}.tar", "the braces of F/train-{0..999999999}.tar stand for more than 100000 names"),
        ("two\nlines*", r"no file matches F/two\nlines* (8 files"),
    ],
)
def test_what_is_not_found_is_told_with_what_lies_there(folder, pattern, message):
    with pytest.raises(DataError, match=re.escape(message.replace("F", folder))) as caught:
        find_shards(f"{folder}/{pattern}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_bucket_is_not_taken_for_a_pattern(s3):
    storage.write_bytes(f"{s3}/top.tar", b"x")
    with pytest.raises(DataError, match=f"^{s3}/? is a folder, of .* files: name the shards in it, as {s3}/"):
        find_shards(s3)
    assert [file.uri for file in find_shards(f"{s3}/top*")] == [f"{s3}/top.tar"]


TEXT = st.text("ab0", max_size=2)
BRACES = st.recursive(
    st.one_of(TEXT, st.sampled_from(["{0..3}", "{08..11}", "{3..1}", "{0..9..4}", "{a..c}", "{-1..1}", "{x}", "{}"])),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=3).map("".join),
        st.lists(inner, min_size=2, max_size=3).map(lambda parts: "{" + ",".join(parts) + "}"),
    ),
    max_leaves=5,
)


@pytest.mark.skipif(shutil.which("bash") is None, reason="a shell to compare with")
def test_braces_stand_for_what_they_do_in_a_shell():
    asked = []

    @UNHURRIED
    @given(BRACES)
    def draw(text):
        asked.append(text)

    draw()
    script = "\n".join(f"printf '%s ' x{text}x; echo" for text in asked)
    lines = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [list(patterns._expanded(f"x{text}x")) for text in asked] == [line.split() for line in lines]
