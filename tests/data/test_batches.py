"""Micro-batches: a function of recipe and number, with the columns that each task needs, and nothing is truncated."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.data.batches import DESCRIBE, MicroBatchBuilder, build_micro_batches
from blip3o.data.images.decode import decode_image
from blip3o.data.inputs import StageInputs
from blip3o.data.sets.writer import Sample
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.ledger import read_ledger
from blip3o.data.text.templates import IGNORE, Turn
from blip3o.data.text.tokenizer import GENERATE, IMAGE_PAD, PAD, TURN_END, VISION_END, ChatTokenizer
from blip3o.errors import DataError
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.rng import derive_seed
from blip3o.types import RawSample
from tests import recipes
from tests.data.shard_files import png
from tests.evaluate.world import add_source, scenes

B, SAMPLES, LENGTH = 8, 24, 160
PASS = SAMPLES // B  # micro-batches of one pass
IMAGE_TOKENS = 4


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A source `scenes` of some shards, and a tokenizer."""
    folder = str(tmp_path_factory.mktemp("batches"))
    content = scenes("train", size=SAMPLES)
    add_source(folder, "scenes", content)
    texts = [caption for scene in content for caption in scene.record["captions"]]
    write_tokenizer(folder, texts)
    return folder


def write_tokenizer(root, texts):
    words = [recipes.recipe().data.template.instruction, "user\nassistant\n", DESCRIBE]
    storage.write_bytes(f"{root}/tokenizer.json", ChatTokenizer.train([*texts, *words], 500).to_bytes())


def recipe(root, **data):
    values = {"root": str(root), "max_length": LENGTH, "chunk": 4, "window": 2}
    return recipes.recipe(run={"storage": f"{root}/runs"}, data=values | data, optim={"micro_batch_size": B})


def builder(root, task, **data) -> MicroBatchBuilder:
    return build_micro_batches(StageInputs(recipe(root, **data)), task)


def equal(one, other):
    return set(one) == set(other) and all(np.array_equal(one[name], other[name]) for name in one)


def raw(caption="a red circle", pass_index=0, **meta):
    return RawSample(uid="src/0/0", key="k", pass_index=pass_index, image=png(1), caption=caption, meta=meta)


def text_of(build, row):
    """A row's ids without padding."""
    ids = row["input_ids"].tolist()
    pad = build.encoder.tokenizer.ids[PAD]
    length = ids.index(pad) if pad in ids else len(ids)
    assert set(ids[length:]) <= {pad}
    return ids[:length]


@pytest.mark.parametrize("task", list(Task))
def test_a_micro_batch_is_a_function_of_its_number(root, task):
    one, other = builder(root, task), builder(root, task)
    forwards = [one(number) for number in range(PASS + 2)]
    backwards = [other(number) for number in reversed(range(PASS + 2))][::-1]
    assert all(equal(*pair) for pair in zip(forwards, backwards, strict=True))
    assert not equal(forwards[0], forwards[1])


COLUMNS = {
    Task.CONTRAST: {"encoder_pixels", "decoder_pixels", "input_ids"},
    Task.CHAT: {"prompt_pixels", "input_ids", "labels"},
    Task.GENERATE: {"encoder_pixels", "input_ids"},
    Task.GENERATE_PIXELS: {"decoder_pixels", "input_ids"},
    Task.PIXELS: {"encoder_pixels", "decoder_pixels"},
    Task.JOINT: {"prompt_pixels", "encoder_pixels", "input_ids", "labels", "draw_ids", "draws"},
    Task.JOINT_PIXELS: {"prompt_pixels", "decoder_pixels", "input_ids", "labels", "draw_ids", "draws"},
}


@pytest.mark.parametrize("task", list(Task))
def test_columns_have_fixed_shapes(root, task):
    arrays = builder(root, task)(0)
    assert set(arrays) == {"draw_key", *COLUMNS[task]}
    kinds = {"draw_key": ((B,), np.int64), "input_ids": ((B, LENGTH), np.int32), "labels": ((B, LENGTH), np.int32)}
    kinds |= {"draw_ids": ((B, LENGTH), np.int32), "draws": ((B,), np.bool_)}
    for name, array in arrays.items():
        shape, dtype = kinds.get(name, ((B, 32, 32, 3), np.uint8))
        assert (array.shape, array.dtype) == (shape, dtype), name


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("questions", 1),
        ("question_weights", {"color": 99.0}),
        ("independent_questions", True),
        ("form_share", 1.0),
        ("grey_share", 1.0),
    ],
)
def test_settings_of_questions_change_what_asks_them_and_nothing_else(root, field, value):
    for task in Task:
        same = equal(builder(root, task)(0), builder(root, task, **{field: value})(0))
        assert same != task.shows_images, task


