"""Everything that decides a verdict is in the digest of the items, in every suite; and a source of any shape is read or
refused in one line."""

import json
import random
from dataclasses import replace

import pytest

from blip3o.errors import Blip3oError, ConfigError
from blip3o.evaluate.records import Judge, Judgement
from blip3o.evaluate.suites.geneval.suite import OFFICIAL_JUDGE, Detected, check
from blip3o.evaluate.suites.registry import SUITES, find_suite
from blip3o.evaluate.suites.scenes.suite import RECORD, true_picture
from blip3o.evaluate.suites.suite import check_keys, items_digest
from tests.evaluate.suites.sources import DPG, SOURCES, changed, leaves, text_of, write

NAMES = tuple(SUITES)


def digest(name, source):
    of_suite = find_suite(name).suite
    return items_digest(of_suite.items(source), of_suite.facts)


def other(value):
    """A value of the same type that is another one."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, int | float):
        return value + 1
    return f"{value}x" if isinstance(value, str) else [*value, 1] if isinstance(value, list) else {**value, "x": 1}


def test_every_suite_has_a_source_here():
    assert set(SOURCES) == set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if not SOURCES[name][0].endswith(".csv")])
def test_any_changed_value_changes_the_digest_or_is_refused(name, tmp_path):
    rows = SOURCES[name][1]
    own = digest(name, write(tmp_path, name))
    assert digest(name, write(tmp_path, name, json.loads(json.dumps(rows)))) == own
    kept = []
    for path, value in leaves(rows):
        if name == "scenes" and not (path[1] in RECORD or path[1:] == ("captions", 0)):
            continue  # of a scene's record only what is drawn and judged belongs to an item
        try:
            if digest(name, write(tmp_path, name, changed(rows, path, other(value)))) == own:
                kept.append(path)
        except Blip3oError:  # an id that is none, a class of another type
            continue
    assert kept == []


def test_dpg_s_questions_and_dependencies_are_in_the_digest(tmp_path):
    own = digest("dpg", write(tmp_path, "dpg"))
    changes = {
        "the text of a question": ("Is it red?", "Is it blue?"),
        "a dependency": ('2,"1"', '2,"0"'),
        "a category": ("attribute - color", "entity - color"),
        "a prompt": ("one,a dog,,1", "one,a dogs,,1"),
        "a number": ("two,a cat,,1", "two,a cat,,7"),
    }
    for what, (old, new) in changes.items():
        table = "\n".join([*DPG, ""])
        assert old in table, what
        (tmp_path / "s.csv").write_text(table.replace(old, new))
        assert digest("dpg", str(tmp_path / "s.csv")) != own, what
    for what, rows in {"order": [DPG[0], DPG[3], DPG[1], DPG[2]], "a question less": DPG[:2] + DPG[3:]}.items():
        assert digest("dpg", write(tmp_path, "dpg", rows)) != own, what


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_samples_or_another_order_is_another_digest(name, tmp_path):
    of_suite = find_suite(name).suite
    items = of_suite.items(write(tmp_path, name))
    own = items_digest(items, of_suite.facts)
    assert items_digest([replace(item, samples=7) for item in items], of_suite.facts) != own
    assert items_digest([*items, items[0]], of_suite.facts) != own
    assert items_digest(items[:-1], of_suite.facts) != own
    if len(items) > 1:
        assert items_digest(items[::-1], of_suite.facts) != own


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_for_one_item_and_sample_or_the_sample_is_refused(name, tmp_path):
    """Two samples in one file would be two seeds of one sum, counted twice."""
    of_suite = find_suite(name).suite
    if of_suite.kind == "ask":
        return  # their files are the job's: tests/jobs/test_evaluation_samples.py
    items = of_suite.items(write(tmp_path, name))
    paths = [of_suite.image_path(item, 0) for item in items]
    try:
        paths += [of_suite.image_path(item, sample) for item in items for sample in (1, 2, 3)]
    except ConfigError as error:
        assert f"{name} has room for one sample of each item" in str(error)
    assert len(set(paths)) == len(paths)


FINDINGS = {
    "dpg": lambda item: {"answers": {str(q["number"]): "yes" for q in item.record["questions"]}},
    "wise": lambda item: {"consistency": 2, "realism": 2, "aesthetic_quality": 2},
    "wise-verified": lambda item: {"score": 1},
    "mjhq": lambda item: {"generated": [float(len(item.key))], "reference": [1.0]},
    "ocr": lambda item: {"lines": [item.record["text"]]},
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_the_official_list_is_never_comparable_and_the_counts_add_up(name, tmp_path):
    of_suite = find_suite(name).suite
    items = of_suite.items(write(tmp_path, name))
    value_of = FINDINGS.get(name, lambda item: {"reply": "red"} if of_suite.kind == "ask" else {"correct": True})
    found = [
        Judgement(key=item.key, sample=sample, value=value_of(item)) for item in items for sample in range(item.samples)
    ]
    official = {"geneval": OFFICIAL_JUDGE, "dpg": Judge(id="mplug-large-vqa", version="modelscope")}
    judge = official.get(name, Judge(id=getattr(of_suite, "official_judge", "j"), version="official"))
    unread = replace(found[0], value=None, fault="unread")
    for judgements in (found, found[1:], [unread, *found[1:]], []):
        score = of_suite.score(items, judgements, judge)
        counts = score.coverage
        assert not score.comparable and score.why_not
        assert counts.n_expected == counts.n_scored + counts.n_missing + counts.n_parse_failed == len(found)
        if judgements is not found:
            assert score.overall is None and score.interval is None


def mutated(rng, value):
    """A JSON value with something else somewhere within."""
    path, leaf = rng.choice(leaves(value))
    path = path[: rng.randint(0, len(path))]
    new = rng.choice(
        [None, True, -1, 10**30, 0.5, "", "x", "\ud800", "a\0b", "../a", [], [[]], {}, {"a": []}, [leaf], leaf]
    )
    return changed(value, path, new)


TEXTS = [
    lambda text: text[: len(text) // 2],
    lambda text: "\ufeff" + text,
    lambda text: text.replace(":", ": NaN,", 1),
    lambda text: text.replace("{", '{"id": 1, "id": 2, ', 1),
    lambda text: text + "[" * 5000 + "\n",
    lambda text: '{"a": ' * 40 + "1" + "}" * 40 + "\n",
    lambda text: text.replace("1", "1" * 5000),
    lambda text: text.replace(",", "\t"),
    lambda text: text.replace('"', "'"),
    lambda text: text.replace("\n", "\r\n"),
    lambda text: "",
    lambda text: "null\n",
    lambda text: text + text,
]


def read(name, path):
    """Everything that prepare does with a source before it writes; only the product's own errors may leave."""
    of_suite = find_suite(name).suite
    try:
        items = of_suite.items(str(path))
        check_keys(items, str(path))
    except Blip3oError as error:
        assert len(str(error).splitlines()) == 1
        return
    items_digest(items, of_suite.facts)
    json.dumps([item.record for item in items], allow_nan=False)
    if name in ("geneval", "scenes"):
        for item in items:
            classes = [clause["class"] for clause in item.record["include"]]
            check(item.record, {c: [Detected(box=(0, 0, 9, 9), score=1.0, color="red")] for c in classes})
    if name == "scenes":
        [true_picture(item) for item in items]


@pytest.mark.parametrize("name", NAMES)
def test_a_source_of_any_shape_is_read_or_refused_in_one_line(name, tmp_path):
    rng = random.Random(f"sources of {name}")
    file, rows = SOURCES[name]
    path = tmp_path / file
    for change in TEXTS:
        path.write_bytes(change(text_of(file, rows)).encode(errors="surrogatepass"))
        read(name, path)
    for _ in range(150):
        if file.endswith(".csv"):
            cells = [line.split(",") for line in rows]
            line = rng.choice(cells)
            line[rng.randrange(len(line))] = rng.choice(
                ["", "-1", "x", "1,2", '"', "\0", "9" * 5000, "1.5", "٣", " 1 "]
            )
            text = "\n".join(map(",".join, cells))
        else:
            value = mutated(rng, json.loads(json.dumps(rows)))
            text = text_of(file, value if file.endswith(".json") or isinstance(value, list) else [value])
        path.write_bytes(text.encode(errors="surrogatepass"))
        read(name, path)
