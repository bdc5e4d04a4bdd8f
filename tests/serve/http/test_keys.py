"""API keys: who is let in, at what rate, and from where without one."""

from contextlib import ExitStack

import pytest
from pydantic import ValidationError
from starlette.requests import Request

from blip3o.errors import ConfigError
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.safety.keys import Access, ApiKey, read_keys

KEYS = {"ann": ApiKey(key="s3cret"), "bob": ApiKey(sha256=ApiKey(key="other").digest.hex())}


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self):
        return self.now


def request(*, key=None, server="127.0.0.1", host="127.0.0.1:8000", scheme="Bearer", more=()):
    headers = [(b"host", host.encode()), *more]
    if key is not None:
        headers.append((b"authorization", f"{scheme} {key}".encode()))
    return Request({"type": "http", "server": (server, 8000), "headers": headers, "path": "/", "scheme": "http"})


@pytest.mark.parametrize(("key", "owner"), [("s3cret", "ann"), ("other", "bob")])
def test_a_key_is_known_by_its_name(key, owner):
    assert Access(HttpConfig(), KEYS).owner(request(key=key)) == owner
    assert Access(HttpConfig(), KEYS).owner(request(key=key, scheme="bearer")) == owner


@pytest.mark.parametrize("key", [None, "", " ", "s3cre", "s3cret2", "S3CRET", "é", KEYS["bob"].sha256])
def test_everything_else_is_refused_also_on_this_machine(key):
    with pytest.raises(ApiError) as caught:
        Access(HttpConfig(), KEYS).owner(request(key=key))
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert "s3cret" not in caught.value.message
    assert caught.value.headers == {"www-authenticate": "Bearer"}


@pytest.mark.parametrize(
    ("server", "host"),
    [
        ("10.0.0.5", "10.0.0.5:8000"),
        ("10.0.0.5", "127.0.0.1"),  # a forged header
        ("127.0.0.1", "images.example.com"),  # a page whose name was made to point here
        ("127.0.0.1", ""),
        ("127.0.0.1", "[::1"),
        ("127.0.0.1", "images.example.com@127.0.0.1"),
        ("127.0.0.1", "127.0.0.1.example.com"),
        ("127.0.0.1", "2130706433"),
        ("", "127.0.0.1"),
    ],
)
def test_without_keys_only_this_machine_is_served(server, host):
    closed = Access(HttpConfig(), {})
    for mine in ("127.0.0.1", "localhost:8000", "[::1]:80"):
        assert closed.owner(request(host=mine)) == ""
    with pytest.raises(ApiError, match="set BLIP3O_API_KEYS, or auth to off"):
        closed.owner(request(server=server, host=host))
    assert Access(HttpConfig(auth="off"), {}).owner(request(server=server, host=host)) == ""


def test_a_header_that_is_there_twice_is_not_trusted():
    open_to_me, keyed = Access(HttpConfig(), {}), Access(HttpConfig(), KEYS)
    mine = (b"origin", b"http://127.0.0.1:8000")
    for access, asked in (
        (open_to_me, request(more=[(b"host", b"images.example.com")])),
        (open_to_me, request(more=[mine, (b"origin", b"https://evil.example")])),
        (keyed, request(key="s3cret", more=[(b"authorization", b"Bearer other")])),
    ):
        with pytest.raises(ApiError):
            access.owner(asked)
    assert open_to_me.owner(request(more=[mine])) == ""


@pytest.mark.parametrize("header", [b"x-forwarded-for", b"forwarded", b"x-real-ip", b"via"])
def test_without_keys_a_proxy_on_this_machine_is_nobody(header):
    proxied = request(more=[(header, b"203.0.113.9")])
    with pytest.raises(ApiError, match="set BLIP3O_API_KEYS, or auth to off"):
        Access(HttpConfig(), {}).owner(proxied)
    assert Access(HttpConfig(), KEYS).owner(request(key="s3cret", more=[(header, b"203.0.113.9")])) == "ann"


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (None, True),  # no browser
        ("http://127.0.0.1:8000", True),  # the page at /
        ("https://friend.example", True),
        ("https://evil.example", False),
        ("http://127.0.0.1:3000", False),  # another program of this machine
        ("http://evil.example/127.0.0.1:8000", False),
        ("http://127.0.0.1:8000@evil.example", False),
        ("http://[127.0.0.1:8000", False),  # no URL
        ("null", False),  # a sandbox, or a file
        ("", False),
    ],
)
def test_without_keys_a_page_of_another_origin_is_refused(origin, allowed):
    closed = Access(HttpConfig(cors_origins=("https://Friend.example",)), {})
    asked = request(more=[] if origin is None else [(b"origin", origin.encode())])
    if allowed:
        assert closed.owner(asked) == ""
        return
    with pytest.raises(ApiError, match="cors_origins") as caught:
        closed.owner(asked)
    assert (caught.value.status, caught.value.code) == (403, "origin_not_allowed")


