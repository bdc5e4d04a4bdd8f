"""Inputs as people bring them, and damaged ones: each a function of a `random.Random`, and of nothing else."""

import base64
import copy
import csv
import gzip
import io
import json
import os
import random
import struct
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

KINDS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF"}
MODES = ("RGB", "L", "RGBA", "P", "LA", "1", "I;16", "CMYK")
WORDS = ("a red circle", "zwei Häuser", "猫", "", " ", "x" * 9000, "a\nb", "<image>", "[IMG]", "\ufeffmarked", "nul\0")
NAMES = ("cat", "cat.1", "a b", "ü", ".hidden", "__MACOSX/x", "deep/er/cat", "IMG_0001", "%20", "[1]", "{0..1}", "-n")
SIDECARS = ("txt", "json", "caption", "TXT", "jpg.txt", "bak")
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# What a field of a table or of a request may hold where something else is expected.
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, 1e400, 10**30),
    *("", "x", "\ud800", [], {}, [[]], ["x", 1], {"a": None}),
)


def odd(rng: random.Random) -> Any:
    """One of `ODD_VALUES`, not shared with earlier ones."""
    return copy.deepcopy(rng.choice(ODD_VALUES))


def picture(rng: random.Random) -> tuple[str, bytes]:
    """An extension and an encoded picture, whole or damaged, its EXIF sound or not."""
    ext = rng.choice(list(KINDS))
    size = rng.choice([(1, 1), (32, 16), (7, 90), (64, 64)])
    image = Image.frombytes("RGB", size, rng.randbytes(size[0] * size[1] * 3)).convert("L").convert("RGB")
    mode = rng.choice(MODES)
    try:
        image = image.convert(mode)
        options: dict[str, Any] = {"exif": exif(rng)} if ext in ("jpg", "png", "webp") and rng.random() < 0.5 else {}
        sink = io.BytesIO()
        image.save(sink, KINDS[ext], **options)
    except (ValueError, OSError, KeyError):  # this format does not store this mode
        sink = io.BytesIO()
        image.convert("RGB").save(sink, KINDS[ext])
    data = sink.getvalue()
    return ext, data if rng.random() < 0.5 else damaged(rng, data)


def exif(rng: random.Random) -> bytes:
    """An EXIF block that turns the picture, with further tags of any type and value."""
    order = rng.choice("<>")
    entries = struct.pack(f"{order}HHII", 0x0112, 3, 1, 6 if order == "<" else 6 << 16)
    others = rng.randint(0, 4)
    for _ in range(others):
        tag = rng.choice([0x0112, 0x010E, 0x011A, 0x0128, 0x8769, 0x8825, 0x013B, rng.randrange(2**16)])
        value = struct.pack(f"{order}I", rng.choice([1, 6, 6 << 16, rng.randrange(2**32)]))
        entries += struct.pack(f"{order}HHI", tag, rng.randint(0, 14), rng.choice([0, 1, 2, 2**31])) + value
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    following = struct.pack(f"{order}I", rng.choice([0, 8]))
    return b"Exif\0\0" + head + struct.pack(f"{order}H", 1 + others) + entries + following


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Some bytes flipped, removed at the end, doubled, zeroed or inserted."""
    if not data:
        return data
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, size = rng.randrange(len(mutant) + 1), rng.randint(1, 40)
        match rng.randrange(5):
            case 0 if place < len(mutant):
                mutant[place] ^= 1 << rng.randrange(8)
            case 1:
                del mutant[place:]
            case 2:
                mutant[place:place] = mutant[place : place + size]
            case 3:
                mutant[place : place + size] = bytes(len(mutant[place : place + size]))
            case _:
                mutant[place:place] = rng.randbytes(size)
    return bytes(mutant)


def text(rng: random.Random) -> bytes:
    """The bytes of a caption or of a record."""
    if rng.random() < 0.3:
        return json.dumps(record(rng)).encode()
    encoding = rng.choice(["utf-8", "utf-8", "utf-16", "latin-1"])
    data = rng.choice(WORDS).encode(encoding, "replace")
    return data if rng.random() < 0.8 else damaged(rng, data or b"x")


def record(rng: random.Random) -> Any:
    """A JSON value that may stand for a sample's record."""
    names = ("caption", "captions", "text", "conversations", "messages", "qa", "Task1", "split", "source")
    turns = [
        {rng.choice(["from", "role"]): rng.choice(["human", "gpt", "user", "assistant", "system", 3]),
         rng.choice(["value", "content"]): rng.choice([*WORDS, *ODD_VALUES])}
        for _ in range(rng.randint(0, 4))
    ]  # fmt: skip
    values = (*WORDS, *ODD_VALUES, turns)
    made = {rng.choice(names): rng.choice(values) for _ in range(rng.randint(0, 4))}
    return made if rng.random() < 0.9 else odd(rng)


