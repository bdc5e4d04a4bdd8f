"""One small, well-formed source of every suite: what users bring, and what fuzzing starts from."""

import json

from blip3o.data.sets.scenes import sample
from blip3o.evaluate.suites.geneval import prompts as geneval_prompts

ASKED = {"image": "a.png", "question": "What is it?", "category": "color"}
DPG_HEAD = "item_id,text,keywords,proposition_id,dependency,category_broad,category_detailed,tuple"
DPG = [
    f"{DPG_HEAD},question_natural_language",
    "one,a dog,,1,0,entity,whole,entity - whole (dog),Is there a dog?",
    'one,a dog,,2,"1",attribute,color,attribute - color (red),Is it red?',
    "two,a cat,,1,0,entity,whole,entity - whole (cat),Is there a cat?",
]
_WISE = [
    {"Prompt": f"thing {n}", "Explanation": "it is so", "Category": "c", "Subcategory": "s", "prompt_id": n}
    for n in (1, 2)
]
_VQA = [{"id": n, **ASKED, "answers": ["red"] * 6 + ["blue"] * 4} for n in (1, 2)]
_RECORDS = geneval_prompts.records()

# Of each suite the name of its file, and its rows: a list is written as JSON Lines, or as one value in a `.json`.
SOURCES = {
    "geneval": ("s.jsonl", [_RECORDS[0], _RECORDS[200], next(r for r in _RECORDS if r["tag"] == "position")]),
    "dpg": ("s.csv", DPG),
    "wise": ("s.json", _WISE),
    "wise-verified": ("s.json", _WISE),
    "scenes": ("s.jsonl", [sample(index, split="heldout").record for index in (2, 4)]),
    "mjhq": (
        "s.json",
        {"k1": {"category": "art", "prompt": "thing 1"}, "k2": {"category": "art", "prompt": "thing 2"}},
    ),
    "ocr": ("s.jsonl", [{"id": 1, "prompt": 'a sign "OPEN"', "text": "OPEN", "category": "word"}]),
    "vqa": ("s.jsonl", _VQA),
    "vqav2": ("s.jsonl", _VQA),
    "vqa-lmms": ("s.jsonl", _VQA),
    "mme": ("s.jsonl", [{"id": n, **ASKED, "answer": word} for n, word in enumerate(("Yes", "No"))]),
    "choice": ("s.jsonl", [{"id": 1, **ASKED, "options": ["a cat", "a dog"], "answer": "B", "group": 1}]),
}


def text_of(name, rows):
    """The text of a source's file."""
    if name.endswith(".csv"):
        return "\n".join([*rows, ""])
    return json.dumps(rows) if name.endswith(".json") else "".join(f"{json.dumps(row)}\n" for row in rows)


def write(folder, suite, rows=None):
    """The path of a suite's source below a folder, with other rows where some are given."""
    name, own = SOURCES[suite]
    path = folder / name
    path.write_text(text_of(name, own if rows is None else rows))
    return str(path)


def leaves(value, path=()):
    """The path and value of everything within a JSON value that is no list or object, and of empty ones."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    found = [leaf for key, one in inner for leaf in leaves(one, (*path, key))]
    return found or [(path, value)]


def changed(value, path, new):
    """A JSON value with another one at a path."""
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy
