"""Images are decoded in a thread of their own: steps and conversations do not wait, and no request is left behind."""

import itertools
import threading
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip3o.data.text.templates import Turn
from blip3o.inference.pipeline import Blip3oPipeline
from serve.config.options import ServeConfig
from serve.engine.decoding import DecodeBatch, DecodeStage, FinishedRow
from serve.engine.engine import Engine
from serve.engine.requests import Generation, Requests
from serve.protocol import BusyError, ChatRequest, EngineError, FinishedImage, GenerateRequest, UnavailableError

TIMEOUT = 60


def _generate(*, seeds=(1,), steps=1):
    return GenerateRequest(prompt="a red circle", seeds=tuple(seeds), num_inference_steps=steps, guidance_scale=1.0)


def _ask():
    return ChatRequest(turns=(Turn(role="user", text="What colour is it?"),), images=(), max_tokens=2)


def _bytes(pipeline, seeds, *, steps=1):
    images = pipeline.generate("a red circle", seed=seeds, n=len(seeds), num_inference_steps=steps, guidance_scale=1.0)
    return [image.tobytes() for image in images]


class Gate:
    """Stands before the decoder: no image passes until the gate is open. `seeds` are those of images that came."""

    def __init__(self, monkeypatch):
        self.entered, self.open = threading.Semaphore(0), threading.Event()
        self.seeds = []
        original = DecodeBatch.put

        def put(batch, row):
            self.seeds.append(row.seed)
            self.entered.release()
            assert self.open.wait(TIMEOUT)
            original(batch, row)

        monkeypatch.setattr(DecodeBatch, "put", put)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


@contextmanager
def _running(pipeline, **options):
    engine = Engine(replace(pipeline, decode_batch_size=1), **options)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def test_steps_and_conversations_do_not_wait_for_the_decoder(pipeline, reference, gate):
    with _running(pipeline) as engine:
        first = engine.generate(_generate())
        assert gate.entered.acquire(timeout=TIMEOUT)
        assert engine.chat(_ask()).result(TIMEOUT).reply_tokens <= 2
        steps = engine.stats().totals["steps"]
        second = engine.generate(_generate(seeds=[2], steps=3))
        engine.chat(_ask()).result(TIMEOUT)  # answered after the next step at the latest
        while engine.stats().totals["steps"] < steps + 3:
            engine.chat(_ask()).result(TIMEOUT)
        assert not first.done()
        assert engine.stats().rows_decoding >= 1
        gate.open.set()
        single = replace(reference, decode_batch_size=1)
        assert [image.tobytes() for image in first.result(TIMEOUT).images] == _bytes(single, [1])
        assert [image.tobytes() for image in second.result(TIMEOUT).images] == _bytes(single, [2], steps=3)


def test_the_time_ahead_counts_images_in_the_decoder(pipeline, gate):
    with _running(pipeline) as engine:
        gate.open.set()
        engine.generate(_generate()).result(TIMEOUT)
        gate.open.clear()
        engine.generate(_generate(seeds=[2]))
        assert gate.entered.acquire(timeout=TIMEOUT) and gate.entered.acquire(timeout=TIMEOUT)
        ahead = engine.stats().seconds_ahead  # all steps are done
        gate.open.set()
    assert ahead > 0


def test_a_slow_decoder_fills_its_queue_then_the_slots_then_refuses(pipeline, gate):
    with _running(pipeline, max_waiting=10) as engine:
        # 1 in the decoder, 4 in its queue, 4 in slots, 10 waiting
        futures = [engine.generate(_generate())]
        assert gate.entered.acquire(timeout=TIMEOUT)
        futures += [engine.generate(_generate(seeds=range(4))) for _ in range(3)]
        while engine.stats().rows_decoding < 5:
            engine.chat(_ask()).result(TIMEOUT)
        futures += [engine.generate(_generate(seeds=range(3))) for _ in range(2)]
        with pytest.raises(BusyError):
            engine.generate(_generate())
        assert engine.stats().rows_decoding == 5
        served = ServeConfig(bundle="x", decode_batch_size=1, max_waiting=10)
        assert 1 + 4 + 4 + 10 + served.max_waiting == served.max_requests  # the last are conversations
        gate.open.set()
        assert [len(future.result(TIMEOUT).images) for future in futures] == [1, 4, 4, 4, 3, 3]


