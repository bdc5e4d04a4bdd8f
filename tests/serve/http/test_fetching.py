"""Fetching images: allowed hosts only, no private address, redirects checked, bounded; against a real https server."""

import http.server
import socket
import ssl
import subprocess
import threading
from types import SimpleNamespace

import anyio
import pytest

from blip3o.errors import RequestError
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.forms.messages import Picture
from serve.http.pictures import Pictures
from serve.http.safety.fetching import Fetcher, is_public
from serve.http.safety.filters import Guard

SIZE = 100_000


class Pages(http.server.BaseHTTPRequestHandler):
    """Answers by the path."""

    def do_GET(self):
        status, headers, data = 200, {}, b"image"
        if self.path.startswith("/to?"):
            status, headers = 302, {"location": self.path[4:]}
        elif self.path == "/large":
            data = b"x" * SIZE
        elif self.path == "/missing":
            status = 404
        elif self.path == "/slow":
            self.server.held.wait(60)
        elif self.path == "/endless":
            self.trickle(b"HTTP/1.1 200 OK\r\nx: ")
            return
        elif self.path == "/endless-body":
            self.trickle(b"HTTP/1.1 200 OK\r\n\r\n")
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def trickle(self, head):
        """A byte now and then, which is always in time for the next one."""
        try:
            self.wfile.write(head)
            while not self.server.held.wait(0.05):
                self.wfile.write(b"x")
        except OSError:
            pass  # the other side has had enough

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.held = threading.Event()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://localhost:{server.server_port}", ssl.create_default_context(cafile=str(certificate))
    server.held.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetcher(tls, **options):
    defaults = {"hosts": ("LocalHost",), "max_bytes": SIZE - 1, "timeout_s": 20, "may_connect": lambda _: True}
    return Fetcher(**defaults | {"tls": tls} | options)


def test_an_image_of_an_allowed_host_is_fetched_also_over_a_redirect(pages):
    url, tls = pages
    for path in ("/a.png", "/to?/a.png", f"/to?{url}/a.png", "/to?/to?/to?/a.png"):
        assert fetcher(tls).fetch(url + path) == b"image"


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/missing", "status 404"),
        ("/large", "more than 99999 bytes"),
        ("/to?https://elsewhere.example/x", "names the host 'elsewhere.example'"),
        ("/to?http://localhost/x", "not a plain https URL"),
        ("/to?file:///etc/passwd", "not a plain https URL"),
        ("/to?https://[::1", "redirects to what is no URL"),
        ("/to?/to?/to?/to?/a.png", "redirects more than 3 times"),
    ],
)
def test_what_may_not_be_fetched_is_not(pages, path, said):
    url, tls = pages
    with pytest.raises(RequestError, match=said):
        fetcher(tls).fetch(url + path)


def test_a_private_address_is_refused_before_anything_is_sent(pages):
    url, tls = pages
    with pytest.raises(RequestError, match="has an address that is not public"):
        fetcher(tls, may_connect=is_public).fetch(url + "/a.png")


def test_an_address_that_does_not_answer_is_passed_over(pages, monkeypatch):
    url, tls = pages
    kind, real = (socket.AF_INET, socket.SOCK_STREAM, 6, ""), socket.getaddrinfo
    found = [(*kind, (address, 0)) for address in ("0:0:0:0:0:0:0:1", "127.0.0.1")]  # IPv6 comes first

    def resolve(host, *args, **options):
        return found if host == "localhost" else real(host, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", resolve)
        assert fetcher(tls).fetch(url + "/a.png") == b"image"


def test_a_slow_host_and_an_unknown_certificate_end_in_an_error(pages):
    url, tls = pages
    for path in ("/slow", "/endless", "/endless-body"):
        with pytest.raises(RequestError, match="TimeoutError"):
            fetcher(tls, timeout_s=0.5).fetch(url + path)
    with pytest.raises(RequestError, match="SSLCertVerificationError"):
        fetcher(None).fetch(url + "/a.png")


def test_names_that_are_never_resolved_hold_no_request(pages, monkeypatch):
    asked, answer = threading.Event(), threading.Event()

    def resolve(*_, **__):
        asked.set()
        answer.wait(60)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    pictures = Pictures(HttpConfig(fetch_hosts=("localhost",), fetch_timeout_s=0.2))
    asking = Picture(path="messages.0", url="https://localhost/a.png")
    info = SimpleNamespace(vision_size=8)
    with pytest.raises(ApiError, match="did not arrive within 0.2 s"):
        anyio.run(pictures.read_all, [asking], info, Guard(None, ""))
    assert asked.is_set() and not answer.is_set()
    answer.set()


@pytest.mark.parametrize(
    "url", ["https://me@localhost/x", "https://localhost.example/x", "https://127.0.0.1/x", "https://[::1", "https:"]
)
def test_other_urls_are_refused(url):
    with pytest.raises(RequestError):
        fetcher(None).fetch(url)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:169.254.169.254", False),
        ("64:ff9b::7f00:1", False),
    ],
)
def test_public_addresses_are_those_of_the_internet(address, public):
    assert is_public(address) is public
