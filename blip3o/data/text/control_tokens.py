"""Which tokens of a tokenizer are control tokens, and an encoder that never makes one of text.

A tokenizer file decides with a flag whether an added token is read out of text (`special: false`), and a vocabulary may
hold one as a word. Neither may let a user write `[IMG]` and have the model take it as its own token.
"""

import json
from collections.abc import Collection
from typing import Any

from tokenizers import AddedToken, Tokenizer

_HIDDEN = "\uffff"  # no character; it stands around a token's name where that must not be found
_BRACKETS = {"<": ">", "[": "]", "{": "}"}
_BLANKS = " \t\r\n\u2581\u0120"  # spaces, and what stands for one in vocabularies


def control_tokens(tokenizer: Tokenizer, used: Collection[str]) -> frozenset[str]:
    """The tokens that no text may become: those that are `used`, special ones, and added ones in brackets.

    An added token of another kind, such as a word or a run of spaces, is vocabulary.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    marked = {token.content for token in added if token.special or _is_bracketed(token.content)}
    return frozenset(marked | {name for name in used if tokenizer.token_to_id(name) is not None})


def text_encoder(tokenizer: Tokenizer, written: str, controls: Collection[str]) -> Tokenizer:
    """A tokenizer that gives every text the ids that `tokenizer` gives it, but none of a control token.

    `written` is the tokenizer's JSON. Usually it is the same object, altered; decode by what was special before.
    """
    words = {name for name in controls if tokenizer.model.token_to_id(name) is not None}
    reachable = words if _may_be_word(tokenizer) else set()
    if words and not reachable:
        reachable = words & _merged(json.loads(written)["model"])
    encoder = Tokenizer.from_str(_without(written, reachable)) if reachable else tokenizer
    added = encoder.get_added_tokens_decoder().values()
    names = {*controls, *map(_hidden, reachable)}
    loose = [token.content for token in added if token.content in names and not token.special]
    encoder.add_special_tokens([AddedToken(name) for name in loose])
    encoder.encode_special_tokens = True
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _is_bracketed(name: str) -> bool:
    plain = name.strip(_BLANKS)
    return len(plain) > 1 and _BRACKETS.get(plain[0]) == plain[-1]


def _may_be_word(tokenizer: Tokenizer) -> bool:
    """Whether a word of the vocabulary is found as a whole, and not only by merges."""
    model = tokenizer.model
    return type(model).__name__ != "BPE" or bool(model.ignore_merges)


def _merged(model: dict[str, Any]) -> set[str]:
    """The words that merges make."""
    return {"".join(_pair(merge)) for merge in model["merges"]}


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _hidden(name: str) -> str:
    return f"{_HIDDEN}{name}{_HIDDEN}"


def _without(written: str, names: Collection[str]) -> str:
    """The tokenizer's JSON with these words under names that no text finds, and with the same ids."""
    tree = json.loads(written)
    model = tree["model"]
    for token in tree["added_tokens"]:
        token["content"] = _hidden(token["content"]) if token["content"] in names else token["content"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {_hidden(word) if word in names else word: number for word, number in model["vocab"].items()}
    else:  # Unigram: words with their scores, numbered by their places
        model["vocab"] = [[_hidden(word) if word in names else word, score] for word, score in model["vocab"]]
    if model.get("unk_token") in names:
        model["unk_token"] = _hidden(model["unk_token"])
    if "merges" in model:
        pairs = [_pair(merge) for merge in model["merges"]]
        model["merges"] = [pair for pair in pairs if not {*pair, "".join(pair)} & set(names)]
    return json.dumps(tree, ensure_ascii=False)
