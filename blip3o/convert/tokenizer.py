"""The tokenizer of a released checkpoint: its tokenizer.json or, from slow tokenizers, vocab.json with merges.txt."""

from collections.abc import Mapping

from blip3o.data.text.tokenizer import ChatTokenizer
from blip3o.data.text.tokenizer_files import MERGES, VOCABULARY, WHOLE, complete_tokenizer
from blip3o.errors import BundleError


def read_tokenizer(files: Mapping[str, bytes], *, source: str = "the checkpoint") -> ChatTokenizer:
    """The tokenizer among a checkpoint's files, by name; `source` is what errors call their folder.

    Raises `BundleError` if they hold none, `ConfigError` if it is missing a special token, or if files disagree.
    """
    if WHOLE not in files and not files.keys() >= {VOCABULARY, MERGES}:
        raise BundleError(f"the checkpoint has neither {WHOLE} nor {VOCABULARY} with {MERGES}: copy them next to it")
    return ChatTokenizer.from_bytes(complete_tokenizer(files, source=source))
