"""How a store is reached: endpoint, region, credentials and addressing style, resolved once.

The chain is that of the AWS command line: environment variables, then the profile of the config files, then what
instances, containers and single sign-on provide, with renewal. Both libraries that speak to the store are given the
result, boto3 (all but streams) and pyarrow (streams of large files), so that no request goes elsewhere.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pyarrow import fs

from blip3o import settings
from blip3o.errors import ConfigError, one_line

if TYPE_CHECKING:
    from botocore.client import BaseClient
    from botocore.session import Session

CONNECT_TIMEOUT_S = 10
# Seconds without a byte after which a request is given up.
STALL_TIMEOUT_S = 30.0
MAX_CONNECTIONS = 32  # of one process; readers ask for a few at a time
_ENDPOINT = re.compile(r"(https?)://([\w.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?(/[^?#\s]*)?", re.IGNORECASE)
_KEY = re.compile(r"[!#-&(-~]+")  # printable ASCII without blanks and quotes
_FILE_VARIABLES = {"AWS_CONFIG_FILE": "~/.aws/config", "AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials"}
_PRINTS_THEM = "`blip3o store` prints them all for a demo's"
_NUMBERS = ("AWS_MAX_ATTEMPTS", "AWS_METADATA_SERVICE_NUM_ATTEMPTS", "AWS_METADATA_SERVICE_TIMEOUT")


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where requests go: `scheme`, `host` with port and path, and whether the bucket is a part of the host's name."""

    scheme: str
    host: str
    virtual: bool


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A way to a store. `endpoint` is None where none is configured: AWS itself. Threads may share it."""

    client: "BaseClient"
    endpoint: str | None
    address: Address
    region: str
    ca_bundle: str | None
    credentials: Any
    answered: Event = field(default_factory=Event)  # whether a request has reached the store

    @property
    def expires(self) -> bool:
        """Whether the credentials expire and are renewed."""
        from botocore.credentials import RefreshableCredentials

        return isinstance(self.credentials, RefreshableCredentials)

    def filesystem(self) -> fs.S3FileSystem:
        """pyarrow's file system with the credentials of this moment: ask again for each file. Raises `ConfigError`."""
        with _explained():
            keys = self.credentials.get_frozen_credentials()
        return _filesystem(self.address, self.region, self.ca_bundle, tuple(keys[:3]), stall_timeout())


def stall_timeout() -> float:
    """Seconds without a byte after which a request is given up: `BLIP3O_STORE_TIMEOUT_S`, else 30; at most a day."""
    return settings.number("BLIP3O_STORE_TIMEOUT_S", STALL_TIMEOUT_S, above=0, maximum=24 * 3600)


def connection() -> Connection:
    """The connection that environment and config files describe now; made again when one of them changes.

    Raises `ConfigError` if there are no credentials, or something of what is configured cannot be used.
    """
    changes = tuple(_changed(_config_file(name)) for name in _FILE_VARIABLES)
    return _connection(settings.starting_with("AWS_"), settings.get("HOME"), changes, stall_timeout())


def forget() -> None:
    """Drops connections and credentials: the next request resolves them again."""
    _connection.cache_clear()
    _filesystem.cache_clear()


def _config_file(variable: str) -> Path:
    """The file that botocore reads, too: without a home folder, the `~` stays and the file does not exist."""
    return Path(os.path.expanduser(settings.get(variable) or _FILE_VARIABLES[variable]))


