"""The engine's images are the pipeline's, bit for bit, in any batch; a request leaves nothing behind."""

import pickle
import threading
from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from blip3o.data.text.templates import Turn
from blip3o.errors import RequestError
from blip3o.inference.chat import ReplyBatch, ReplyText
from blip3o.inference.pipeline import Blip3oPipeline
from serve.engine.engine import Engine
from serve.protocol import BusyError, ChatRequest, EngineError, GenerateRequest, UnavailableError

TIMEOUT = 60
PROMPTS = ("a red circle", "It is green.", "a blue square above a red circle, and below it a green one")


def _generate(prompt=PROMPTS[0], *, seeds=(1,), steps=3, guidance=3.0):
    return GenerateRequest(prompt=prompt, seeds=tuple(seeds), num_inference_steps=steps, guidance_scale=guidance)


def _ask(text="What colour is it?", *, image=None, max_tokens=4, **options):
    images = () if image is None else (image,)
    return ChatRequest(turns=(Turn(role="user", text=text),), images=images, max_tokens=max_tokens, **options)


def _picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8))


def _expected(pipeline, request):
    """The image of each seed when it is generated on its own."""
    options = {"num_inference_steps": request.num_inference_steps, "guidance_scale": request.guidance_scale}
    images = [pipeline.generate(request.prompt, seed=seed, **options)[0] for seed in request.seeds]
    return [image.tobytes() for image in images]


def _reply(pipeline, request):
    """The reply to a conversation on its own."""
    image = request.images[0] if request.images else None
    options = {"temperature": request.temperature, "top_p": request.top_p, "seed": request.seed or 0}
    return pipeline.chat(request.turns, image=image, max_tokens=request.max_tokens, stop=request.stop, **options)


def _bytes(reply):
    return [image.tobytes() for image in reply.images]


def _submit(engine, request):
    return engine.generate(request) if isinstance(request, GenerateRequest) else engine.chat(request)


def _run(pipeline, requests):
    """Submits all, then starts, so that how they mix does not hang on timing."""
    engine = Engine(pipeline, max_waiting=99)
    futures = [_submit(engine, request) for request in requests]
    engine.start()
    wait(futures, timeout=TIMEOUT)
    engine.close()
    return futures


@pytest.fixture
def engine(pipeline):
    engine = Engine(pipeline, max_waiting=10)
    yield engine
    engine.close()


class Spy:
    """Stands before a method: counts its calls and does something at a given one."""

    def __init__(self, monkeypatch, target, name, *, at=None, action=None):
        self.calls = 0
        self._original, self._at, self._action = getattr(target, name), at, action
        monkeypatch.setattr(target, name, self)

    def __call__(self, *args, **kwargs):
        self.calls += 1
        if self.calls == self._at:
            self._action()
        return self._original(*args, **kwargs)


def test_the_model_is_awake(reference):
    """Prompt, seed, steps and guidance each change the image: else the equalities below would say nothing."""
    variants = [
        _generate(),
        _generate(PROMPTS[1]),
        _generate(seeds=[2]),
        _generate(steps=2),
        _generate(guidance=1.0),
        _generate(guidance=2.0),
    ]
    images = [_expected(reference, variant)[0] for variant in variants]
    assert len(set(images)) == len(images)


@pytest.mark.parametrize("guidance", [1.0, 3.0, 0.0, 2.3])
def test_on_its_own_it_is_the_pipelines_image(pipeline, reference, guidance):
    request = _generate(guidance=guidance, steps=4)
    [future] = _run(pipeline, [request])
    assert _bytes(future.result()) == _expected(reference, request)


MIXED = (
    _generate(PROMPTS[0], seeds=[1, 2], steps=5, guidance=3.0),
    _generate(PROMPTS[1], seeds=[3], steps=1, guidance=1.0),
    _generate(PROMPTS[2], seeds=[4, 5, 6], steps=3, guidance=1.0),
    _generate(PROMPTS[2], seeds=[1], steps=2, guidance=7.5),
    _generate(PROMPTS[0], seeds=[1], steps=4, guidance=1.0),
)


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_mixed_in_any_order_it_is_the_pipelines_image(pipeline, reference, order):
    futures = _run(pipeline, [MIXED[i] for i in order])
    for i, future in zip(order, futures, strict=True):
        assert _bytes(future.result()) == _expected(reference, MIXED[i]), MIXED[i]


