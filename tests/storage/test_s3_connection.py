"""Endpoint, region, credentials and addressing style are resolved once, and both libraries use what was found."""

import json
import os
import pickle
import sys
from datetime import UTC, datetime, timedelta

import pytest
from botocore.loaders import create_loader
from pyarrow import fs

from blip3o import settings, storage
from blip3o.errors import ConfigError, StorageError
from blip3o.storage import s3_connection
from blip3o.storage.s3_connection import Address, connection
from tests.faults import FaultProxy

LOADER = create_loader()  # of the models of services: each connection would read them again
CONFIG = """
[default]
region = eu-west-1
[profile lab]
endpoint_url = {endpoint}
region = eu-north-1
[profile sections]
services = stores
[services stores]
s3 =
  endpoint_url = {endpoint}/
ec2 =
  endpoint_url = http://elsewhere.example
[profile virtual]
endpoint_url = http://store.example:9000
s3 =
  addressing_style = virtual
[profile dual]
use_dualstack_endpoint = true
[profile fips]
use_fips_endpoint = true
region = us-east-1
[profile fast]
s3 =
  use_accelerate_endpoint = true
[profile no-section]
services = none
[profile flat]
s3 = addressing_style
[profile sideways]
s3 =
  addressing_style = sideways
[profile command]
endpoint_url = {endpoint}
credential_process = {command}
[profile failing]
credential_process = false
[profile role]
role_arn = arn:aws:iam::1:role/x
source_profile = nobody
[profile half]
aws_access_key_id = x
[profile nothing]
aws_access_key_id =
aws_secret_access_key =
[profile authority]
ca_bundle = /none.pem
"""
IGNORED = {"AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"}
KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """Sets the environment to what is given and nothing else of AWS; `aws.write` fills the config file."""

    class Aws:
        config, credentials = tmp_path / "config", tmp_path / "credentials"

        def __call__(self, **values):
            for name, _ in settings.starting_with("AWS_"):
                monkeypatch.delenv(name)
            files = {"AWS_CONFIG_FILE": str(self.config), "AWS_SHARED_CREDENTIALS_FILE": str(self.credentials)}
            for name, value in ({"AWS_EC2_METADATA_DISABLED": "true"} | files | values).items():
                monkeypatch.setenv(name, value)

        def write(self, endpoint="http://127.0.0.1:9", command="false"):
            self.config.write_text(CONFIG.format(endpoint=endpoint, command=command))

    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    made = Aws()
    made.write()
    yield made
    storage.forget_clients()


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ("https", "s3.eu-west-1.amazonaws.com", True, "eu-west-1")),
        ({"AWS_REGION": "ap-south-1", "AWS_DEFAULT_REGION": "x"}, ("https", "s3.ap-south-1.amazonaws.com", True)),
        ({"AWS_DEFAULT_REGION": "cn-north-1"}, ("https", "s3.cn-north-1.amazonaws.com.cn", True)),
        ({"AWS_CONFIG_FILE": "/none", "AWS_REGION": ""}, ("https", "s3.amazonaws.com", True, "us-east-1")),
        ({"AWS_PROFILE": "lab"}, ("http", "127.0.0.1:9", False, "eu-north-1")),
        ({"AWS_PROFILE": "lab", "AWS_DEFAULT_REGION": ""}, ("http", "127.0.0.1:9", False, "eu-north-1")),
        ({"AWS_DEFAULT_PROFILE": "lab", "AWS_PROFILE": ""}, ("http", "127.0.0.1:9", False, "eu-north-1")),
        ({"AWS_PROFILE": "", "AWS_ENDPOINT_URL": ""}, ("https", "s3.eu-west-1.amazonaws.com", True)),
        ({"AWS_PROFILE": "sections"}, ("http", "127.0.0.1:9", False)),
        ({"AWS_PROFILE": "virtual"}, ("http", "store.example:9000", True)),
        ({"AWS_PROFILE": "dual", "AWS_REGION": "us-west-2"}, ("https", "s3.dualstack.us-west-2.amazonaws.com", True)),
        ({"AWS_PROFILE": "fips"}, ("https", "s3-fips.us-east-1.amazonaws.com", True)),
        ({"AWS_PROFILE": "fast"}, ("https", "s3-accelerate.amazonaws.com", True)),
        ({"AWS_PROFILE": "lab", "AWS_ENDPOINT_URL": "http://a.example"}, ("http", "a.example", False, "eu-north-1")),
        ({"AWS_ENDPOINT_URL": "http://a.example", "AWS_ENDPOINT_URL_S3": "https://b.example"}, ("https", "b.example")),
        ({"AWS_ENDPOINT_URL": "http://a.example"} | IGNORED, ("https", "s3.eu-west-1.amazonaws.com")),
        (
            {"AWS_PROFILE": "lab", "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "true"},
            ("https", "s3.eu-north-1.amazonaws.com"),
        ),
        ({"AWS_ENDPOINT_URL": " HTTP://Store.Example:9000/ "}, ("http", "Store.Example:9000", False)),
        (
            {"AWS_ENDPOINT_URL": "https://gateway.example/storage/v1/s3/"},
            ("https", "gateway.example/storage/v1/s3", False),
        ),
        ({"AWS_ENDPOINT_URL": "http://[::1]:9000"}, ("http", "[::1]:9000", False)),
    ],
)
def test_variables_and_files_give_one_address(aws, variables, expected):
    aws(**KEYS, **variables)
    found = connection()
    address = (found.address.scheme, found.address.host, found.address.virtual, found.region)
    assert address[: len(expected)] == expected
    filesystem = found.filesystem()
    assert isinstance(filesystem, fs.S3FileSystem) and filesystem.region == found.region


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "^no AWS credentials: set AWS_ACCESS_KEY_ID and .*, or AWS_PROFILE; for a store other .*AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://a.example"}, "^no AWS credentials: set AWS_ACCESS_KEY_ID .*, or AWS_PROFILE$"),
        ({"AWS_PROFILE": "nobody"}, "^no profile 'nobody' in .*config and .*credentials: correct AWS_PROFILE"),
        ({"AWS_PROFILE": "half"}, "^AWS settings: Partial credentials found .*aws_secret_access_key"),
        ({"AWS_ACCESS_KEY_ID": "a"}, "^AWS settings: Partial credentials .*AWS_SECRET_ACCESS_KEY"),
        ({"AWS_PROFILE": "failing"}, "^AWS settings: Error when retrieving credentials from custom-process"),
        ({"AWS_PROFILE": "role"}, "^AWS settings: The source_profile .nobody. .* does not exist"),
        ({"AWS_PROFILE": "no-section"}, "config has no section 'services none', which the profile names"),
        (
            {"AWS_PROFILE": "flat", **KEYS},
            "^'s3 = addressing_style' in .*config: put the settings below it on indented",
        ),
        ({"AWS_PROFILE": "sideways", **KEYS}, "addressing style sideways is invalid"),
        ({"AWS_PROFILE": "authority", **KEYS}, "names /none.pem, which is no file"),
        ({"AWS_CA_BUNDLE": "/none", **KEYS}, "^AWS_CA_BUNDLE or ca_bundle names /none, which is no file"),
        ({"AWS_CONFIG_FILE": __file__, **KEYS}, "^AWS settings: Unable to parse config file: .*test_s3_connection.py"),
        ({"AWS_REGION": "eu west", **KEYS}, "region_name 'eu west' doesn't match"),
        ({"AWS_ROLE_ARN": "arn:aws:iam::1:role/x", "AWS_WEB_IDENTITY_TOKEN_FILE": "/none"}, "No such file .*'/none'"),
        (
            {"AWS_ACCESS_KEY_ID": "a\r", "AWS_SECRET_ACCESS_KEY": "b"},
            r"^the access key of .* \(env\) has quotes, blanks or",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": '"b"'},
            "^the secret key of the AWS credentials .*plain value",
        ),
        (
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "'b'"},
            "^the secret key of the AWS credentials .*has quotes",
        ),
        ({**KEYS, "AWS_SESSION_TOKEN": "c d\n"}, "^the session token of the AWS credentials .*blanks or line ends"),
        ({"AWS_PROFILE": "nothing"}, r"^the access key of the AWS credentials \(config-file\) is empty"),
        ({"AWS_MAX_ATTEMPTS": "many", **KEYS}, "^AWS_MAX_ATTEMPTS=many is no number above 0"),
        ({"AWS_METADATA_SERVICE_TIMEOUT": "1s", **KEYS}, "^AWS_METADATA_SERVICE_TIMEOUT=1s is no number"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(aws, variables, message):
    aws(**variables)
    with pytest.raises(ConfigError, match=message) as caught:
        storage.list_files("s3://bucket/a")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "shown", "fix"),
    [
        ("127.0.0.1:9000", "127.0.0.1:9000", "write http://127.0.0.1:9000 or https://127.0.0.1:9000"),
        ("store.example/", "store.example/", "write http://store.example/ or"),
        ("/", "/", "write http://HOST:PORT or https://HOST"),
        ("localhost", "localhost", "write http://localhost or"),
        ("ftp://a.example", "ftp://a.example", "write http://HOST:PORT or https://HOST"),
        ("http://", "http://", "write http://HOST:PORT"),
        ("http://a.example:port", "http://a.example:port", "write http://HOST:PORT"),
        ("http://a.example:99999", "http://a.example:99999", "write http://HOST:PORT"),
        ("http://a b", "http://a b", "write http://HOST:PORT"),
        ('"http://a.example"', '"http://a.example"', "write http://HOST:PORT"),
        ("http://me:secret@a.example", "http://***@a.example", "write http://HOST:PORT"),
        ("http://a.example/?x=1", "http://a.example/?x=1", "write http://HOST:PORT"),
        ("http:/a.example", "http:/a.example", "write http://HOST:PORT"),
        ("$ENDPOINT", "$ENDPOINT", "write http://HOST:PORT"),
    ],
)
@pytest.mark.parametrize("name", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "profile"])
def test_an_endpoint_that_is_none_is_named_with_its_form(aws, name, value, shown, fix):
    aws.write(endpoint=value)
    aws(**KEYS, **({"AWS_PROFILE": "lab"} if name == "profile" else {name: value}))
    where = f"endpoint_url of the profile in {aws.config}" if name == "profile" else name
    with pytest.raises(ConfigError) as caught:
        storage.read_bytes("s3://bucket/a")
    assert str(caught.value).startswith(f"{where}={shown} is no endpoint of a store: {fix}")


