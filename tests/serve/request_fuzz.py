"""Requests that no client should send: valid ones, mutated at every level, against a server. Importable, with a budget.

`fuzz(port, seed=…, requests=…)` or `seconds=…`. The same seed sends the same requests. It raises `AssertionError`, with
the request, at the first answer that is a 500, that is no error in OpenAI's form, or that names a place which the
request does not have.
"""

import base64
import gzip
import http.client
import io
import json
import random
import struct
import time
import zlib
from dataclasses import dataclass, field

from PIL import Image

from serve.http.forms import fields

CHAT, IMAGES = "/v1/chat/completions", "/v1/images/generations"
RESPONSES, EDITS = "/v1/responses", "/v1/images/edits"
PATHS = (
    *(CHAT, IMAGES, RESPONSES, EDITS, "/v1/images/variations", CHAT + "/"),
    *("/v1/models", "/v1/models/", "/v1/models/nano", "/v1/models/%ff%00"),
    *("/health", "/ready", "/metrics", "/docs", "/openapi.json", "/"),
    *("/v1/images/x/content", "/v1/images/%2e%2e%2fx/content?expires=%ff&signature=%00"),
)
ELSEWHERE = (
    "/v1",
    "/v1/nothing",
    "/chat/completions",
    "//v1/models",
    "/%2e%2e/etc",
    "/?" + "a" * 900,
)
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "PROPFIND")
HEADERS = (
    {},
    {"content-type": "application/x-www-form-urlencoded"},
    {"content-type": "multipart/form-data; boundary=x"},
    {"content-type": "application/json; charset=utf-8"},
    {"content-type": "application/vnd.api+json"},
    {"content-type": "APPLICATION/JSON;;"},
    {"content-type": "\xff\xfe"},
    {"content-type": "application/json", "content-encoding": "gzip"},
    {"content-type": "application/json", "content-encoding": "identity"},
    {
        "content-type": "application/json",
        "accept": "text/html",
        "accept-encoding": "br",
        "authorization": "Bearer \xe9",
    },
)
STRINGS = ("", " ", "x", "auto", "\ud800", "a\udcffb", "\0", "\x1b[31m", "\u202e", "{x}", "%s", "é" * 50, "x" * 40_000)
PARTS = (
    *(
        "image[]",
        "mask",
        "prompt",
        '"stream"',
        '"a\u202e"',
        '"\\""',
        "",
        '"',
        '"x"; filename="a/../b"',
        "é",
        "a; name=b",
    ),
    *("x\r\nContent-Type: multipart/mixed; boundary=b", "x; name*=utf-8''%ff; name*0=a", "x\r\nContent-Length: 9"),
)
URLS = (
    "",
    "data:",
    "data:,",
    "data:;base64,=",
    "http://127.0.0.1:1/x.png",
    "file:///etc/passwd",
    "javascript:0",
    "iVBORw0KGgo=",
)
NUMBERS = (0, 1, -1, 2, 0.5, 1.0, -0.0, 1e300, 2**31, 2**53, 2**64, -(2**63), 10**400)
RAW = (
    b"",
    b" ",
    b"{",
    b"[]",
    b"null",
    b"3",
    b'"x"',
    b"\xef\xbb\xbf{}",
    b"\xff\xfe",
    b"\x00",
    b'{"n": NaN}',
    b'{"n":1e999}',
)
HUGE = (b"[" * 100_000, b'{"a":' * 50_000, b'{"n":' + b"9" * 5000 + b"}", b'{"n":1,"n":2}', b'{"prompt":"\\ud800"}')


def encoded(file_format, *, size=(9, 7), mode="RGB", **options):
    buffer = io.BytesIO()
    Image.linear_gradient("L").convert(mode).resize(size).save(buffer, format=file_format, **options)
    return buffer.getvalue()


def chunk(name, data):
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def with_chunks(*chunks):
    """A PNG with more chunks after its head."""
    return WHOLE[0][:33] + b"".join(chunks) + WHOLE[0][33:]


