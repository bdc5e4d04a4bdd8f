"""Parses WISE's grades: from a judge's words, and from the rows of the official evaluators' files. Pure."""

import re
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from blip3o.errors import DataError
from blip3o.evaluate.judges.replies import answer
from blip3o.evaluate.suites.parsing import json_lines, json_value

VOID = (9.9, 999)  # what official evaluators write for a reply that they could not parse
_BOM = b"\xef\xbb\xbf"

# The scale as judges repeat it ("on a scale of 0 to 2", "(0-2)"): removed before grades are looked for.
_SCALE = re.compile(
    r"\(?\b(?:(?:on|using) )?(?:a )?scale (?:of |from |is )?[0-9]+ ?(?:to|-|–|/) ?[0-9]+\)?|"
    r"[(\[] ?[0-9] ?(?:to|or|-|–|,) ?[0-9](?: ?(?:or|,) ?[0-9])? ?[)\]]",
    re.IGNORECASE,
)
_MARKS = r"[\s*_`\"']*"
# "1-2", "1.5", "1 → 0" and "1 or 2" are one piece, "2/2" is a piece with its scale, "1+" is none.
_PIECE = (
    r"(-?[0-9]+(?:\.[0-9]+|[ \t]*(?:[,–~～〜→至到或-]|[-=]>|to|or|and|ou|oder|bis)[ \t]*[0-9]+)*)(?![0-9%A-Za-z+])"
    r"(?:[ \t*_`]*(?:/|out of)[ \t*_`]*([0-9]+(?:\.[0-9]+)?))?"
)
_SCORE = r"(?:\s+(?:score|grade|rating))?"
_REMARK = r"(?:\([^()\n]{0,40}\)|\[[^\[\]\n]{0,40}\]|[0-9] ?(?:/|-|–|to|or) ?[0-9](?=[\s*_`]*[:=：]))?"
# The number directly after "label:", and after "label" without a colon ("Consistency is 2", "Realism 1").
_AFTER_COLON = re.compile(rf"{_SCORE}{_MARKS}{_REMARK}{_MARKS}[:=：|>][\s*_`\"'\[(|]*{_PIECE}", re.IGNORECASE)
_AFTER_LABEL = re.compile(
    rf"{_SCORE}[\s*_`\"'\[(]*(?:(?:is|was|of|gets|[–—→]|- ){_MARKS})?{_PIECE}(?![ \t*_`]*[:=：])", re.IGNORECASE
)
# "2 cats of 3 are there, so 1": a number that merely counts something, and then the grade.
_CONCLUDED = re.compile(
    rf"(?:\b(?:so|thus|hence|therefore)\b|[-=]>|→)(?:(?!\bnot\b|n't)[^0-9\n]){{0,20}}{_PIECE}[ \t*_`\"').]*$",
    re.IGNORECASE | re.MULTILINE,
)
# A grade at the end of an explanation: alone on a line, after "score is", or as the last word after punctuation.
_IN_TEXT = (
    re.compile(rf"^[\s*_`\"'>#]*{_PIECE}[ \t*_`\"'.]*$", re.MULTILINE),
    re.compile(rf"\b(?:score|grade|rating){_MARKS}(?:is|of)?[\s*_`\"':=：]*{_PIECE}", re.IGNORECASE),
    re.compile(rf"(?:[.!?;:—–→(]|(?<![<>≤≥!])=|\s-\s)\s*[*_`\"']*{_PIECE}[ \t*_`\"').\]]*$", re.MULTILINE),
)
_BARE = re.compile(rf"[\s*_`\"'(\[]*{_PIECE}[\s*_`\"').\]]*")
_WHOLE = re.compile(r"([0-9]{1,9})(?:\.0{1,9})?")
_WIDE = {ord(wide): plain for wide, plain in zip("０１２３４５６７８９／（）［］", "0123456789/()[]", strict=True)}
# Numbers in angle brackets, and in LaTeX maths.
_SET_OFF = re.compile(r"<\s*([0-9][^<>\n]{0,10})>|\\[(\[]([^\\\n]{1,20})\\[)\]]|\$([^$\n]{1,20})\$")
_RULE = re.compile(r"[\s|:-]*-[\s|:-]*")  # between a table's header and its rows

Piece = tuple[str, str]  # a number verbatim, and its stated scale ("" where none is stated)


def read_grades(reply: str, grades: Sequence[str], *, highest: int) -> tuple[dict[str, int] | None, str]:
    """The grades in a reply and "", or None and the fault.

    A grade is the number after its label, in any case and formatting ("**Aesthetic Quality**: 2/2"), or the number that
    ends the text after the label. A reply of as many lines as there are grades, with one number each, is accepted too.
    Reasoning and the scale that the judge was given ("0 to 2") are no grades. A label that is missing, that has two
    different numbers, or whose number is not a whole one from 0 to `highest`, is a fault: there is no guessing which of
    two is meant.
    """
    text = answer(reply)
    if text is None:
        return None, f"ends within its reasoning: {_shown(reply)}"
    text = _SCALE.sub(" ", _plain(text, grades))
    bare = [_BARE.fullmatch(line) for line in text.splitlines() if line.strip() and not line.startswith("```")]
    # Judges that were asked for three lines sometimes drop the labels.
    if len(bare) == len(grades) and all(bare):
        found = [_number((line[1], line[2] or ""), highest) for line in bare if line]
        if None not in found:
            return {grade: number for grade, number in zip(grades, found, strict=True) if number is not None}, ""
    return _labelled(text, grades, highest, shown=_shown(reply))


def _plain(text: str, grades: Sequence[str]) -> str:
    """A reply in plain notation.

    Full-width digits become ASCII, numbers lose their brackets and maths delimiters, and tables with the labels in the
    header become lines "label: number".
    """
    text = _SET_OFF.sub(lambda match: next(filter(None, match.groups())), text.translate(_WIDE))
    lines, header, found = text.splitlines(), [], []
    for number, line in enumerate(lines):
        below = lines[number + 1] if number + 1 < len(lines) else ""
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if "|" in line and "|" in below and _RULE.fullmatch(below):
            header = cells if any(_label(grade).search(line) for grade in grades) else []
        elif "|" not in line or len(cells) != len(header):
            header = []
        elif not _RULE.fullmatch(line):
            found += [f"{name}: {cell}" for name, cell in zip(header, cells, strict=True)]
            continue
        found.append("" if header else line)
    return "\n".join(found)


def _labelled(text: str, grades: Sequence[str], highest: int, *, shown: str) -> tuple[dict[str, int] | None, str]:
    found: dict[str, int] = {}
    for grade in grades:
        pieces = _pieces(text, grade, grades)
        if not pieces:
            return None, f"no {grade.replace('_', ' ')} in {shown}"
        # One value, given once or repeatedly, is a grade; anything that differs or is out of range is a fault.
        numbers = {_number(piece, highest) for piece in pieces}
        number = numbers.pop()
        if numbers or number is None:
            values = " and ".join(sorted({"/".join(filter(None, piece)) for piece in pieces}))
            return None, f"{grade.replace('_', ' ')} is {values} in {shown}"
        found[grade] = number
    return found, ""


def _pieces(text: str, grade: str, grades: Sequence[str]) -> list[Piece]:
    """The candidates for a grade: after label and colon; else at the end of the label's text; else after the label."""
    labels = list(_label(grade).finditer(text))
    borders = sorted([len(text), *(match.start() for name in grades for match in _label(name).finditer(text))])
    direct = [match for label in labels if (match := _AFTER_COLON.match(text, label.end()))]
    # "Realism: 2 cats of 3 are there, so 1": the conclusion must agree with the number after the colon.
    if direct:
        rests = [text[match.end() : borders[bisect_left(borders, match.end())]].split("\n")[0] for match in direct]
        concluded = [match for rest in rests for match in _CONCLUDED.finditer(rest)]
        return [(match[1], match[2] or "") for match in (*direct, *concluded)]
    pieces: list[Piece] = []
    for label in labels:
        part = text[label.end() : borders[bisect_left(borders, label.end())]]
        if re.match(rf"{_SCORE}{_MARKS}{_REMARK}{_MARKS}[:=：]", part, re.IGNORECASE):
            pieces += [(match[1], match[2] or "") for pattern in _IN_TEXT for match in pattern.finditer(part)]
    behind = [_AFTER_LABEL.match(text, label.end()) for label in labels]
    return pieces or [(match[1], match[2] or "") for match in behind if match]


def _label(grade: str) -> re.Pattern[str]:
    name = "aesthetics?(?:[\\s_-]+quality)?" if grade == "aesthetic_quality" else grade.replace("_", r"[\s_]+")
    return re.compile(rf"(?<![a-z]){name}(?![a-z])", re.IGNORECASE)


def _number(piece: Piece, highest: int) -> int | None:
    number, scale = piece
    whole, of = _WHOLE.fullmatch(number), _WHOLE.fullmatch(scale) if scale else None
    if whole is None or (scale and (of is None or int(of[1]) != highest)):
        return None
    return int(whole[1]) if int(whole[1]) <= highest else None


def whole_grade(value: object, *, highest: int) -> int | None:
    """A grade in a file, as 2, 2.0 or "2"; None for anything but a whole number from 0 to `highest`."""
    if isinstance(value, str):
        return _number((value.strip(), ""), highest)
    if isinstance(value, bool) or not isinstance(value, int | float) or value not in range(highest + 1):
        return None
    return int(value)


def prompt_number(value: object, where: str, *, last: int) -> int:
    """An id, as 7, 7.0 or "7". Raises `DataError` for anything but a number from 1 to `last`."""
    number = whole_grade(value, highest=last)
    if not number:
        raise DataError(f"{where}: prompt_id {value!r}, expected a number from 1 to {last}")
    return number


def file_rows(data: bytes, where: str) -> list[Any]:
    """The rows of JSON Lines or of one JSON list. Raises `DataError` for other content."""
    # The first character decides between the two forms, whatever the file is called.
    data = data.removeprefix(_BOM)
    if data.lstrip()[:1] != b"[":
        return json_lines(data, where)
    value = json_value(data, where)
    return value if isinstance(value, list) else [value]


def _shown(reply: str) -> str:
    text = " ".join(reply.split())
    return repr(text if len(text) <= 80 else f"{text[:79]}…")
