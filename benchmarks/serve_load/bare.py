"""The engine in this process: what is left without Ray Serve and HTTP."""

import statistics
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from benchmarks._measure import all_in_turns
from benchmarks.serve_load.measures import GUIDANCE, mixed_calls
from blip3o.bundle.reading import load_bundle
from serve.engine.engine import Engine
from serve.protocol import GenerateRequest


@contextmanager
def bare_engine(bundle: str, width: int) -> Iterator[Engine]:
    """An engine with one thread of torch, as a replica has."""
    torch.set_num_threads(1)
    engine = Engine(load_bundle(bundle, batch_size=width), max_waiting=1024)
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def draw(engine: Engine, prompt: str, seed: int) -> None:
    """One image of as many steps as the bundle's sampler has."""
    steps = engine.describe().num_inference_steps
    engine.generate(_request(prompt, seed, steps)).result()


def _request(prompt: str, seed: int, steps: int) -> GenerateRequest:
    return GenerateRequest(prompt=prompt, seeds=(seed,), num_inference_steps=steps, guidance_scale=GUIDANCE)


def rates(engine: Engine, *, requests: int, rounds: int) -> dict[str, float]:
    """Images per second of the requests of `mixed_calls`: all at once, and one after the other; medians of rounds."""
    bodies = [call.body for call in mixed_calls("", requests, turn=0)]
    asked = [_request(body["prompt"], body["seed"], body["num_inference_steps"]) for body in bodies]

    def together() -> None:
        for future in [engine.generate(request) for request in asked]:
            future.result()

    def in_sequence() -> None:
        for request in asked:
            engine.generate(request).result()

    steps, single = (
        requests / statistics.median(taken) for taken in all_in_turns((together, in_sequence), rounds=rounds)
    )
    return {"steps": round(steps, 2), "single": round(single, 2)}
