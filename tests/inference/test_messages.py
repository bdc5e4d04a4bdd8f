"""Messages in OpenAI's format are converted to turns and one image, or rejected with the path."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from blip3o.data.text.templates import Turn
from blip3o.errors import RequestError
from blip3o.inference.messages import load_image, parse_messages

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "ein Bild.png"
    PICTURE.save(path)
    return path


def data_url():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def user(*content):
    return {"role": "user", "content": content[0] if len(content) == 1 else list(content)}


def text(words):
    return {"type": "text", "text": words}


def test_a_string_is_a_question():
    assert parse_messages("what?") == ((Turn(role="user", text="what?"),), None)


def test_a_single_message_is_a_conversation():
    assert parse_messages(user("what?")) == parse_messages("what?")


def test_roles_texts_and_order_are_kept():
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [text("Be"), text("kind.")]},
        user("hi"),
        {"role": "assistant", "content": None, "refusal": None},
        {"role": "system", "content": "now"},
        user(text("what"), text("is it?")),
    ]
    turns, image = parse_messages(messages)
    assert image is None
    assert [(turn.role, turn.text) for turn in turns] == [
        ("system", "Be brief.\n\nBe\nkind."), ("user", "hi"), ("assistant", ""), ("system", "now"),
        ("user", "what\nis it?"),
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["picture", "path", "name", "uri", "data", "url of data", "url of a path"])
def test_every_form_of_an_image_is_the_same_pixels(file, form):
    parts = {
        "picture": {"type": "image", "image": PICTURE},
        "path": {"type": "image", "image": file},
        "name": {"type": "image", "image": str(file)},
        "uri": {"type": "image", "image": file.as_uri()},
        "data": {"type": "image", "image": data_url()},
        "url of data": {"type": "image_url", "image_url": {"url": data_url()}},
        "url of a path": {"type": "image_url", "image_url": {"url": str(file)}},
    }
    turns, image = parse_messages([user(parts[form], text("what?"))])
    assert turns == (Turn(role="user", text="what?"),)
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


def test_an_image_may_be_given_next_to_the_question(file):
    turns, image = parse_messages("what?", file)
    assert turns == (Turn(role="user", text="what?"),)
    assert np.array_equal(np.asarray(image), np.asarray(PICTURE))


SHOWN = {"type": "image", "image": PICTURE}


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        (" ", "the question is empty"),
        (7, "messages is of type int: give a string, a message, or a list of messages"),
        (b"what?", "messages is of type bytes: give"),
        ({"role": "user", "text": "x"}, r"messages\[0\] has 'text': a message has role and content"),
        ([], "messages: there is no user message"),
        (["hi"], r"messages\[0\] is of type str: give a dict with role and content"),
        ([user("a") | {"image": 1}], r"messages\[0\] has 'image': a message has role and content"),
        ([{"role": "tool", "content": "x"}], r"messages\[0\]\['role'\] is 'tool': give one of system, developer"),
        ([{"content": "x"}], r"messages\[0\]\['role'\] is 'None'"),
        ([{"role": "user"}], r"messages\[0\]\['content'\] is missing: give a string or a list of parts"),
        ([user("a"), {"role": "assistant", "content": "b"}], r"messages\[1\]\['role'\]: the last message must be"),
        (
            [user([{"type": "audio"}])],
            r"messages\[0\]\['content'\]\[0\] is not a part: give a dict with type text",
        ),
        ([user(["a"])], r"messages\[0\]\['content'\]\[0\] is not a part"),
        (
            [user([{"type": "text", "text": 3}])],
            r"messages\[0\]\['content'\]\[0\]\['text'\] is of type int: give a string",
        ),
        ([user([{"type": "image_url", "image_url": "a.png"}])], r"\['content'\]\[0\]: give \"image_url\": {\"url\""),
        ([user([{"type": "image"}])], r"messages\[0\]\['content'\]\[0\] is missing: give a PIL image or a path"),
        ([user([SHOWN, SHOWN])], r"messages\[0\]\['content'\]\[1\]: this is a second image"),
        ([user("a"), user([SHOWN])], r"messages\[1\]\['content'\]\[0\]: the image must be in the user's first message"),
        (
            [{"role": "system", "content": [SHOWN]}, user("a")],
            r"messages\[0\]\['content'\]\[0\]: an image in a message",
        ),
    ],
)
def test_invalid_messages_are_rejected_with_their_path(messages, said):
    with pytest.raises(RequestError, match=said) as caught:
        parse_messages(messages)
    assert "\n" not in str(caught.value)


def test_an_image_in_addition_to_one_in_the_messages_is_rejected():
    with pytest.raises(RequestError, match="image: the messages hold one already"):
        parse_messages([user([SHOWN])], PICTURE)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere.png", r"image: .*nowhere\.png does not exist"),
        ("", "image: an empty path names no file"),
        (".", r"image: \.: Is a directory"),
        ("https://www.example.com/a.png", "image is 'https://www.example.com/a.png', and nothing is downloaded"),
        ("data:image/png;base64,QUJD", "image: the data URL is not an image that can be read"),
        ("data:image/png;base64", "image has no comma"),
        (__file__, "image: '.*test_messages.py' is not an image that can be read"),
        (np.zeros((2, 2, 3), np.uint8), r"image is of type ndarray: give a PIL image or a path: PIL.Image.fromarray\("),
        (3, "image is of type int"),
    ],
)
def test_files_that_are_not_images_are_rejected(source, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match=said) as caught:
        load_image(source)
    assert "\n" not in str(caught.value)
