"""Forms as browsers and SDKs send them; malformed ones are refused, never half read."""

import random

import pytest

from serve.http.errors import ApiError
from serve.http.forms.bodies import to_form
from serve.http.forms.images import EditsForm
from serve.http.forms.multipart import MAX_PARTS, parse_parts
from tests.serve.client import assert_refusal, raw, serving

EDITS = "/v1/images/edits"


@pytest.fixture(scope="module")
def server(reference):
    with serving(reference) as server:
        yield server


def part(name, value, more=""):
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


def body(*parts):
    return b"".join(parts) + b"--b--\r\n"


def test_bytes_of_files_are_kept_whatever_they_are():
    data = bytes(range(256)) + b"\r\n--c\r\n\r\n --b\r\n-b\r\n"
    parts = parse_parts(body(part("image", data, '; filename="a.png"'), part("prompt", "é x".encode())), b"b")
    assert parts == {"image": [data], "prompt": "é x"}


@pytest.mark.parametrize("name", ["image", "image[]"])
def test_several_images_are_a_list(name):
    assert parse_parts(body(part(name, b"1"), part(name, b"2")), b"b") == {"image": [b"1", b"2"]}


def test_texts_become_the_types_of_json():
    texts = {"n": "2", "seed": "7", "guidance_scale": "2.5", "stream": "true", "quality": "low", "prompt": "3"}
    form = to_form(texts | {"image": [b"x"]}, EditsForm)
    assert (form.n, form.seed, form.guidance_scale, form.stream, form.prompt) == (2, 7, 2.5, True, "3")
    for name, value in {"n": "two", "stream": "yes", "guidance_scale": "nan", "seed": "1.5"}.items():
        with pytest.raises(ApiError) as caught:
            to_form({"prompt": "x", "image": [b"x"], name: value}, EditsForm)
        assert caught.value.param == name


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "last boundary"),
        (part("prompt", b"x"), "last boundary"),
        (body(part("prompt", b"x"))[:-6], "last boundary"),
        (body(b"--b\r\n\r\nx\r\n"), "no head"),
        (body(b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n"), "no name"),
        (body(b'--b\r\nContent-Disposition: attachment; name="x"\r\n\r\nx\r\n'), "no name"),
        *(
            (body(b"--b\r\nContent-Disposition: form-data; " + name + b"\r\n\r\nx\r\n"), "no name")
            for name in (b"name*=utf-8''%ff; name*0=a", b"name*=nocodec''x", b"name*0*=x''%e9; name*=y", b"name=")
        ),
        (body(part("prompt", b"\xff")), "not UTF-8"),
        (body(part("prompt", b"x"), part("prompt", b"y")), "twice"),
        (body(part("mask", b"x"), part("mask", b"y")), "twice"),
        (body(part("x" * 9000, b"x")), "no head"),
        (body(*[part("image", b"x")] * (MAX_PARTS + 1)), "more than 64 parts"),
    ],
)
def test_malformed_forms_are_refused(data, said):
    with pytest.raises(ApiError, match=said) as caught:
        parse_parts(data, b"b")
    assert (caught.value.status, caught.value.code) == (400, "invalid_form")


def test_damaged_forms_are_read_or_refused():
    whole = body(part("image", b"\x89PNG\r\n", '; filename="x"'), part("prompt", b"x"))
    draw = random.Random(0)
    for _ in range(500):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        try:
            parse_parts(bytes(data), b"b")
        except ApiError as error:
            assert error.status == 400


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"content-type": "application/json"}, 400, "unsupported_content_type"),
        ({"content-type": "multipart/form-data"}, 400, "unsupported_content_type"),
        ({"content-type": "multipart/form-data; boundary*=x''b; boundary*0=b"}, 400, "unsupported_content_type"),
        ({"content-type": f"multipart/form-data; boundary={'b' * 71}"}, 400, "invalid_form"),
        ({"content-type": "multipart/form-data; boundary=b", "content-encoding": "gzip"}, 415, None),
    ],
)
def test_headers_of_forms_are_checked(server, headers, status, code):
    assert_refusal(raw("POST", server.url + EDITS, body(part("prompt", b"x")), headers), status, code=code)


@pytest.mark.parametrize(
    ("parts", "code", "param"),
    [
        ((part("prompt", b"x"),), "missing_required_parameter", "image"),
        ((part("image", b"x"),), "missing_required_parameter", "prompt"),
        ((part("image", b"x"), part("prompt", b"x")), "invalid_image", "image"),
        ((part("image", b"x"), part("prompt", b"x"), part("markup", b"x")), "unknown_parameter", "markup"),
    ],
)
def test_faults_of_fields_have_their_names(server, parts, code, param):
    answer = raw("POST", server.url + EDITS, body(*parts), {"content-type": "multipart/form-data; boundary=b"})
    assert_refusal(answer, 400, code=code, param=param)
