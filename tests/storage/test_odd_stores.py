"""Answers of S3-compatible stores, gateways and wrong addresses, from a server that replies as a test says."""

import json
import os
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from botocore.loaders import create_loader

from blip3o import settings, storage
from blip3o.errors import ConfigError, StorageError
from blip3o.storage.s3_connection import connection

LOADER = create_loader()  # of the models of services: each connection would read them again
DATE = "Mon, 02 Jan 2006 15:04:05 GMT"
IN_THE_FUTURE = "2999-01-01T00:00:00Z"
OF_A_FILE = {"Last-Modified": DATE, "ETag": '"e1"', "Content-Length": "3"}


@pytest.fixture
def answers(monkeypatch):
    """The answers to come, each (status, headers, body), the last one forever; `answers.asked` are the requests."""

    class Answers(list):
        asked: list[str] = []

    monkeypatch.setattr("botocore.session.create_loader", lambda *_: LOADER)
    given = Answers()
    given.asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given.asked.append(f"{self.command} {self.path}")
            status, headers, body = given.pop(0) if len(given) > 1 else given[0]
            self.send_response(status)
            for name, value in (
                {"Content-Length": str(len(body)), "Content-Type": "application/xml"} | headers
            ).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *_):
            """Nobody reads it."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    for name, _ in settings.starting_with("AWS_"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # else those of the user
        monkeypatch.setenv(name, os.devnull)
    given.endpoint = f"127.0.0.1:{server.server_address[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{given.endpoint}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.3")
    yield given
    storage.forget_clients()
    server.shutdown()
    server.server_close()


def error(code, message="m", **more):
    fields = "".join(f"<{name}>{value}</{name}>" for name, value in {"Code": code, "Message": message, **more}.items())
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{fields}</Error>'.encode()


def listing(*entries, after="", folders=()):
    contents = "".join(
        f"<Contents><Key>{key}</Key><Size>{size}</Size><LastModified>2006-01-02T15:04:05.000Z</LastModified>"
        f"{f'<ETag>{etag}</ETag>' if etag else ''}</Contents>"
        for key, size, etag in entries
    )
    contents += "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in folders)
    token = f"<NextContinuationToken>{after}</NextContinuationToken>" if after else ""
    truncated = str(bool(after)).lower()
    body = f"<ListBucketResult><Name>b</Name><IsTruncated>{truncated}</IsTruncated>{token}{contents}</ListBucketResult>"
    return 200, {}, body.encode()


def test_listings_come_in_pages_with_folders_among_the_files(answers):
    answers[:] = [
        listing(*((f"a/{n:04d}", 1, f'"{n}"') for n in range(1000)), after="more"),
        listing(("a/", 0, '"f"'), ("a/1000", 1, "unquoted"), ("a/sub/", 7, '"f"'), ("a/none", 0, '"z"')),
    ]
    found = storage.list_files("s3://b/a")
    assert len(found) == 1002 and (found[1000].uri, found[1000].version) == ("s3://b/a/1000", "unquoted")
    assert found[1001] == storage.FileInfo(uri="s3://b/a/none", size=0, version="z")
    assert "continuation-token=more" in answers.asked[1]


def test_files_and_folders_right_below_are_told_apart(answers):
    answers[:] = [listing(("a/x", 1, '"x"'), folders=["a/sub/", "a/b c/"])]
    assert storage.list_folders("s3://b/a") == ["b c", "sub"]
    assert [file.uri for file in storage.list_files("s3://b/a", recursive=False)] == ["s3://b/a/x"]
    assert all("delimiter=%2F" in asked for asked in answers.asked)


@pytest.mark.parametrize(("etag", "version"), [('"e1"', "e1"), ("e1", "e1"), (None, "2006-01-02T15:04:05+00:00")])
def test_a_version_is_the_same_in_listings_and_of_a_file(answers, etag, version):
    headers = {name: value for name, value in (OF_A_FILE | {"ETag": etag}).items() if value}
    answers[:] = [listing(("a", 3, etag)), (200, headers, b"")]
    assert [file.version for file in storage.list_files("s3://b")] == [version]
    assert storage.stat("s3://b/a").version == version and storage.modified("s3://b/a") == 1136214245


def test_what_may_pass_is_asked_again_whichever_layer_says_it(answers, monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "60")
    found = listing(("a", 1, '"x"'))
    for passing in (
        (503, {}, error("SlowDown")),
        (200, {}, error("InternalError")),
        (500, {}, b"<html>bad gateway</html>"),
        (429, {}, b""),
        (400, {}, error("RequestTimeout")),
    ):
        answers[:] = [passing, found]
        answers.asked.clear()
        assert len(storage.list_files("s3://b")) == 1 and len(answers.asked) == 2


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (301, {"x-amz-bucket-region": "eu-west-3"}, error("PermanentRedirect")),
            "region 'eu-west-3': set AWS_REGION=",
        ),
        (
            (301, {}, error("PermanentRedirect", Endpoint="b.example")),
            "'b' is in another region or at another",
        ),
        (
            (400, {}, error("AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong; expecting 'ap-east-1'")),
            "the bucket 'b' is in region 'ap-east-1': set AWS_REGION=ap-east-1",
        ),
        ((400, {}, error("AuthorizationHeaderMalformed", Region="sa-east-1")), "set AWS_REGION=sa-east-1"),
        ((403, {}, error("RequestTimeTooSkewed")), "the clock of this machine differs"),
        ((400, {}, error("ExpiredToken")), "the credentials have expired: renew them"),
        ((403, {}, error("AccessDenied")), "access denied: check AWS_ACCESS_KEY_ID"),
        ((403, {}, error("InvalidAccessKeyId")), "does not know this access key"),
        ((404, {}, error("NoSuchBucket")), "the bucket does not exist: create it"),
        (
            (200, {"Content-Type": "text/html"}, b"<html><body>console</body></html>"),
            "no listing of an S3 store",
        ),
        ((200, {}, b"<html><p>unclosed"), "tried"),
        ((200, {}, error("SlowDown")), "SlowDown.* .tried"),
    ],
)
def test_refusals_of_a_listing_are_told_in_one_line(answers, answer, message):
    answers[:] = [answer]
    for call in (storage.list_files, storage.list_folders):
        with pytest.raises(StorageError, match=f"^s3://b/x: .*{message}") as caught:
            call("s3://b/x")
        assert len(str(caught.value).splitlines()) == 1


def test_refusals_without_a_body(answers):
    answers[:] = [(403, {}, b"")]
    for call in (storage.stat, storage.exists, storage.modified, storage.delete):
        with pytest.raises(StorageError, match="^s3://b/x: access denied: check .*; a missing file is answered so too"):
            call("s3://b/x")
    assert len(answers.asked) == 4
    answers[:] = [(404, {}, b"")]
    assert not storage.exists("s3://b/x") and not storage.exists("s3://b")


def test_what_cannot_be_deleted_is_told(answers):
    failure = b"<DeleteResult><Error><Key>x</Key><Code>AccessDenied</Code><Message>m</Message></Error></DeleteResult>"
    answers[:] = [(200, OF_A_FILE, b""), (200, {}, failure)]
    with pytest.raises(StorageError, match="^s3://b/x: access denied"):
        storage.delete("s3://b/x")
    for call in (storage.delete, storage.read_bytes, lambda uri: storage.write_bytes(uri, b"")):
        with pytest.raises(storage.BadUriError, match="^s3://b is a bucket: name a file in it"):
            call("s3://b")


def test_https_to_a_store_of_plain_http_is_told_at_once(answers, monkeypatch):
    answers[:] = [listing()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{answers.endpoint}")
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "60")
    with pytest.raises(StorageError, match="does not speak TLS: write http:// in AWS_ENDPOINT_URL"):
        storage.list_files("s3://b")


@pytest.fixture(params=["is not known here", "cannot be reached"])
def no_network(monkeypatch, request):
    """No name server answers, or every name leads to a port on which nobody listens; what is said of AWS then."""
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", 0))

    def looked_up(*_, **__):
        if request.param == "is not known here":
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", reserved.getsockname())]

    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    yield request.param
    reserved.close()


def test_aws_itself_is_not_waited_for_where_it_was_never_reached(answers, monkeypatch, no_network):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "60")
    with pytest.raises(StorageError, match=f"^s3://b: no endpoint is set, and https://s3.* {no_network}: set AWS"):
        storage.list_files("s3://b")
    # A host that is configured may come back: a service of a cluster, say.
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    monkeypatch.setenv("BLIP3O_STORE_PATIENCE_S", "0.2")
    with pytest.raises(StorageError, match=r"the store does not answer.*tried \d+ times"):
        storage.list_files("s3://b")


def test_aws_that_was_reached_before_is_tried_again(answers, monkeypatch, no_network):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    connection().answered.set()
    with pytest.raises(StorageError, match=r"the store does not answer.*tried \d+ times"):
        storage.list_files("s3://b")


def test_without_keys_the_metadata_of_an_instance_are_asked_once(answers, monkeypatch):
    """On a laptop nothing answers there, and a second for each of the two requests is all that it may cost."""
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{answers.endpoint}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    answers[:] = [(404, {}, b"")]
    with pytest.raises(ConfigError, match="^no AWS credentials: set AWS_ACCESS_KEY_ID .*AWS_ENDPOINT_URL too .*store"):
        storage.list_files("s3://b")
    assert [asked.split("/")[0] for asked in answers.asked] == ["PUT ", "GET "]
    token, roles = answers.asked
    assert token.endswith("api/token") and roles.endswith("security-credentials/")
    keys = {"Code": "Success", "AccessKeyId": "a", "SecretAccessKey": "b", "Token": "c", "Expiration": IN_THE_FUTURE}
    answers[:] = [(200, {}, b"token"), (200, {}, b"role"), (200, {}, json.dumps(keys).encode())]
    assert connection().credentials.method == "iam-role" and connection().expires
    assert answers.asked[2:] == [token, roles, f"{roles}role"]
    # They are AWS's own, and so is the store: it may answer when the network of the instance is up.
    with socket.socket() as reserved, monkeypatch.context() as patched:
        reserved.bind(("127.0.0.1", 0))
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", reserved.getsockname())]
        patched.setattr(socket, "getaddrinfo", lambda *_, **__: found)
        with pytest.raises(StorageError, match=r"the store does not answer.*tried \d+ times"):
            storage.list_files("s3://b")


@pytest.mark.parametrize(("style", "asked"), [("path", "HEAD /bucket/x"), ("virtual", "HEAD /x")])
def test_pyarrow_puts_the_bucket_where_the_config_file_says(answers, monkeypatch, tmp_path, style, asked):
    (tmp_path / "config").write_text(f"[default]\ns3 =\n  addressing_style = {style}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://localhost:{answers.endpoint.rpartition(':')[2]}")
    answers[:] = [(200, OF_A_FILE, b"")]
    filesystem, path = storage.resolve("s3://bucket/x")
    assert filesystem.get_file_info(path).size == 3 and answers.asked == [asked]
