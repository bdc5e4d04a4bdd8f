"""What went wrong with a file, in one line: the URI, the cause, and the fix."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from blip3o.errors import StorageError
from blip3o.storage.uris import BadUriError, shown


class MissingFileError(StorageError):
    """The store answers, but the file does not exist."""


_FAULTS_OF_PATHS = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}

_SILENCE = "the store does not answer: check AWS_ENDPOINT_URL and that the store is up"
_NO_BUCKET = "the bucket does not exist: create it, or correct its name"
_ACCESS_KEY = "the store does not know this access key: check AWS_ACCESS_KEY_ID"
_SECRET_KEY = "the store rejects the signature: check AWS_SECRET_ACCESS_KEY"
_DENIED = "access denied: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the bucket's policy"
_EXPIRED = "the credentials have expired: renew them, in AWS_SESSION_TOKEN or by logging in again"
_CLOCK = "the clock of this machine differs from the store's: set it"
_CAUSES = {
    "NO_SUCH_BUCKET": _NO_BUCKET,
    "NoSuchBucket": _NO_BUCKET,
    "INVALID_ACCESS_KEY_ID": _ACCESS_KEY,
    "InvalidAccessKeyId": _ACCESS_KEY,
    "SIGNATURE_DOES_NOT_MATCH": _SECRET_KEY,
    "SignatureDoesNotMatch": _SECRET_KEY,
    "ExpiredToken": _EXPIRED,
    "EXPIRED_TOKEN": _EXPIRED,
    "RequestTimeTooSkewed": _CLOCK,
    "REQUEST_TIME_TOO_SKEWED": _CLOCK,
    "ACCESS_DENIED": _DENIED,
    "AccessDenied": _DENIED,
    "(403)": f"{_DENIED}; a missing file is answered so too where the bucket may not be listed",  # of a HEAD
    "NETWORK_CONNECTION": _SILENCE,
    "curlCode: 7": _SILENCE,
    "Could not connect": _SILENCE,
    "timeout on endpoint": _SILENCE,
}
_RANGE = re.compile(r"bytes \d+-\d+: ")  # of a part of a file
_TRIES = re.compile(r" \(tried \d+ times in \d+ s\)$")


@contextmanager
def explained(uri: str) -> Iterator[None]:
    """Turns the errors of pyarrow and of our reader into one line with the URI, the cause and the fix."""
    try:
        yield
    except FileNotFoundError as error:
        raise missing(uri) from error
    except UnicodeDecodeError as error:  # pyarrow decodes the name of a local file when it is asked for it
        raise StorageError(f"{shown(uri)}: a name in it is not UTF-8: rename {error.object!r}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in _FAULTS_OF_PATHS:
            raise BadUriError(f"{shown(uri)[:300]}: {os.strerror(error.errno)}: correct the path") from error
        raise StorageError(f"{shown(uri)}: {_cause(str(error))}") from error


def missing(uri: str) -> MissingFileError:
    """The error for a file that does not exist."""
    return MissingFileError(f"{shown(uri)} does not exist: check the spelling, or create it first")


def _cause(message: str) -> str:
    where, tries = _RANGE.match(message), _TRIES.search(message)
    for mark, explanation in _CAUSES.items():
        if mark in message:
            return (where.group() if where else "") + explanation + (tries.group() if tries else "")
    return " ".join(message.split())[:300]