def of_the_store(s3):
    """The keys of the tests' store, as a section of the credentials file."""
    return "\n".join(f"{name.lower()} = {settings.get(name)}" for name in KEYS)


@pytest.mark.parametrize("profile", ["lab", "sections"])
def test_a_profile_leads_every_request_to_its_store(s3, aws, profile, tmp_path):
    store, keys = connection().endpoint, of_the_store(s3)
    with FaultProxy(store) as proxy, FaultProxy(store) as decoy:
        aws.write(endpoint=proxy.endpoint)
        aws.config.write_text(
            aws.config.read_text().replace("[default]", f"[default]\nendpoint_url = {decoy.endpoint}")
        )
        aws.credentials.write_text(f"[{profile}]\n{keys}\n[default]\n{keys}\n")
        aws(AWS_PROFILE=profile)
        folder = f"{s3}/profile-{profile}"
        storage.write_bytes(f"{folder}/a", b"one")
        with storage.open_write(f"{folder}/b") as file:
            file.write(b"two")
        storage.upload(aws.config, f"{folder}/c")
        assert [file.uri for file in storage.list_files(folder)] == [f"{folder}/{name}" for name in "abc"]
        assert storage.list_folders(s3).count(f"profile-{profile}") == 1
        assert [storage.read_bytes(f"{folder}/{name}") for name in "ab"] == [b"one", b"two"]
        assert storage.read_ranges(f"{folder}/b", [(1, 2)]) == [b"wo"]
        assert storage.exists(f"{folder}/c") and storage.stat(f"{folder}/a").size == 3
        filesystem, path = storage.resolve(folder)
        assert filesystem.get_file_info(f"{path}/a").size == 3
        storage.delete(folder)
        assert not storage.list_files(folder)
        assert proxy.done.requests["PUT"] == 3 and proxy.done.requests["GET"] == 7
        assert not decoy.done.requests