REQUESTS = st.builds(
    _generate,
    st.sampled_from(PROMPTS),
    seeds=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    steps=st.integers(1, 5),
    guidance=st.sampled_from([0.0, 1.0, 1.5, 4.0]),
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(REQUESTS, min_size=1, max_size=5))
def test_any_mixture_gives_the_pipelines_images(reference, requests):
    for request, future in zip(requests, _run(reference, requests), strict=True):
        assert _bytes(future.result()) == _expected(reference, request)


def test_a_request_may_join_between_any_two_steps(pipeline, reference, engine, monkeypatch):
    late, futures = _generate(PROMPTS[1], steps=5, guidance=2.0, seeds=[9]), []
    Spy(monkeypatch, pipeline.model.dit, "forward", at=2, action=lambda: futures.append(engine.generate(late)))
    early = _generate(steps=4, seeds=[1, 2])
    first = engine.generate(early)
    engine.start()
    assert _bytes(first.result(TIMEOUT)) == _expected(reference, early)
    assert _bytes(futures[0].result(TIMEOUT)) == _expected(reference, late)
    assert 7 <= engine.stats().totals["steps"] <= 9  # it joins at one of the steps after the second


@pytest.mark.parametrize(("guidances", "rows"), [([1.0], [1]), ([3.0], [2]), ([3.0, 1.0], [4]), ([3.0, 1.0, 2.0], [8])])
def test_a_step_is_one_evaluation_of_the_smallest_width_and_guidance_one_has_no_null_branch(pipeline, guidances, rows):
    """Rows of an evaluation: one for each image, another for each with guidance, padded to a width."""
    evaluated = []
    pipeline.model.dit.register_forward_hook(lambda _, args, __: evaluated.append(len(args[0])))
    for future in _run(pipeline, [_generate(steps=5, guidance=guidance) for guidance in guidances]):
        future.result()
    assert evaluated == rows * 5


def test_the_prompt_is_read_once_for_all_images_of_a_request(pipeline, monkeypatch):
    spy = Spy(monkeypatch, pipeline.model, "query_states")
    reply = _run(pipeline, [_generate(seeds=range(7))])[0].result()
    assert spy.calls == 1
    assert len(set(_bytes(reply))) == 7
    assert reply.prompt_tokens == len(pipeline.generation_ids(PROMPTS[0]))


def test_conversations_answered_between_steps_equal_those_on_their_own(pipeline, reference):
    drawn = {"temperature": 1.0, "top_p": 0.9}
    asked = [
        _ask("hi"),
        _ask(image=_picture(0), seed=3, **drawn),
        _ask(image=_picture(1), max_tokens=6, seed=3, **drawn),
        _ask("a red", max_tokens=1),
        *(_ask("a red", max_tokens=20, seed=seed, **drawn) for seed in range(5)),
    ]
    generation = _generate(steps=6)
    picture, *replies = _run(pipeline, [generation, *asked])
    assert _bytes(picture.result()) == _expected(reference, generation)
    for request, future in zip(asked, replies, strict=True):
        reply = future.result()
        assert reply.text == _reply(reference, request)
        assert reply.reply_tokens == request.max_tokens or reply.finish_reason == "stop"
        assert reply.prompt_tokens == len(reference.chat_ids(request.turns, with_image=bool(request.images)))


class Held:
    """Holds the thread that enters a method until it is let go."""

    def __init__(self, monkeypatch, target, name):
        self.entered, self._go_on = threading.Event(), threading.Event()
        self._spy = Spy(monkeypatch, target, name, at=1, action=self._hold)

    def _hold(self):
        self.entered.set()
        assert self._go_on.wait(TIMEOUT)

    def let_go(self):
        self._go_on.set()


def test_a_conversation_waits_for_no_image_and_an_image_for_no_conversation(pipeline, engine, monkeypatch):
    """Each is answered while a pass of the other's network has not ended."""
    step = Held(monkeypatch, pipeline.model.dit, "forward")
    engine.start()
    image = engine.generate(_generate())
    assert step.entered.wait(TIMEOUT)
    assert engine.chat(_ask()).result(TIMEOUT).reply_tokens
    assert not image.done()
    step.let_go()
    image.result(TIMEOUT)
    token = Held(monkeypatch, pipeline.model.backbone.hf.lm_head, "forward")
    chat = engine.chat(_ask())
    assert token.entered.wait(TIMEOUT)
    assert engine.generate(_generate(PROMPTS[1])).result(TIMEOUT).images
    assert not chat.done()
    token.let_go()
    chat.result(TIMEOUT)