def test_a_later_row_does_not_overtake_an_earlier_one_in_a_higher_slot(pipeline, reference, gate):
    """Seed 10 ends in the last slot; its neighbour, seed 11, gets the first one, of a request that is cancelled."""
    with _running(pipeline) as engine:
        futures = [engine.generate(_generate())]
        assert gate.entered.acquire(timeout=TIMEOUT)
        futures.append(engine.generate(_generate(seeds=range(4))))  # fills the decoder's queue
        while engine.stats().rows_decoding < 5:
            engine.chat(_ask()).result(TIMEOUT)
        victim, *others, pair = (engine.generate(_generate(seeds=seeds)) for seeds in ([5], [6], [7], [10, 11]))
        while engine.stats().rows_waiting > 1:
            engine.chat(_ask()).result(TIMEOUT)
        assert victim.cancel()
        while engine.stats().rows_waiting:
            engine.chat(_ask()).result(TIMEOUT)
        while len(engine._denoiser.schedule.finished) < 4:
            engine.chat(_ask()).result(TIMEOUT)
        gate.open.set()
        for future in [*futures, *others]:
            future.result(TIMEOUT)
        assert [image.tobytes() for image in pair.result(TIMEOUT).images] == _bytes(
            replace(reference, decode_batch_size=1), [10, 11]
        )
    assert gate.seeds[:9] == [1, 0, 1, 2, 3, 6, 7, 10, 11]


@pytest.mark.parametrize("decode_batch_size", [1, 3])
def test_images_of_a_reply_are_in_seed_order_in_whatever_order_they_are_decoded(reference, decode_batch_size):
    pipeline = replace(reference, decode_batch_size=decode_batch_size)
    seeds = (10, 11, 12)
    features = [pipeline.feature_noise(seed) for seed in seeds]
    expected = [pipeline.decode(features[i][None], seeds=[seeds[i]])[0].tobytes() for i in range(3)]
    assert len(set(expected)) == 3
    for order in itertools.permutations(range(3)):
        requests = Requests()
        generation = Generation(number=0, request=_generate(seeds=seeds), prompts=[(1, 2, 3)], began=0.0)
        requests.add(generation)
        stage = DecodeStage(pipeline, requests)
        stage.put([FinishedRow(number=0, image=i, seed=seeds[i], features=features[i]) for i in order])
        stage.start()
        assert [image.tobytes() for image in generation.future.result(TIMEOUT).images] == expected
        requests.close()
        stage.join()


def test_a_request_that_is_cancelled_while_it_is_decoded_frees_its_rows(pipeline, reference, gate):
    with _running(pipeline) as engine:
        victim = engine.generate(_generate(seeds=[7, 8, 9]))
        assert gate.entered.acquire(timeout=TIMEOUT)
        while engine.stats().rows_decoding < 3:
            engine.chat(_ask()).result(TIMEOUT)
        assert victim.cancel()
        assert engine.stats().totals["cancelled"] == 1
        neighbour = engine.generate(_generate(seeds=[1]))
        gate.open.set()
        assert [image.tobytes() for image in neighbour.result(TIMEOUT).images] == _bytes(
            replace(reference, decode_batch_size=1), [1]
        )
        assert gate.seeds == [7, 1]  # neither 8 nor 9
        assert engine.stats().totals["images"] == 1


