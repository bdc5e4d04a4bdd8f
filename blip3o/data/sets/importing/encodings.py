"""Bytes of a text file into text: UTF-8, or what a byte order mark says."""

import codecs

_UTF32 = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)
NUL_BYTES = "holds NUL bytes, as UTF-16 without its byte order mark does"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def as_utf8(data: bytes) -> bytes:
    """Text with a mark of UTF-16 or UTF-32 as UTF-8, where that can be; anything else as it is."""
    try:
        return data.decode(coding).encode() if (coding := _marked(data)) else data
    except UnicodeDecodeError:  # not UTF-8 text either; whoever decodes the bytes reports it
        return data


def decoded(data: bytes) -> str:
    """The text of a table, without its byte order mark. Raises `ValueError` with the wrong byte and the fix."""
    coding = _marked(data) or "utf-8-sig"
    if coding == "utf-8-sig" and b"\0" in data[:64]:
        raise ValueError(f"it {NUL_BYTES}: save the table as UTF-8")
    try:
        return data.decode(coding)
    except UnicodeDecodeError as error:
        at, name = error.start, coding.removesuffix("-sig").upper()
        line = f" (line {data[:at].count(10) + 1})" if name == "UTF-8" else ""
        raise ValueError(
            f"byte {at}{line} is 0x{data[at]:02x}, which is not {name}: save the table as UTF-8, or convert it, e.g. "
            "with iconv -f LATIN1 -t UTF-8"
        ) from error


def _marked(data: bytes) -> str:
    """The encoding that a byte order mark of UTF-16 or UTF-32 names; empty without one."""
    return "utf-32" if data.startswith(_UTF32) else "utf-16" if data.startswith(_UTF16) else ""
