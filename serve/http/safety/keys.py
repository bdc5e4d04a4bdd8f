"""API keys: several named ones, with a rate and a share of the concurrency each.

Only digests are kept, and every comparison takes the same time. The processes of the API know nothing of each other's
requests: each has an equal part of a limit, rounded up.
"""

import hashlib
import hmac
import ipaddress
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, model_validator
from starlette.requests import HTTPConnection

from blip3o import settings, storage
from blip3o.config.base import Frozen
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError
from serve.http.config import HttpConfig
from serve.http.errors import ApiError

VARIABLE = "BLIP3O_API_KEYS"
_EVERYBODY = ""  # the owner of requests without a key
_FORM = f"{VARIABLE}=NAME:KEY,NAME:KEY"
_CHALLENGE = {"www-authenticate": "Bearer"}  # HTTP wants one with every 401
_SENDABLE = re.compile(r"[!-~]+")  # what a header holds between spaces: other keys could never match
_OF_PROXIES = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")


class ApiKey(Frozen):
    """What a key file says of one name."""

    key: str = Field(default="", description="the key; give sha256 instead to keep it out of the file")
    sha256: str = Field(default="", pattern="^([0-9a-f]{64})?$", description="SHA-256 of the key, hexadecimal")
    requests_per_minute: int | None = Field(default=None, ge=1, description="requests in a minute; no limit if omitted")
    concurrent_requests: int | None = Field(default=None, ge=1, description="requests at a time; no limit if omitted")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:  # noqa: ANN401 - whatever the file says
        return {"key": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _has_one(self) -> "ApiKey":
        if bool(self.key) == bool(self.sha256):
            raise ValueError("give either key or sha256")
        if self.key and not _SENDABLE.fullmatch(self.key):
            raise ValueError("a key is letters, digits and punctuation of ASCII, without spaces: choose another one")
        return self

    @property
    def digest(self) -> bytes:
        """SHA-256 of the key."""
        return bytes.fromhex(self.sha256) if self.sha256 else _digest(self.key)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def read_keys(config: HttpConfig) -> Mapping[str, ApiKey]:
    """The keys of the environment and of the key file, by name.

    Raises `ConfigError` if one is invalid or two have the same name or key, `StorageError` if the file cannot be read.
    """
    pairs = [part.strip() for part in (settings.get(VARIABLE) or "").split(",") if part.strip()]
    named = [tuple(pair.split(":", 1)) for pair in pairs]
    if any(len(pair) != 2 or not all(pair) for pair in named):
        raise ConfigError(f"{VARIABLE} holds an entry without a name or a key: write {_FORM}")
    keys: dict[str, ApiKey] = {}
    owners: dict[bytes, str] = {}
    for name, value in [*named, *_of_file(config.keys_file)]:
        if name in keys:
            raise ConfigError(f"there are two API keys named '{name}': give each a name of its own")
        keys[name] = key = _parsed(name, value)
        if (other := owners.setdefault(key.digest, name)) != name:
            raise ConfigError(f"the API keys named '{other}' and '{name}' are the same: give each a key of its own")
    return keys


def _parsed(name: str, value: object) -> ApiKey:
    try:
        return ApiKey.model_validate(value)
    except ValidationError as error:  # its own message would quote the key
        [fault, *_] = error.errors(include_input=False)
        place = ".".join(str(part) for part in fault["loc"])
        hint = "see docs/serving.md" if isinstance(value, dict) else "put the key in quotes"
        raise ConfigError(f"API key '{name}': {place} {fault['msg']}: {hint}") from None


def _of_file(uri: str) -> list[tuple[str, Any]]:
    if not uri:
        return []
    parsed = load_yaml(storage.read_bytes(storage.normalize(uri)).decode(), uri)
    if not isinstance(parsed, dict) or not parsed:
        raise ConfigError(f"{uri} holds no API keys: write lines of the form NAME: KEY")
    for name in parsed:
        if not isinstance(name, str) or not name.strip():  # 7 and 07 would be one number, and "" is nobody
            raise ConfigError(f"{uri} names a key {name!r}, which is no text: write the name in quotes")
    return list(parsed.items())


class Access:
    """Who may ask. `admit` is entered for the time of a request."""

    def __init__(
        self,
        config: HttpConfig,
        keys: Mapping[str, ApiKey],
        *,
        processes: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`processes` is how many there are of this API, behind one address."""
        self._config = config
        self._digests = {name: key.digest for name, key in keys.items()}
        self._limits = {name: _Limits(key, processes, clock) for name, key in keys.items()}

    def owner(self, connection: HTTPConnection) -> str:
        """The name of the key that a request has; empty if none is needed.

        Raises `ApiError` 401 for a missing or unknown key, and for a connection from elsewhere if there are no keys;
        then also 403 for a web page of another origin.
        """
        if self._config.auth == "off":
            return _EVERYBODY
        if not self._digests:
            if _is_loopback(connection):
                self._refuse_foreign_page(connection)
                return _EVERYBODY
            message = f"this server has no API keys, so it serves only its own machine: set {VARIABLE}, or auth to off"
            raise _unknown(message)
        scheme, _, key = _only(connection, "authorization").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _unknown("there is no API key: send 'Authorization: Bearer KEY'")
        sent, found = _digest(key.strip()), ""
        for name, digest in self._digests.items():  # all of them: the time says nothing about which is close
            found = name if hmac.compare_digest(sent, digest) else found
        if not found:
            raise _unknown("the API key is not known here")
        return found

    def _refuse_foreign_page(self, connection: HTTPConnection) -> None:
        """A page of any web site can send to this machine from its user's browser, which adds the page's origin."""
        if "origin" not in connection.headers:
            return
        origin = _only(connection, "origin")
        # Browsers write both in lower case, so this needs no parser, which an origin that is no URL would break.
        own = origin.partition("://")[2] == _only(connection, "host") != ""
        if not own and origin not in self._config.cors_origins:
            message = "a web page of another origin asks, and this server has no API keys: add it to cors_origins"
            raise ApiError(403, message, code="origin_not_allowed")

    @contextmanager
    def admit(self, owner: str) -> Iterator[None]:
        """Counts a request of an owner while it runs. Raises `ApiError` 429 beyond the limits of the key."""
        limits = self._limits.get(owner)
        if limits is None:
            yield
            return
        limits.take()
        try:
            yield
        finally:
            limits.running -= 1


def _only(connection: HTTPConnection, name: str) -> str:
    """The value of a header; empty if there are several, of which a proxy in front may have read another one."""
    values = connection.headers.getlist(name)
    return values[0] if len(values) == 1 else ""


def _unknown(message: str) -> ApiError:
    return ApiError(401, message, code="invalid_api_key", headers=_CHALLENGE)


class _Limits:
    """A bucket of requests that fills up over a minute, and the number of running ones."""

    def __init__(self, key: ApiKey, processes: Callable[[], int], clock: Callable[[], float]) -> None:
        self._rate, self._most = key.requests_per_minute, key.concurrent_requests
        self._processes, self._clock = processes, clock
        self._spent, self._seen = 0.0, clock()
        self.running = 0

    def take(self) -> None:
        """Takes the place of a request. Raises `ApiError` 429."""
        if self._most is not None and self.running >= self._part(self._most):
            message = f"this API key may have {self._most} requests at a time: wait for one to end"
            raise ApiError(429, message, code="concurrency_limit_exceeded", headers={"retry-after": "1"})
        if self._rate is not None:
            self._spend(self._rate)
        self.running += 1

    def _spend(self, rate: int) -> None:
        part, now = self._part(rate), self._clock()
        self._spent = max(0.0, self._spent - (now - self._seen) * part / 60)
        self._seen = now
        if part - self._spent < 1:
            wait = str(math.ceil((1 - part + self._spent) * 60 / part))
            message = f"this API key may send {rate} requests a minute: try again in {wait} s"
            raise ApiError(429, message, code="rate_limit_exceeded", headers={"retry-after": wait})
        self._spent += 1

    def _part(self, limit: int) -> int:
        """This process's part of a limit."""
        return math.ceil(limit / max(1, self._processes()))


def _is_loopback(connection: HTTPConnection) -> bool:
    """Whether a connection came to a loopback address, which only this machine reaches.

    A web page can make its own name point to 127.0.0.1, and then the browser sends that name as the host. A proxy on
    this machine connects from here on behalf of anybody.
    """
    if any(name in connection.headers for name in _OF_PROXIES):
        return False
    server, host = connection.scope.get("server"), _only(connection, "host")
    try:
        names = (server[0] if server else "", urlsplit(f"//{host}").hostname or "")
        return "@" not in host and all(name == "localhost" or ipaddress.ip_address(name).is_loopback for name in names)
    except ValueError:  # a name, or no host at all
        return False
