"""A tokenizer.json joined with the files next to it in a model's folder.

Slow tokenizers leave no tokenizer.json: the same one is built from vocab.json and merges.txt. A fine-tuned model often
has its base's tokenizer.json, and what was added in `added_tokens.json` or `tokenizer_config.json`: if a token that is
needed is missing, what these add is added, under the ids that they give. Files that disagree are refused.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from blip3o import storage
from blip3o.data.text.tokenizer import LLAMA_NAMES, SPECIAL_TOKENS
from blip3o.errors import ConfigError
from blip3o.storage.magic import SNIFFED_BYTES, recognise

logger = logging.getLogger(__name__)

# How Qwen2 parts text into words: contractions, letters, single digits, punctuation, line ends, blanks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE, VOCABULARY, MERGES = "tokenizer.json", "vocab.json", "merges.txt"
ADDED, CONFIG, NAMED = "added_tokens.json", "tokenizer_config.json", "special_tokens_map.json"
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True, kw_only=True)
class _Declared:
    """A token that a file next to the tokenizer declares: its id, None if the file has none, and its flags."""

    file: str
    name: str
    number: int | None
    flags: Mapping[str, bool]


def read_tokenizer_json(uri: str) -> bytes:
    """The tokenizer.json at `uri`, as it is if it has all control tokens, else with what its folder adds to it.

    Raises `StorageError` if there is none and nothing to build it of, and `ConfigError` as `complete_tokenizer`.
    """
    if uri.rpartition("/")[2] != WHOLE:
        return storage.read_bytes(uri)
    folder = uri.removesuffix(WHOLE)
    files = _present(folder, (ADDED, CONFIG, NAMED))
    if not storage.exists(uri):
        files |= _present(folder, (VOCABULARY, MERGES))
    if not files.keys() >= {VOCABULARY, MERGES}:
        files[WHOLE] = storage.read_bytes(uri)
    return complete_tokenizer(files, source=folder.rstrip("/"))


def _present(folder: str, names: Iterable[str]) -> dict[str, bytes]:
    return {name: storage.read_bytes(folder + name) for name in names if storage.exists(folder + name)}


def complete_tokenizer(files: Mapping[str, bytes], *, source: str) -> bytes:
    """The tokenizer.json of a folder's files by name, or of its vocab.json and merges.txt.

    Raises `ConfigError` if a file is malformed, or if two give one id to two tokens or one token two ids.
    """
    written = files[WHOLE] if WHOLE in files else _built(files, source)
    declared = [
        item for file in (ADDED, CONFIG, NAMED) if file in files for item in _declarations(file, files[file], source)
    ]
    if not declared:
        return written
    joined = _Joined(_parsed(WHOLE, written, source), source)
    missing = {name for name in SPECIAL_TOKENS if name not in joined.ids and LLAMA_NAMES.get(name) not in joined.ids}
    for item in sorted(declared, key=lambda item: (item.number is None, item.number)):
        joined.require_agreement(item)
        # What names no id is added where it is needed; what does, wherever the tokenizer is not whole.
        if item.name in missing or (item.number is not None and (missing or WHOLE not in files)):
            joined.add(item)
    if not joined.added:
        return written
    if WHOLE in files:  # else all of them are: nothing to remark on
        names = ", ".join(f"{name} = {joined.ids[name]} ({file})" for name, file in joined.added.items())
        logger.info("%s: added to %s: %s", source, WHOLE, names)
    return json.dumps(joined.tree, ensure_ascii=False).encode()


class _Joined:
    """A tokenizer.json to which tokens are added; `added` has the file that declares each of them."""

    def __init__(self, tree: dict[str, Any], source: str) -> None:
        self.tree, self._source = tree, source
        self.added: dict[str, str] = {}
        try:
            vocab = tree["model"]["vocab"]
            words = dict(vocab) if isinstance(vocab, dict) else {word: n for n, (word, _) in enumerate(vocab)}
            own = {token["content"]: int(token["id"]) for token in tree["added_tokens"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"{source}: {WHOLE} has no vocabulary with added tokens: fetch it again") from error
        self.ids: dict[str, int] = words | own
        # The library numbers what is added itself: after the vocabulary, and after what was added before.
        self._following = max([len(words), *[number + 1 for number in own.values()]])

    def require_agreement(self, item: _Declared) -> None:
        """Raises `ConfigError` if the token has another id, or its id another token."""
        number, known = item.number, self.ids.get(item.name)
        if number is None or known == number:
            return
        holder = next((name for name, taken in self.ids.items() if taken == number), None)
        if known is not None:
            fault = f"{self.added.get(item.name, WHOLE)} gives it {known}"
        elif holder is not None:
            fault = f"{self.added.get(holder, WHOLE)} gives that to {holder}"
        else:
            return
        raise self._fault(item, f"{fault}: the files are of two models, so keep those of the one whose weights you use")

    def add(self, item: _Declared) -> None:
        """Adds a token that is not there. Raises `ConfigError` if its id is not the next one."""
        if item.name in self.ids:
            return
        if item.number not in (None, self._following) or self._following in self.ids.values():
            raise self._fault(item, f"and the next free one is {self._following}: tokens between are missing")
        self.ids[item.name] = self._following
        self.added[item.name] = item.file
        self.tree["added_tokens"].append({"id": self._following, "content": item.name, **item.flags})
        self._following += 1

    def _fault(self, item: _Declared, fault: str) -> ConfigError:
        given = f"the id {item.number}" if item.number is not None else "no id"
        return ConfigError(f"{self._source}: {item.file} gives {item.name} {given}, {fault}")


def _declarations(file: str, data: bytes, source: str) -> Iterator[_Declared]:
    tree = _parsed(file, data, source)
    special = dict.fromkeys(FLAGS, False) | {"special": True}
    try:
        if file == ADDED:
            yield from (_Declared(file=file, name=name, number=_id(n), flags=special) for name, n in tree.items())
        elif file == CONFIG:
            for number, token in (tree.get("added_tokens_decoder") or {}).items():
                flags = {flag: bool(token.get(flag, special[flag])) for flag in FLAGS}
                yield _Declared(file=file, name=_name(token["content"]), number=_id(int(number)), flags=flags)
        else:
            for value in tree.values():
                tokens = value if isinstance(value, list) else [value]
                names = [token.get("content") if isinstance(token, dict) else token for token in tokens]
                yield from (
                    _Declared(file=file, name=n, number=None, flags=special) for n in names if isinstance(n, str)
                )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{source}: {file} is not a list of tokens with their ids: fetch it again") from error


def _id(number: object) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < 0:
        raise ValueError(f"{number!r} is no id")
    return number


def _name(name: object) -> str:
    if not isinstance(name, str) or not name:
        raise ValueError(f"{name!r} is no token")
    return name


def _parsed(file: str, data: bytes, source: str) -> dict[str, Any]:
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        found = recognise(data[:SNIFFED_BYTES], size=len(data), is_text=True)
        raise ConfigError(f"{source}: {file} {found or 'is no JSON: fetch it again'}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: {file} holds no JSON object: fetch it again")
    return tree


def _built(files: Mapping[str, bytes], source: str) -> bytes:
    """The tokenizer.json that Qwen2's fast tokenizer has for a slow one's files."""
    try:
        lines = files[MERGES].decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: {MERGES} is not UTF-8: fetch it again") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, whole])
    tokenizer.decoder = decoders.ByteLevel()
    tree = json.loads(tokenizer.to_str())
    tree["model"]["vocab"] = _parsed(VOCABULARY, files[VOCABULARY], source)
    pairs = [line.split(" ") for line in lines if not line.startswith("#v")]
    tree["model"]["merges"] = [pair for pair in pairs if len(pair) == 2]
    return json.dumps(tree, ensure_ascii=False).encode()
