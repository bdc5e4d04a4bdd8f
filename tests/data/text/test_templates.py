"""Conversations as ids: what is supervised, where the image stands, and that training and inference cannot differ."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.data.text.templates import IGNORE, ChatTemplate, Turn
from blip3o.data.text.tokenizer import GENERATE, IMAGE_PAD, SPECIAL_TOKENS, TURN_END, TURN_START, ChatTokenizer
from tests.data.shard_files import UNHURRIED

IMAGE_TOKENS = 4
TOKENIZER = ChatTokenizer.train(["a red circle", "system\nuser\nassistant\n"], 300)
SPECIAL = TOKENIZER.ids
INSTRUCTION = "Please draw: {caption}"

words = st.one_of(st.text(max_size=6), st.sampled_from(SPECIAL_TOKENS))
conversations = st.lists(
    st.builds(Turn, role=st.sampled_from(["user", "assistant"]), text=st.lists(words, max_size=3).map("".join)),
    min_size=1,
    max_size=5,
)


def template(system=""):
    return ChatTemplate(system=system, instruction=INSTRUCTION, image_tokens=IMAGE_TOKENS)


def spelled(ids):
    """Text with special tokens written out."""
    names = {number: name for name, number in SPECIAL.items()}
    return "".join(names.get(i) or TOKENIZER.decode([i]) for i in ids)


def test_a_conversation_is_chatml_with_the_image_in_the_first_user_turn():
    turns = [Turn(role="user", text="what?"), Turn(role="assistant", text="red"), Turn(role="user", text="sure?")]
    image = "<|vision_start|>" + "<|image_pad|>" * IMAGE_TOKENS + "<|vision_end|>"
    expected = (
        "<|im_start|>system\nBe good.<|im_end|>\n"
        f"<|im_start|>user\n{image}what?<|im_end|>\n"
        "<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nsure?<|im_end|>\n"
    )
    assert spelled(template("Be good.").conversation(TOKENIZER, turns, with_image=True).ids) == expected
    assert spelled(template("Be good.").chat(TOKENIZER, turns, with_image=True)) == f"{expected}<|im_start|>assistant\n"


def test_a_request_to_draw_ends_with_an_open_assistant_turn_and_the_generation_token():
    ids = template().generation_request(TOKENIZER, "a {red} circle")
    assert spelled(ids) == "<|im_start|>user\nPlease draw: a {red} circle<|im_end|>\n<|im_start|>assistant\n[IMG]"
    assert ids[-1] == SPECIAL[GENERATE]


@UNHURRIED
@given(conversations, st.booleans(), st.sampled_from(["", "Be good."]))
def test_labels_are_the_assistants_words_and_ends_and_nothing_else(turns, with_image, system):
    encoded = template(system).conversation(TOKENIZER, turns, with_image=with_image)
    assert len(encoded.ids) == len(encoded.labels)
    supervised = [i for i in encoded.labels if i != IGNORE]
    said = [[*TOKENIZER.encode(turn.text), SPECIAL[TURN_END]] for turn in turns if turn.role == "assistant"]
    assert supervised == list(chain(*said))
    assert all(label in (IGNORE, i) for i, label in zip(encoded.ids, encoded.labels, strict=True))


@UNHURRIED
@given(conversations, st.booleans())
def test_an_image_takes_its_tokens_once_and_text_cannot_forge_special_ones(turns, with_image):
    encoded = template().conversation(TOKENIZER, turns, with_image=with_image)
    shown = with_image and any(turn.role == "user" for turn in turns)
    assert encoded.ids.count(SPECIAL[IMAGE_PAD]) == IMAGE_TOKENS * shown
    assert encoded.ids.count(SPECIAL[TURN_START]) == encoded.ids.count(SPECIAL[TURN_END]) == len(turns)


def test_one_turn_said_twice_shows_one_image():
    question, answer = Turn(role="user", text="what?"), Turn(role="assistant", text="red")
    encoded = template().conversation(TOKENIZER, [question, answer, question], with_image=True)
    assert encoded.ids.count(SPECIAL[IMAGE_PAD]) == IMAGE_TOKENS


@pytest.mark.parametrize("with_image", [True, False])
def test_training_continues_exactly_what_inference_shows(with_image):
    question, answer = Turn(role="user", text="what?"), Turn(role="assistant", text="red")
    trained = template().conversation(TOKENIZER, [question, answer], with_image=with_image)
    prompt = template().chat(TOKENIZER, [question], with_image=with_image)
    assert list(trained.ids[: len(prompt)]) == prompt
    assert set(trained.labels[: len(prompt)]) == {IGNORE}
    assert trained.labels[len(prompt)] == trained.ids[len(prompt)]


def test_a_form_asks_without_answers_and_supervises_each_answer_at_its_question():
    pairs = [("color?", "red"), ("how many?", "one"), ("?", "a circle")]
    form = template().form(TOKENIZER, "a red circle", pairs)
    drawn = template().generation_request(TOKENIZER, "a red circle")
    asked = [TOKENIZER.encode(question) for question, _ in pairs]
    assert list(form.ids) == [*drawn, *chain(*asked), SPECIAL[TURN_END]]
    # A causal model's state at a position is judged by the label of the next one.
    ends = [len(drawn) + sum(map(len, asked[: n + 1])) - 1 for n in range(len(pairs))]
    supervised = {position - 1: label for position, label in enumerate(form.labels) if label != IGNORE}
    assert supervised == {end: TOKENIZER.encode(answer)[0] for end, (_, answer) in zip(ends, pairs, strict=True)}
