"""Fetches images from allowed hosts: never from a private address, every redirect checked, bounded in size and time.

A host is resolved once, and the connection goes to the address that was checked: a name that changes in between gains
nothing. Proxies of the environment are not used.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from blip3o.errors import RequestError, quoted

_REDIRECTS = 3
_PIECE = 64 * 1024  # bytes
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_public(address: str) -> bool:
    """Whether an IP address belongs to the Internet: not to a private network, this machine or a cloud's metadata."""
    parsed = ipaddress.ip_address(address)
    return all(each.is_global and not each.is_multicast for each in (parsed, *_embedded(parsed)))


def _embedded(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> list[ipaddress.IPv4Address]:
    """The IPv4 addresses to which a gateway may translate an IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return []
    translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
    teredo = address.teredo[1] if address.teredo else None
    return [each for each in (address.ipv4_mapped, address.sixtofour, teredo, translated) if each is not None]


@dataclass(frozen=True, kw_only=True)
class Fetcher:
    """What may be fetched: from which hosts, how many bytes, in how many seconds.

    `may_connect` decides over addresses. `tls` is None for the system's certificates.
    """

    hosts: tuple[str, ...]
    max_bytes: int
    timeout_s: float
    may_connect: Callable[[str], bool] = is_public
    tls: ssl.SSLContext | None = None

    def fetch(self, url: str) -> bytes:
        """The bytes behind an https URL. Raises `RequestError`; its message follows the field's name."""
        end = time.monotonic() + self.timeout_s
        try:
            for _ in range(_REDIRECTS + 1):
                found = self._get(url, end)
                if isinstance(found, bytes):
                    return found
                url = _joined(url, found)
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            # The kind says enough: more would tell a stranger about our network.
            kind = TimeoutError if time.monotonic() >= end else type(error)
            raise RequestError(f"could not be fetched ({kind.__name__}): send the image as a data URL") from error
        raise RequestError(f"redirects more than {_REDIRECTS} times: send the image as a data URL")

    def _get(self, url: str, end: float) -> bytes | str:
        """The bytes, or where a redirect leads."""
        host, port, target = self._checked(url)
        connection = _Pinned(self._addresses(host, port), host, port, self.tls or ssl.create_default_context(), end)
        # A host that sends a byte now and then, as in a header without end, is always in time for the next one.
        alarm = threading.Timer(_left(end), connection.interrupt)
        alarm.start()
        try:
            connection.request("GET", target, headers={"accept": "image/*", "user-agent": "blip3o"})
            reply = connection.getresponse()
            if reply.status in (301, 302, 303, 307, 308):
                return reply.headers.get("location") or ""
            if reply.status != 200:
                raise RequestError(f"answers with status {reply.status}: send the image as a data URL")
            data = self._read(reply)
            _left(end)  # else what has come may be a part
            return data
        finally:
            alarm.cancel()
            connection.close()

    def _read(self, reply: http.client.HTTPResponse) -> bytes:
        pieces, size = [], 0
        while piece := reply.read1(_PIECE):
            size += len(piece)
            if size > self.max_bytes:
                raise RequestError(f"has more than {self.max_bytes} bytes: send a smaller image")
            pieces.append(piece)
        return b"".join(pieces)

    def _checked(self, url: str) -> tuple[str, int, str]:
        """Host, port and target of an allowed URL."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port or 443
        except ValueError:
            raise RequestError("is no URL that can be read: send the image as a data URL") from None
        if parts.scheme != "https" or parts.username is not None:
            raise RequestError("is not a plain https URL, and only these are fetched: send the image as a data URL")
        if host not in (allowed.lower() for allowed in self.hosts):
            raise RequestError(
                f"names the host {quoted(host)}, and images are fetched only from hosts that the server's operator "
                "allows: send the image as a data URL"
            )
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return host, port, target

    def _addresses(self, host: str, port: int) -> list[str]:
        """In the system's order: an IPv6 address comes last, or fails at once, where there is no IPv6."""
        addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        if not all(self.may_connect(address) for address in addresses):
            raise RequestError(f"names the host {quoted(host)}, which has an address that is not public")
        return addresses


class _Pinned(http.client.HTTPSConnection):
    """A connection to the first of some checked addresses that answers, under the name of their host."""

    def __init__(self, addresses: list[str], host: str, port: int, tls: ssl.SSLContext, end: float) -> None:
        super().__init__(host, port, context=tls)
        self._addresses, self._tls, self._end = addresses, tls, end
        self._connected: socket.socket | None = None  # `sock` is None while a reply is read that ends the connection

    def connect(self) -> None:
        """Connects, within the time that is left."""
        wrapped = self._tls.wrap_socket(self._plain(), server_hostname=self.host, do_handshake_on_connect=False)
        self.sock = self._connected = wrapped
        wrapped.settimeout(_left(self._end))
        wrapped.do_handshake()

    def _plain(self) -> socket.socket:
        *others, last = self._addresses
        for address in others:
            with suppress(OSError):  # that of the last one is reported
                return socket.create_connection((address, self.port), timeout=_left(self._end) / 2)
        return socket.create_connection((last, self.port), timeout=_left(self._end))

    def interrupt(self) -> None:
        """Ends whatever another thread waits for on this connection."""
        if self._connected is not None:
            with suppress(OSError):  # it has ended already
                socket.socket.shutdown(self._connected, socket.SHUT_RDWR)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise RequestError("redirects to what is no URL: send the image as a data URL") from None


def _left(end: float) -> float:
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
