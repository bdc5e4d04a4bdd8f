"""Rows of a text table whose values a character delimits, as spreadsheets, databases and data frames write them.

The delimiter is the one under which the first line names an image column; a line `sep=;` before it (Excel) decides.
Quotes are `"`, doubled within a text. Spaces after delimiters and quotes in a file delimited by tabs are read as the
file means them where reading them as they stand fails.
"""

import csv
import functools
import io
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from blip3o.data.sets.importing.columns import TableOptions

DELIMITERS = (",", ";", "\t", "|")
_SEP_LINE = re.compile(r'"?sep=(.)"?[ \t]*(?:\r\n|\r|\n|$)', re.IGNORECASE)
# As JSON writes numbers, within 18 digits: names like 007 stay texts.
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]{1,18})?")
_HEADER_CHARS = 2**16
_PICTURE_NAME = re.compile(r".+\.(jpe?g|png|webp|tiff?|bmp|gif|avif|heic)", re.IGNORECASE)
_SPACED_QUOTES = re.compile(r' +"[^"]*"')
# Under this key are values beyond the last column.
SURPLUS = None


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How values are separated: their delimiter, whether spaces after it are skipped, and whether quotes count."""

    delimiter: str
    spaces: bool = False
    quoted: bool = True

    def rows(self, text: str) -> Iterator[list[str]]:
        """The rows of a text, empty ones left out. Raises `csv.Error` for quotes that do not match."""
        lines = io.StringIO(text, newline="")
        reader = csv.reader(
            lines,
            delimiter=self.delimiter,
            skipinitialspace=self.spaces,
            quoting=csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE,
            strict=True,
        )
        yield from (row for row in reader if row)

    def __str__(self) -> str:
        return "tab" if self.delimiter == "\t" else f"'{self.delimiter}'"


def csv_rows(text: str, options: TableOptions) -> tuple[list[dict[Any, Any]], str]:
    """The rows of a table by column, and in words which columns were found.

    A number in a column of no text becomes one, so that selections can compare it. Raises `ValueError` if quotes do not
    match, no column can hold the picture, or a name is given twice.
    """
    text, dialect = _sniffed(text.lstrip("\r\n"), options)
    header, *rows = _parsed(text, dialect, options) or [[]]
    names = _names([_trimmed(name, options) for name in header])
    found = f"{', '.join(map(repr, names[:12]))}, delimited by {dialect}"
    if not any(map(options.is_image, names)):
        raise ValueError(_no_image_column(found, header, options))
    words = [options.is_word(name) for name in names]
    return [_row(names, words, row) for row in rows], found


def _sniffed(text: str, options: TableOptions) -> tuple[str, Dialect]:
    """The text without its `sep=` line, and its dialect."""
    delimiter = options.delimiter
    if stated := _SEP_LINE.match(text):
        text, delimiter = text[stated.end() :], delimiter or stated[1]
    if delimiter and (len(delimiter) > 1 or delimiter in '"\r\n'):
        raise ValueError(f"delimiter {delimiter!r}: give one character that is no quote and no end of a line")
    candidates = [Dialect(delimiter=one) for one in ([delimiter] if delimiter else DELIMITERS)]
    headers = [[name.strip() for name in _first(text, one)] for one in candidates]
    best = next((number for number, names in enumerate(headers) if any(map(options.is_image, names))), None)
    if best is None:
        best = max(range(len(headers)), key=lambda number: len(headers[number]))
    return text, candidates[best]


def _first(text: str, dialect: Dialect) -> list[str]:
    try:
        return next(dialect.rows(text[:_HEADER_CHARS]), [])
    except csv.Error:  # reported once the dialect is chosen
        return []


def _trimmed(name: str, options: TableOptions) -> str:
    """A name without spaces around it where it is one that we look for; others are the user's own."""
    bare = name.strip().strip("\ufeff")
    return bare if options.is_image(bare) or options.is_word(bare) else name


def _parsed(text: str, dialect: Dialect, options: TableOptions) -> list[list[str]]:
    """All rows with the header, by the first way of reading that suits all of them."""
    found: list[list[str]] | None = None
    faults = []
    for way in _ways(text, dialect, options):
        try:
            rows = _all_rows(text, way)
        except ValueError as error:
            faults.append(error)
            continue
        if all(map(functools.partial(_suits, way, len(rows[0]) if rows else 0), rows)):
            return rows
        if way.quoted:
            found = found or rows
    if found is None:
        raise faults[0]
    return found


def _suits(way: Dialect, columns: int, row: Sequence[str]) -> bool:
    """Whether a row has no more values than columns, and no quotes that stand for themselves after a space."""
    return len(row) <= columns and (way.spaces or not any(map(_SPACED_QUOTES.fullmatch, row)))


def _ways(text: str, dialect: Dialect, options: TableOptions) -> Iterator[Dialect]:
    """How a text can be read: as it is, with spaces after delimiters skipped, without quotes."""
    header = _first(text, dialect)
    spaced = any(name.startswith(" ") and _trimmed(name, options) != name for name in header)
    if not spaced:
        yield dialect
    if dialect.delimiter != " " and (spaced or re.search(f'{re.escape(dialect.delimiter)} +"', text)):
        yield replace(dialect, spaces=True)
    if dialect.delimiter == "\t":
        yield replace(dialect, quoted=False)


def _all_rows(text: str, dialect: Dialect) -> list[list[str]]:
    rows: list[list[str]] = []
    limit = csv.field_size_limit(sys.maxsize)  # too long a caption costs its row, and no other
    try:
        rows.extend(dialect.rows(text))
    except csv.Error as error:
        fix = 'close each quote, and write a quote within a text as ""'
        raise ValueError(f"{f'row {len(rows)}' if rows else 'first line'}: {error}: {fix}") from error
    finally:
        csv.field_size_limit(limit)
    return rows


def _names(header: Sequence[str]) -> list[str]:
    """The names of the columns, each once; of several without one, all but the first are called by their number."""
    names: list[str] = []
    for number, name in enumerate(header, start=1):
        names.append(name or (f"column {number}" if "" in names else ""))
    require_unique(names)
    return names


def require_unique(names: Sequence[str]) -> None:
    """Raises `ValueError` if two columns of a table have one name."""
    if twice := next((name for name, count in Counter(names).items() if count > 1), None):
        raise ValueError(f"{names.count(twice)} columns are named '{twice}': rename or remove one")


def _no_image_column(found: str, header: Sequence[str], options: TableOptions) -> str:
    if any(map(_PICTURE_NAME.fullmatch, header)):
        return f"its first line has no names of columns but {found}: put a line such as image,caption before it"
    return f"no column names an image: found {found}; {options.expected}"


def _row(names: Sequence[str], words: Sequence[bool], values: Sequence[str]) -> dict[Any, Any]:
    row: dict[Any, Any] = dict.fromkeys(names)
    for name, is_word, value in zip(names, words, values, strict=False):
        row[name] = value if is_word else _number(value)
    if any(values[len(names) :]):
        row[SURPLUS] = list(values[len(names) :])
    return row


def _number(value: str) -> object:
    return json.loads(value) if _NUMBER.fullmatch(value) else value