@pytest.mark.parametrize(("task", "asked", "drawn"), [("chat", 1, 0), ("generate", 0, 1), ("both", 1, 1)])
def test_a_sample_for_two_tasks_is_for_those_of_its_source(root, task, asked, drawn):
    encoder = replace(builder(root, Task.JOINT).encoder, source_tasks={"src": task})
    row = encoder(raw())
    chat, draw = (replace(encoder, task=alone)(raw()) for alone in (Task.CHAT, Task.GENERATE))
    assert row["draws"] == bool(drawn)
    assert np.array_equal(row["draw_ids"], draw["input_ids"])
    assert np.array_equal(row["input_ids"], chat["input_ids"])
    assert np.array_equal(row["labels"], chat["labels"] if asked else np.full_like(chat["labels"], IGNORE))


def test_every_column_has_the_size_of_its_part(root):
    sides = {"encoder": {"image_size": 64}, "decoder": {"image_size": 48}}
    values = recipe(root).model_copy(
        update={"model": recipes.recipe(model={"preset": "nano", **sides}).model},
    )
    arrays = build_micro_batches(StageInputs(values), Task.PIXELS)(0)
    assert arrays["encoder_pixels"].shape == (B, 64, 64, 3)
    assert arrays["decoder_pixels"].shape == (B, 48, 48, 3)


def test_rows_are_the_samples_of_the_order(root):
    build = builder(root, Task.PIXELS)
    for number in (0, PASS + 1):
        refs, arrays = build.order.micro_batch_refs(number), build(number)
        for row, sample in enumerate(build.reader.fetch(refs)):
            assert arrays["draw_key"][row] == derive_seed("draw", sample.uid, refs[row].pass_index)
            assert np.array_equal(arrays["encoder_pixels"][row], decode_image(sample.image, 32))


def test_every_sample_has_other_draws_in_every_pass(root):
    build = builder(root, Task.GENERATE)
    passes = [np.concatenate([build(p * PASS + n)["draw_key"] for n in range(PASS)]) for p in range(4)]
    assert len(set(np.concatenate(passes).tolist())) == 4 * SAMPLES


def test_another_pass_may_choose_another_caption_and_other_questions(root):
    encoder = builder(root, Task.GENERATE).encoder
    captions = [f"caption number {number}" for number in range(6)]
    chosen = {encoder(raw(pass_index=n, captions=captions))["input_ids"].tobytes() for n in range(20)}
    assert 1 < len(chosen) <= len(captions)
    assert len({replace(encoder, seed=seed)(raw(captions=captions))["input_ids"].tobytes() for seed in range(20)}) > 1


def test_a_request_to_draw_is_the_same_in_training_and_in_use(root):
    build = builder(root, Task.GENERATE)
    encoder = build.encoder
    pipeline = Blip3oPipeline(
        model=None, tokenizer=encoder.tokenizer, template=encoder.template, max_length=LENGTH, device=None
    )
    ids = text_of(build, encoder(raw("a red circle")))
    assert ids == pipeline.generation_ids("a red circle")
    assert ids[-1] == encoder.tokenizer.ids[GENERATE]


def test_questions_are_answered_under_supervision_and_padding_is_not(root):
    build = builder(root, Task.CHAT, questions=2)
    tokenizer = build.encoder.tokenizer
    arrays = build(0)
    for ids, labels in zip(arrays["input_ids"], arrays["labels"], strict=True):
        assert (ids == tokenizer.ids[IMAGE_PAD]).sum() == IMAGE_TOKENS
        assert (labels == tokenizer.ids[TURN_END]).sum() in (1, 2)
        assert set(labels[labels != ids].tolist()) <= {IGNORE}
        assert (labels[ids == tokenizer.ids[PAD]] == IGNORE).all()


def test_questions_asked_apart_are_branches_each_a_conversation_by_itself(root):
    build = builder(root, Task.CHAT, questions=2, independent_questions=True, form_share=0.5)
    encoder, template, tokenizer = build.encoder, build.encoder.template, build.encoder.tokenizer
    row = replace(encoder, form_share=0.0)(raw(qa=QA))
    ids, labels, branches = (row[name] for name in ("input_ids", "labels", "branches"))
    assert branches.dtype == np.int32 and set(branches.tolist()) == {0, 1, 2}
    stem = ids.tolist().index(tokenizer.ids[VISION_END]) + 1
    assert not branches[:stem].any()
    begun = np.arange(LENGTH) < stem
    apart = {tuple(ids[begun | (branches == n)].tolist()) for n in (1, 2)}
    told = [[Turn(role="user", text=qa["question"]), Turn(role="assistant", text=qa["answer"])] for qa in QA]
    alone = [template.conversation(tokenizer, turns, with_image=True) for turns in told]
    assert apart == {talk.ids for talk in alone}
    assert sorted(labels[labels != IGNORE].tolist()) == sorted(i for t in alone for i in t.labels if i != IGNORE)
    # A form, and a conversation that was had, are one text.
    form = replace(encoder, form_share=1.0)(raw(caption_qa=QA))
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a circle"}]
    had = replace(encoder, form_share=0.0)(raw(conversations=turns))
    assert not form["branches"].any() and not had["branches"].any()
    # What does not fit loses whole questions.
    short = replace(encoder, form_share=0.0, max_length=len(text_of(build, row)) - 1)(raw(qa=QA))
    assert set(short["branches"].tolist()) == {0, 1}