def fill_folder(rng: random.Random, folder: Path) -> None:
    """Pictures and texts under names of all kinds, links to somewhere and to nowhere."""
    for _ in range(rng.randint(0, 6)):
        stem = rng.choice(NAMES)
        ext, data = picture(rng)
        _write(folder / f"{stem}.{rng.choice([ext, ext.upper(), 'jpg', 'heic', 'jfif'])}", data)
        if rng.random() < 0.8:
            _write(folder / f"{stem}.{rng.choice(SIDECARS)}", text(rng))
    if rng.random() < 0.3:
        _link(folder / "loop", "..")
        _link(folder / "gone.jpg", "no/such/file.jpg")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_dir():
        path.write_bytes(data)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.path.lexists(path):
        path.symlink_to(target)


def write_table(rng: random.Random, folder: Path) -> Path:
    """A table of pictures that lie in `folder`, in one of many spellings, whole or damaged; its path."""
    for number in range(2):
        ext, data = picture(rng)
        _write(folder / f"{number}.{ext}", data)
    paths = [*(path.name for path in folder.iterdir()), "./0.jpg", "a/../0.png", "/etc", "", "http://127.0.0.1/x.jpg"]
    columns = rng.sample(["image", "Image", "caption", "text", "file_name", "score", "conversations", "caption "], 3)
    choices = {name: paths if "im" in name.lower() or "file" in name else [*WORDS, *ODD_VALUES] for name in columns}
    rows = [{name: rng.choice(choices[name]) for name in columns} for _ in range(rng.randint(0, 4))]
    ending = rng.choice(["csv", "tsv", "jsonl", "json", "CSV", "txt", "ndjson"])
    data = _rows_as(rng, rows, columns, ending.lower())
    table = folder / f"table.{ending}"
    table.write_bytes(damaged(rng, data) if rng.random() < 0.3 and data else data)
    return table


def _rows_as(rng: random.Random, rows: list[dict], columns: list[str], ending: str) -> bytes:
    if ending in ("jsonl", "ndjson"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    if ending == "json":
        whole = rng.choice([rows, {"data": rows}, rows[0] if rows else 3])
        return json.dumps(whole, indent=rng.choice([None, 1])).encode()
    sink = io.StringIO(newline="")
    delimiter = "\t" if ending == "tsv" else rng.choice(",;\t|")
    writer = csv.DictWriter(sink, columns, delimiter=delimiter, lineterminator=rng.choice(["\n", "\r\n"]))
    writer.writeheader()
    writer.writerows(rows)
    return sink.getvalue().encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]), "replace")


def tar(rng: random.Random) -> bytes:
    """An archive of samples and of what else lies in archives, whole or damaged."""
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=rng.choice([0, 1, 2])) as archive:
        for _ in range(rng.randint(0, 5)):
            stem, (ext, data) = rng.choice(NAMES), picture(rng)
            for name, content in ((f"{stem}.{ext}", data), (f"{stem}.{rng.choice(SIDECARS)}", text(rng))):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                if rng.random() < 0.15:
                    member.type = rng.choice([tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
                    member.linkname, member.size = rng.choice(NAMES) + ".jpg", 0
                archive.addfile(member, io.BytesIO(content))
    data = sink.getvalue()
    if rng.random() < 0.1:
        return rng.choice([gzip.compress(data), b"<!DOCTYPE html>", b"", LFS_POINTER])
    return data if rng.random() < 0.5 else damaged(rng, data)


def parquet(rng: random.Random) -> bytes:
    """A Parquet file of pictures in one of many types, whole or damaged."""
    pictures = [picture(rng)[1] for _ in range(rng.randint(0, 3))]
    wrapped: list[Any] = rng.choice([
        pictures,
        [{"bytes": data, "path": "x"} for data in pictures],
        [[data] for data in pictures],
        [base64.b64encode(data).decode() for data in pictures],
    ])  # fmt: skip
    captions = [rng.choice([*WORDS, None]) for _ in pictures]
    texts: list[Any] = rng.choice([captions, [[words] for words in captions], list(range(len(pictures)))])
    table = pa.table({rng.choice(["image", "jpg", "Image"]): wrapped, rng.choice(["caption", "text", "TEXT"]): texts})
    output = io.BytesIO()
    pq.write_table(table, output, row_group_size=2)
    return output.getvalue() if rng.random() < 0.5 else damaged(rng, output.getvalue())


CHAT = {
    "model": "nano",
    "messages": [{"role": "user", "content": [{"type": "text", "text": "what is it?"}]}],
    "max_tokens": 2,
    "temperature": 1.0,
    "stream": False,
}
DRAW = {"model": "nano", "prompt": "a red circle", "n": 1, "num_inference_steps": 1, "size": "auto", "seed": 1}
ROUTES = ("/v1/chat/completions", "/v1/images/generations", "/v1/models", "/v1/models/nano", "/health", "/", "/nothing")


def request(rng: random.Random) -> tuple[str, str, dict[str, str], bytes]:
    """Method, path, headers and body of a request, most of them almost right."""
    path = rng.choice(ROUTES[:2] if rng.random() < 0.8 else ROUTES)
    body: dict[str, Any] = json.loads(json.dumps(DRAW if "images" in path else CHAT))
    if "chat" in path and rng.random() < 0.6:
        body["messages"][0]["content"].append({"type": "image_url", "image_url": {"url": data_url(rng)}})
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        _mutate(rng, body)
    data = json.dumps(body, allow_nan=True).encode()
    if rng.random() < 0.15:
        data = damaged(rng, data)
    kinds = [*3 * ["application/json"], "application/json; charset=utf-8", "text/plain", "multipart/form-data"]
    method = rng.choice(["POST", "POST", "POST", "POST", "GET", "HEAD", "PUT", "OPTIONS"])
    return method, path, {"content-type": rng.choice(kinds)}, b"" if method in ("GET", "HEAD") else data


def data_url(rng: random.Random) -> str:
    """A picture as the URL that clients send, spelled in one of several ways."""
    ext, data = picture(rng)
    encode = rng.choice([base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
    payload = encode(data).decode().rstrip("=" if rng.random() < 0.2 else "")
    spelled = ["data:;base64", "DATA:image/png;charset=utf-8;BASE64", "data:", "http://x"]
    head = rng.choice([f"data:image/{ext};base64", *spelled])
    return f"{head},{payload}"


def _mutate(rng: random.Random, value: Any) -> None:
    """Changes one field somewhere below an object or list, or adds one."""
    while True:
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys or rng.random() < 0.1:
            if isinstance(value, dict):
                value[rng.choice(["stop", "tools", "logprobs", "x", "n", "style"])] = odd(rng)
            return
        key = rng.choice(keys)
        if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.7:
            value = value[key]
            continue
        value[key] = odd(rng)
        return