def test_an_image_that_cannot_be_decoded_ends_only_its_own_request(pipeline, reference, monkeypatch):
    """Four are decoded together. The others are decoded again, each by itself, to the same bytes."""
    original, poison = pipeline.model.decoder.evaluate, pipeline.pixel_noise(2)

    def evaluate(point, level, prepared):
        assert not any(torch.equal(row, poison) for row in point), "poison"
        return original(point, level, prepared)

    monkeypatch.setattr(pipeline.model.decoder, "evaluate", evaluate)
    engine = Engine(pipeline)
    good, bad, other = (engine.generate(_generate(seeds=seeds)) for seeds in ([1], [2, 3], [4]))
    engine.start()
    for future, seed in ((good, 1), (other, 4)):
        assert [image.tobytes() for image in future.result(TIMEOUT).images] == _bytes(reference, [seed])
    with pytest.raises(EngineError, match="the model failed on this request"):
        bad.result(TIMEOUT)
    engine.close()


def test_cancelling_frees_an_image_between_two_steps_of_the_decoder(pipeline, reference, monkeypatch):
    evaluated, futures, original = [], [], pipeline.model.decoder.evaluate

    def evaluate(point, level, prepared):
        evaluated.append(len(point))
        if len(evaluated) == 1:
            futures[0].cancel()
        return original(point, level, prepared)

    monkeypatch.setattr(pipeline.model.decoder, "evaluate", evaluate)
    engine = Engine(pipeline)
    futures += [engine.generate(_generate(seeds=[seed])) for seed in (1, 2)]
    engine.start()
    assert [image.tobytes() for image in futures[1].result(TIMEOUT).images] == _bytes(reference, [2])
    engine.close()
    steps = pipeline.model.config.decoder.num_inference_steps
    assert sum(evaluated) <= 2 * steps  # not one step more of the first than the one that had begun
    assert engine.stats().totals["images"] == 1


def test_closing_waits_for_the_decoder_and_fails_what_is_left(pipeline, gate):
    with _running(pipeline) as engine:
        futures = [engine.generate(_generate(seeds=[seed])) for seed in (1, 2)]
        assert gate.entered.acquire(timeout=TIMEOUT)
        closing = threading.Thread(target=engine.close)
        closing.start()
        gate.open.set()
        closing.join(TIMEOUT)
        assert not closing.is_alive()
        with pytest.raises(UnavailableError, match="has stopped"):
            futures[1].result(TIMEOUT)
        with pytest.raises(UnavailableError, match="is not running"):
            engine.check()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_defect_in_the_decoders_loop_fails_everything_and_is_seen_by_the_health_check(pipeline, monkeypatch):
    monkeypatch.setattr(DecodeStage, "_take", lambda _: 1 / 0)
    engine = Engine(pipeline)
    future = engine.generate(_generate())
    engine.start()
    with pytest.raises(UnavailableError):
        future.result(TIMEOUT)
    with pytest.raises(UnavailableError, match="is not running"):
        engine.check()
    engine.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("failing", ["decode", "chat_prompt", "states_of", "denoiser"])
def test_an_error_that_loses_the_gpu_ends_everything_and_is_seen_by_the_health_check(pipeline, monkeypatch, failing):
    """As real ones, it lasts. What else waits is not answered by a replica that is lost."""

    def fail(*_, **__):
        raise torch.AcceleratorError("an illegal memory access was encountered")

    target, name = {"denoiser": (pipeline.model.dit, "forward"), "decode": (DecodeBatch, "put")}.get(
        failing, (Blip3oPipeline, failing)
    )
    monkeypatch.setattr(target, name, fail)
    engine = Engine(pipeline)
    futures = [engine.chat(_ask()), *(engine.generate(_generate(seeds=[seed], steps=200)) for seed in range(9))]
    engine.start()
    with pytest.raises(UnavailableError):
        futures[-1].result(TIMEOUT)
    engine.close()
    with pytest.raises(UnavailableError, match="is not running"):
        engine.check()
    for future in futures[1:]:
        with pytest.raises(UnavailableError):
            future.result(TIMEOUT)


def test_memory_that_ran_out_ends_only_its_request(pipeline, monkeypatch):
    original = Blip3oPipeline.pixel_noise

    def pixel_noise(pipeline, seed):
        if seed == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(pipeline, seed)

    monkeypatch.setattr(Blip3oPipeline, "pixel_noise", pixel_noise)
    with _running(pipeline) as engine:
        with pytest.raises(EngineError):
            engine.generate(_generate(seeds=[2])).result(TIMEOUT)
        assert len(engine.generate(_generate(seeds=[1])).result(TIMEOUT).images) == 1
        engine.check()


