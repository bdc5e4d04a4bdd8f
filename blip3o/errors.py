"""The errors that a user can cause. Each message is one line with the thing, its value, and the fix.

Entry points (`blip3o VERB`, `python -m jobs.VERB`, the HTTP API) catch only `Blip3oError` and turn it into a line on
stderr with exit code 1, or into an HTTP error body. Any other exception is a bug and keeps its traceback.
"""

import difflib
from collections.abc import Iterable


def one_line(text: object, *, limit: int = 200) -> str:
    """A text, such as the message of another library's error, on one line of at most `limit` characters."""
    return " ".join(str(text).split())[:limit]


def quoted(name: str, *, limit: int = 80) -> str:
    """A name from user data for a message: quoted, truncated to `limit` characters, control characters escaped."""
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name[:limit])
    return f"'{plain.replace(chr(39), chr(8217))}{'…' if len(name) > limit else ''}'"


def closest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'?` with the known word most similar to an unknown one; empty if none is similar."""
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else ""


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown word: the closest known one, and all of them."""
    names = sorted(known)
    guess, listing = closest(word, names), ", ".join(names)
    return f"{guess} (known: {listing})" if guess else f"known are {listing}"


class Blip3oError(Exception):
    """Base class of every error that a user can cause and fix."""


class ConfigError(Blip3oError):
    """A recipe, override or command line that cannot be run as written."""


class StorageError(Blip3oError):
    """An object store or file system that denied access, has no such object, or returned too few bytes."""


class DataError(Blip3oError):
    """Shards, manifests or samples that are damaged or changed, or exceed the allowed share of damage."""


class CheckpointError(Blip3oError):
    """A checkpoint that is missing, incomplete, or belongs to another run."""


class BundleError(Blip3oError):
    """A folder that is not a bundle, or a bundle whose bytes were changed."""


class RequestError(Blip3oError):
    """A request that the model cannot serve."""


class PromptTooLongError(RequestError):
    """A prompt or conversation with more tokens than the model reads."""


class ServiceError(Blip3oError):
    """A local service (object store, Ray head, HTTP port) that could not be started or did not answer."""
