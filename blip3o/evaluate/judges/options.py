"""The options of requests to a judge, and how they become part of the judge's version. Pure."""

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from blip3o.errors import ConfigError

TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
MAX_TOKENS, MOST_TOKENS = 512, 8192
PATIENCE_S, TIMEOUT_S = 60.0, 300.0
_OWN = (*TOKEN_FIELDS, "most_tokens", "temperature", "patience", "timeout")
# Fields that belong to the suite: other values would change what is asked, or how the reply is read.
_FIXED = ("model", "messages", "stream", "n")
_NEAR = 0.9  # similarity from which a name counts as a misspelling


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Requests to a judge.

    `max_tokens` limits a reply; `token_field` is its name in the request. A truncated reply is requested again with
    twice as many tokens, up to `most_tokens`. `temperature` None leaves the field out. `extra` are further fields of
    the request. Transient faults of a request are retried for `patience_s` in total, and `timeout_s` limits one answer;
    these two do not change replies and are not part of the version.
    """

    token_field: str = "max_tokens"
    max_tokens: int = MAX_TOKENS
    most_tokens: int = MOST_TOKENS
    temperature: float | None = 0
    extra: Mapping[str, Any] = field(default_factory=dict)
    patience_s: float = PATIENCE_S
    timeout_s: float = TIMEOUT_S

    def version(self, base: str) -> str:
        """The judge's version: `base`, and each setting that differs from its default."""
        default = JudgeOptions()
        changed: dict[str, Any] = {}
        if (self.token_field, self.max_tokens) != (default.token_field, default.max_tokens):
            changed[self.token_field] = self.max_tokens
        if self.most_tokens != max(default.most_tokens, self.max_tokens):
            changed["most_tokens"] = self.most_tokens
        if self.temperature != default.temperature:
            changed["temperature"] = self.temperature
        changed |= self.extra
        settings = [f"{name}={json.dumps(value, sort_keys=True)}" for name, value in sorted(changed.items())]
        return " ".join([base, *settings])


def parse_options(pairs: Sequence[str]) -> JudgeOptions:
    """The options of `NAME=VALUE` pairs. An unknown name is a field of the request; its value is JSON, or else text.

    Raises `ConfigError` for invalid values, duplicate names, fields that only the suite may set, and names that look
    like a misspelling of a known one.
    """
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        _check_name(name if equals else "", pair)
        if name in given:
            raise ConfigError(f"--judge-option {name} is given twice: {given[name]} and {value}")
        given[name] = value
    if all(name in given for name in TOKEN_FIELDS):
        raise ConfigError(f"--judge-option: give one of {' and '.join(TOKEN_FIELDS)}, the one that the judge takes")
    options = _with_tokens(JudgeOptions(extra=_extra(given)), given)
    if "temperature" in given:
        value = given["temperature"]
        options = replace(options, temperature=None if value == "none" else _number("temperature", value))
    if "patience" in given:
        options = replace(options, patience_s=_number("patience", given["patience"]))
    if "timeout" in given:
        options = replace(options, timeout_s=_number("timeout", given["timeout"], above=0))
    return options


def _check_name(name: str, pair: str) -> None:
    if not name:
        raise ConfigError(f"--judge-option {pair} is not NAME=VALUE, e.g. max_tokens=2048")
    if name in _FIXED:
        raise ConfigError(f"--judge-option {name} cannot be set: the request's {', '.join(_FIXED)} are the suite's")
    near = difflib.get_close_matches(name, _OWN, n=1, cutoff=_NEAR)
    if near and name not in _OWN:
        raise ConfigError(f"--judge-option {name} is unknown: is {near[0]} meant?")


def _with_tokens(options: JudgeOptions, given: Mapping[str, str]) -> JudgeOptions:
    name = next((name for name in TOKEN_FIELDS if name in given), options.token_field)
    limit = _count(name, given[name]) if name in given else options.max_tokens
    most = _count("most_tokens", given["most_tokens"]) if "most_tokens" in given else max(MOST_TOKENS, limit)
    if most < limit:
        raise ConfigError(f"--judge-option most_tokens={most} is below {name}={limit}: it is the limit of asking again")
    return replace(options, token_field=name, max_tokens=limit, most_tokens=most)


def _extra(given: Mapping[str, str]) -> dict[str, Any]:
    return {name: _value(text) for name, text in given.items() if name not in _OWN}


def _value(text: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(text)
    except ValueError:
        return text


def _count(name: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) > 0):
        raise ConfigError(f"--judge-option {name}={text}: expected a whole number above 0")
    return int(text)


def _number(name: str, text: str, *, above: float = -1) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0 and value > above):
        raise ConfigError(f"--judge-option {name}={text}: expected a number{' above 0' if above == 0 else ' from 0'}")
    return value