class Stepped:
    """A decoder's stage whose passes a test makes one by one, and the number of rows of each pass."""

    def __init__(self, pipeline, monkeypatch, *, decode_batch_size, **options):
        self.passes, original = [], pipeline.model.decoder.evaluate
        _ = pipeline.null_features

        def evaluate(point, level, prepared):
            self.passes.append(len(point))
            return original(point, level, prepared)

        self._pipeline = replace(pipeline, decode_batch_size=decode_batch_size)
        _ = self._pipeline.decode_widths
        monkeypatch.setattr(pipeline.model.decoder, "evaluate", evaluate)
        self.requests, self.events = Requests(), []
        self.stage = DecodeStage(self._pipeline, self.requests, **options)

    def put(self, number, *, partial=None, images=1):
        """A row of a request that is added if it is new; returns the request."""
        if number not in self.requests.generations:
            request = Generation(number=number, request=_generate(seeds=range(images)), prompts=[(1,)], began=0.0)
            request.on_event = self.events.append
            self.requests.add(request)
        for image in range(images):
            features = self._pipeline.feature_noise(image)
            row = FinishedRow(number=number, image=image, seed=image, features=features, partial=partial)
            self.stage.put([row])
        return self.requests.generations[number]

    @torch.inference_mode()
    def step(self):
        """One pass, if there is work; returns whether there was."""
        with self.requests.changed:
            has_work = self.stage.has_work()
        if has_work:
            self.stage.work()
        return has_work


@pytest.mark.parametrize("cheap", [True, False])
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.sampled_from([1, 2, 4]), previews=st.lists(st.integers(0, 4), min_size=20, max_size=20))
def test_a_preview_delays_an_image_by_one_pass_at_most(reference, cheap, rows, previews):
    """Before each pass, previews of other requests come; an image comes whenever the decoder has a row for it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(reference.model.decoder, "previews", cheap, raising=False)
        stepped = Stepped(reference, monkeypatch, decode_batch_size=rows)
        steps = reference.model.config.decoder.num_inference_steps
        came = {}
        for passed, count in enumerate(previews):
            for number in range(count):
                stepped.put(1000 + number, partial=passed)
            running = [number for number, (request, _) in came.items() if not request.future.done()]
            if len(running) < rows and passed % 3:
                came[passed] = stepped.put(passed), passed
            stepped.step()
            for request, first in came.values():
                assert request.future.done() or passed - first < steps


def test_previews_are_in_order_and_none_comes_after_its_image(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline.model.decoder, "previews", False, raising=False)
    stepped = Stepped(pipeline, monkeypatch, decode_batch_size=4)
    for partial in range(3):
        request = stepped.put(1, partial=partial)
    stepped.step()
    stepped.put(1)
    stepped.put(2, partial=0)
    while stepped.step():
        pass
    *partials, image, other = stepped.events
    assert [event.partial for event in partials] == [0, 1, 2] and isinstance(image, FinishedImage)
    assert request.future.done() and other.partial == 0


@pytest.mark.parametrize(
    ("denoising", "images", "passes"),
    [(0, [1] * 8, [4, 4]), (8, [1] * 8, [8]), (0, [8], [8]), (0, [3, 1, 1, 1], [4, 2])],
)
def test_half_of_the_images_go_first_when_no_other_is_denoised(pipeline, monkeypatch, denoising, images, passes):
    """So their clients can ask for the next ones while the second half is decoded. Then all that are left go."""
    stepped = Stepped(pipeline, monkeypatch, decode_batch_size=8, denoising=lambda: denoising)
    for number, count in enumerate(images):
        stepped.put(number, images=count)
    while stepped.step():
        pass
    steps = pipeline.model.config.decoder.num_inference_steps
    assert stepped.passes == [rows for rows in passes for _ in range(steps)]
    assert len(stepped.events) == sum(images)