def test_a_conversation_is_work_until_it_ends_and_each_of_its_tokens_is_progress(engine, monkeypatch):
    seen, forward = [], ReplyBatch.forward
    monkeypatch.setattr(ReplyBatch, "forward", lambda batch: seen.append(engine.stats()) or forward(batch))
    reply = engine.chat(_ask(max_tokens=4))
    engine.start()
    assert reply.result(TIMEOUT).reply_tokens == 4
    assert [(stats.in_work, stats.passes, dict(stats.totals)) for stats in seen] == [(1, 1, {}), (1, 2, {}), (1, 3, {})]


def test_a_full_queue_refuses_and_says_when_to_come_again(engine):
    for _ in range(7):
        engine.generate(_generate(seeds=[1, 2]))  # 14 rows: 4 slots and 10 places
    with pytest.raises(BusyError, match="try again in 1 s") as caught:
        engine.generate(_generate())
    assert caught.value.retry_after_s == 1
    for _ in range(10):
        engine.chat(_ask())
    with pytest.raises(BusyError):
        engine.chat(_ask())
    stats = engine.stats()
    assert (stats.rows_running, stats.rows_waiting, stats.chats_waiting) == (0, 14, 10)
    assert stats.totals["rejected"] == 2


def test_a_cancelled_request_frees_its_rows_and_changes_no_neighbour(pipeline, reference, engine, monkeypatch):
    victim = engine.generate(_generate(PROMPTS[2], seeds=[7, 8, 9], steps=50))
    neighbour, waiting = _generate(steps=6), _generate(PROMPTS[1], seeds=[3, 4], steps=2)
    Spy(monkeypatch, pipeline.model.dit, "forward", at=3, action=victim.cancel)
    futures = [engine.generate(neighbour), engine.generate(waiting)]
    engine.start()
    assert _bytes(futures[0].result(TIMEOUT)) == _expected(reference, neighbour)
    assert _bytes(futures[1].result(TIMEOUT)) == _expected(reference, waiting)
    assert engine.stats().totals == {"steps": 6, "images": 3, "cancelled": 1}
    assert engine.stats().rows_running == 0


@pytest.mark.parametrize("request_", [_generate(" "), _generate("a red circle " * 50), _ask("a red circle " * 50)])
def test_unreadable_requests_are_rejected_at_once(engine, request_):
    with pytest.raises(RequestError, match="prompt"):
        _submit(engine, request_)
    assert engine.stats().rows_waiting == engine.stats().chats_waiting == 0


def test_a_prompt_that_fails_ends_only_its_own_request(pipeline, reference, monkeypatch):
    poison, read = pipeline.generation_ids(PROMPTS[2]), Blip3oPipeline.states_of

    def states_of(self, rows):
        assert poison not in rows, "poison"
        return read(self, rows)

    monkeypatch.setattr(Blip3oPipeline, "states_of", states_of)
    bad, good = _generate(PROMPTS[2], seeds=[5, 6]), [_generate(seeds=[1]), _generate(PROMPTS[1])]
    first, failed, last = _run(pipeline, [good[0], bad, good[1]])
    with pytest.raises(EngineError, match="^the model failed on this request$"):
        failed.result()
    monkeypatch.undo()
    assert [_bytes(first.result()), _bytes(last.result())] == [_expected(reference, request) for request in good]


def test_a_failed_conversation_ends_only_itself(pipeline, reference, monkeypatch):
    make = Blip3oPipeline.chat_prompt

    def chat_prompt(self, turns, images):
        assert turns[0].text != PROMPTS[2], "poison"
        return make(self, turns, images)

    monkeypatch.setattr(Blip3oPipeline, "chat_prompt", chat_prompt)
    failed, answered = _run(pipeline, [_ask(PROMPTS[2]), _ask(PROMPTS[0])])
    with pytest.raises(EngineError):
        failed.result()
    assert answered.result().text == _reply(reference, _ask(PROMPTS[0]))


