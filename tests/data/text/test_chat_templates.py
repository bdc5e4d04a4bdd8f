"""Ids of every frame are those of the family's own chat template, rendered and read by `transformers`, token by token.

The templates below say what the published ones do with plain messages (no tools, no documents), written for this test.
"""

from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from blip3o.data.text.templates import FRAMES, IGNORE, ChatTemplate, Turn
from blip3o.data.text.tokenizer import GENERATE, IMAGE_PAD, LLAMA_NAMES, SPECIAL_TOKENS, ChatTokenizer
from blip3o.errors import ConfigError
from tests.data.shard_files import UNHURRIED

SYSTEM = "You are a helpful assistant."
IMAGE_TOKENS = 3
WORDS = ["a red circle", "what?", "Describe it: now!", "4 blue squares", "ein gelbes Dreieck", "don't\n\nstop", "x"]

# How the families cut text before they merge bytes; they differ in runs of digits.
QWEN_CUT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA_CUT = QWEN_CUT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

IMAGE = "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
QWEN2_5_VL = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}<|im_end|>\n"
    "{% else %}{% for part in message.content %}" + IMAGE + "{% endfor %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = (
    "{% set last = namespace(user=messages | length - 1) %}"
    "{% for message in messages %}{% if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.role == 'assistant' and loop.index0 > last.user and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\n"
    "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n{{ system }}<|eot_id|>"
    "{% for message in rest %}<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{{ message.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
PUBLISHED = {"chatml": QWEN2_5_VL, "qwen3": QWEN3, "llama3": LLAMA3}


def train(style) -> Tokenizer:
    """A small byte-level BPE with the family's special tokens and its way of cutting text."""
    names = [LLAMA_NAMES.get(name, name) if style == "llama3" else name for name in SPECIAL_TOKENS]
    frame = FRAMES[style]
    pieces = chain(frame.begin, frame.opening, frame.end, frame.thought)
    special = list(dict.fromkeys([*names, *(piece for piece in pieces if piece.startswith("<"))]))
    cut = pre_tokenizers.Split(Regex(LLAMA_CUT if style == "llama3" else QWEN_CUT), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [cut, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=[AddedToken(name, special=name not in ("<think>", "</think>")) for name in special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*WORDS, SYSTEM, "\n\n\n", "system\nuser\nassistant\n\n", frame.preamble], trainer)
    return tokenizer


@pytest.fixture(scope="module", params=sorted(FRAMES))
def family(request):
    """(style, our tokenizer, the same as `transformers` reads it with the family's template)."""
    from transformers import PreTrainedTokenizerFast

    style, made = request.param, train(request.param)
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(made.to_str()), bos_token="<|begin_of_text|>" if style == "llama3" else None
    )
    theirs.chat_template = PUBLISHED[style]
    return style, ChatTokenizer(made), theirs


def template(style, system=SYSTEM):
    images = IMAGE_TOKENS if style == "chatml" else 0
    return ChatTemplate(system=system, instruction="Please draw: {caption}", image_tokens=images, style=style)


def rendered(theirs, turns, *, system=SYSTEM, prompt=False, with_image=False):
    """Ids of the family's own template; an image's one token repeated as the model's processor repeats it."""
    messages = [{"role": "system", "content": system}] * bool(system)
    for number, turn in enumerate(turns):
        shown = [{"type": "image"}, {"type": "text", "text": turn.text}]
        messages.append({"role": turn.role, "content": shown if with_image and number == 0 else turn.text})
    said = theirs.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False, enable_thinking=False)
    said = said.replace(IMAGE_PAD, IMAGE_PAD * IMAGE_TOKENS)
    return theirs(said, add_special_tokens=False)["input_ids"]


dialogues = st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)), min_size=1, max_size=4).map(
    lambda pairs: [
        Turn(role=role, text=text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
)


@given(turns=dialogues)
@settings(UNHURRIED, max_examples=25)
def test_conversations_and_prompts_are_the_familys_own(family, turns):
    style, ours, theirs = family
    ids = template(style).conversation(ours, turns, with_image=False).ids
    assert list(ids) == rendered(theirs, turns)
    assert template(style).chat(ours, turns[:-1], with_image=False) == rendered(theirs, turns[:-1], prompt=True)


@given(turns=dialogues, system=st.sampled_from(WORDS))
@settings(UNHURRIED, max_examples=25)
def test_a_conversations_own_system_turn_replaces_the_default_one(family, turns, system):
    style, ours, theirs = family
    own = [Turn(role="system", text=system), *turns]
    assert list(template(style).conversation(ours, own, with_image=False).ids) == rendered(theirs, own, system="")
    later = [*turns, Turn(role="system", text=system)]
    prompt = template(style).chat(ours, later, with_image=False)
    assert prompt == rendered(theirs, later, prompt=True)


@given(turns=dialogues)
@settings(UNHURRIED, max_examples=25)
def test_labels_are_the_assistants_words_and_the_end_of_the_turn(family, turns):
    style, ours, theirs = family
    encoded = template(style).conversation(ours, turns, with_image=False)
    assert all(label in (IGNORE, i) for i, label in zip(encoded.ids, encoded.labels, strict=True))
    end = theirs.convert_tokens_to_ids(FRAMES[style].end[0])
    said = [[*ours.encode(turn.text), end] for turn in turns if turn.role == "assistant"]
    assert [label for label in encoded.labels if label != IGNORE] == list(chain(*said))
    # Where the first reply begins is where a prompt for it ends, and nothing before it is supervised.
    prompt = template(style).chat(ours, turns[:1], with_image=False)
    if len(turns) == 2:
        assert list(encoded.ids[: len(prompt)]) == prompt
        assert encoded.labels[: len(prompt) + 1] == (*[IGNORE] * len(prompt), encoded.ids[len(prompt)])


def test_a_picture_stands_where_qwen_puts_it(family):
    style, ours, theirs = family
    turns = [Turn(role="user", text="what?"), Turn(role="assistant", text="a red circle")]
    if style == "chatml":
        ids = template(style).conversation(ours, turns, with_image=True).ids
        assert list(ids) == rendered(theirs, turns, with_image=True)
        assert ids.count(ours.ids[IMAGE_PAD]) == IMAGE_TOKENS


@pytest.mark.parametrize("caption", WORDS)
def test_a_request_to_draw_is_the_familys_prompt_and_the_generation_token(family, caption):
    style, ours, theirs = family
    turns = [Turn(role="user", text=f"Please draw: {caption}")]
    expected = [*rendered(theirs, turns, prompt=True), theirs.convert_tokens_to_ids(GENERATE)]
    assert template(style).generation_request(ours, caption) == expected


def test_without_system_words_only_llama_has_a_system_turn(family):
    style, ours, theirs = family
    turns = [Turn(role="user", text="what?")]
    if style != "chatml":  # Qwen2.5-VL's template puts in its own words, which a recipe says where it wants them
        assert template(style, "").chat(ours, turns, with_image=False) == rendered(
            theirs, turns, system="", prompt=True
        )


def test_a_frame_that_is_not_the_tokenizers_is_named(family):
    style, ours, _ = family
    for other in FRAMES:
        if {style, other} not in ({style}, {"chatml", "qwen3"}):
            with pytest.raises(ConfigError, match=r"the tokenizer has no token <\|\w+\|>: set data.template.style to"):
                template(other).generation_request(ours, "a red circle")
