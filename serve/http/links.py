"""Links to images that expire: signed, absolute, and backed by the memory or by a folder of an object store.

With several ingress replicas, a folder is needed, and $BLIP3O_URL_SECRET, from which the signature is made: each
replica has a memory of its own. Without them, no link is made that only one of the replicas could read. The signature
is never made of the API keys: whoever has a link could try short ones on it.
"""

import asyncio
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from blip3o import settings, storage
from blip3o.errors import ConfigError
from serve.http.config import HttpConfig
from serve.http.errors import ApiError

VARIABLE = "BLIP3O_URL_SECRET"
_SHORTEST = 16  # characters
PATH = "/v1/images/{name}/content"
_GONE = "the link has expired, or its image is not here any more: generate it again with its seed"


class _Store(Protocol):
    async def put(self, name: str, data: bytes) -> None: ...

    async def get(self, name: str) -> bytes | None: ...


class _Memory:
    """The latest files, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    async def put(self, name: str, data: bytes) -> None:
        self._files[name] = data
        self._bytes += len(data)
        while self._bytes > self._most_bytes:
            _, oldest = self._files.popitem(last=False)
            self._bytes -= len(oldest)

    async def get(self, name: str) -> bytes | None:
        return self._files.get(name)


class _Folder:
    """A folder. Its files stay; let the object store's lifecycle rules remove them."""

    def __init__(self, uri: str) -> None:
        self._uri = storage.normalize(uri)

    async def put(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(storage.write_bytes, storage.join(self._uri, name), data)

    async def get(self, name: str) -> bytes | None:
        uri = storage.join(self._uri, name)
        return await asyncio.to_thread(lambda: storage.read_bytes(uri) if storage.exists(uri) else None)


class Links:
    """Makes links to images, and reads them."""

    def __init__(
        self,
        config: HttpConfig,
        *,
        processes: Callable[[], int] = lambda: 1,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`processes` is how many there are of this API, behind one address.

        Raises `ConfigError` if the secret is short.
        """
        self._config = config
        self._clock, self._processes = clock, processes
        self._store: _Store = _Folder(config.url_store) if config.url_store else _Memory(config.url_memory_bytes)
        given = (settings.get(VARIABLE) or "").encode("utf-8", "surrogateescape")
        if 0 < len(given) < _SHORTEST:
            raise ConfigError(f"{VARIABLE} has fewer than {_SHORTEST} characters: take those of `openssl rand -hex 32`")
        self._secret = hashlib.sha256(b"links " + given).digest() if given else secrets.token_bytes(32)
        self._is_shared = bool(config.url_store and given)

    def require_shared(self) -> None:
        """Raises `ApiError` 400 if another process of this API could not read the links that this one makes."""
        if self._processes() > 1 and not self._is_shared:
            message = (
                f"this server has {self._processes()} processes, and links to a file in the memory of one: ask for "
                f"b64_json; the operator can set url_store and {VARIABLE}"
            )
            raise ApiError(400, message, param="response_format", code="unsupported_by_server")

    async def make(self, data: bytes, suffix: str, base_url: str) -> str:
        """An absolute link to a file. `base_url` is the server's address as the client knows it."""
        name = f"{secrets.token_hex(16)}.{suffix}"
        await self._store.put(name, data)
        expires = int(self._clock() + self._config.url_seconds)
        base = (self._config.public_url or base_url).rstrip("/")
        return f"{base}{PATH.format(name=name)}?expires={expires}&signature={self._sign(name, str(expires))}"

    async def read(self, name: str, expires: str, signature: str) -> bytes:
        """The file behind a link. Raises `ApiError` 403 if the link is not ours, 404 if it has expired."""
        if not hmac.compare_digest(self._sign(name, expires).encode(), signature.encode("utf-8", "surrogatepass")):
            raise ApiError(403, "the signature of the link is not this server's", code="invalid_signature")
        data = await self._store.get(name) if self._clock() < int(expires) else None
        if data is None:
            raise ApiError(404, _GONE, code="expired")
        return data

    def _sign(self, name: str, expires: str) -> str:
        text = f"{name} {expires}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()
