"""Questions in records: what can be asked passes, and everything else is refused with its place and the fix."""

import json

import pytest
from PIL import Image

from blip3o import storage
from blip3o.data.sets.imported import import_set
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.sample import decode_record
from blip3o.data.text.questions import OTHER, check_questions, choices_of, kind_of
from blip3o.evaluate.heldout.selection import HeldOutSample, pick_questions
from blip3o.evaluate.metrics import understanding
from blip3o.evaluate.metrics.understanding import AnswerRecord
from tests.data.shard_files import png

ASKED = {"question": "What color?", "answer": "red"}

USABLE = [
    ASKED,
    {"question": "How many?", "answer": 2},
    {**ASKED, "kind": None, "choices": None, "grey": None},  # as Parquet fills a column of structs
    {**ASKED, "kind": "color", "choices": ["Red.", "blue"], "grey": True, "id": 7},
    {**ASKED, "choices": []},
]

REFUSED = [
    ("why?", "it is text that is no JSON list, 'why?': write it as JSON"),
    ("[{'question': 'a'}]", "it is text that is no JSON list"),  # as str() of a list writes it
    ({"question": ["a"], "answer": ["b"]}, "it is an object, not a list of questions: write"),
    (7, "it is the number 7, not a list"),
    ([["What?", "red"]], "[0] is a list: write"),
    (["What?"], "[0] is the text 'What?': write"),
    ([ASKED, {"question": "What?"}], "[1] has no 'answer': it has 'question': write"),
    ([{}], "[0] has no 'question': it has nothing: write"),
    ([{"question": "What?", "Answer": "red"}], "[0] has no 'answer': rename 'Answer' to 'answer'"),
    ([{"questoin": "What?", "answer": "red"}], "[0] has no 'question': rename 'questoin' to 'question'"),
    ([{**ASKED, "answer": True}], "[0] has true as 'answer': write a text in quotes"),
    ([{**ASKED, "answer": ["red"]}], "[0] has a list as 'answer'"),
    ([{**ASKED, "question": " "}], "[0] has an empty 'question': fill it in"),
    ([{**ASKED, "kind": 3}], "[0] has the number 3 as 'kind': write a name in quotes, or leave it out"),
    ([{**ASKED, "choices": "red, blue"}], "[0] has the text 'red, blue' as 'choices': write a list of texts"),
    ([{**ASKED, "choices": ["red", None]}], "[0] has a list as 'choices'"),
    ([{**ASKED, "choices": ["blue", "green"]}], "[0] has the answer 'red', which is none of its choices: add it"),
    ([{**ASKED, "grey": "yes"}], "[0] has the text 'yes' as 'grey': write true or false"),
]


@pytest.mark.parametrize("name", ["qa", "caption_qa"])
def test_what_can_be_asked_passes_and_everything_else_is_refused_with_its_place_and_the_fix(name):
    for nothing in (None, [], ""):
        check_questions({name: nothing})
    check_questions({name: USABLE})
    for pairs, said in REFUSED:
        with pytest.raises(DamagedSampleError) as caught:
            decode_record(json.dumps({"caption": "c", name: pairs}).encode())
        wanted = f"{name} cannot be used: " + (f"{name}{said}" if said.startswith("[") else said)
        assert caught.value.reason.startswith(wanted), pairs
        assert "\n" not in caught.value.reason


def test_a_question_without_a_kind_is_of_the_kind_other_and_one_without_choices_is_open():
    assert {kind_of(pair) for pair in USABLE[:3]} == {OTHER} == {"other"}
    assert (kind_of(USABLE[3]), choices_of(USABLE[3]), choices_of(ASKED)) == ("color", ("Red.", "blue"), ())


def test_questions_that_can_be_asked_are_scored_whatever_they_leave_out():
    picture = Image.new("RGB", (8, 8))
    items = [
        HeldOutSample(uid=f"s/0/{number}", source="s", caption="c", record={"qa": [pair]}, image=picture)
        for number, pair in enumerate(USABLE)
    ]
    asked = pick_questions(items, 9)
    told = [{key: value for key, value in vars(question).items() if key != "item"} for question in asked]
    scored = understanding.score([AnswerRecord(uid="u", source="s", reply="red", **one) for one in told], seed=0)
    assert scored["open"]["by_kind"] == {"other": {"accuracy": 0.75, "chance": None, "n": 4, "n_unparsed": 0}}
    assert scored["two_way"]["by_kind"]["color"]["accuracy"] == 1


def test_an_import_leaves_out_what_cannot_be_asked_and_names_file_or_row_key_and_fix(tmp_path):
    told = {"good": USABLE, "bad": [{"question": "What?", "Answer": "red"}]}
    for name, pairs in told.items():
        for folder in ("files", "rows"):
            storage.write_bytes(f"{tmp_path}/{folder}/{name}.png", png(1))
        record = json.dumps({"caption": "c", "qa": pairs})
        storage.write_bytes(f"{tmp_path}/files/{name}.json", record.encode())
    rows = [{"image": f"{name}.png", "caption": "c", "qa": pairs} for name, pairs in told.items()]
    storage.write_bytes(f"{tmp_path}/rows/all.json", json.dumps(rows).encode())
    for source, where in (("files", "bad.json"), ("rows/all.json", "row 2")):
        made = import_set(f"{tmp_path}/{source}", f"{tmp_path}/out/{where}")
        assert sum(made.summary.counts.values()) == 1
        [entry] = made.damage
        assert entry.reason == f"qa cannot be used: qa[0] has no 'answer': rename 'Answer' to 'answer' ({where})"
