"""A model's folder of tokenizer files: what is next to tokenizer.json is joined with it, or the conflict is named."""

import json

import pytest

from blip3o.data.text.tokenizer import GENERATE, SPECIAL_TOKENS, ChatTokenizer
from blip3o.data.text.tokenizer_files import complete_tokenizer, read_tokenizer_json
from blip3o.errors import Blip3oError, ConfigError, StorageError
from tests.convert.released_folder import ADDED, slow_tokenizer_files

SLOW = slow_tokenizer_files()
FIRST = len(json.loads(SLOW["vocab.json"]))  # id of the first added token
WHOLE = complete_tokenizer(SLOW, source="slow")


def base(without=(GENERATE, "[/IMG]", "<image>"), **changes):
    """The tokenizer.json of the base model, which lacks what was added after it."""
    tree = json.loads(WHOLE)
    tree["added_tokens"] = [token for token in tree["added_tokens"] if token["content"] not in without]
    return json.dumps({**tree, **changes}).encode()


def decoder(*tokens, special=False):
    """A tokenizer_config.json of these (id, token) pairs."""
    flags = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": special}
    return json.dumps({"added_tokens_decoder": {str(n): {"content": name, **flags} for n, name in tokens}}).encode()


@pytest.fixture
def folder(tmp_path):
    """Writes files by name and returns the URI of their tokenizer.json."""

    def write(**files):
        for name, data in files.items():
            (tmp_path / f"{name}.{'txt' if name == 'merges' else 'json'}").write_bytes(data)
        return f"{tmp_path}/tokenizer.json"

    return write


def test_a_whole_tokenizer_is_read_byte_for_byte(folder):
    uri = folder(tokenizer=WHOLE, vocab=SLOW["vocab.json"], merges=SLOW["merges.txt"])
    assert read_tokenizer_json(uri) == WHOLE
    uri = folder(
        added_tokens=SLOW["added_tokens.json"],
        tokenizer_config=json.dumps({"added_tokens_decoder": None, "pad_token": None}).encode(),
        special_tokens_map=b'{"pad_token": null, "eos_token": {"content": "</s>"}, "more": ["<x>"]}',
    )
    assert read_tokenizer_json(uri) == WHOLE


@pytest.mark.parametrize(
    "others",
    [
        {"added_tokens": SLOW["added_tokens.json"]},
        {"tokenizer_config": decoder(*[(FIRST + n, name) for n, name in enumerate(ADDED)])},
        {"tokenizer_config": decoder(*[(FIRST + n, name) for n, name in enumerate(ADDED)], special=True)},
        {
            "added_tokens": json.dumps({GENERATE: FIRST + 6}).encode(),
            "tokenizer_config": decoder((FIRST + 7, "[/IMG]"), (FIRST + 8, "<image>")),
        },
    ],
)
def test_tokens_next_to_the_bases_tokenizer_are_added_under_their_ids(folder, others):
    tokenizer = ChatTokenizer.from_bytes(read_tokenizer_json(folder(tokenizer=base(), **others)))
    expected = ChatTokenizer.from_bytes(WHOLE)
    assert tokenizer.ids == expected.ids
    assert len(tokenizer) == len(expected)
    assert [tokenizer.special(name) for name in ADDED] == [FIRST + number for number in range(len(ADDED))]
    text = "a red circle, [IMG] <image> <|im_end|>"
    assert tokenizer.encode(text) == expected.encode(text)


def test_a_token_that_only_the_map_names_gets_the_next_id(folder):
    uri = folder(
        tokenizer=base(),
        special_tokens_map=b'{"pad_token": "<|endoftext|>", "additional_special_tokens": ["[IMG]", "<x>"]}',
    )
    tokenizer = ChatTokenizer.from_bytes(read_tokenizer_json(uri))
    assert tokenizer.ids[GENERATE] == FIRST + 6
    assert len(tokenizer) == FIRST + 7, "what is not needed is not added without an id"


