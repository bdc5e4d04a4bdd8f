"""A pyarrow file system that may be kept: each call uses the credentials of that moment.

pyarrow's own has the keys it was created with, and Ray Train keeps one for a whole run: longer than the keys of an
assumed role or of an instance last. Sent to another process, it uses that process's own connection.
"""

from typing import Any

from pyarrow import NativeFile, fs

from blip3o.storage.s3_connection import connection


def s3_filesystem() -> fs.FileSystem:
    """The file system of S3; one whose credentials are renewed where they expire. Raises `ConfigError`."""
    found = connection()
    return fs.PyFileSystem(_RefreshingS3()) if found.expires else found.filesystem()


class _RefreshingS3(fs.FileSystemHandler):
    @property
    def _now(self) -> fs.S3FileSystem:
        return connection().filesystem()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _RefreshingS3)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def get_type_name(self) -> str:
        return "s3"

    def normalize_path(self, path: str) -> str:
        return str(self._now.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:  # noqa: ANN401 - pyarrow's types are not typed
        return self._now.get_file_info(paths)

    def get_file_info_selector(self, selector: fs.FileSelector) -> Any:  # noqa: ANN401
        return self._now.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:  # noqa: FBT001 - called by pyarrow
        self._now.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        self._now.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:  # noqa: FBT001, FBT002
        self._now.delete_dir_contents(path, missing_dir_ok=missing_dir_ok)

    def delete_root_dir_contents(self) -> None:
        self._now.delete_dir_contents("/", accept_root_dir=True)

    def delete_file(self, path: str) -> None:
        self._now.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        self._now.move(src, dest)

    def copy_file(self, src: str, dest: str) -> None:
        self._now.copy_file(src, dest)

    # The file system that wraps this one handles compression.
    def open_input_stream(self, path: str) -> NativeFile:
        return self._now.open_input_stream(path, compression=None)

    def open_input_file(self, path: str) -> NativeFile:
        return self._now.open_input_file(path)

    def open_output_stream(self, path: str, metadata: dict[str, str] | None) -> NativeFile:
        return self._now.open_output_stream(path, compression=None, metadata=metadata)

    def open_append_stream(self, path: str, metadata: dict[str, str] | None) -> NativeFile:
        return self._now.open_append_stream(path, compression=None, metadata=metadata)
