"""The project's YAML reader and writer: scalars follow YAML 1.2, and ambiguous input is an error.

PyYAML parses, but plain scalars follow the core schema of YAML 1.2 (chapter 10.3) instead of YAML 1.1: `0200` is 200,
`0o17` is 15, `1e-4` is a number, and `1:30`, `1_000`, `yes`, `off` and `2024-01-01` are strings. A duplicate key, a tag
of another type, and a second document are errors. Anchors, aliases and the merge key `<<` work as in YAML 1.1.
`dump_yaml` quotes every string that either version would read as something else.
"""

import codecs
import re
from collections.abc import Hashable
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from blip3o.errors import ConfigError, one_line

MAX_DEPTH = 64  # of lists and mappings inside one another
MAX_VALUES = 100_000  # after aliases are expanded
MAX_DIGITS = 400
SHOWN = 60

_TAG = "tag:yaml.org,2002:"
_MERGE = "<<"
_PLAIN = (
    ("null", re.compile(r"~|null|Null|NULL|")),
    ("bool", re.compile(r"true|True|TRUE|false|False|FALSE")),
    ("int", re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")),
    (
        "float",
        re.compile(
            r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        ),
    ),
)


Implicit = tuple[bool, bool] | bool  # for a scalar, whether it is plain and whether it is quoted; else one flag


def _core_tag(kind: type[Node], value: str | None, implicit: Implicit) -> str:
    """The tag that the core schema gives a node without one."""
    if kind is not ScalarNode:
        return f"{_TAG}map" if kind is MappingNode else f"{_TAG}seq"
    plain = isinstance(implicit, tuple) and implicit[0]
    return f"{_TAG}{_plain_kind(value or '') if plain else 'str'}"


def _plain_kind(text: str) -> str:
    return next((kind for kind, pattern in _PLAIN if pattern.fullmatch(text)), "str")


class _Loader(yaml.SafeLoader):
    depth = 0

    def resolve(self, kind: type[Node], value: str | None, implicit: Implicit) -> str:
        return _core_tag(kind, value, implicit)

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem=f"nested more than {MAX_DEPTH} levels deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def scan_to_next_token(self) -> None:
        """Accepts tabs inside brackets, unlike PyYAML: JSON is often indented with them."""
        super().scan_to_next_token()
        while self.flow_level and self.peek() == "\t":
            self.forward()
            super().scan_to_next_token()


class _Dumper(yaml.SafeDumper):
    def resolve(self, kind: type[Node], value: str | None, implicit: Implicit) -> str:
        older: str = super().resolve(kind, value, implicit)
        # A string that either version of the standard would read as something else is quoted.
        return _core_tag(kind, value, implicit) if older == f"{_TAG}str" else older


def load_yaml(data: bytes | str, source: str) -> Any:  # noqa: ANN401 - whatever the document holds
    """The value of a YAML document; None if it is empty. Every alias gives a copy.

    `source` names the document in errors, e.g. `recipe runs/a.yaml`. Raises `ConfigError` with line and column for
    invalid YAML, a duplicate key, an unsupported tag, nesting or number, and a second document.
    """
    text = _decoded(data, source)
    try:
        node = _Loader(text).get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {_explained(error, text)}") from error
    return None if node is None else _Builder(source).value(node)


def dump_yaml(value: object) -> str:
    """A YAML document that `load_yaml` reads back to an equal value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=120)


def _decoded(data: bytes | str, source: str) -> str:
    if isinstance(data, str):
        return data
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{source} is not YAML: line {line} holds bytes that are not UTF-8: save the file as UTF-8"
        ) from error


def _explained(error: yaml.YAMLError, text: str) -> str:
    """PyYAML's error in one line that starts with the position."""
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: the character U+{error.character:04X} is not allowed in YAML: remove it"
    if not isinstance(error, yaml.MarkedYAMLError):
        return one_line(error)
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    problem = error.problem or ""
    if "'\\t'" in problem:
        problem += " (write spaces, not tabs)"
    elif "single document" in (error.context or ""):
        return f"{where}a second document begins: give one document a file"
    return one_line(where + (f"{error.context}: {problem}" if error.context else problem))


def _at(node: Node) -> str:
    return f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"


class _Builder:
    """Builds values from nodes, and counts them so that aliases cannot expand without limit."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._left = MAX_VALUES
        self._open: list[Node] = []

    def value(self, node: Node) -> Any:  # noqa: ANN401 - whatever the node holds
        self._left -= 1
        if self._left < 0:
            raise self._fault(node, f"more than {MAX_VALUES:,} values once aliases are expanded")
        if isinstance(node, ScalarNode):
            return self._scalar(node)
        kind = "seq" if isinstance(node, SequenceNode) else "map"
        if node.tag != f"{_TAG}{kind}":
            raise self._foreign(node)
        if any(node is outer for outer in self._open):
            raise self._fault(node, "an alias is inside its own anchor")
        self._open.append(node)
        items = [self.value(item) for item in node.value] if kind == "seq" else self._mapping(node)
        self._open.pop()
        return items

    def _mapping(self, node: Node) -> dict[Hashable, Any]:
        own: dict[Hashable, Any] = {}
        merged: dict[Hashable, Any] = {}
        first: dict[Hashable, Node] = {}
        for key_node, value_node in node.value:
            key = self._key(key_node)
            if key in first:
                raise self._fault(key_node, f"'{_shown(key)}' is given twice, first in {_at(first[key])}: keep one")
            first[key] = key_node
            if key == _MERGE and key_node.style is None:
                merged = self._merged(value_node)
            else:
                own[key] = self.value(value_node)
        return merged | own

    def _key(self, node: Node) -> Hashable:
        if not isinstance(node, ScalarNode):
            raise self._fault(node, "a key is a list or a mapping: give a word")
        key: Hashable = self._scalar(node)
        return key

    def _merged(self, node: Node) -> dict[Hashable, Any]:
        """The value of `<<`: a mapping, or a list of mappings, where earlier ones take precedence."""
        found = self.value(node)
        mappings = found if isinstance(found, list) else [found]
        merged: dict[Hashable, Any] = {}
        for mapping in mappings:
            if not isinstance(mapping, dict):
                raise self._fault(node, "'<<' takes a mapping or a list of mappings")
            merged = mapping | merged
        return merged

    def _scalar(self, node: ScalarNode) -> Any:  # noqa: ANN401 - text, number, truth or None
        kind, text = node.tag.removeprefix(_TAG), str(node.value)
        if kind == "str":
            return self._text(node, text)
        if kind not in ("null", "bool", "int", "float"):
            raise self._foreign(node)
        found = _plain_kind(text)
        if found != kind and (found, kind) != ("int", "float"):
            raise self._fault(node, f"'{_shown(text)}' is tagged !!{kind} and is none")
        if len(text) > MAX_DIGITS:
            raise self._fault(node, f"a number of {len(text)} characters: at most {MAX_DIGITS} are read")
        if kind == "int":
            return _whole(text)
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return text.lower() == "true" if kind == "bool" else None

    def _text(self, node: Node, text: str) -> str:
        """The text with UTF-16 surrogate pairs, as JSON escapes write them, joined to one character each."""
        try:
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError as error:
            raise self._fault(node, "an escape is half of a UTF-16 pair: write the character itself") from error

    def _foreign(self, node: Node) -> ConfigError:
        tag = node.tag.replace(_TAG, "!!")
        return self._fault(node, f"the tag {_shown(tag)} is not read: write a plain value")

    def _fault(self, node: Node, what: str) -> ConfigError:
        return ConfigError(f"{self._source}, {_at(node)}: {what}")


def _whole(text: str) -> int:
    return int(text, 8 if text.startswith("0o") else 16) if text[:2] in ("0o", "0x") else int(text)


def _shown(value: object) -> str:
    return one_line(value, limit=SHOWN)
