"""Questions about a picture, as `qa` (and `caption_qa`) of a sample's record has them, and what is wrong with some.

`qa` is a list of `{"question": …, "answer": …}`; `kind`, `choices` and `grey` may be given too:

    {"question": "What color is it?", "answer": "red", "kind": "color", "choices": ["red", "blue", "green"]}

Indexing, importing and reading all check records here, so a fault is found by the first of them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.normalise import normalise
from blip3o.errors import closest, quoted

OTHER = "other"  # the kind of a question that names none
QUESTION_LISTS = ("qa", "caption_qa")
_KEYS = ("question", "answer", "kind", "choices", "grey")
_FORM = '{"question": "…", "answer": "…"}'


class QuestionError(DamagedSampleError):
    """Questions in a record that cannot be asked."""


def kind_of(pair: Mapping[str, Any]) -> str:
    """The kind of a question, by which training weighs and evaluation groups it."""
    return str(pair.get("kind") or OTHER)


def choices_of(pair: Mapping[str, Any]) -> tuple[str, ...]:
    """The answers to choose from; none for an open question."""
    return tuple(map(str, pair.get("choices") or ()))


def check_questions(record: Mapping[str, Any]) -> None:
    """Raises `QuestionError` with the place and the fix for `qa` or `caption_qa` that cannot be asked."""
    for name in QUESTION_LISTS:
        pairs = record.get(name)
        if not pairs:
            continue
        if not isinstance(pairs, list):
            raise QuestionError(f"{name} cannot be used: {_no_list(pairs)}")
        for number, pair in enumerate(pairs):
            fault = _fault(pair)
            if fault:
                raise QuestionError(f"{name} cannot be used: {name}[{number}] {fault}")


def _no_list(pairs: object) -> str:
    if isinstance(pairs, str):
        return f"it is text that is no JSON list, {quoted(pairs, limit=40)}: write it as JSON, [{_FORM}]"
    return f"it is {_named(pairs)}, not a list of questions: write [{_FORM}]"


def _fault(pair: object) -> str:
    """What is wrong with a question; empty if nothing is."""
    if not isinstance(pair, dict):
        return f"is {_named(pair)}: write {_FORM}"
    for name in ("question", "answer"):
        if fault := _text_fault(pair, name):
            return fault
    kind, choices, grey = (pair.get(name) for name in ("kind", "choices", "grey"))
    if kind is not None and not isinstance(kind, str):
        return f"has {_named(kind)} as 'kind': write a name in quotes, or leave it out"
    if choices and not (isinstance(choices, list) and all(map(_is_text, choices))):
        return f"has {_named(choices)} as 'choices': write a list of texts, or leave it out for an open question"
    if choices and normalise(str(pair["answer"])) not in [normalise(str(choice)) for choice in choices]:
        return f"has the answer {quoted(str(pair['answer']))}, which is none of its choices: add it to them"
    if grey is not None and not isinstance(grey, bool):
        return f"has {_named(grey)} as 'grey': write true or false without quotes, or leave it out"
    return ""


def _text_fault(pair: Mapping[str, Any], name: str) -> str:
    value = pair.get(name)
    if value is None:
        names = [str(key) for key in pair if key not in _KEYS]
        guess = closest(name, [key.lower() for key in names])
        near = next((key for key in names if guess and f"'{key.lower()}'" in guess), None)
        found = f"it has {', '.join(quoted(str(key)) for key in list(pair)[:6]) or 'nothing'}"
        return f"has no '{name}': " + (f"rename {quoted(near)} to '{name}'" if near else f"{found}: write {_FORM}")
    if not _is_text(value):
        return f"has {_named(value)} as '{name}': write a text in quotes"
    return "" if str(value).strip() else f"has an empty '{name}': fill it in, or leave the question out"


def _is_text(value: object) -> bool:
    """Whether a value is a text, or a number, which is asked and answered as it is written."""
    return isinstance(value, str | int | float) and not isinstance(value, bool)


def _named(value: object) -> str:
    """A wrong value by its type in JSON."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f"the text {quoted(value, limit=40)}"
    if isinstance(value, Mapping):
        return "an object"
    return "a list" if isinstance(value, Sequence) else f"the number {value}"