QA = [{"question": "what color?", "answer": "red"}, {"question": "how many?", "answer": "one"}]


def test_a_share_of_samples_fills_a_form_about_the_caption_in_place_of_the_picture(root):
    build = builder(root, Task.CHAT, form_share=1.0)
    tokenizer, template = build.encoder.tokenizer, build.encoder.template
    row = build.encoder(raw("a red circle", caption_qa=QA))
    pairs = [(pair["question"], pair["answer"]) for pair in QA]
    orders = [pairs, pairs[::-1]]
    forms = [template.form(tokenizer, "a red circle", [*first, *second]) for first in orders for second in orders]
    [form] = [form for form in forms if list(form.ids) == text_of(build, row)]
    assert row["labels"][: len(form.ids)].tolist() == list(form.labels)
    assert row["prompt_pixels"].shape == (32, 32, 3)
    # What has no form shows its picture.
    without = build.encoder(raw("a red circle", qa=QA))
    assert text_of(build, without).count(tokenizer.ids[IMAGE_PAD]) == IMAGE_TOKENS
    never = builder(root, Task.CHAT, form_share=0.0).encoder
    shown = [text_of(build, never(raw("a red circle", pass_index=n, qa=QA, caption_qa=QA))) for n in range(8)]
    assert {ids.count(tokenizer.ids[IMAGE_PAD]) for ids in shown} == {IMAGE_TOKENS}
    # A form that is too long loses questions from its end.
    short = replace(build.encoder, max_length=len(form.ids) - 1)(raw("a red circle", caption_qa=QA))
    assert (short["labels"] != IGNORE).sum() == 3


@pytest.mark.parametrize("pair", [{"question": "", "answer": "a"}, {"question": "b?", "answer": ""}, {"answer": "a"}])
def test_a_form_with_a_pair_that_lacks_a_half_is_damage(root, pair):
    build = builder(root, Task.CHAT, form_share=1.0)
    with pytest.raises(DamagedSampleError, match=r"caption_qa\[\d\] has (no|an empty) '(question|answer)'"):
        build.encoder(raw(caption_qa=[*QA, pair]))


def test_kinds_of_questions_are_chosen_by_their_weights(root):
    pairs = [{"kind": kind, "question": f"{kind}?", "answer": "red"} for kind in ("often", "rarely")]
    encoder = builder(root, Task.CHAT, questions=1, question_weights={"often": 3.0, "rarely": 1.0}).encoder
    often = encoder.tokenizer.encode("often")
    rows = [encoder(raw(pass_index=n, qa=pairs))["input_ids"].tolist() for n in range(400)]
    share = np.mean([contains(ids, often) for ids in rows])
    # 3 / (3 + 1); binomial deviation 0.022 of the share, five of them.
    assert share == pytest.approx(0.75, abs=0.11)


def test_a_share_of_pictures_is_grey_and_asked_what_a_grey_picture_answers(root):
    pairs = [{"question": "what color?", "answer": "red"}, {"question": "how many?", "answer": "one", "grey": True}]
    never, half = (builder(root, Task.CHAT, questions=2, grey_share=grey).encoder for grey in (0.0, 0.5))
    color = never.tokenizer.encode("what color?")
    plain, mixed = ([encoder(raw(pass_index=n, qa=pairs)) for n in range(200)] for encoder in (never, half))
    picture = plain[0]["prompt_pixels"]
    luma = np.asarray(Image.fromarray(picture).convert("L"))
    for row in plain:
        assert np.array_equal(row["prompt_pixels"], picture)
        assert contains(row["input_ids"].tolist(), color)
    grey = [(row["prompt_pixels"] == luma[..., None]).all() for row in mixed]
    assert grey == [not contains(row["input_ids"].tolist(), color) for row in mixed]
    # Binomial deviation 0.035 of the share, five of them.
    assert np.mean(grey) == pytest.approx(0.5, abs=0.18)
    assert not any((half(raw(pass_index=n, qa=pairs[:1]))["prompt_pixels"] != picture).any() for n in range(20))


def contains(ids, part):
    return any(ids[i : i + len(part)] == part for i in range(len(ids)))


