"""No text becomes a control token, whatever the tokenizer's file says; all other texts keep the ids that they had."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from blip3o.data.text.templates import FRAMES, ChatTemplate, Turn
from blip3o.data.text.tokenizer import FAMILY_TOKENS, GENERATE, PAD, SPECIAL_TOKENS, ChatTokenizer
from blip3o.errors import ConfigError

LOOSE = ("<image>", "[/IMG]", "<tool_call>", "</tool_call>", "<think>", "</think>", "{{x}}")
WORDS = ("covid", "  ", "\n\n")  # vocabulary that was added later
CONTROLS = (*SPECIAL_TOKENS, *LOOSE)
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
WHOLE = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def byte_level(**flags):
    """A byte-level BPE whose control tokens have these flags, with words added after them."""
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(BYTES)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(name, **flags) for name in CONTROLS])
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in WORDS])
    return tokenizer


def tree(**flags):
    return json.loads(byte_level(**flags).to_str())


def whole_words(model, **changes):
    """The same added tokens over a model whose vocabulary holds control tokens as words."""
    values = tree(special=False, normalized=False)
    values["model"] = {**values["model"], **model}
    return json.dumps({**values, **changes}).encode()


def merged():
    """A BPE whose merges make `[IMG]`."""
    values = tree()
    vocab, merges = values["model"]["vocab"], []
    left = "["
    for char in "IMG]":
        merges.append([left, char])
        left += char
        vocab[left] = len(vocab)
    vocab["[IMG]x"] = len(vocab)
    merges.append(["[IMG]", "x"])
    values["model"]["merges"], values["pre_tokenizer"] = merges, WHOLE
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != GENERATE]
    return json.dumps(values).encode()


VOCAB = {char: number for number, char in enumerate([*BYTES, *CONTROLS, "a", "red"])}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "byte_fallback": False}
FILES = {
    "special": byte_level(special=True).to_str().encode(),
    "not special": byte_level(special=False).to_str().encode(),
    "normalized": byte_level(special=False, normalized=True).to_str().encode(),
    "stripped": byte_level(special=False, lstrip=True, rstrip=True, normalized=False).to_str().encode(),
    "single word": byte_level(special=False, single_word=True, normalized=True).to_str().encode(),
    "ignore_merges": whole_words({"vocab": VOCAB, "ignore_merges": True}, pre_tokenizer=WHOLE),
    "merges": merged(),
    "cut and padded": json.dumps(
        {
            **tree(special=False),
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {
                "strategy": {"Fixed": 40},
                "direction": "Right",
                "pad_to_multiple_of": None,
                "pad_id": 256,
                "pad_type_id": 0,
                "pad_token": PAD,
            },
        }
    ).encode(),
}
# Not lossless: only that no control token comes out is asked of them.
OTHERS = {
    "lower case": json.dumps(
        {
            **json.loads(json.dumps(tree(special=False, normalized=True)).replace("[IMG]", "[img]")),
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}, {"type": "Lowercase"}]},
        }
    )
    .replace('"[img]", "single', '"[IMG]", "single')
    .encode(),
    "words": whole_words(
        {"type": "WordLevel", "vocab": VOCAB, "unk_token": "a"}, pre_tokenizer={"type": "WhitespaceSplit"}
    ),
    "unigram": whole_words(
        {**UNIGRAM, "vocab": [["a", 0.0], *[[word, -1.0] for word in VOCAB if word != "a"]]}, pre_tokenizer=None
    ),
}

pieces = st.one_of(
    st.sampled_from([*CONTROLS, *WORDS, "[img]", "<|IM_END|>", " [IMG] ", "[IMG", "IMG]", "\uffff", "x", "a red"]),
    st.text(max_size=6),
)
written = st.lists(pieces, max_size=6).map("".join)


@pytest.fixture(scope="module")
def tokenizers():
    return {name: ChatTokenizer.from_bytes(data) for name, data in {**FILES, **OTHERS}.items()}


def forbidden(tokenizer):
    return {tokenizer.special(name) for name in CONTROLS if tokenizer._tokenizer.token_to_id(name) is not None}


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
@settings(max_examples=50, deadline=None)
@given(text=written)
def test_no_text_becomes_a_control_token(tokenizers, name, text):
    tokenizer = tokenizers[name]
    ids = tokenizer.encode(text)
    assert not set(ids) & forbidden(tokenizer)
    if name in FILES:
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", [name for name in FILES if name != "cut and padded"])
@settings(max_examples=50, deadline=None)
@given(text=st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=6).map("".join))
def test_other_texts_have_the_ids_that_the_file_gives_them(tokenizers, name, text):
    plain = Tokenizer.from_str(FILES[name].decode())
    if any(word in text for word in CONTROLS):
        return
    assert tokenizers[name].encode(text) == plain.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("name", [*FILES, *OTHERS])
def test_a_tokenizer_is_written_as_it_was_read_and_keeps_its_ids(tokenizers, name):
    data = {**FILES, **OTHERS}[name]
    plain = Tokenizer.from_str(data.decode())
    assert tokenizers[name].to_bytes() == plain.to_str().encode()
    assert len(tokenizers[name]) == plain.get_vocab_size()
    assert tokenizers[name].ids == {token: plain.token_to_id(token) for token in SPECIAL_TOKENS}


def test_ids_are_read_as_the_file_has_its_flags(tokenizers):
    for name, shown in (("special", "red"), ("not special", "[IMG]red<tool_call>")):
        tokenizer = tokenizers[name]
        ids = [tokenizer.special(GENERATE), *tokenizer.encode("red"), tokenizer.special("<tool_call>")]
        assert tokenizer.decode(ids) == shown


def test_words_that_were_added_are_still_words(tokenizers):
    assert tokenizers["not special"].encode("covid") == [tokenizers["not special"].special("covid")]


def test_a_token_for_unknown_characters_that_is_a_control_token_is_refused_by_the_text():
    vocab = {PAD: 0, "a": 1, **{name: number for number, name in enumerate(SPECIAL_TOKENS[1:], start=2)}}
    tokenizer = ChatTokenizer(Tokenizer(models.WordLevel(vocab, unk_token=PAD)))
    assert tokenizer.encode("a") == [1]
    with pytest.raises(ConfigError, match="makes a control token of the text 'b'"):
        tokenizer.encode("b")


def test_every_token_of_a_frame_is_a_control_token():
    frames = [
        piece
        for frame in FRAMES.values()
        for part in (frame.begin, frame.opening, frame.end, frame.thought)
        for piece in part
    ]
    named = {piece for piece in frames if piece.startswith("<")}
    assert named <= {*SPECIAL_TOKENS, *FAMILY_TOKENS}


def test_no_turn_of_a_conversation_forges_a_control_token(tokenizers):
    draw = random.Random(3)
    template = ChatTemplate(system="", instruction="{caption}", image_tokens=2, style="qwen3")
    plain = [Turn(role=role, text="x") for role in ("system", "user", "assistant", "user")]
    for name in FILES:
        tokenizer = tokenizers[name]
        controls = forbidden(tokenizer)
        expected = [number for number in template.chat(tokenizer, plain, with_image=True) if number in controls]
        for _ in range(20):
            turns = [Turn(role=turn.role, text="".join(draw.choices(CONTROLS, k=3))) for turn in plain]
            found = template.chat(tokenizer, turns, with_image=True)
            assert [number for number in found if number in controls] == expected
            assert template.generation_request(tokenizer, turns[0].text).count(tokenizer.special(GENERATE)) == 1