@pytest.mark.parametrize("fault", ["logits", "text", "listener"])
def test_an_error_in_one_reply_of_a_batch_ends_only_this_one(talking, monkeypatch, fault):
    forward, add = ReplyBatch.forward, ReplyText.add

    def poison(batch):
        bad_rows = {row for row, reply in batch.running.items() if "poison" in reply.text._stop}
        return {row: logits * (torch.nan if row in bad_rows else 1) for row, logits in forward(batch).items()}

    def fail(text, token):
        assert text._stop != ["poison"], "poison"
        return add(text, token)

    if fault == "logits":
        monkeypatch.setattr(ReplyBatch, "forward", poison)
    if fault == "text":
        monkeypatch.setattr(ReplyText, "add", fail)
    good, bad = [_ask(text, max_tokens=6) for text in PROMPTS[:2]], _ask(max_tokens=6, stop=("poison",))
    engine = Engine(talking)
    first, *_ = futures = [
        engine.chat(request, (lambda _: 1 / 0) if fault == "listener" and request is bad else None)
        for request in (good[0], bad, good[1])
    ]
    engine.start()
    with pytest.raises(EngineError):
        futures[1].result(TIMEOUT)
    assert [first.result(TIMEOUT).text, futures[2].result(TIMEOUT).text] == [_reply(talking, each) for each in good]
    engine.check()
    engine.close()


@pytest.mark.parametrize("ask", [_generate, _ask])
def test_a_key_cannot_fill_the_queue_for_another(engine, ask):
    """Half of the places, if there are few, are left to who has nothing there."""
    request = replace(ask(), owner="greedy")
    with pytest.raises(BusyError):
        for _ in range(50):
            _submit(engine, request)
    assert not _submit(engine, replace(request, owner="other")).done()


def test_an_image_that_is_not_finite_ends_only_its_own_request(pipeline, reference, monkeypatch):
    original = pipeline.model.dit.forward

    def forward(*args):
        velocity = original(*args)
        velocity[1] = torch.nan
        return velocity

    monkeypatch.setattr(pipeline.model.dit, "forward", forward)
    good = _generate(seeds=[1])
    sound, broken = _run(pipeline, [good, _generate(seeds=[2, 3])])
    with pytest.raises(EngineError):
        broken.result()
    assert _bytes(sound.result()) == _expected(reference, good)


def test_a_failed_step_ends_those_in_the_batch_and_no_later_request(pipeline, reference, monkeypatch):
    def fail():
        raise MemoryError

    Spy(monkeypatch, pipeline.model.dit, "forward", at=3, action=fail)
    later = replace(_generate(seeds=[8]), priority=-1)  # else it gets a slot before the second image of another
    *failed, last = _run(pipeline, [_generate(seeds=[1, 2]), _generate(seeds=[3, 4]), later])
    for future in failed:
        with pytest.raises(EngineError):
            future.result()
    assert _bytes(last.result()) == _expected(reference, later)


def test_closing_fails_pending_requests_and_rejects_new_ones(pipeline, engine, monkeypatch):
    stepping, go_on = threading.Event(), threading.Event()

    def pause():
        stepping.set()
        go_on.wait(TIMEOUT)

    Spy(monkeypatch, pipeline.model.dit, "forward", at=2, action=pause)
    futures = [engine.generate(_generate(steps=50)), engine.generate(_generate(seeds=range(9)))]
    engine.start()
    engine.check()
    stepping.wait(TIMEOUT)
    closing = threading.Thread(target=engine.close)
    closing.start()
    go_on.set()
    for future in futures:
        with pytest.raises(UnavailableError, match="has stopped"):
            future.result(TIMEOUT)
    closing.join(TIMEOUT)
    with pytest.raises(UnavailableError, match="has stopped"):
        engine.generate(_generate())
    with pytest.raises(UnavailableError, match="is not running"):
        engine.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_loop_fails_everything_and_is_seen_by_the_health_check(pipeline, monkeypatch):
    monkeypatch.setattr("serve.engine.stepping.DenoiseStage.has_work", lambda _: 1 / 0)
    [future] = _run(pipeline, [_generate()])
    with pytest.raises(UnavailableError):
        future.result()


def test_errors_can_be_pickled():
    for error in (BusyError(7), UnavailableError("gone"), EngineError("broken"), RequestError("no")):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))
    assert pickle.loads(pickle.dumps(BusyError(7))).retry_after_s == 7


def test_a_model_that_only_chats_answers_and_rejects_image_requests_at_once(pipeline, reference):
    for part in ("queries", "dit", "decoder"):
        delattr(pipeline.model, part)
    expected = _reply(reference, _ask())
    [future] = _run(pipeline, [_ask()])
    assert future.result().text == expected
    engine = Engine(pipeline)
    with pytest.raises(RequestError, match="this bundle has no queries and chats, but generates no images"):
        engine.generate(_generate())
