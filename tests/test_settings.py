"""Variables of the environment: numbers are checked, and what is read is documented."""

import importlib
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o import settings, storage
from blip3o.errors import ConfigError
from blip3o.storage.s3_connection import connection, stall_timeout

ROOT = Path(__file__).parent.parent
SOURCES = [path for name in ("blip3o", "jobs", "serve", "cluster") for path in (ROOT / name).rglob("*.py")]
NUMBERS = sorted({name for path in SOURCES for name in re.findall(r'settings\.number\(\s*"(\w+)"', path.read_text())})
READERS = {
    "BLIP3O_LOG_SECONDS": "blip3o.log:Pace",
    "BLIP3O_STORE_TIMEOUT_S": "blip3o.storage.s3_connection:stall_timeout",
    "BLIP3O_STORE_PATIENCE_S": "blip3o.storage.retry:patience",
}


def test_every_number_is_read_in_one_way():
    assert NUMBERS == sorted(READERS)
    by_hand = re.compile(r"(?:float|int)\(\s*settings\.get")
    assert not [path for path in SOURCES if by_hand.search(path.read_text())]


def test_every_variable_of_ours_is_documented():
    ours = {name for path in SOURCES for name in re.findall(r'"(BLIP3O_\w+)"', path.read_text())}
    documented = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert {*NUMBERS, "BLIP3O_CACHE"} <= ours and not {name for name in ours if f"`{name}`" not in documented}


@pytest.mark.parametrize(
    "value", ["30s", "1m", "nan", "inf", "-inf", "1e999", "-1", "1_0", "0x10", "1,5", "a", "٣", "--"]
)
@pytest.mark.parametrize("name", NUMBERS)
def test_what_is_no_number_is_told_with_its_variable(monkeypatch, name, value):
    module, function = READERS[name].split(":")
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=f"^{name}={value} is no number .*without a unit, as in {name}=[0-9]+$"):
        getattr(importlib.import_module(module), function)()


@pytest.mark.parametrize(
    ("value", "number"), [("", 7), (" ", 7), ("2.5", 2.5), (" 30 ", 30), ("1e2", 100), ("+.5", 0.5)]
)
def test_a_number_is_read_or_its_default_taken(monkeypatch, value, number):
    monkeypatch.setenv("BLIP3O_TEST", value)
    assert settings.number("BLIP3O_TEST", 7) == number
    monkeypatch.delenv("BLIP3O_TEST")
    assert settings.number("BLIP3O_TEST", 7) == 7


def test_a_timeout_that_no_socket_takes_is_refused(monkeypatch):
    monkeypatch.setenv("BLIP3O_STORE_TIMEOUT_S", "86400")
    assert stall_timeout() == 86400
    monkeypatch.setenv("BLIP3O_STORE_TIMEOUT_S", "1e30")
    with pytest.raises(ConfigError, match="^BLIP3O_STORE_TIMEOUT_S=1e30 is no number above 0 and at most 86400: write"):
        stall_timeout()


@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(0, 10))
def test_bounds_are_kept(value, bound):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP3O_TEST", repr(value))
        if value < bound:
            with pytest.raises(ConfigError, match="of at least"):
                settings.number("BLIP3O_TEST", 7, minimum=bound)
        else:
            assert settings.number("BLIP3O_TEST", 7, minimum=bound) == value
        if value <= bound:
            with pytest.raises(ConfigError, match=f"above {bound:g}"):
                settings.number("BLIP3O_TEST", 7, above=bound, minimum=-1e308)
        else:
            assert settings.number("BLIP3O_TEST", 7, above=bound) == value


@pytest.fixture
def no_home(monkeypatch):
    """A user id without a home folder, as containers have it."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)


def test_a_user_without_a_home_folder_is_told_to_name_a_cache(monkeypatch, no_home):
    for name in ("BLIP3O_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match="no home folder for the cache ~/.cache/blip3o: set BLIP3O_CACHE to a full"):
        settings.cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert settings.cache_dir() == Path("/var/cache/blip3o")


def test_a_user_without_a_home_folder_reaches_a_store(monkeypatch, no_home):
    for name, _ in settings.starting_with("AWS_"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert connection().region == "us-east-1"
    storage.forget_clients()


def test_a_cache_in_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BLIP3O_CACHE", "~/kept")
    assert settings.cache_dir() == tmp_path / "kept"


def test_ray_gets_an_interpreter_whose_path_a_shell_takes_as_one_word(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    spaced = tmp_path / "mit leer ü" / ".venv"
    (spaced / "bin").mkdir(parents=True)
    (spaced / "bin" / "python").write_text("", encoding="utf-8")
    executable = str(spaced / "bin" / "python")
    plain = settings.plain_interpreter(executable, str(spaced))
    assert " " not in plain and plain.isascii() and Path(plain).samefile(executable)
    assert settings.plain_interpreter(executable, str(spaced)) == plain  # again
    assert settings.plain_interpreter("/usr/bin/python3", "/usr") == "/usr/bin/python3"
    link = Path(plain).parents[1]
    link.unlink()
    link.symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="is not this user's link"):
        settings.plain_interpreter(executable, str(spaced))