def test_a_file_that_changes_is_read_again(s3, aws):
    keys = of_the_store(s3)
    aws.write(endpoint=connection().endpoint)
    aws(AWS_PROFILE="lab")
    aws.credentials.write_text(f"[lab]\n{keys}\n".replace("= ", "= not-"))
    with pytest.raises(StorageError, match="does not know this access key"):
        storage.write_bytes(f"{s3}/rotated", b"x")
    aws.credentials.write_text(f"[lab]\n{keys}\n")
    os.utime(aws.credentials, ns=(1, 1))  # the clock of a file may be coarse
    storage.write_bytes(f"{s3}/rotated", b"x")
    assert storage.read_bytes(f"{s3}/rotated") == b"x"


def test_keys_that_expire_are_renewed_for_both_libraries(s3, aws, tmp_path):
    """A command gives keys that last for no time: the first ones are not known to the store."""
    store = connection().endpoint
    right = {"AccessKeyId": settings.get("AWS_ACCESS_KEY_ID"), "SecretAccessKey": settings.get("AWS_SECRET_ACCESS_KEY")}
    answer = tmp_path / "answer.json"
    aws.write(endpoint=store, command=f"{sys.executable} -c \"print(open('{answer}').read())\"")
    answer.write_text(
        json.dumps({"Version": 1, "AccessKeyId": "old", "SecretAccessKey": "old", "Expiration": soon(300)})
    )
    aws(AWS_PROFILE="command")
    assert connection().renewed
    first, (kept, path) = connection().filesystem(), storage.resolve(f"{s3}/renewed")
    with pytest.raises(OSError, match="INVALID_ACCESS_KEY_ID"), kept.open_output_stream(f"{path}/a") as file:
        file.write(b"x")
    answer.write_text(json.dumps({"Version": 1, **right, "Expiration": soon(7200)}))
    assert connection().filesystem() is not first
    with storage.open_write(f"{s3}/renewed/a") as file:
        file.write(b"kept")
    again = pickle.loads(pickle.dumps(kept))
    for filesystem in (kept, again):
        assert filesystem.open_input_stream(f"{path}/a").read() == b"kept"
        with filesystem.open_output_stream(f"{path}/a.gz", compression=None) as file:
            file.write(b"as it is")
        assert storage.read_bytes(f"{s3}/renewed/a.gz") == b"as it is"
        assert filesystem.open_input_stream(f"{path}/a.gz", compression=None).read() == b"as it is"
        filesystem.delete_file(f"{path}/a.gz")
    fs.copy_files(f"{path}/a", f"{path}/b", source_filesystem=again, destination_filesystem=kept)
    kept.create_dir(f"{path}/c", recursive=True)
    found = kept.get_file_info(fs.FileSelector(path, recursive=True))
    assert sorted(info.base_name for info in found) == ["a", "b", "c"]
    kept.move(f"{path}/b", f"{path}/d")
    kept.delete_file(f"{path}/d")
    kept.delete_dir(f"{path}/c")
    assert [file.uri for file in storage.list_files(f"{s3}/renewed")] == [f"{s3}/renewed/a"]
    assert connection().filesystem() is connection().filesystem() and kept == again


