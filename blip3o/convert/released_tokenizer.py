"""The tokenizer of a released checkpoint: its tokenizer.json or, from slow tokenizers, vocab.json with merges.txt.

Upstream saves a slow Qwen2 tokenizer, which leaves no tokenizer.json; the same tokenizer is built from its parts then.
"""

import json
from collections.abc import Mapping

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from blip3o.data.tokenizer import ChatTokenizer
from blip3o.errors import BundleError

# How Qwen2 parts text into words: contractions, letters, single digits, punctuation, line ends, blanks.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE, VOCABULARY, MERGES, ADDED = "tokenizer.json", "vocab.json", "merges.txt", "added_tokens.json"


def read_tokenizer(files: Mapping[str, bytes]) -> ChatTokenizer:
    """The tokenizer among a checkpoint's files, by name.

    Raises `BundleError` if they hold none, `ConfigError` if it lacks one of the special tokens.
    """
    if WHOLE in files:
        return ChatTokenizer.from_bytes(files[WHOLE])
    if VOCABULARY not in files or MERGES not in files:
        raise BundleError(f"the checkpoint has neither {WHOLE} nor {VOCABULARY} with {MERGES}: copy them beside it")
    lines = files[MERGES].decode().splitlines()
    merges = [(pair[0], pair[1]) for line in lines if len(pair := line.split(" ")) == 2 and not line.startswith("#v")]
    tokenizer = Tokenizer(models.BPE(vocab=json.loads(files[VOCABULARY]), merges=merges))
    tokenizer.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, whole])
    tokenizer.decoder = decoders.ByteLevel()
    added: dict[str, int] = json.loads(files.get(ADDED, b"{}"))
    for token, number in sorted(added.items(), key=lambda item: item[1]):
        tokenizer.add_special_tokens([AddedToken(token, normalized=False)])
        if tokenizer.token_to_id(token) != number:
            raise BundleError(
                f"{ADDED} numbers {token} {number}, which is not the next number: {VOCABULARY} does not fit"
            )
    return ChatTokenizer(tokenizer)