WHOLE = tuple(encoded(name) for name in ("png", "jpeg", "webp"))
BOMB = zlib.compress(b"\0" * 20_000_000, 9)
FRAMES = [Image.new("RGB", (9, 7), color) for color in ("red", "blue")]
# Whole, truncated, of other formats, of none; one whose header claims 65,535 times the allowed pixels; texts, profiles
# and pixels that unpack to far more; animations; other colour spaces and depths; strips.
PICTURES = (
    *WHOLE,
    *(data[: len(data) // 2] for data in WHOLE),
    *(data + b"\0" * 9 for data in WHOLE),
    *(encoded(name) for name in ("gif", "bmp", "tiff")),
    WHOLE[0][:16] + b"\xff\xff\xff\xff" * 2 + WHOLE[0][24:],
    b"",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"%PDF-1.7",
    gzip.compress(WHOLE[0]),
    *(
        with_chunks(chunk(name, b"a\0" + gap + BOMB))
        for name, gap in ((b"zTXt", b"\0"), (b"iCCP", b"\0"), (b"iTXt", b"\1\0\0\0"))
    ),
    with_chunks(*[chunk(b"tEXt", b"a\0b")] * 500),
    with_chunks(chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\3\xff\xff\xff\xff\0\0\0\0" * 99)),
    WHOLE[0][:33] + chunk(b"IDAT", BOMB) + chunk(b"IEND", b""),
    WHOLE[0][:33] + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""),
    *(encoded(name, save_all=True, append_images=FRAMES) for name in ("png", "webp")),
    *(encoded("png", mode=mode) for mode in ("1", "L", "LA", "P", "RGBA", "I;16")),
    *(encoded("jpeg", mode=mode, progressive=True) for mode in ("L", "CMYK", "YCbCr")),
    *(encoded("png", size=size) for size in ((3000, 1), (1, 3000))),
)


@dataclass
class Sent:
    """One request."""

    method: str
    path: str
    body: bytes
    headers: dict = field(default_factory=lambda: {"content-type": "application/json"})


class Requests:
    """An endless row of requests, a function of the seed."""

    def __init__(self, seed, pictures=PICTURES):
        self.random = random.Random(f"requests {seed}")
        self.pictures = pictures

    def __iter__(self):
        return self

    def __next__(self):
        draw = self.random
        if draw.random() < 0.15:
            return Sent(draw.choice(METHODS), draw.choice(PATHS + ELSEWHERE), draw.choice(RAW), draw.choice(HEADERS))
        if draw.random() < 0.1:
            return self.form()
        path, body = self.valid()
        for _ in range(draw.choice((0, 0, 1, 1, 1, 2, 4))):
            body = self.mutated(body)
        sent = Sent("POST", path, json.dumps(body).encode())
        if draw.random() < 0.2:
            sent.body = self.broken(sent.body)
        if draw.random() < 0.1:
            sent.headers = draw.choice(HEADERS)
        return sent

    def valid(self):
        kind = self.random.random()
        if kind < 0.3:
            return IMAGES, {"prompt": "a red circle", "n": 1, "size": "auto", "num_inference_steps": 1, "seed": 1}
        if kind < 0.5:
            return RESPONSES, self.response()
        parts = [{"type": "text", "text": "what?"}]
        if self.random.random() < 0.7:
            parts.append({"type": "image_url", "image_url": {"url": self.url(), "detail": "auto"}})
        talk = [
            {"role": "system", "content": "Answer."},
            {"role": "user", "content": parts},
            {"role": "assistant", "content": None, "refusal": None},
            {"role": "user", "content": "what colour?", "name": "x"},
        ]
        return CHAT, {"model": "nano", "messages": talk[: self.random.choice((2, 4))], "max_tokens": 2}

    def form(self):
        """An edit, with a part or a byte that should not be there."""
        draw = self.random
        parts = [("prompt", b"x"), ("image", draw.choice(self.pictures)), ("n", b"2"), ("seed", b"1")]
        parts += [(draw.choice(PARTS), draw.choice(RAW)) for _ in range(draw.choice((0, 1, 1, 2, 99)))]
        head = "--b\r\nContent-Disposition: form-data; name={}\r\n\r\n"
        pieces = [head.format(name).encode() + data + b"\r\n" for name, data in parts if draw.random() < 0.9]
        body = bytearray(b"".join(pieces) + b"--b--\r\n")
        for _ in range(draw.choice((0, 0, 1, 3))):
            body[draw.randrange(len(body))] = draw.randrange(256)
        boundary = draw.choice(("b", "b", "b", "b", '"b"', "c", "b; boundary=c", "b; boundary*0=c", "", "\xff"))
        return Sent("POST", EDITS, bytes(body), {"content-type": f"multipart/form-data; boundary={boundary}"})

    def response(self):
        parts = [{"type": "input_text", "text": "what?"}]
        if self.random.random() < 0.5:
            parts.append({"type": "input_image", "image_url": self.url(), "detail": "auto"})
        items = [{"role": "user", "content": parts}, {"type": "reasoning"}]
        tools = [{"type": "image_generation", "num_inference_steps": 1}] if self.random.random() < 0.2 else []
        return {"input": items, "max_output_tokens": 2, "tools": tools, "stream": self.random.random() < 0.3}

    def url(self):
        data = bytearray(self.random.choice(self.pictures))
        for _ in range(self.random.choice((0, 0, 1, 4)) if data else 0):
            data[self.random.randrange(len(data))] = self.random.randrange(256)
        text = base64.b64encode(bytes(data)).decode()
        if self.random.random() < 0.3:
            place = self.random.randrange(len(text) + 1)
            text = (
                text[:place] + self.random.choice(("\n", " ", "=", "%0A", "%", "@", "é", "\ud800", "")) + text[place:]
            )
        head = self.random.choice(("data:image/png;base64,", "DATA:;BASE64,", "data:image/jpg;charset=utf-8;base64,"))
        return head + text

    def value(self, depth=0):
        draw = self.random
        kind = draw.randrange(8)
        if kind < 2 or depth > 3:
            return draw.choice((None, True, False, *NUMBERS))
        if kind < 4:
            return draw.choice(STRINGS + URLS)
        if kind == 4:
            return [self.value(depth + 1) for _ in range(draw.randrange(3))]
        if kind == 5:
            return {self.name(): self.value(depth + 1) for _ in range(draw.randrange(3))}
        rule = draw.choice([rule for table in fields.TABLES.values() for rule in table.values()])
        return draw.choice(rule.values) if isinstance(rule, fields.Neutral) else draw.choice(STRINGS)

    def name(self):
        known = [name for table in fields.TABLES.values() for name in table]
        return self.random.choice(
            (*known, "role", "content", "type", "url", "image_url", "stream", "n", "a.b", "", "\ud800")
        )

    def mutated(self, value):
        """The same with one change somewhere."""
        draw = self.random
        if isinstance(value, dict) and value and draw.random() < 0.9:
            key = draw.choice(list(value))
            what = draw.randrange(5)
            if what == 0:
                return {name: value[name] for name in value if name != key}
            if what == 1:
                return value | {self.name(): self.value()}
            return value | {key: self.mutated(value[key])}
        if isinstance(value, list) and value and draw.random() < 0.9:
            place = draw.randrange(len(value))
            what = draw.randrange(5)
            new = [] if what == 0 else [value[place]] * 2 if what == 1 else [self.mutated(value[place])]
            return [*value[:place], *new, *value[place + 1 :]]
        return draw.choice((self.value(), [value], {self.name(): value}, str(value)))

    def broken(self, data):
        draw = self.random
        place = draw.randrange(len(data))
        return draw.choice(
            (
                data[:place],
                data[:place] + bytes([draw.randrange(256)]) + data[place + 1 :],
                b"\xef\xbb\xbf" + data,
                data.decode().encode("utf-16"),
                data + b" x",
                gzip.compress(data),
                draw.choice(RAW + HUGE),
            )
        )


def has_place(value, place, *, missing):
    """Whether a JSON value has a dotted path; with `missing`, its last part is what is not there."""
    parts = place.split(".")
    for count in range(len(parts), 0, -1):  # a name may hold dots
        name, rest = ".".join(parts[:count]), ".".join(parts[count:])
        if isinstance(value, list) and name.isdigit() and int(name) < len(value):
            if not rest or has_place(value[int(name)], rest, missing=missing):
                return True
        if isinstance(value, dict) and name in value:
            if not rest or has_place(value[name], rest, missing=missing):
                return True
    return missing and isinstance(value, dict) and "." not in place and place not in value


def check(sent, status, headers, body):
    """Raises `AssertionError` if the answer is not one that any request may get."""
    about = f"{sent!r:.3000}\n-> {status} {body!r:.600}"
    assert status < 500, about
    assert headers.get("x-request-id", "").startswith("req_"), about
    assert b"Traceback" not in body, about
    if status < 400 or sent.method == "HEAD":
        return
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}, about
    assert error["message"] and "\n" not in error["message"] and len(error["message"]) < 1000, about
    if error["param"] is not None and sent.method == "POST" and sent.path != EDITS:
        missing = error["code"] == "missing_required_parameter"
        assert has_place(json.loads(sent.body), error["param"], missing=missing), about


def fuzz(port, *, seed=0, requests=None, seconds=None, pictures=PICTURES):
    """Sends requests up to a number or a duration; returns the number of answers by status."""
    counts = {}
    end = None if seconds is None else time.monotonic() + seconds
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    for number, sent in enumerate(Requests(seed, pictures)):
        if number == requests or (end is not None and time.monotonic() > end):
            break
        connection.request(sent.method, sent.path, sent.body, sent.headers)
        reply = connection.getresponse()
        check(sent, reply.status, reply.headers, reply.read())
        counts[reply.status] = counts.get(reply.status, 0) + 1
    connection.close()
    return counts
