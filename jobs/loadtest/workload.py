"""What a load test asks for: kinds of requests with shares, drawn in an order that a seed decides."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, ValidationError

from blip3o.config.base import Frozen
from blip3o.config.load import explain
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import ConfigError
from blip3o.rng import numpy_generator
from serve.protocol import MAX_IMAGES, MAX_PARTIAL_IMAGES

_COLORS = ("red", "blue", "green", "yellow", "black", "white", "orange", "purple")
_SHAPES = ("circle", "square", "triangle", "star")
_PLACES = ("above", "below", "left of", "right of")


class Work(Frozen):
    """One kind of request. Its text form is that of the option `--work`: `image,n=4,steps=50,share=0.1`."""

    kind: Literal["image", "chat"] = Field(description="an image route or a chat route")
    share: float = Field(default=1, gt=0, description="how much of the requests, relative to the other shares")
    n: int = Field(default=1, ge=1, le=MAX_IMAGES, description="images of one request")
    steps: int | None = Field(default=None, ge=1, description="num_inference_steps; the model's if omitted")
    guidance: float | None = Field(default=None, ge=0, description="guidance_scale; the model's if omitted")
    partials: int = Field(
        default=0, ge=0, le=MAX_PARTIAL_IMAGES, description="previews of each image; above 0, images are streamed"
    )
    tokens: int = Field(default=32, ge=1, description="max_tokens of a reply; replies are always streamed")

    @property
    def label(self) -> str:
        """Short name: the kind, and what differs from the defaults."""
        given = self.model_dump(exclude_defaults=True, exclude={"kind", "share"})
        return " ".join([self.kind, *(f"{name}={value:g}" for name, value in given.items())])

    @property
    def path(self) -> str:
        """The route."""
        return "/v1/images/generations" if self.kind == "image" else "/v1/chat/completions"

    @property
    def streams(self) -> bool:
        """Whether the reply is a stream of events."""
        return self.kind == "chat" or self.partials > 0

    def body(self, prompt: str, seed: int, model: str | None) -> dict[str, Any]:
        """The JSON body of one request."""
        if self.kind == "chat":
            asked: dict[str, Any] = {
                "messages": [{"role": "user", "content": f"Describe {prompt}."}],
                "max_tokens": self.tokens,
                "stream_options": {"include_usage": True},
            }
        else:
            asked = {
                "prompt": prompt,
                "n": self.n,
                "seed": seed,
                "num_inference_steps": self.steps,
                "guidance_scale": self.guidance,
                "partial_images": self.partials if self.partials else None,
                "response_format": None if self.streams else "b64_json",
            }
        asked |= {"model": model, "stream": self.streams}
        return {name: value for name, value in asked.items() if value is not None}


DEFAULT = ("image,share=0.6", "image,partials=2,share=0.2", "chat,share=0.2")


def parse_work(text: str) -> Work:
    """A kind of request from `KIND,NAME=VALUE,…`. Raises `ConfigError`."""
    kind, *pairs = (part.strip() for part in text.split(","))
    values: dict[str, Any] = {"kind": kind}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--work {text}: '{pair}' is not NAME=VALUE")
        values[name.strip()] = load_yaml(value, f"--work {text}")
    try:
        return Work(**values)
    except ValidationError as error:
        first = error.errors()[0]
        known = ", ".join(name for name in Work.model_fields if name != "kind")
        raise ConfigError(f"--work {text}: {first['loc'][0]}: {explain(first)} (names: {known})") from error


def scenes(count: int) -> list[str]:
    """`count` different prompts. Raises `ConfigError` if there are not so many."""
    colors = itertools.permutations(_COLORS, 2)
    every = [f"a {a} {b} {c} a {d} {e}" for a, d in colors for c in _PLACES for b in _SHAPES for e in _SHAPES]
    if not 1 <= count <= len(every):
        raise ConfigError(f"{count} different prompts: there are 1 to {len(every)}; give more with --prompts FILE")
    order = numpy_generator("loadtest", "scenes").permutation(len(every))
    return [every[place] for place in order[:count]]


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `due`: seconds from the start at which it shall be sent; None: as soon as a client is free."""

    work: Work
    body: dict[str, Any]
    due: float | None = None


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Requests without end, the same ones for the same seed."""

    works: Sequence[Work]
    prompts: Sequence[str]
    seed: int = 0
    model: str | None = None

    def calls(self, phase: str, rate: float | None = None) -> Iterator[Call]:
        """The requests of a phase. With a `rate` per second they arrive at random, as a Poisson process does."""
        random = numpy_generator("loadtest", phase, self.seed)
        shares = [work.share for work in self.works]
        due = 0.0
        for number in itertools.count():
            work = self.works[random.choice(len(self.works), p=[share / sum(shares) for share in shares])]
            prompt = self.prompts[int(random.integers(len(self.prompts)))]
            due += random.exponential(1 / rate) if rate else 0
            body = work.body(prompt, self.seed + number * MAX_IMAGES, self.model)
            yield Call(work=work, body=body, due=due if rate else None)

    def one_of_each(self, times: int) -> Iterator[Call]:
        """Each kind of request so many times, in turns."""
        for number in range(times):
            for work in self.works:
                prompt = self.prompts[number % len(self.prompts)]
                yield Call(work=work, body=work.body(prompt, self.seed + number * MAX_IMAGES, self.model))