def test_a_picture_without_questions_is_described(root):
    build = builder(root, Task.CHAT)
    turns = [Turn(role="user", text=DESCRIBE), Turn(role="assistant", text="a red circle")]
    said = build.encoder.template.conversation(build.encoder.tokenizer, turns, with_image=True)
    assert text_of(build, build.encoder(raw("a red circle"))) == list(said.ids)


def test_questions_that_do_not_fit_are_left_out_whole(root):
    build = builder(root, Task.CHAT, questions=4)
    tokenizer, template = build.encoder.tokenizer, build.encoder.template
    pairs = [{"question": f"{n}" * 30, "answer": "red"} for n in range(4)]
    one = template.conversation(
        tokenizer, [Turn(role="user", text="0" * 30), Turn(role="assistant", text="red")], with_image=True
    )
    for room, expected in ((len(one.ids), 1), (len(one.ids) * 4, 4)):
        row = replace(build.encoder, max_length=room)(raw(qa=pairs))
        assert (row["labels"] == tokenizer.ids[TURN_END]).sum() == expected
    with pytest.raises(DamagedSampleError, match=rf"{len(one.ids)} tokens, data.max_length allows 1 to"):
        replace(build.encoder, max_length=len(one.ids) - 1)(raw(qa=pairs))


def test_text_that_does_not_fit_is_refused_and_never_cut(root):
    build = builder(root, Task.GENERATE)
    length = len(text_of(build, build.encoder(raw("a red circle"))))
    fits = replace(build.encoder, max_length=length)(raw("a red circle"))
    assert fits["input_ids"].shape == (length,)
    with pytest.raises(DamagedSampleError, match=rf"{length} tokens, data.max_length allows 1 to {length - 1}"):
        replace(build.encoder, max_length=length - 1)(raw("a red circle"))


def source_with(root, caption):
    """Six samples, of which the third has this caption."""
    captions = [f"a red circle {number}" for number in range(6)]
    captions[2] = caption
    content = [
        Sample(key=f"k{number}", image=png(number), ext="png", record={"captions": [text]})
        for number, text in enumerate(captions)
    ]
    add_source(str(root), "scenes", content)
    write_tokenizer(str(root), captions)


@pytest.mark.parametrize("task", [Task.GENERATE, Task.CONTRAST, Task.CHAT])
def test_a_sample_that_does_not_fit_is_replaced_and_named(tmp_path, task):
    source_with(tmp_path, " ".join(f"{n}!?" for n in range(200)))
    build = build_micro_batches(StageInputs(recipe(tmp_path)), task)
    refs, arrays = build.order.micro_batch_refs(0), build(0)
    [slot] = {slot for slot, ref in enumerate(refs[:6]) if ref.row == 2}
    long = derive_seed("draw", "scenes/0/2", 0)
    others = [derive_seed("draw", f"scenes/0/{row}", 0) for row in (0, 1, 3, 4, 5)]
    assert long not in arrays["draw_key"]
    assert arrays["draw_key"][slot] in others
    assert equal(build(0), arrays)
    [entry] = read_ledger(f"{tmp_path}/runs/test/ledger")
    assert (entry.uid, entry.stage) == ("scenes/0/2", "train")
    assert f"tokens, data.max_length allows 1 to {LENGTH}" in entry.reason


def test_a_source_in_which_nothing_fits_stops(tmp_path):
    source_with(tmp_path, "a red circle 2")
    with pytest.raises(DataError, match="is damaged, and so is all that could replace it"):
        build_micro_batches(StageInputs(recipe(tmp_path, max_length=5)), Task.GENERATE)(0)


def test_a_conversation_is_told_as_it_went_as_far_as_it_fits(root):
    build = builder(root, Task.CHAT)
    said = [f"{word} {number}?" for number in range(2) for word in ("what", "a dot")]
    turns = [{"from": "human" if n % 2 == 0 else "gpt", "value": text} for n, text in enumerate(said)]
    turns[0]["value"] += "\n<image>"
    told = [Turn(role="user" if n % 2 == 0 else "assistant", text=text) for n, text in enumerate(said)]
    template, tokenizer = build.encoder.template, build.encoder.tokenizer
    whole, first = (template.conversation(tokenizer, told[:n], with_image=True) for n in (4, 2))
    for length, expected in [(LENGTH, whole), (len(whole.ids) - 1, first)]:
        row = replace(build.encoder, max_length=length)(raw(conversations=turns, qa=QA))
        assert tuple(row["input_ids"][: len(expected.ids)]) == expected.ids
        assert tuple(row["labels"][: len(expected.ids)]) == expected.labels
        assert (row["labels"][len(expected.ids) :] == IGNORE).all()


def test_captions_of_the_record_win_over_the_text_file(root):
    build = builder(root, Task.GENERATE)
    with_record = text_of(build, build.encoder(raw("in the file", captions=["in the record"])))
    assert with_record == build.encoder.template.generation_request(build.encoder.tokenizer, "in the record")
