"""GenEval's 553 prompts, generated again as their authors did: byte for byte their list, so none is shipped. Pure."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

SEED = 43
DRAWS = 100  # of each tag except single_object; duplicates are dropped
METADATA_SHA256 = "5c48e0813e812e3c373fa5c8ed07a8f0a483be30272b4427b0559c8048e67c13"
PROMPTS_SHA256 = "55b6e3650e980c13daf30569eb666e000faf19bfc2b7b4cbe999fcdb7aa9d680"
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four")
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
CLASSES = tuple(
    (
        "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
        "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
        "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
        "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
        "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,"
        "computer keyboard,cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,"
        "hair drier,toothbrush"
    ).split(",")
)
Record = dict[str, Any]


def records() -> list[Record]:
    """The 553 records {tag, include, exclude (only for counting), prompt}, in the official order.

    A single generator serves all tags in turn. Source: the authors' order of draws (https://arxiv.org/abs/2310.11513).
    """
    rng = np.random.default_rng(SEED)
    drawn = list(_single_objects(rng))
    for draw in (_two_objects, _counting, _colors, _position, _color_attributes):
        drawn += [draw(rng) for _ in range(DRAWS)]
    distinct = {line(record): record for record in drawn}
    return list(distinct.values())


def line(record: Record) -> str:
    """A record as its line of `evaluation_metadata.jsonl`, without the newline."""
    return json.dumps(record)


def _single_objects(rng: np.random.Generator) -> Iterator[Record]:
    for number in rng.choice(len(CLASSES), size=len(CLASSES), replace=False):
        name = CLASSES[number]
        yield _record("single_object", [_clause(name)], _one(name))


def _two_objects(rng: np.random.Generator) -> Record:
    a, b = (CLASSES[number] for number in rng.choice(len(CLASSES), size=2, replace=False))
    return _record("two_object", [_clause(a), _clause(b)], f"{_one(a)} and {_one(b)}")


def _counting(rng: np.random.Generator) -> Record:
    name = CLASSES[rng.choice(len(CLASSES))]
    count = int(rng.integers(2, 4, endpoint=True))
    plural = f"{name}es" if name.endswith("s") else f"{name}s"
    return {
        "tag": "counting",
        "include": [_clause(name, count)],
        "exclude": [_clause(name, count + 1)],
        "prompt": f"a photo of {NUMBERS[count]} {plural}",
    }


def _colors(rng: np.random.Generator) -> Record:
    [name] = _colorable(rng.choice(len(CLASSES) - 1, size=1))
    color = COLORS[rng.choice(len(COLORS))]
    return _record("colors", [_clause(name) | {"color": color}], f"{_one(color)} {name}")


def _position(rng: np.random.Generator) -> Record:
    a, b = (CLASSES[number] for number in rng.choice(len(CLASSES), size=2, replace=False))
    relation = RELATIONS[rng.choice(len(RELATIONS))]
    include = [_clause(b), _clause(a) | {"position": [relation, 0]}]
    return _record("position", include, f"{_one(a)} {relation} {_one(b)}")


def _color_attributes(rng: np.random.Generator) -> Record:
    a, b = _colorable(rng.choice(len(CLASSES) - 1, size=2, replace=False))
    first, second = (COLORS[number] for number in rng.choice(len(COLORS), size=2, replace=False))
    include = [_clause(a) | {"color": first}, _clause(b) | {"color": second}]
    return _record("color_attr", include, f"{_one(first)} {a} and {_one(second)} {b}")


def _colorable(numbers: Sequence[int] | np.ndarray) -> list[str]:
    """Classes by their index among those that may have a colour: all except the first, person."""
    return [CLASSES[int(number) + 1] for number in numbers]


def _clause(name: str, count: int = 1) -> Record:
    return {"class": name, "count": count}


def _record(tag: str, include: list[Record], rest: str) -> Record:
    return {"tag": tag, "include": include, "prompt": f"a photo of {rest}"}


def _one(words: str) -> str:
    return f"an {words}" if words[0] in "aeiou" else f"a {words}"
