"""Bytes of a text file into text: UTF-8, or what a byte order mark says."""

import codecs

_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def as_utf8(data: bytes) -> bytes:
    """Text with a mark of UTF-16 or UTF-32 as UTF-8, where that can be; anything else as it is."""
    coding = "utf-32" if data.startswith(_UTF32) else "utf-16" if data.startswith(_UTF16) else ""
    try:
        return data.decode(coding).encode() if coding else data
    except UnicodeDecodeError:  # the bytes are no text in UTF-8 either, and whoever decodes them says so
        return data


def decoded(data: bytes) -> str:
    """The text of a table, without its mark. Raises `ValueError` that says which byte is not UTF-8, and what to do."""
    data = as_utf8(data)
    if b"\0" in data[:64]:
        raise ValueError("it holds NUL bytes, as UTF-16 without its byte order mark does: save the table as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
        found, line = f"0x{error.object[at]:02x}", data.count(b"\n", 0, at) + 1
        raise ValueError(
            f"byte {at} (line {line}) is {found}, which is not UTF-8: save the table as UTF-8, or convert it, e.g. "
            "with iconv -f LATIN1 -t UTF-8"
        ) from error
