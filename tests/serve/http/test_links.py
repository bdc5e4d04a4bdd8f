"""Links to images: signed, expiring, and the same on every ingress replica that knows the secret."""

from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from blip3o.errors import ConfigError
from serve.http.config import HttpConfig
from serve.http.errors import ApiError
from serve.http.face import Face
from serve.http.links import Links

SECRET = "0123456789abcdef"


class Clock:
    """A clock that a test moves."""

    now = 1000.0

    def __call__(self):
        return self.now


def run(function, *args):
    return anyio.run(function, *args)


def parts(url):
    split = urlsplit(url)
    query = {name: values[0] for name, values in parse_qs(split.query).items()}
    return split.path.split("/")[3], query["expires"], query["signature"]


def test_a_link_lasts_as_long_as_it_says():
    clock = Clock()
    links = Links(HttpConfig(url_seconds=60), clock=clock)
    url = run(links.make, b"image", "png", "http://here:8000/")
    assert url.startswith("http://here:8000/v1/images/") and ".png/content?" in url
    assert run(links.read, *parts(url)) == b"image"
    clock.now += 60
    with pytest.raises(ApiError, match="expired") as caught:
        run(links.read, *parts(url))
    assert (caught.value.status, caught.value.code) == (404, "expired")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_link_cannot_be_changed(place):
    links = Links(HttpConfig())
    changed = list(parts(run(links.make, b"image", "png", "http://here")))
    changed[place] = {0: "../../etc/passwd", 1: "9" * 12, 2: "\udcff"}[place]
    with pytest.raises(ApiError) as caught:
        run(links.read, *changed)
    assert (caught.value.status, caught.value.code) == (403, "invalid_signature")


def test_the_memory_holds_the_latest_files():
    links = Links(HttpConfig(url_memory_bytes=10))
    urls = [run(links.make, bytes([i]) * 5, "png", "http://here") for i in range(3)]
    with pytest.raises(ApiError, match="not here any more"):
        run(links.read, *parts(urls[0]))
    assert [run(links.read, *parts(url)) for url in urls[1:]] == [b"\1" * 5, b"\2" * 5]


def test_no_link_is_made_that_only_one_of_several_processes_could_read(tmp_path, monkeypatch):
    folder = HttpConfig(url_store=str(tmp_path))
    for config, secret in ((HttpConfig(), SECRET), (folder, "")):
        monkeypatch.setenv("BLIP3O_URL_SECRET", secret)
        Links(config, processes=lambda: 1).require_shared()
        with pytest.raises(ApiError, match="2 processes") as caught:
            Links(config, processes=lambda: 2).require_shared()
        assert (caught.value.status, caught.value.code) == (400, "unsupported_by_server")
    monkeypatch.setenv("BLIP3O_URL_SECRET", SECRET)
    Links(folder, processes=lambda: 2).require_shared()


def test_replicas_with_one_secret_and_one_folder_read_each_others_links(tmp_path, monkeypatch):
    config = HttpConfig(url_store=str(tmp_path), public_url="https://images.example.com/")
    monkeypatch.setenv("BLIP3O_URL_SECRET", SECRET)
    one, other = Links(config), Links(config)
    url = run(one.make, b"image", "webp", "http://here")
    assert url.startswith("https://images.example.com/v1/images/")
    assert run(other.read, *parts(url)) == b"image"
    for secret in (SECRET[::-1], ""):
        monkeypatch.setenv("BLIP3O_URL_SECRET", secret)
        with pytest.raises(ApiError, match="signature"):
            run(Links(config).read, *parts(url))
    next(tmp_path.iterdir()).unlink()
    with pytest.raises(ApiError, match="not here any more"):
        run(other.read, *parts(url))


def test_a_signature_says_nothing_about_the_api_keys(monkeypatch):
    """Else whoever has a link could try short keys on it."""
    monkeypatch.setenv("BLIP3O_API_KEYS", "ann:short")
    faces = [Face({}, HttpConfig(), request_timeout_s=1) for _ in range(2)]
    url = run(faces[0].links.make, b"image", "png", "http://here")
    with pytest.raises(ApiError, match="signature"):
        run(faces[1].links.read, *parts(url))


def test_a_secret_that_could_be_guessed_stops_the_start(monkeypatch):
    monkeypatch.setenv("BLIP3O_URL_SECRET", "x" * 15)
    with pytest.raises(ConfigError, match="fewer than 16 characters") as caught:
        Links(HttpConfig())
    assert "xxx" not in str(caught.value)
