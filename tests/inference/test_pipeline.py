"""The pipeline: an image depends only on its prompt, seed, steps and guidance, not on its batch."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from blip3o.bundle.reading import load_bundle
from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError, RequestError
from tests.bundles import MAX_LENGTH, write_nano_bundle

PROMPTS = [f"a {color} {shape}" for color in ("red", "blue") for shape in ("circle", "square", "star", "ring")][:7]
SEEDS = list(range(3, 10))
BATCH_SIZE = 4  # so that seven rows are a full group and one that is filled up


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("bundle"))
    write_nano_bundle(uri)
    return load_bundle(uri, batch_size=BATCH_SIZE)


@pytest.fixture(scope="module")
def images(pipeline):
    """All prompts in one batch."""
    return [np.asarray(image) for image in pipeline.generate(PROMPTS, seed=SEEDS)]


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), np.uint8)
    return Image.fromarray(pixels)


def ask(text):
    return [Turn(role="user", text=text)]


def test_a_prompt_and_seed_give_one_image_in_any_batch(pipeline, images):
    assert {image.shape for image in images} == {(32, 32, 3)}
    alone = [pipeline.generate([prompt], seed=[seed])[0] for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
    backwards = pipeline.generate(PROMPTS[::-1], seed=SEEDS[::-1])[::-1]
    rotated = pipeline.generate(PROMPTS[3:] + PROMPTS[:3], seed=SEEDS[3:] + SEEDS[:3])
    for others in (alone, backwards, rotated[4:] + rotated[:4]):
        for image, other in zip(images, others, strict=True):
            assert np.array_equal(image, np.asarray(other))


def test_features_are_equal_to_the_bit(pipeline):
    together = pipeline.generate_features(PROMPTS, seeds=SEEDS)
    for row, (prompt, seed) in enumerate(zip(PROMPTS, SEEDS, strict=True)):
        assert torch.equal(pipeline.generate_features([prompt], seeds=[seed])[0], together[row])


@pytest.mark.parametrize(
    "changed", [{"prompt": "a blue star"}, {"seed": 99}, {"guidance_scale": 1.5}, {"num_inference_steps": 3}]
)
def test_prompt_seed_guidance_and_steps_each_change_the_image(pipeline, images, changed):
    prompt, seed = changed.pop("prompt", PROMPTS[0]), changed.pop("seed", SEEDS[0])
    assert not np.array_equal(images[0], np.asarray(pipeline.generate([prompt], seed=[seed], **changed)[0]))


def test_defaults_are_the_bundles(pipeline, images):
    sampler = pipeline.model.config.sampler
    explicit = pipeline.generate(
        PROMPTS[:1],
        seed=SEEDS[:1],
        num_inference_steps=sampler.num_inference_steps,
        guidance_scale=sampler.guidance_scale,
    )
    assert np.array_equal(images[0], np.asarray(explicit[0]))


@pytest.mark.parametrize(("steps", "guidance", "evaluations"), [(1, 1.0, 1), (5, 1.0, 5), (5, 2.0, 5), (5, 0.0, 5)])
def test_steps_are_evaluations(pipeline, steps, guidance, evaluations):
    calls = []
    hook = pipeline.model.dit.register_forward_hook(lambda *_: calls.append(1))
    pipeline.generate_features(PROMPTS[:2], seeds=SEEDS[:2], num_inference_steps=steps, guidance_scale=guidance)
    hook.remove()
    assert len(calls) == evaluations


def test_a_batch_of_arithmetic_has_the_smallest_width_that_fits(pipeline):
    _, rows = pipeline.denoiser_widths, []
    hook = pipeline.model.dit.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    for count in (1, 3, 4, 7):
        pipeline.generate_features(PROMPTS[:count], seeds=SEEDS[:count], num_inference_steps=1)
    pipeline.generate_features(PROMPTS[:3], seeds=SEEDS[:3], num_inference_steps=1, guidance_scale=1)
    hook.remove()
    assert rows == [2, 8, 8, 8, 8, 4]  # conditional and null rows in one pass


def test_a_reply_is_the_same_on_its_own_and_in_a_batch(pipeline):
    questions = [ask(f"what is in picture {number}?") for number in range(6)]
    pictures = [picture(seed) for seed in range(6)]
    together = pipeline.reply_ids(questions, images=pictures, max_tokens=12)
    for question, shown, reply in zip(questions, pictures, together, strict=True):
        assert pipeline.reply_ids([question], images=[shown], max_tokens=12) == [reply]
    assert pipeline.chat("what is in picture 0?", image=pictures[0], max_tokens=12) == pipeline.tokenizer.decode(
        together[0]
    )


def test_a_reply_depends_on_question_and_picture(pipeline):
    def first_states(text, shown):
        states = []
        hook = pipeline.model.backbone.text.register_forward_hook(lambda *call: states.append(call[-1][0]))
        pipeline.reply_ids([ask(text)], images=None if shown is None else [shown], max_tokens=1)
        hook.remove()
        ids = pipeline.chat_ids(ask(text), with_image=shown is not None)
        return states[0][0, len(ids) - 1]

    base = first_states("what is it?", picture(0))
    assert torch.equal(base, first_states("what is it?", picture(0)))
    assert not torch.equal(base, first_states("what is it?", picture(1)))
    assert not torch.equal(base, first_states("who is it?", picture(0)))
    assert not torch.equal(base, first_states("what is it?", None))


def test_a_reply_ends_where_it_must(pipeline):
    [reply] = pipeline.reply_ids([ask("what?")], images=None, max_tokens=5)
    assert len(reply) <= 5
    assert pipeline.reply_ids([ask("what?")], images=None, max_tokens=3) == [reply[:3]]


def test_encode_gives_the_training_target(pipeline):
    from blip3o.data.images.decode import to_square

    size = pipeline.model.config.encoder.image_size
    pixels = torch.from_numpy(np.stack([to_square(picture(seed), size) for seed in range(5)]))
    with torch.inference_mode():
        expected = torch.cat([pipeline.model.encoder(pixels[:4]), pipeline.model.encoder(pixels[1:])[-1:]])
    assert torch.equal(pipeline.encode([picture(seed) for seed in range(5)]), expected)


def same(images, others):
    return [image.tobytes() for image in images] == [other.tobytes() for other in others]


def test_a_list_of_prompts_gives_the_images_of_each_prompt(pipeline):
    one, other = PROMPTS[:2]
    assert same(pipeline.generate(one, seed=3), pipeline.generate([one], seed=[3]))
    assert same(
        pipeline.generate([one, other], seed=3), pipeline.generate(one, seed=3) + pipeline.generate(other, seed=3)
    )
    assert same(
        pipeline.generate([one, other], seed=3, n=2), pipeline.generate([one, one, other, other], seed=[3, 4] * 2)
    )
    assert same(pipeline.generate(one, n=2), pipeline.generate([one, one], seed=[0, 1]))
    assert same(pipeline.generate(one, seed=np.int64(3), n=2), pipeline.generate(one, seed=range(3, 5), n=2))


@pytest.mark.parametrize(
    ("prompt", "options", "said"),
    [
        (7, {}, "the prompt is of type int: give a string or a list of strings"),
        (None, {}, "the prompt is missing"),
        ({"a": 1}, {}, "the prompt is of type dict"),
        (["a", 7], {}, "prompt 1 is of type int: give a string"),
        ([], {"seed": 1}, "there are 0 prompts: give at least one"),
        ("a", {"seed": "1"}, "seed is '1': give a whole number, or a list with one for each image"),
        ("a", {"seed": b"1"}, "seed is b’1’: give a whole number"),
        (b"a", {}, "the prompt is of type bytes: give a string"),
        (Path("a"), {}, "the prompt is of type PosixPath: give a string"),
        (["a", None], {}, "prompt 1 is missing: give a string"),
        ("a", {"n": True}, "n is True: give a whole number"),
        ("a", {"n": 2, "seed": [1]}, r"1 prompts and 1 seeds: give one seed for each of the 2 images"),
        (
            "a",
            {"num_inference_steps": 1001},
            "num_inference_steps is 1001: .*1 or more, 1000 or less",
        ),
        ("a", {"guidance_scale": 101}, "guidance_scale is 101: give a number, 0 or more, 100 or less"),
        ("a", {"seed": 1.0}, "seed is 1.0: give a whole number, 0 or more"),
        ("a", {"seed": True}, "seed is True"),
        ("a", {"seed": torch.tensor(1.5)}, r"seed is tensor\(1.5"),
        ("a", {"seed": np.array([[1]])}, r"seed is array\(\[1\]\)"),
        ("a", {"num_inference_steps": np.array(2.5)}, r"num_inference_steps is array\(2.5\)"),
        ("a", {"guidance_scale": 10**400}, "guidance_scale is 1000.*: give a number, 0 or more"),
        ("a", {"seed": -1}, "seed is -1"),
        ("a", {"seed": ["1"]}, "seed is '1'"),
        (
            ["a", "b"],
            {"seed": [1, 2, 3], "n": 2},
            r"2 prompts and 3 seeds: give one seed for each of the 4 images \(n=2\)",
        ),
        ("a", {"n": 0}, "n is 0: give a whole number, 1 or more"),
        ("a", {"num_inference_steps": 0}, "num_inference_steps is 0"),
        ("a", {"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ("a", {"guidance_scale": -1}, "guidance_scale is -1: give a number, 0 or more"),
        ("a", {"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ("a", {"guidance_scale": "3"}, "guidance_scale is '3'"),
        ("a", {"negative_prompt": 3}, "negative_prompt is of type int: give a string"),
    ],
)
def test_a_value_that_cannot_be_is_refused_before_anything_is_computed(pipeline, prompt, options, said):
    calls = []
    hook = pipeline.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(RequestError, match=said):
        pipeline.generate(prompt, **options)
    hook.remove()
    assert not calls


def test_seeds_of_features_and_pixels_are_those_of_images(pipeline):
    one = PROMPTS[0]
    features = pipeline.generate_features(one, seeds=3)
    assert torch.equal(features, pipeline.generate_features([one], seeds=[3]))
    assert torch.equal(pipeline.generate_features(one), pipeline.generate_features(one, seeds=np.array([0])))
    assert torch.equal(features, pipeline.generate_features(one, seeds=np.array(3)))
    assert same(pipeline.decode(features, seeds=3), pipeline.generate(one, seed=3))
    assert torch.equal(pipeline.condition(one), pipeline.condition([one]))
    assert same(pipeline.generate(one, seed=2**80), pipeline.generate([one], seed=[2**80]))


def test_every_form_of_a_question_and_a_picture_gets_the_same_reply(pipeline, tmp_path):
    shown, asked = picture(3), "what is this?"
    file = tmp_path / "a.png"
    shown.save(file)
    reply = pipeline.chat(asked, image=shown)
    message = {"role": "user", "content": asked}
    for image in (file, str(file)):
        for question in (asked, message, [message], ask(asked)):
            assert pipeline.chat(question, image=image) == reply
            assert pipeline.chat_batch([question], images=[image]) == [reply]
    whole = {"role": "user", "content": [{"type": "text", "text": asked}, {"type": "image", "image": file}]}
    assert pipeline.chat_batch([whole, [whole]]) == [reply, reply]
    assert pipeline.chat_ids(asked, with_image=True) == pipeline.chat_ids(ask(asked), with_image=True)
    assert torch.equal(pipeline.encode(file), pipeline.encode([shown]))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16", "F"])
def test_a_picture_of_any_mode_is_read(pipeline, mode):
    grey = Image.new("L", (20, 30), 200)
    shown = Image.fromarray(np.full((30, 20), 51200, np.uint16)) if mode == "I;16" else grey.convert(mode)
    assert shown.mode == mode
    assert pipeline.encode(shown).isfinite().all()


def cut_short():
    """A picture that Pillow opens, of a file that ends in its pixels."""
    buffer = io.BytesIO()
    picture(1).save(buffer, "bmp")
    return Image.open(io.BytesIO(buffer.getvalue()[:-40]))


ENTRIES = [
    (lambda it: it.generate(7), "the prompt is of type int"),
    (lambda it: it.generate_features(None), "the prompt is missing"),
    (lambda it: it.generate_features(["a", "b"], seeds=[1]), "2 prompts and 1 seeds: give one seed for each image"),
    (lambda it: it.generate_features("a", seeds=-1), "seed is -1: give a whole number, 0 or more"),
    (lambda it: it.condition(3), "the prompt is of type int: give a string or a list"),
    (lambda it: it.condition([""]), "the prompt is empty"),
    (lambda it: it.generation_ids(3), "the prompt is of type int: give a string"),
    (lambda it: it.feature_noise(True), "seed is True: give a whole number"),
    (lambda it: it.pixel_noise("1"), "seed is '1': give a whole number"),
    (lambda it: it.decode(np.zeros((1, 4, 8))), r"features are of type ndarray: give a tensor \[n, 4, "),
    (lambda it: it.decode(torch.zeros(4, 8)), r"features are \[4, 8\]: give a tensor"),
    (lambda it: it.decode(torch.zeros(2, *it.model.latent_shape), seeds=[1]), "2 prompts and 1 seeds"),
    (lambda it: it.encode([]), "there are 0 images: give at least one"),
    (lambda it: it.encode([picture(1), 3]), r"images\[1\] is of type int: give a PIL image or a path"),
    (lambda it: it.encode(np.zeros((1, 2, 3), np.uint8)), r"images\[0\] is of type ndarray: .*PIL.Image.fromarray\("),
    (lambda it: it.chat("a", image=b"png"), r"image is of type bytes: give a PIL image or a path: PIL.Image.open\("),
    (lambda it: it.chat("a", image=Image.new("RGB", (0, 5))), "image has 0 x 5 pixels: give a picture with at least"),
    (lambda it: it.encode([picture(1), cut_short()]), r"images\[1\] is a PIL image that cannot be read: .*truncated"),
    (lambda it: it.chat("a", image=["a.png"]), "image is of type list: give a PIL image or a path"),
    (lambda it: it.chat(None), "messages is missing: give a string, a message, or a list of messages"),
    (lambda it: it.chat({"role": "user"}), r"messages\[0\]\['content'\] is missing"),
    (
        lambda it: it.chat_batch("a"),
        "conversations is of type str: give a list of conversations; chat answers",
    ),
    (lambda it: it.chat_batch([]), "there are 0 conversations: give at least one"),
    (
        lambda it: it.chat_batch(["a", "b"], images=[picture(1)]),
        "2 conversations and 1 images: give one image",
    ),
    (lambda it: it.chat_batch(["a", "b"], images=[picture(1), None]), "1 of 2 conversations have an image"),
    (
        lambda it: it.chat_batch(["a"], images=picture(1)),
        "images is of type Image: give a list of images, one",
    ),
    (lambda it: it.chat_batch(["a"], max_tokens=0), "max_tokens is 0"),
    (lambda it: it.chat("a", temperature=-1), "temperature is -1: give a number of 0 to 2"),
    (lambda it: it.chat("a", temperature=float("nan")), "temperature is nan"),
    (lambda it: it.chat("a", top_p=0), "top_p is 0: give a number above 0, 1 or less"),
    (lambda it: it.chat("a", stop=[1]), "give a string or a list of strings"),
    (lambda it: list(it.stream_chat(["a"])), r"messages\[0\] is of type str: give a dict"),
    (lambda it: it.chat_ids(3, with_image=False), "messages is of type int"),
]


@pytest.mark.parametrize(("call", "said"), ENTRIES, ids=[said[:40] for _, said in ENTRIES])
def test_every_entry_refuses_other_values_with_the_fix(pipeline, call, said):
    with pytest.raises(RequestError, match=said) as caught:
        call(pipeline)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size is 0: give a whole number, 1 or more"),
        ({"batch_size": None}, "batch_size is None"),
        ({"decode_batch_size": True}, "decode_batch_size is True"),
        ({"execution": "fast"}, "execution 'fast' is unknown: use eager, compile, graph"),
        ({"device": 3.5}, "device '3.5' cannot be used"),
        ({"uri": 3}, "the bundle is of type int: give its folder or its URI"),
    ],
)
def test_a_bundle_is_not_loaded_with_options_that_cannot_be(options, said):
    with pytest.raises(Blip3oError, match=said):
        load_bundle(**{"uri": "/nowhere", **options})


def test_a_negative_prompt_takes_the_place_of_the_null_condition(pipeline, images):
    options = {"seed": SEEDS[0], "guidance_scale": 0.0}
    [away] = pipeline.generate(PROMPTS[0], negative_prompt=PROMPTS[1], **options)
    assert same([away], pipeline.generate(PROMPTS[1], seed=SEEDS[0], guidance_scale=1.0))  # v = v_null at scale 0
    assert not same([away], pipeline.generate(PROMPTS[0], **options))


def test_an_empty_negative_prompt_changes_nothing(pipeline, images):
    assert np.array_equal(images[0], pipeline.generate(PROMPTS[0], seed=SEEDS[0], negative_prompt="")[0])


@pytest.mark.parametrize("limit", [0, -1, 1.5, None])
def test_a_limit_of_tokens_that_cannot_be_is_refused(pipeline, limit):
    with pytest.raises(RequestError, match="max_tokens is .*: give a whole number, 1 or more"):
        pipeline.chat("what?", max_tokens=limit)


def test_messages_are_answered_as_their_question(pipeline):
    parts = [{"type": "image", "image": picture(3)}, {"type": "text", "text": "what is this?"}]
    messages = [{"role": "user", "content": parts}]
    said = pipeline.chat("what is this?", image=picture(3))
    assert said == pipeline.chat(messages) == "".join(pipeline.stream_chat(messages))
    assert said == pipeline.chat_batch([ask("what is this?")], images=[picture(3)])[0]


@pytest.mark.parametrize("prompt", ["", "  \n"])
def test_an_empty_prompt_is_refused(pipeline, prompt):
    with pytest.raises(RequestError, match="the prompt is empty: say what to generate"):
        pipeline.generate([PROMPTS[0], prompt], seed=[0, 1])


def test_a_prompt_is_refused_exactly_where_it_no_longer_fits(pipeline):
    room = MAX_LENGTH - len(pipeline.template.generation_request(pipeline.tokenizer, "x")) + 1
    fits = "x" * room
    assert len(pipeline.generation_ids(fits)) == MAX_LENGTH
    assert len(pipeline.generate([fits], seed=[0], num_inference_steps=1)) == 1
    too_long = f"the prompt takes {MAX_LENGTH + 1} tokens, this model reads {MAX_LENGTH}: shorten it"
    with pytest.raises(RequestError, match=too_long):
        pipeline.generate([fits + "x"], seed=[0])
    with pytest.raises(RequestError, match=f"this model reads {MAX_LENGTH}: shorten it"):
        pipeline.chat("x" * MAX_LENGTH)


@pytest.mark.parametrize(("prompts", "seeds"), [(["a", "b"], [1]), (["a"], [1, 2]), ([], [1])])
def test_prompts_and_seeds_belong_together(pipeline, prompts, seeds):
    with pytest.raises(RequestError, match=f"{len(prompts)} prompts and {len(seeds)} seeds"):
        pipeline.generate(prompts, seed=seeds)


@pytest.mark.parametrize("image", [None, picture(3)])
def test_a_streamed_reply_is_the_whole_reply_in_pieces_of_whole_characters(pipeline, image):
    options = {"image": image, "max_tokens": 24, "temperature": 2.0, "seed": 3}
    whole = pipeline.chat("what is this?", **options)
    pieces = list(pipeline.stream_chat("what is this?", **options))
    assert "".join(pieces) == whole
    assert len(pieces) > 3


def test_a_text_only_model_rejects_an_image(pipeline):
    blind = dataclasses.replace(pipeline, template=dataclasses.replace(pipeline.template, image_tokens=0))
    with pytest.raises(RequestError, match="reads only text: ask without the image"):
        blind.chat("what is this?", image=picture(3))
