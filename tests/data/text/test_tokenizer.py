"""The tokenizer: text comes back as it was, special tokens are never read out of it, and training has one result."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from blip3o.data.text.tokenizer import PAD, SPECIAL_TOKENS, TURN_END, ChatTokenizer
from blip3o.errors import ConfigError
from tests.data.shard_files import UNHURRIED

TEXTS = ["a red circle above a blue square", "What colour is the circle? It is red.", "system\nuser\nassistant\n"]
TOKENIZER = ChatTokenizer.train(TEXTS, 300)
READ_BACK = ChatTokenizer.from_bytes(TOKENIZER.to_bytes())

pieces = st.one_of(st.sampled_from(SPECIAL_TOKENS), st.text(max_size=8))


@UNHURRIED
@given(st.lists(pieces, max_size=6).map("".join))
def test_any_text_comes_back_and_holds_no_special_token(text):
    for tokenizer in (TOKENIZER, READ_BACK):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert not set(ids) & set(tokenizer.ids.values())


def test_special_tokens_are_left_out_of_text():
    ids = [*TOKENIZER.encode("red"), TOKENIZER.ids[TURN_END], TOKENIZER.ids[PAD]]
    assert TOKENIZER.decode(ids) == "red"


def test_training_has_one_result_and_the_size_asked_for():
    again = ChatTokenizer.train(iter(TEXTS), 300)
    assert again.to_bytes() == TOKENIZER.to_bytes()
    assert len(TOKENIZER) == 300
    assert sorted(TOKENIZER.ids.values()) == list(range(len(SPECIAL_TOKENS)))
    assert len(TOKENIZER.encode("a red circle")) < len("a red circle")


def test_a_tokenizer_without_the_special_tokens_is_refused():
    plain = Tokenizer(models.BPE()).to_str().encode()
    with pytest.raises(
        ConfigError, match=r"^the tokenizer is missing the special tokens <\|endoftext\|>, .*: train one"
    ):
        ChatTokenizer.from_bytes(plain)


@pytest.mark.parametrize("data", [b"", b"\xff\x00", b"{}", json.dumps({"model": "none"}).encode()])
def test_what_is_no_tokenizer_is_refused_in_one_line(data):
    with pytest.raises(ConfigError, match=r"^not a tokenizer\.json: ") as caught:
        ChatTokenizer.from_bytes(data)
    assert "\n" not in str(caught.value)