def soon(seconds):
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_an_address_is_the_same_for_both_libraries(aws):
    aws(**KEYS, AWS_ENDPOINT_URL="https://store.example:9000/x")
    found = connection()
    assert found.address == Address(scheme="https", host="store.example:9000/x", virtual=False)
    assert found.client.meta.endpoint_url == found.endpoint == "https://store.example:9000/x"
    assert connection() is found
    s3_connection.forget()
    assert connection() is not found


def test_only_streams_and_what_ray_train_keeps_load_the_sdk_of_pyarrow(s3, monkeypatch, tmp_path):
    """Its threads and clients have to be torn down in order when a process ends: most commands have none of them."""

    def loaded(*_):
        raise AssertionError("pyarrow's S3 was made")

    monkeypatch.setattr(s3_connection, "_filesystem", loaded)
    folder = f"{s3}/light"
    storage.write_bytes(f"{folder}/a/b", b"x" * 10_000_000)
    assert storage.read_ranges(f"{folder}/a/b", [(0, 2)]) == [b"xx"] and storage.exists(f"{folder}/a/b")
    assert storage.list_folders(folder) == ["a"] and len(storage.list_files(folder)) == 1
    assert storage.modified(f"{folder}/a/b") > 1e9 and storage.stat(f"{folder}/a/b").size == 10_000_000
    storage.delete(folder)
    assert not storage.exists(f"{folder}/a/b")
    with pytest.raises(AssertionError, match="pyarrow's S3"), storage.open_write(f"{folder}/c"):
        pass
