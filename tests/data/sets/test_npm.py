"""A package is fetched once, used only if its bytes are the pinned ones, and failures name what to do."""

import hashlib
import io
import tarfile

import pytest

from blip3o.data.sets import npm
from blip3o.errors import DataError, ServiceError

DATA = b"an archive"
PACKAGE = npm.NpmPackage(name="@some/thing", version="1.2.3", sha256=hashlib.sha256(DATA).hexdigest())


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BLIP3O_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "npm"


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """Puts a shell script in the place of npm."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(script: str) -> None:
        (tmp_path / "npm").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "npm").chmod(0o755)

    return install


def test_it_is_fetched_once(cache, fake_npm):
    fake_npm('[ "$*" = "pack --silent @some/thing@1.2.3" ] && printf "an archive" > some-thing-1.2.3.tgz')
    path = npm.fetch(PACKAGE)
    assert path == cache / "some-thing-1.2.3.tgz" and path.read_bytes() == DATA
    fake_npm("exit 1")
    assert npm.fetch(PACKAGE) == path
    assert [p.name for p in cache.iterdir()] == [path.name]


def test_other_bytes_are_refused(cache, fake_npm):
    fake_npm("printf changed > some-thing-1.2.3.tgz")
    for _ in range(2):  # fetched, and then found in the cache
        with pytest.raises(DataError, match=f"some-thing-1.2.3.tgz.*expected {PACKAGE.sha256}.*delete it"):
            npm.fetch(PACKAGE)


def test_a_failing_npm_is_a_service_error_with_its_words(cache, fake_npm):
    fake_npm("echo no such package >&2; exit 1")
    with pytest.raises(ServiceError, match="no such package"):
        npm.fetch(PACKAGE)
    assert list(cache.iterdir()) == []


def test_a_missing_npm_is_a_service_error(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ServiceError, match="npm was not found.*install Node.js"):
        npm.fetch(PACKAGE)


def test_a_cache_that_cannot_be_written_is_named(cache, fake_npm):
    fake_npm("exit 0")
    cache.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(ServiceError, match=r"cannot write .*some-thing-1.2.3.tgz .*: set BLIP3O_CACHE to a folder of"):
        npm.fetch(PACKAGE)


def test_only_the_wanted_members_are_read(tmp_path):
    path = tmp_path / "some.tgz"
    with tarfile.open(path, "w:gz") as tar:
        for name in ("package/a.png", "package/b.txt"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            tar.addfile(member, io.BytesIO(name.encode()))
    assert npm.read_members(path, lambda name: name.endswith(".png")) == {"package/a.png": b"package/a.png"}
