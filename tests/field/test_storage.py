"""Paths, stores and environments as users bring them, through the commands of `blip3o`."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from blip3o import settings, storage
from blip3o.errors import Blip3oError
from blip3o.storage.s3_connection import connection
from jobs.cli import app
from tests.data.shard_files import png, put, samples, tar
from tests.faults import FaultProxy


@pytest.fixture(params=["local", "s3"])
def base(request, tmp_path):
    """A folder of its own for each test, on either kind of store."""
    return str(tmp_path / "b") if request.param == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """Replaces all variables of AWS by those given; connections are forgotten after the test."""

    def change(**values):
        for name, _ in settings.starting_with("AWS_"):
            monkeypatch.delenv(name)
        files = {"AWS_CONFIG_FILE": f"{tmp_path}/config", "AWS_SHARED_CREDENTIALS_FILE": f"{tmp_path}/credentials"}
        for name, value in ({"AWS_EC2_METADATA_DISABLED": "true"} | files | values).items():
            monkeypatch.setenv(name, value)

    yield change
    storage.forget_clients()


def blip3o(*argv):
    """What a command that ends well prints."""
    done = CliRunner().invoke(app, [str(part) for part in argv])
    assert done.exit_code == 0 and done.exception is None, (done.output, done.exception)
    return done.output


def refused(*argv):
    """The one line of a command's error."""
    done = CliRunner().invoke(app, [str(part) for part in argv])
    assert isinstance(done.exception, Blip3oError), (done.output, done.exception)
    assert len(str(done.exception).splitlines()) == 1
    return str(done.exception)


@pytest.mark.parametrize(
    ("name", "asked"),
    [
        ("train[1].tar", "train[1].tar"),
        ("train[1].tar", "./x/../train[1].tar"),
        ("{a,b}.tar", "{a,b}.tar"),
        ("a b#1?.tar", "a b#1?.tar"),
        ("50%25.tar", "50%25.tar"),
        ("[x]-000.tar", "{[[]x]-000,[[]x]-000}.tar"),
        ("t-0001.tar", "t-{0001..0001}.tar"),
        ("t-0001.tar", "t-000[0-9].tar"),
    ],
)
def test_shards_of_any_name_are_found(base, name, asked):
    put(base, name, tar(samples(3)))
    assert " 3 samples" in blip3o("data", "inspect", f"{base}/{asked}")


def test_shards_that_are_not_there_are_named_with_those_that_are(base):
    for number in (0, 1, 3):
        put(base, f"t-{number:03d}.tar", tar(samples(1)))
    asked = f"{base}/t-{{000..004}}.tar"
    expected = f"2 of the 5 files that {asked} names are missing: t-002.tar, t-004.tar"
    assert refused("data", "inspect", asked) == expected
    lie = f"(3 files lie in {base}: t-000.tar, t-001.tar, t-003.tar)"
    assert lie in refused("data", "inspect", f"{base}/train-*.tar")


WAYS = ("img/0.png", "./img/1.png", "img/../img/2.png", "img//3.png", "./x/../img/./4.png", "{base}/img/5.png")


def test_a_table_names_its_pictures_alike_on_disk_and_in_a_store(base):
    for number in range(len(WAYS)):
        put(f"{base}/img", f"{number}.png", png(number))
    lines = [f"{way.replace('{base}', base)},caption {number}" for number, way in enumerate(WAYS)]
    put(base, "table.csv", "\n".join(["image,caption", *lines]).encode())
    blip3o("data", "import", f"{base}/table.csv", "--out", f"{base}/out", "--heldout", "0")
    assert f" {len(WAYS)} samples" in blip3o("data", "inspect", f"{base}/out/train-*.tar")


def test_file_uris_are_decoded(tmp_path):
    for number in range(3):
        put(str(tmp_path / "my photos é"), f"{number}.png", png(number))
        put(str(tmp_path / "my photos é"), f"{number}.txt", b"caption")
    photos = (tmp_path / "my photos é").as_uri()
    assert "%20" in photos
    blip3o("data", "import", photos, "--out", f"file://localhost{tmp_path}/my%20out/", "--heldout", "0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my out", "my photos é"]
    assert " 3 samples" in blip3o("data", "inspect", f"{(tmp_path / 'my out').as_uri()}/train-*.tar")
    plain = tmp_path / "my%20photos"
    shutil.copytree(tmp_path / "my photos é", plain)
    blip3o("data", "import", plain, "--out", tmp_path / "plain%20out", "--heldout", "0")
    assert (tmp_path / "plain%20out").is_dir()


KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        (
            {"AWS_ENDPOINT_URL": "127.0.0.1:9000"},
            "AWS_ENDPOINT_URL=127.0.0.1:9000 is no endpoint of a store: write http:",
        ),
        (
            {"AWS_ENDPOINT_URL_S3": "minio"},
            "AWS_ENDPOINT_URL_S3=minio is no endpoint of a store: write http://minio or",
        ),
        ({"AWS_ENDPOINT_URL": "htp://x"}, "AWS_ENDPOINT_URL=htp://x is no endpoint of a store: write http://HOST:PORT"),
        (
            {"BLIP3O_STORE_TIMEOUT_S": "30s"},
            "BLIP3O_STORE_TIMEOUT_S=30s is no number above 0 and at most 86400: write digits without a",
        ),
        ({"BLIP3O_STORE_TIMEOUT_S": "0"}, "BLIP3O_STORE_TIMEOUT_S=0 is no number above 0"),
        ({"BLIP3O_STORE_TIMEOUT_S": "nan"}, "BLIP3O_STORE_TIMEOUT_S=nan is no number above 0"),
        ({"BLIP3O_STORE_PATIENCE_S": "1m"}, "BLIP3O_STORE_PATIENCE_S=1m is no number of at least 0"),
        ({"BLIP3O_STORE_PATIENCE_S": "-1"}, "BLIP3O_STORE_PATIENCE_S=-1 is no number of at least 0"),
        ({"BLIP3O_STORE_PATIENCE_S": "inf"}, "BLIP3O_STORE_PATIENCE_S=inf is no number of at least 0"),
        ({"AWS_PROFILE": "lab"}, "no profile 'lab' in "),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "AWS settings: Partial credentials found in env"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no AWS credentials: set AWS_ACCESS_KEY_ID and"),
        ({"AWS_CA_BUNDLE": "/none.pem"}, "AWS_CA_BUNDLE or ca_bundle names /none.pem, which is no file"),
    ],
)
def test_an_unusable_environment_is_reported_immediately(environment, variables, line):
    environment(**KEYS | {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"} | variables)
    for command in (["runs", "--storage", "s3://b/runs"], ["data", "inspect", "s3://b/t-*.tar"]):
        assert refused(*command).startswith(line)


@pytest.mark.parametrize("value", ["HTTP://127.0.0.1:{port}", " http://127.0.0.1:{port}/ ", "http://LocalHost:{port}"])
def test_an_endpoint_in_other_spellings_is_used(s3, monkeypatch, value):
    port = connection().address.host.rpartition(":")[2]
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.setenv(name, value.format(port=port))
    put(f"{s3}/spelled", "t-0.tar", tar(samples(2)))
    assert " 2 samples" in blip3o("data", "inspect", f"{s3}/spelled/t-0.tar")
    assert " 2 samples" in blip3o("data", "inspect", f"S3{s3[2:]}//spelled/./t-0.tar")


@pytest.mark.parametrize(
    ("uri", "line"),
    [
        ("gs://bucket/t.tar", "unknown scheme 'gs' in gs://bucket/t.tar: use s3://bucket/key, file:///path or a plain"),
        ("https://b.example/t.tar", "unknown scheme 'https'"),
        ("file://server/t.tar", "file://server/t.tar names a file of the host 'server'"),
        ("s3://bucket/../t.tar", "s3://bucket/../t.tar leads out of the bucket 'bucket'"),
        ("s3:bucket/t.tar", "s3:bucket/t.tar names no object: use s3://bucket/key"),
    ],
)
def test_uris_of_other_kinds_are_named(uri, line):
    assert refused("data", "inspect", uri).startswith(line)


def test_a_profile_is_enough_to_reach_the_store(s3, environment, tmp_path):
    """The import in a process of its own, which no test can have prepared."""
    store, keys = connection().endpoint, {name: settings.get(name) for name in KEYS}
    for number in range(2):
        put(str(tmp_path / "photos"), f"{number}.png", png(number))
        put(str(tmp_path / "photos"), f"{number}.txt", b"caption")
    with FaultProxy(store) as proxy, FaultProxy(store) as decoy:
        sections = {"default": decoy.endpoint, "profile lab": proxy.endpoint}
        text = "".join(f"[{name}]\nendpoint_url = {endpoint}\n" for name, endpoint in sections.items())
        (tmp_path / "config").write_text(text)
        lines = "".join(f"{name.lower()} = {value}\n" for name, value in keys.items())
        (tmp_path / "credentials").write_text(f"[lab]\n{lines}[default]\n{lines}")
        environment(AWS_PROFILE="lab")
        command = ["data", "import", str(tmp_path / "photos"), "--out", f"{s3}/profile/set", "--heldout", "0"]
        program = [sys.executable, "-m", "jobs.cli", *command]
        done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[2])
        assert done.returncode == 0, done.stderr
        assert " 2 samples" in blip3o("data", "inspect", f"{s3}/profile/set/train-*.tar")
        assert proxy.done.requests["PUT"] and proxy.done.requests["GET"] and not decoy.done.requests
