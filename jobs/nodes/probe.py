"""What one node measures of itself: versions, sizes and limits, its GPUs, and how fast it reads from the store."""

import importlib.metadata
import os
import platform
import resource
import shutil
import statistics
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from blip3o import device, storage
from blip3o.errors import StorageError

PACKAGES = ("ray", "torch", "deepspeed", "pyarrow", "blip3o")
SHARED_MEMORY = "/dev/shm"
STORE_BYTES = 16 * 2**20
LATENCY_REQUESTS = 5


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a node is: sizes in bytes. `file_limit` is the soft limit of open files of a process that Ray starts."""

    versions: dict[str, str]
    memory: int
    disk_free: int
    shared_memory: int
    file_limit: int
    gpus: list[device.GpuHealth] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """How a node reaches the store: bytes per second of one read, seconds of a small request, or what went wrong."""

    read: float = 0.0
    latency: float = 0.0
    error: str | None = None


def measure_node() -> Facts:
    """Measures this node; takes well under a second."""
    return Facts(
        versions=_versions(),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        disk_free=shutil.disk_usage(tempfile.gettempdir()).free,
        shared_memory=shutil.disk_usage(SHARED_MEMORY).total if Path(SHARED_MEMORY).exists() else 0,
        file_limit=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        gpus=device.gpu_health(),
    )


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    return found


def measure_store(uri: str) -> StoreFacts:
    """Writes an object below `uri`, reads it back, and removes it. An error is returned with its cause and fix."""
    location = storage.join(uri, f".preflight-{uuid.uuid4().hex}")
    try:
        storage.write_bytes(location, bytes(STORE_BYTES))
        try:
            seconds = [_seconds(location) for _ in range(LATENCY_REQUESTS)]
            began = time.perf_counter()
            storage.read_bytes(location)
            read = STORE_BYTES / (time.perf_counter() - began)
        finally:
            storage.delete(location)
    except StorageError as error:
        return StoreFacts(error=str(error))
    return StoreFacts(read=read, latency=statistics.median(seconds))


def _seconds(location: str) -> float:
    began = time.perf_counter()
    storage.stat(location)
    return time.perf_counter() - began