def test_vocabulary_and_merges_stand_for_a_tokenizer_that_is_not_there(folder):
    uri = folder(vocab=SLOW["vocab.json"], merges=SLOW["merges.txt"], added_tokens=SLOW["added_tokens.json"])
    assert read_tokenizer_json(uri) == WHOLE
    assert not set(SPECIAL_TOKENS) - ChatTokenizer.from_bytes(WHOLE).ids.keys()


def test_a_missing_tokenizer_is_named(folder):
    with pytest.raises(StorageError, match=r"tokenizer\.json does not exist"):
        read_tokenizer_json(folder(vocab=SLOW["vocab.json"]))


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (
            {"tokenizer": WHOLE, "added_tokens": json.dumps({GENERATE: FIRST}).encode()},
            rf"added_tokens.json gives \[IMG\] the id {FIRST}, tokenizer.json gives it {FIRST + 6}",
        ),
        (
            {"tokenizer": base(), "added_tokens": json.dumps({GENERATE: FIRST + 1}).encode()},
            rf"added_tokens.json gives \[IMG\] the id {FIRST + 1}, tokenizer.json gives that to <\|im_start\|>",
        ),
        (
            {"tokenizer": base(), "added_tokens": json.dumps({GENERATE: 7}).encode()},
            r"added_tokens.json gives \[IMG\] the id 7, tokenizer.json gives that to \(",
        ),
        (
            {"tokenizer": base(), "added_tokens": json.dumps({GENERATE: FIRST + 9}).encode()},
            rf"gives \[IMG\] the id {FIRST + 9}, and the next free one is {FIRST + 6}",
        ),
        (
            {
                "tokenizer": base(),
                "added_tokens": json.dumps({GENERATE: FIRST + 6}).encode(),
                "tokenizer_config": decoder((FIRST + 6, "<image>")),
            },
            rf"tokenizer_config.json gives <image> the id {FIRST + 6}, added_tokens.json gives that to \[IMG\]",
        ),
        ({"tokenizer": base(), "added_tokens": b'{"[IMG]": "306"}'}, "added_tokens.json is not a list of tokens"),
        ({"tokenizer": base(), "added_tokens": b'{"[IMG]": true}'}, "added_tokens.json is not a list of tokens"),
        ({"tokenizer": base(), "added_tokens": b"[1]"}, "added_tokens.json holds no JSON object"),
        ({"tokenizer": base(), "added_tokens": b"<html>"}, "added_tokens.json is an HTML page"),
        ({"tokenizer": base(), "added_tokens": b""}, "added_tokens.json is empty"),
        (
            {"tokenizer": base(), "tokenizer_config": b'{"added_tokens_decoder": {"x": {}}}'},
            "tokenizer_config.json is not",
        ),
        ({"tokenizer": base(), "tokenizer_config": b'{"added_tokens_decoder": [1]}'}, "tokenizer_config.json is not"),
        (
            {"tokenizer": b"version https://git-lfs.github.com/spec/v1\n", "added_tokens": b"{}"},
            "run `git lfs pull`",
        ),
        ({"tokenizer": b"{}", "added_tokens": b'{"a": 1}'}, "tokenizer.json has no vocabulary"),
        ({"vocab": b"[", "merges": b""}, "vocab.json is no JSON"),
        ({"vocab": b"{}", "merges": b"\xff"}, "merges.txt is not UTF-8"),
        ({"vocab": b'{"a": 0}', "merges": b"a b\n"}, "not a tokenizer.json"),
    ],
)
def test_files_that_disagree_or_are_none_are_named_in_one_line(folder, files, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        ChatTokenizer.from_bytes(read_tokenizer_json(folder(**files)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["tokenizer", "added_tokens", "tokenizer_config", "special_tokens_map"])
@pytest.mark.parametrize(
    "data", [b"null", b"5", b'"a"', b'{"a": 1}', b'{"added_tokens_decoder": {"1": null}}', b"\xff"]
)
def test_any_json_in_place_of_a_file_gives_no_other_error(folder, name, data):
    uri = folder(**{"tokenizer": base(), name: data})
    with pytest.raises(Blip3oError):
        ChatTokenizer.from_bytes(read_tokenizer_json(uri))
