"""`blip3o data …`: what it says on the terminal and writes, from real shards."""

import json
import re

import pytest
from typer.testing import CliRunner

from blip3o import storage
from blip3o.data.shards.ledger import Ledger, kind_of, write_ledger
from blip3o.data.shards.ledger import LedgerEntry as Entry
from blip3o.data.shards.manifest import ledger_file
from blip3o.errors import Blip3oError
from jobs.cli import app
from tests.data.shard_files import encode, index, parquet, png, rows, sample, samples, tar
from tests.data.shards.test_facts import picture


@pytest.fixture
def blip3o():
    """Runs a command that ends well, and gives what it prints."""

    def run(*argv: str) -> str:
        done = CliRunner().invoke(app, list(argv))
        if isinstance(done.exception, Blip3oError):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


@pytest.fixture
def manifest(tmp_path):
    twin = picture(3)
    files = samples(4) + sample("a", image=encode(twin)) + sample("b", image=encode(twin, "JPEG", quality=80))
    files += sample("c", caption=b"<script>alert(1)</script>") + sample("bad", caption=b"")
    return index(tmp_path, [tar(files), parquet(rows(3))])


ENTRIES = [
    Entry(uid="s/0/1", uri="u", offset=1, size=2, reason="image too large: 9x9 pixels, limit 5", stage="index"),
    Entry(uid="s/0/2", uri="u", offset=3, size=4, reason="image too large: 8x9 pixels, limit 5", stage="index"),
    Entry(uid="s/0/3", uri="u", offset=5, size=6, reason="400 tokens, data.max_length allows 1 to 96", stage="train"),
]


def test_a_ledger_is_counted_filtered_and_given_as_json(blip3o, tmp_path):
    uri = ledger_file(str(tmp_path))
    write_ledger(uri, ENTRIES)
    said = blip3o("data", "ledger", str(tmp_path))
    assert said.splitlines()[0] == "3 entries"
    assert re.search(r"2\s+index\s+image too large\n", said)
    assert re.search(r"1\s+train\s+N tokens, data.max_length allows N to N\n", said)
    assert "s/0/3  u [5, 11)  train: 400 tokens, data.max_length allows 1 to 96" in said
    assert blip3o("data", "ledger", uri, "--stage", "train").splitlines()[0] == "1 entries"
    found = json.loads(blip3o("data", "ledger", uri, "--json", "--reason", "8x9"))
    assert found["counts"] == [{"stage": "index", "reason": "image too large", "entries": 1}]
    assert [Entry(**entry) for entry in found["entries"]] == [ENTRIES[1]]


def test_the_ledger_of_a_run_is_found_below_it_and_none_is_an_error(blip3o, tmp_path):
    Ledger(f"{tmp_path}/run/ledger").record(uid="s/0/1", uri="u", offset=0, size=1, reason="empty caption")
    storage.write_bytes(f"{tmp_path}/run/metrics.json", b"{}")
    for uri in (f"{tmp_path}/run", f"{tmp_path}/run/ledger"):
        assert blip3o("data", "ledger", uri).splitlines()[0] == "1 entries"
    for uri in (f"{tmp_path}/none", f"{tmp_path}/none.parquet"):
        with pytest.raises(Blip3oError, match="holds no ledger: name the folder of a manifest or of a run"):
            blip3o("data", "ledger", uri)


@pytest.mark.parametrize(("name", "content"), [("bad.parquet", b"no table"), ("photos/notes.json", b'{"a": ')])
def test_a_ledger_that_is_none_is_an_error_that_names_the_file(blip3o, tmp_path, name, content):
    storage.write_bytes(f"{tmp_path}/{name}", content)
    with pytest.raises(Blip3oError, match=f"^{re.escape(str(tmp_path))}/{name} cannot be read as "):
        blip3o("data", "ledger", f"{tmp_path}/{name}" if name.endswith(".parquet") else f"{tmp_path}/photos")


def test_a_page_of_a_set_goes_to_a_uri_and_what_can_be_none_is_an_error(blip3o, manifest, tmp_path, s3):
    said = blip3o("data", "inspect", manifest.uri, "--out", f"{s3}/pages/set.html")
    assert said.splitlines()[-1] == f"wrote {s3}/pages/set.html"
    assert storage.read_bytes(f"{s3}/pages/set.html").startswith(b"<!doctype html>")
    for out in (str(tmp_path), "/proc/x/y.html"):
        with pytest.raises(Blip3oError, match=f"^{out}: .*(Is a directory|cannot be made)"):
            blip3o("data", "inspect", manifest.uri, "--out", out)


def test_kinds_leave_out_particulars():
    assert kind_of("members of key 'a: 7' lie apart in the tar: x") == kind_of(
        "members of key 'b' lie apart in the tar: x"
    )


def test_a_set_is_inspected_by_its_manifest_and_by_its_shards(blip3o, manifest, tmp_path):
    said = blip3o("data", "inspect", manifest.uri, "--out", f"{tmp_path}/page.html")
    lines = said.splitlines()
    assert re.fullmatch(r"2 shards, \d+\.\d MiB, 11 samples, 1 damaged", lines[0])
    # The rows of the Parquet file are the first samples of the tar once more; the JPEG is a copy of the PNG.
    assert lines[2] == "4 look like another one, in 4 groups"
    assert lines[3:] == [
        "damage: 1 x empty caption (3 inputs)",
        f"24 of 27 members and rows became 10 samples; 3 are listed in {manifest.uri}/ledger.parquet; "
        "0 system files were skipped",
        f"wrote {tmp_path}/page.html",
    ]
    page = storage.read_bytes(f"{tmp_path}/page.html").decode()
    assert page.count("data:image/png;base64,") == 10 + 4 * 2
    assert "&lt;script&gt;alert(1)" in page and "<script>" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)
    for title in ("Shorter side, pixels", "Width over height", "Caption, characters", "Look-alikes", "Damage"):
        assert f"<h2>{title}</h2>" in page
    tars = blip3o("data", "inspect", f"{tmp_path}/train-*.tar").splitlines()
    assert re.fullmatch(r"1 shards, \d+\.\d MiB, 8 samples, 1 damaged", tars[0])
    assert tars[2:5] == [
        "1 look like another one, in 1 groups",
        "damage: 1 x empty caption (3 inputs)",
        "21 of 24 members became 7 samples; 3 are listed in the lines of damage above; 0 system files were skipped",
    ]
    assert tars[5].startswith("indexing refuses these shards at a budget of 1%: 1 of 8 samples are damaged, 0 of 1 ")
    assert blip3o("data", "inspect", f"{tmp_path}/train-00000.tar").splitlines() == tars
    with pytest.raises(Blip3oError, match=r"holds no manifest: name the folder of one, or shards, as .*/\*\.tar"):
        blip3o("data", "inspect", str(tmp_path))


def test_an_import_says_what_it_wrote_and_left_out(blip3o, tmp_path):
    for name, data in {"a.png": png(), "a.txt": b"a", "b.png": b"", "b.txt": b"b"}.items():
        storage.write_bytes(f"{tmp_path}/in/{name}", data)
    said = blip3o("data", "import", f"{tmp_path}/in", "--out", f"{tmp_path}/out")
    assert said.startswith(f"wrote 1 train samples at {tmp_path}/out\nleft out 1 samples: blip3o data ledger ")
    assert f"{tmp_path}/in/b.png: undecodable image" in said
    assert blip3o("data", "ledger", f"{tmp_path}/out").splitlines()[0] == "1 entries"
