"""The YAML reader: scalars of YAML 1.2, no duplicate keys, and one line with the position for invalid input."""

import json
import math
import random

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from blip3o.config.recipe_files import SHIPPED
from blip3o.config.yaml_reader import MAX_DEPTH, dump_yaml, load_yaml
from blip3o.errors import ConfigError
from tests.data.shard_files import UNHURRIED

RECIPE_FILES = sorted(SHIPPED.rglob("*.yaml"))

plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False))
texts = st.one_of(
    st.text(max_size=12),
    st.from_regex(r"[-+]?[0-9_:.eEoxb]{1,8}", fullmatch=True),
    st.sampled_from(["yes", "No", "on", "y", "~", "null", "<<", "=", "1e-4", "0o17", "2024-01-01", "1:30", ".inf"]),
)
values = st.recursive(
    plain | texts, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=12
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0200", 200),
        ("-007", -7),
        ("0o17", 15),
        ("0x1F", 31),
        ("+1", 1),
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("1.", 1.0),
        (".5", 0.5),
        ("-.5e+2", -50.0),
        ("1e400", math.inf),
        ("-.INF", -math.inf),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("1,000", "1,000"),
        ("2024-01-01", "2024-01-01"),
        ("2024-01-01 10:00:00", "2024-01-01 10:00:00"),
        ("yes", "yes"),
        ("No", "No"),
        ("ON", "ON"),
        ("off", "off"),
        ("y", "y"),
        ("TRUE", True),
        ("false", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("'5'", "5"),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("=", "="),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_plain_values_follow_yaml_1_2(text, value):
    found = load_yaml(f"key: {text}", "file")["key"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("a: 1\nb: 2\na: 3", "line 3, column 1: 'a' is given twice, first in line 1, column 1"),
        ("s: {a: 1, b: {c: 1,\n 'c': 2}}", "line 2, column 2: 'c' is given twice, first in line 1, column 15"),
        ("l:\n- x: 1\n  x: 1", "line 3, column 3: 'x' is given twice, first in line 2, column 3"),
        ("<<: {a: 1}\n<<: {b: 1}", "line 2, column 1: '<<' is given twice"),
        ("o: &o {a: 1}\np: {<<: *o, b: 1, b: 2}", "line 2, column 19: 'b' is given twice"),
        ("a: 1\n? a\n: 2", "line 2, column 3: 'a' is given twice"),
        ("1: a\n0x1: b", "line 2, column 1: '1' is given twice"),
        ("a: !!binary aGk=", "line 1, column 4: the tag !!binary is not read"),
        ("a: !!python/object/apply:os.system [ls]", "the tag !!python/object/apply:os.system is not read"),
        ("a: !!timestamp 2024-01-01", "the tag !!timestamp is not read"),
        ("a: !!set {x}", "the tag !!set is not read"),
        ("a: !env HOME", "the tag !env is not read"),
        ("a: !!int x", "'x' is tagged !!int and is none"),
        ("a:\n\tb: 1", "line 2, column 1: .*write spaces, not tabs"),
        ("a: 1\n---\nb: 2", "line 2, column 1: a second document begins"),
        ("a: [1, 2\nb: 3", "line 2, column 2: .*expected ',' or ']'"),
        ("a: 'x", "line 1, column 6: .*unexpected end"),
        ("a: *b", "line 1, column 4: found undefined alias 'b'"),
        ("a: &a [*a]", "an alias is inside its own anchor"),
        ("a: \0", "line 1: the character U\\+0000 is not allowed"),
        (b"a: 1\nb: \xff", "line 2 holds bytes that are not UTF-8"),
        ("a: b: c", "line 1, column 5: mapping values are not allowed here"),
        ("? [a]\n: 1", "line 1, column 3: a key is a list or a mapping"),
        ("<<: 5", "'<<' takes a mapping"),
        ("a: " + "[" * 500, f"nested more than {MAX_DEPTH} levels"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ('a: "\\ud83d"', "half of a UTF-16 pair"),
        ("%YAML 2.0\n---\na: 1", "line 1, column 1: found incompatible YAML document"),
    ],
)
def test_invalid_yaml_is_reported_with_its_position_in_one_line(text, fault):
    with pytest.raises(ConfigError, match=fault) as caught:
        load_yaml(text, "recipe r.yaml")
    assert str(caught.value).startswith("recipe r.yaml")
    assert "\n" not in str(caught.value)


def test_aliases_cannot_expand_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 6)]
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load_yaml("\n".join(lines), "file")


def test_anchors_aliases_and_merge_keys_are_read():
    text = "base: &b {x: 1, y: 2}\nmore: &m {y: 3}\none: {<<: *b, y: 4}\ntwo: {<<: [*m, *b]}\nsame: *b"
    tree = load_yaml(text, "file")
    assert tree["one"] == {"x": 1, "y": 4}
    assert tree["two"] == {"x": 1, "y": 3}
    tree["same"]["x"] = 5
    assert tree["base"]["x"] == 1, "an alias is a value of its own"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_with_a_mark_are_read(encoding):
    assert load_yaml("name: é\nsteps: 0200\n".encode(encoding), "file") == {"name": "é", "steps": 200}


@UNHURRIED
@given(st.dictionaries(texts, values, max_size=4))
def test_json_is_yaml(tree):
    assert load_yaml(json.dumps(tree, indent="\t"), "file") == tree


@UNHURRIED
@given(values)
def test_written_yaml_reads_back_equal_here_and_in_yaml_1_1(value):
    text = dump_yaml(value)
    assert load_yaml(text, "file") == value
    assert yaml.safe_load(text) == value


@pytest.mark.parametrize("path", RECIPE_FILES, ids=lambda path: path.stem)
def test_shipped_recipes_read_as_they_did_by_yaml_1_1(path):
    assert load_yaml(path.read_bytes(), str(path)) == yaml.safe_load(path.read_text())


def test_damaged_yaml_gives_a_value_or_one_line():
    rng = random.Random(14)
    sources = [path.read_bytes() for path in RECIPE_FILES[:8]]
    odd = [
        b"\t",
        b"\0",
        b"\xff",
        b"&a ",
        b"*a",
        b"<<: ",
        b"!!x ",
        b"{",
        b"]",
        b": ",
        b"- ",
        b"\n",
        b"'",
        b'"\\u',
        b"|\n",
    ]
    for _ in range(1500):
        data = bytearray(rng.choice(sources)[: rng.randint(0, 400)])
        for _ in range(rng.randint(1, 4)):
            place = rng.randint(0, len(data))
            data[place : place + rng.randint(0, 3)] = rng.choice([*odd, rng.randbytes(2)])
        try:
            load_yaml(bytes(data), "file")
        except ConfigError as error:
            assert "\n" not in str(error)