def _changed(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(maxsize=4)
def _connection(_environment: object, _home: object, _changes: object, timeout_s: float) -> Connection:
    import botocore.session

    for name in _NUMBERS:
        settings.number(name, 1, above=0)
    # Given as a default, an empty variable counts as unset, and keys of the environment keep their precedence.
    session = botocore.session.Session(session_vars={"profile": (None, None, _profile(), None)})
    with _explained():
        endpoint = _endpoint(session)
        credentials = session.get_credentials()
        if credentials is None:
            raise ConfigError(
                "no AWS credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
                + ("" if endpoint else f"; for a store other than AWS itself, AWS_ENDPOINT_URL too ({_PRINTS_THEM})")
            )
        # Expired logins show here, not in the first of many requests.
        _require_plain(credentials.get_frozen_credentials(), credentials.method)
        options = _s3_options(session, endpoint)
        client = _client(session, endpoint, options, timeout_s)
        return Connection(
            client=client,
            endpoint=endpoint,
            address=_address(session, endpoint, options),
            region=client.meta.region_name,
            ca_bundle=_ca_bundle(session),
            credentials=credentials,
        )


def _require_plain(keys: Any, method: str) -> None:  # noqa: ANN401 - botocore's named tuple
    """Raises `ConfigError` for keys with quotes, blanks or line ends, as env files leave them: they cannot sign."""
    for name, value in (("access key", keys[0]), ("secret key", keys[1]), ("session token", keys[2] or "-")):
        if not _KEY.fullmatch(value):
            fault = "has quotes, blanks or line ends in it" if value else "is empty"
            raise ConfigError(f"the {name} of the AWS credentials ({method}) {fault}: write the plain value")


def _profile() -> str | None:
    return settings.get("AWS_DEFAULT_PROFILE") or settings.get("AWS_PROFILE")


def _region(session: "Session") -> str:
    """The region, by both variables; boto3 knows only one of them."""
    in_environment = settings.get("AWS_REGION") or settings.get("AWS_DEFAULT_REGION")
    return in_environment or session.get_scoped_config().get("region") or "us-east-1"


def _endpoint(session: "Session") -> str | None:
    """The endpoint that is configured. Raises `ConfigError` if it is no URL of a host."""
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    for where, value in _configured_endpoints(session):
        if value:
            return _checked(where, value.strip())
    return None


def _configured_endpoints(session: "Session") -> Iterator[tuple[str, str]]:
    """Name and value of every place that may have an endpoint, the one that counts most first."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        yield variable, settings.get(variable, "") or ""
    profile, file = session.get_scoped_config(), _config_file("AWS_CONFIG_FILE")
    if services := profile.get("services"):
        sections = session.full_config.get("services", {})
        if services not in sections:
            raise ConfigError(f"{file} has no section 'services {services}', which the profile names: add it")
        yield (
            f"endpoint_url of 'services {services}' in {file}",
            _table(sections[services], "s3").get("endpoint_url", ""),
        )
    yield f"endpoint_url of the profile in {file}", profile.get("endpoint_url", "")


def _table(section: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """The indented settings below `name`. Raises `ConfigError` if a value stands there."""
    found = section.get(name, {})
    if not isinstance(found, Mapping):
        file = _config_file("AWS_CONFIG_FILE")
        raise ConfigError(f"'{name} = {found}' in {file}: put the settings below it on indented lines")
    return found


def _checked(where: str, value: str) -> str:
    found = _ENDPOINT.fullmatch(value)
    if found and int((found[3] or ":0")[1:]) < 2**16:
        return f"{found[1].lower()}://{found[2]}{found[3] or ''}{(found[4] or '').rstrip('/')}"
    shown = re.sub("(?<=//)[^/@]*@", "***@", value)
    guessed = _ENDPOINT.fullmatch(f"http://{value}")
    fix = f"http://{shown} or https://{shown}" if guessed else "http://HOST:PORT or https://HOST"
    raise ConfigError(f"{where}={shown} is no endpoint of a store: write {fix}")


def _s3_options(session: "Session", endpoint: str | None) -> dict[str, Any]:
    _table(session.get_scoped_config(), "s3")
    configured = session.get_config_variable("s3") or {}
    return {"addressing_style": "path" if endpoint else "auto", **configured}


def _client(session: "Session", endpoint: str | None, options: dict[str, Any], timeout_s: float) -> "BaseClient":
    import boto3.session
    from botocore.config import Config

    client = boto3.session.Session(botocore_session=session).client(
        "s3",
        endpoint_url=endpoint,
        region_name=_region(session),
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_S,
            read_timeout=timeout_s,
            max_pool_connections=MAX_CONNECTIONS,
            retries={"total_max_attempts": 1},
            proxies={},
            s3=options,
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    client.meta.events.register_first("needs-retry.s3.HeadBucket", _end_redirects)
    return client


def _end_redirects(response: tuple[Any, dict[str, Any]] | None, operation: Any, **_: Any) -> None:  # noqa: ANN401
    """After a redirect, botocore asks for the bucket's region, and would loop forever if that is redirected too."""
    from botocore.exceptions import ClientError

    if response and response[0].status_code in (301, 302, 307) and "x-amz-bucket-region" not in response[0].headers:
        raise ClientError(response[1], operation.name)


def _address(session: "Session", endpoint: str | None, options: dict[str, Any]) -> Address:
    """Where boto3 sends requests, read off the URL that it makes for an object."""
    from botocore.config import Config

    bucket, key = "blip3o-bucket", "key"
    # For a plain bucket name both are the same, but in signed URLs "auto" means AWS's old global host.
    style = options["addressing_style"].replace("auto", "virtual")
    probe = session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=_region(session),
        aws_access_key_id="-",
        aws_secret_access_key="-",
        # An older signature, where one is configured, is made for other hosts.
        config=Config(s3={**options, "addressing_style": style}, signature_version="s3v4"),
    )
    url = urlsplit(probe.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))
    virtual = url.netloc.startswith(f"{bucket}.")
    path = url.path.removesuffix(f"/{key}").removesuffix("" if virtual else f"/{bucket}")
    return Address(scheme=url.scheme, host=url.netloc.removeprefix(f"{bucket}.") + path, virtual=virtual)


def _ca_bundle(session: "Session") -> str | None:
    path = session.get_config_variable("ca_bundle")
    if path and not Path(path).is_file():
        raise ConfigError(f"AWS_CA_BUNDLE or ca_bundle names {path}, which is no file: correct it")
    return path or None


@functools.lru_cache(maxsize=4)
def _filesystem(
    address: Address, region: str, ca_bundle: str | None, keys: tuple[str, str, str | None], timeout_s: float
) -> fs.S3FileSystem:
    # On Linux the request timeout limits a transfer below one byte per second, whatever pyarrow's documentation says.
    return fs.S3FileSystem(
        access_key=keys[0],
        secret_key=keys[1],
        session_token=keys[2],
        region=region,
        scheme=address.scheme,
        endpoint_override=address.host,
        force_virtual_addressing=address.virtual,
        tls_ca_file_path=ca_bundle,
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=timeout_s,
        allow_bucket_creation=False,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
    )


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what botocore finds wrong with variables, files and credentials into one line."""
    from botocore.exceptions import BotoCoreError, ClientError, ProfileNotFound

    files = " and ".join(str(_config_file(name)) for name in _FILE_VARIABLES)
    try:
        yield
    except ProfileNotFound as error:
        raise ConfigError(f"no profile '{_profile()}' in {files}: correct AWS_PROFILE, or add the profile") from error
    except (BotoCoreError, ClientError, OSError, ValueError) as error:
        raise ConfigError(f"AWS settings: {one_line(error)}: correct the AWS_ variables, {files}") from error
