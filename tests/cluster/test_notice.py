"""A spot node's notice becomes a drain: against a server that speaks as EC2's metadata does, and a real second node."""

import json
import socketserver
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import pytest

from blip3o.errors import ServiceError
from cluster import notice
from cluster.local_ray import LocalRay
from tests.cluster.waiting import wait_for_end

LOOPBACK = "127.0.0.1"


class _Metadata(BaseHTTPRequestHandler):
    """Tokens are numbered, and only the last one is valid; of `answers`, the last one is repeated."""

    tokens = 0
    answers: list[tuple[int, str]]

    def log_message(self, *_):
        pass

    def _say(self, status, text):
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_PUT(self):
        assert self.path == f"/{notice.TOKEN_PATH}" and self.headers["X-aws-ec2-metadata-token-ttl-seconds"]
        type(self).tokens += 1
        self._say(200, f"token-{self.tokens}")

    def do_GET(self):
        if self.headers["X-aws-ec2-metadata-token"] != f"token-{self.tokens}":
            return self._say(401, "")
        assert self.path == f"/{notice.NOTICE_PATH}"
        self._say(*(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]))


@pytest.fixture
def service():
    handler = type("Handler", (_Metadata,), {"answers": [(404, "")]})
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        handler.url = f"http://{LOOPBACK}:{server.server_address[1]}"
        yield handler
        server.shutdown()


class _NoHttp(socketserver.StreamRequestHandler):
    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"220 mail\r\n")


def _announced(seconds):
    end = datetime.now(UTC) + timedelta(seconds=seconds)
    return 200, json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def test_nothing_is_announced_until_it_is_and_an_expired_token_is_renewed(service):
    metadata = notice.InstanceMetadata(service.url)
    assert metadata.notice() is None and service.tokens == 1
    service.tokens = 7  # ours has expired
    assert metadata.notice() is None and service.tokens == 8
    service.answers[:] = [_announced(120)]
    assert 100 < (metadata.notice() - datetime.now(UTC)).total_seconds() <= 120


def test_a_service_that_fails_is_asked_on(service, caplog):
    service.answers[:] = [(404, ""), (500, ""), (500, ""), (200, "soon"), _announced(60)]
    assert 40 < notice.wait_for_notice(notice.InstanceMetadata(service.url), poll_s=0) <= 60
    warned = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(warned) == 1 and "answers 500" in warned[0]


def test_what_is_no_metadata_service_is_an_error():
    with pytest.raises(ServiceError, match="no answer from the instance's metadata"):
        notice.InstanceMetadata(f"http://{LOOPBACK}:9").notice()
    with socketserver.TCPServer((LOOPBACK, 0), _NoHttp) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ServiceError, match="no answer from the instance's metadata"):
            notice.InstanceMetadata(f"http://{LOOPBACK}:{server.server_address[1]}").notice()


def test_a_notice_drains_the_node_that_it_is_for(service, monkeypatch, caplog):
    """The raylet of a drained node ends once it has no work; the head stays."""
    from ray._raylet import GcsClient

    service.answers[:] = [_announced(30)]
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    with LocalRay(num_cpus=0, dashboard=False, object_store_bytes=100_000_000) as head:
        only = notice.own_node(head.address)
        ray = str(Path(sys.executable).with_name("ray"))
        options = [f"--address={head.address}", "--num-cpus=1", "--object-store-memory=80000000"]
        worker = subprocess.Popen([ray, "start", "--block", *options], stdout=subprocess.PIPE, text=True)
        try:
            next(line for line in worker.stdout if "Ray runtime started" in line)
            [raylet] = [each for each in psutil.Process(worker.pid).children() if each.name() == "raylet"]
            [second] = {node.hex() for node in GcsClient(address=head.address).get_all_node_info(timeout=10)} - {only}
            with pytest.raises(ServiceError, match="2 nodes of the cluster .* --node-id"):
                notice.own_node(head.address)
            assert notice.main(["--address", head.address, "--node-id", second]) == 0
            wait_for_end(raylet)
            assert notice.main(["--now", "--seconds", "20", "--address", head.address, "--node-id", second]) == 0
            assert "still has work" not in caplog.text
        finally:
            worker.kill()
            worker.communicate()