@pytest.mark.parametrize("origin", ["https://a.example/", "a.example", "*", "https://a.example/page"])
def test_what_no_browser_sends_as_an_origin_is_refused(origin):
    with pytest.raises(ValidationError, match="write scheme and host, as in https://app.example.com"):
        HttpConfig(cors_origins=(origin,))


def test_a_rate_is_a_bucket_that_fills_up():
    clock = Clock()
    access = Access(HttpConfig(), {"ann": ApiKey(key="k", requests_per_minute=3)}, clock=clock)

    def ask():
        with access.admit("ann"):
            pass

    for _ in range(3):
        ask()
    with pytest.raises(ApiError) as caught:
        ask()
    assert (caught.value.status, caught.value.code) == (429, "rate_limit_exceeded")
    assert caught.value.headers == {"retry-after": "20"}
    clock.now += 20
    ask()
    with pytest.raises(ApiError):
        ask()
    clock.now += 3600  # it holds a minute's requests, not an hour's
    for _ in range(3):
        ask()
    with pytest.raises(ApiError):
        ask()


def test_a_share_of_the_concurrency_is_given_back():
    access = Access(HttpConfig(), {"ann": ApiKey(key="k", concurrent_requests=1), "bob": ApiKey(key="l")})
    with access.admit("ann"):
        with access.admit("bob"), pytest.raises(ApiError) as caught, access.admit("ann"):
            pass
        assert (caught.value.status, caught.value.code) == (429, "concurrency_limit_exceeded")
    with pytest.raises(ZeroDivisionError), access.admit("ann"):
        _ = 1 / 0
    with access.admit("ann"):
        pass


@pytest.mark.parametrize(("limit", "processes", "each"), [(4, 1, 4), (4, 2, 2), (5, 2, 3), (1, 3, 1)])
def test_each_process_of_the_api_has_its_part_of_a_limit(limit, processes, each):
    key = ApiKey(key="k", requests_per_minute=limit, concurrent_requests=limit)
    access = Access(HttpConfig(), {"ann": key}, processes=lambda: processes, clock=Clock())
    with ExitStack() as running:
        for _ in range(each):
            running.enter_context(access.admit("ann"))
        with pytest.raises(ApiError, match=f"{limit} requests at a time"), access.admit("ann"):
            pass
    with pytest.raises(ApiError, match=f"{limit} requests a minute") as caught, access.admit("ann"):
        pass
    assert caught.value.headers == {"retry-after": str(-(-60 // each))}


def test_keys_come_from_the_environment_and_from_a_file(tmp_path, monkeypatch):
    file = tmp_path / "keys.yaml"
    file.write_text("carl: plain\ndora:\n  sha256: " + "a" * 64 + "\n  requests_per_minute: 6\n")
    monkeypatch.setenv("BLIP3O_API_KEYS", "ann:s3cret, bob:a:b")
    keys = read_keys(HttpConfig(keys_file=str(file)))
    assert list(keys) == ["ann", "bob", "carl", "dora"]
    assert keys["bob"] == ApiKey(key="a:b") and keys["dora"].requests_per_minute == 6
    monkeypatch.delenv("BLIP3O_API_KEYS")
    assert read_keys(HttpConfig()) == {}


@pytest.mark.parametrize(
    ("variable", "text", "said"),
    [
        ("nokey", "", "NAME:KEY"),
        ("ann:", "", "NAME:KEY"),
        ("ann:x", "ann: y", "two API keys named 'ann'"),
        ("", "ann: {sha256: abc}", "API key 'ann'"),
        ("", "ann: {key: supersecret, rate: 3}", "API key 'ann'"),
        ("", "ann: {}", "either key or sha256"),
        ("", "[supersecret]", "NAME: KEY"),
        ("", "ann: 1234", "put the key in quotes"),
        ("", "7: supersecret\n'7': supersecret2", "names a key 7, which is no text: write the name in quotes"),
        ("", "'': supersecret", "no text"),
        ("ann:supersecret", "bob: supersecret", "'ann' and 'bob' are the same"),
        ("ann:supersecret\u00e9", "", "without spaces"),
        ("ann: supersecret", "", "without spaces"),
        ("", "ann: 'supersecret '", "without spaces"),
    ],
)
def test_keys_that_cannot_be_are_named_and_not_shown(tmp_path, monkeypatch, variable, text, said):
    file = tmp_path / "keys.yaml"
    file.write_text(text)
    monkeypatch.setenv("BLIP3O_API_KEYS", variable)
    with pytest.raises(ConfigError, match=said) as caught:
        read_keys(HttpConfig(keys_file=str(file) if text else ""))
    assert "supersecret" not in str(caught.value)
