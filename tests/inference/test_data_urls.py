"""Every valid form of a data URL decodes to the same bytes; anything else is rejected with one line."""

import base64
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blip3o.errors import RequestError
from blip3o.inference.data_urls import read_data_url

TYPES = ("", "image/png", "image/jpg", "IMAGE/JPEG", "application/octet-stream", "image%2Fpng", "nonsense")
PARAMETERS = ("", ";charset=utf-8", ";name=a.png", ';name="a,b.png"', ";charset=US-ASCII;name=x", ";", "; q=1 ")
SPACES = ("\n", "\r\n", " ", "\t", "\n\n", "\f", "%0A", "%0d%0a", "%20")


@st.composite
def base64_spellings(draw, data):
    """The base64 of `data` as some encoder writes it."""
    text = base64.b64encode(data).decode()
    if draw(st.booleans()):
        text = text.replace("+", "-").replace("/", "_")
    if draw(st.booleans()):
        text = text.rstrip("=")
    escaped = draw(st.sets(st.sampled_from("+/=-_Aaz0")))
    pieces = [f"%{ord(c):02X}" if c in escaped else c for c in text]
    for place in draw(st.lists(st.integers(0, len(pieces)), max_size=4)):
        pieces.insert(place, draw(st.sampled_from(SPACES)))
    return "".join(pieces)


@st.composite
def spellings(draw):
    """(bytes, a data URL of them)."""
    data = draw(st.binary(max_size=60))
    scheme = draw(st.sampled_from(("data:", "DATA:", "Data:")))
    head = scheme + draw(st.sampled_from(TYPES)) + draw(st.sampled_from(PARAMETERS))
    if draw(st.booleans()):
        mark = draw(st.sampled_from((";base64", ";BASE64", "; Base64 ", ";base64;charset=utf-8")))
        url = head + mark + "," + draw(base64_spellings(data))
    else:
        url = head + "," + quote(data, safe=draw(st.sampled_from(("", "/+,;=:", "azAZ"))))
    around = st.sampled_from(("", " ", "\n", "\r\n\t"))
    return data, draw(around) + url + draw(st.sampled_from(("", "#page=1"))) + draw(around)


@given(spellings())
def test_every_legal_spelling_is_the_same_bytes(spelling):
    data, url = spelling
    assert read_data_url(url) == data


@given(st.text(max_size=80) | st.text('data:;base64,=%AZ09+/-_ "#\ud800é', max_size=40).map("data:".__add__))
def test_any_other_text_is_read_or_refused_in_one_line(text):
    try:
        read_data_url(text)
    except RequestError as error:
        assert str(error) and "\n" not in str(error) and len(str(error)) < 200


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ("https://www.example.com/a.png", "is a https: URL, and nothing is fetched"),
        ("file:///etc/passwd", "is a file: URL"),
        ("blob:null/1", "is a blob: URL"),
        ("iVBORw0KGgo=", "is no data URL"),
        ("a.png", "is no data URL"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64%2Caaaa", "has no comma"),
        ("data:;base64,aaaa====", "more than two '='"),
        ("data:;base64,a", "1 characters cannot be complete"),
        ("data:;base64,aa=a", "has '=' at position 2"),
        ("data:;base64,aa@a", "has '@' at position 2"),
        ("data:;base64,aa%ZZ", "has '%' at position 2"),
        ("data:;base64,\\naaa", "has '\\\\' at position 0"),
        ("data:;base64,aaé", "has '\\xc3' at position 2"),
        ("data:,\ud800", "a lone surrogate"),
    ],
)
def test_invalid_data_urls_are_rejected_with_the_reason(url, said):
    with pytest.raises(RequestError) as caught:
        read_data_url(url)
    assert said in str(caught.value)


def test_a_long_text_without_a_comma_takes_no_time():
    with pytest.raises(RequestError, match="has no comma"):
        read_data_url('data:"' + "a" * 5_000_000)
