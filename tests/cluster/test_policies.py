"""The roles of nodes allow what the code asks for, and nothing else.

What it asks of S3 is noted by a proxy: here during an upload that fails, and during a whole training run on several
nodes in `tests/jobs/test_train.py`. What Ray's autoscaler asks of EC2 is noted by a server in EC2's place.
"""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import boto3
import pytest

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.storage import s3_connection
from cluster.policies import EC2_ACTIONS, S3_ACTIONS
from tests.cluster.files import load
from tests.cluster.s3_actions import Noted, action
from tests.faults import FaultProxy

INSTANCE = (
    "<item><instanceId>i-1</instanceId><instanceState><code>16</code><name>running</name></instanceState>"
    "<tagSet><item><key>ray-cluster-name</key><value>c</value></item></tagSet></item>"
)
ANSWERS = {
    "DescribeInstances": f"<reservationSet><item><instancesSet>{INSTANCE}</instancesSet></item></reservationSet>",
    "RunInstances": f"<instancesSet>{INSTANCE}</instancesSet>",
    "CreateTags": "<return>true</return>",
    "TerminateInstances": "<instancesSet/>",
}


@pytest.fixture
def ec2(monkeypatch):
    """The actions that were asked for, of a server that answers as EC2 does."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            [name] = form["Action"]
            asked.append((f"ec2:{name}", form))
            text = f'<{name}Response xmlns="http://127.0.0.1/">{ANSWERS[name]}</{name}Response>'.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", f"http://127.0.0.1:{server.server_address[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "x")
        monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # Ray takes it, and it keeps the first keys that it finds
        yield asked
        server.shutdown()


def test_the_head_may_do_what_rays_autoscaler_does(ec2):
    """Ray's own provider starts a node of the shipped file, tags it and ends it."""
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

    config = load("aws-train.yaml")
    provider = AWSNodeProvider(config["provider"], config["cluster_name"])
    node_config = config["available_node_types"]["encoder-g6-4xlarge"]["node_config"]
    assert set(provider.create_node(node_config, {"ray-node-type": "worker"}, 1)) == {"i-1"}
    provider.non_terminated_nodes({})
    provider.set_node_tags("i-1", {"ray-node-status": "up-to-date"})
    provider.terminate_nodes(["i-1"])
    assert {name for name, _ in ec2} == EC2_ACTIONS
    started = dict(ec2)["ec2:RunInstances"]
    assert started["InstanceMarketOptions.MarketType"] == ["spot"]
    assert started["MetadataOptions.HttpTokens"] == ["required"]
    assert "project" in str(started), "the cost tags are in the request, next to Ray's own"


def test_an_upload_that_fails_needs_no_more(s3, monkeypatch):
    """Nor does deleting: what clients do after an error is within the role as well."""
    noted = Noted()
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0")
    with FaultProxy(s3_connection.connection().endpoint) as proxy:
        proxy.follow(lambda request: noted(request) or ("500" if "partNumber" in request.path else None))
        for name, value in proxy.environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(StorageError), storage.open_write(f"{s3}/policies/large") as file:
            file.write(bytes(12_000_000))
        storage.write_bytes(f"{s3}/policies/small", b"x")
        assert storage.read_bytes(f"{s3}/policies/small") == b"x"
        assert [each.uri for each in storage.list_files(f"{s3}/policies")] == [f"{s3}/policies/small"]
        storage.delete(f"{s3}/policies/small")
    storage.forget_clients()
    assert noted.actions == S3_ACTIONS


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/", "s3:ListAllMyBuckets"),
        ("GET", "/bucket?list-type=2&prefix=x", "s3:ListBucket"),
        ("HEAD", "/bucket/", "s3:ListBucket"),
        ("PUT", "/bucket", "s3:CreateBucket"),
        ("POST", "/bucket?delete", "s3:DeleteObject"),
        ("GET", "/bucket?uploads", "s3:ListBucketMultipartUploads"),
        ("HEAD", "/bucket/k", "s3:GetObject"),
        ("POST", "/bucket/k?uploads", "s3:PutObject"),
        ("PUT", "/bucket/k?partNumber=1&uploadId=u", "s3:PutObject"),
        ("DELETE", "/bucket/k?uploadId=u", "s3:AbortMultipartUpload"),
        ("PUT", "/bucket/k?acl", "s3:PUTObjectacl"),
    ],
)
def test_the_action_of_a_request(method, path, expected):
    assert action(method, path) == expected
