"""A bundle as an evaluation's target: one pipeline in this process, or one in each actor of a Ray Data pool.

Every batch is padded to the same size, so an image does not depend on which others are drawn beside it: any number of
actors, and a server of the same batch size, give the same bytes.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.data.images.decode import open_image
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.templates import Turn
from blip3o.errors import Blip3oError, ConfigError, RequestError
from blip3o.evaluate.benchmark.work import (
    MAX_NEW_TOKENS,
    Done,
    Work,
    batches,
    keep_image,
    keep_reply,
    other_limit,
    without_faults,
)
from jobs.common import join_ray

if TYPE_CHECKING:
    from PIL import Image

    from blip3o.inference.pipeline import Blip3oPipeline

UNTRAINED_SEED = 0  # of the fresh weights


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Overrides of the target's own sampler; None leaves its default."""

    num_inference_steps: int | None = None
    guidance_scale: float | None = None


def digest(bundle: str) -> str:
    """The sha256 of a bundle's seal, which has the sums of all its files. Raises `StorageError` if it has none."""
    return hashlib.sha256(storage.read_bytes(storage.join(bundle, SEAL))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class BundleTarget:
    """A bundle, drawn from by `actors` actors (0: in this process). `untrained` gives it fresh weights.

    A reply to a question has at most `max_new_tokens`.
    """

    bundle: str
    batch_size: int
    actors: int = 1
    cpus: float = 1
    gpus: float = 0
    untrained: bool = False
    sampler: Sampler = Sampler()
    max_new_tokens: int = MAX_NEW_TOKENS

    can_decode = True

    @property
    def what(self) -> str:
        """The bundle in a line."""
        return f"{storage.normalize(self.bundle)}{' with fresh weights' if self.untrained else ''}"

    def identity(self) -> dict[str, Any]:
        """The bundle by its seal, the sampler, and the batch size, which rounding depends on. Raises `BundleError`."""
        from blip3o.bundle.reading import open_bundle

        config = open_bundle(self.bundle).config.model.sampler
        return {
            "target": "bundle",
            "sha256": digest(self.bundle),
            **{name: getattr(config, name) if value is None else value for name, value in asdict(self.sampler).items()},
            "batch_size": self.batch_size,
            "untrained": self.untrained,
            **other_limit(self.max_new_tokens),
        }

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files; see `Target`. Raises the errors of the actors."""
        groups = batches(work, self.batch_size)
        if self.actors == 0:
            worker = Worker(self, groups)
            for number in range(len(groups)):
                yield from worker.make(number)
        elif groups:
            yield from _on_actors(self, groups)


def _on_actors(target: BundleTarget, groups: Sequence[tuple[Work, ...]]) -> Iterator[Done]:
    import ray.data
    from ray.data import ActorPoolStrategy

    join_ray()
    # A batch a block: no actor waits for another's row.
    numbers = ray.data.from_items([{"batch": number} for number in range(len(groups))], override_num_blocks=len(groups))
    numbers.context.enable_progress_bars = False
    numbers.context.print_on_execution_start = False
    numbers.context.execution_no_progress_timeout_s = -1  # a batch may take longer than Ray's patience
    done = numbers.map(
        Worker,
        fn_constructor_args=(target, groups),
        compute=ActorPoolStrategy(size=min(target.actors, len(groups)), max_tasks_in_flight_per_actor=2),
        num_cpus=target.cpus,
        num_gpus=target.gpus,
    )
    for row in done.iter_rows():
        if row["error"]:
            raise row["error"]
        yield from row["done"]


class Worker:
    """Holds the pipeline, made when its first batch comes, and makes one batch of files at a time."""

    def __init__(self, target: BundleTarget, groups: Sequence[tuple[Work, ...]]) -> None:
        self._target, self._groups = target, groups
        self._pipeline: Blip3oPipeline | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """What became of a batch, or the user's error, which Ray would bury."""
        try:
            return {"done": self.make(int(row["batch"])), "error": None}
        except Blip3oError as error:
            return {"done": [], "error": error}

    def make(self, number: int) -> list[Done]:
        """Makes the files of batch `number`. A prompt that the model refuses is a fault and no error.

        So is a picture that cannot be decoded.
        """
        pipeline = self._loaded()
        began = time.monotonic()
        done: list[Done] = []
        sound: list[Work] = []
        pictures: list[Image.Image] = []
        for work in self._groups[number]:
            try:
                _check(pipeline, work)
                pictures += _pictures(work)
                sound.append(work)
            except (RequestError, DamagedSampleError) as error:
                done.append(Done(uri=work.uri, seconds=0.0, fault=str(error)))
        if sound:
            act = {"draw": self._draw, "decode": self._decode, "ask": self._ask}[sound[0].kind]
            faults = act(pipeline, sound, pictures)
            done += [Done(uri=work.uri, seconds=0.0, fault=faults.get(work.uri, "")) for work in sound]
        return without_faults(done, time.monotonic() - began)

    def _draw(self, pipeline: "Blip3oPipeline", work: Sequence[Work], _: "Sequence[Image.Image]") -> dict[str, str]:
        prompts, seeds = [piece.prompt for piece in work], [piece.seed for piece in work]
        sampler = self._target.sampler
        images = pipeline.generate(
            prompts, seed=seeds, num_inference_steps=sampler.num_inference_steps, guidance_scale=sampler.guidance_scale
        )
        for piece, image in zip(work, images, strict=True):
            keep_image(piece, image)
        return {}

    def _decode(
        self, pipeline: "Blip3oPipeline", work: Sequence[Work], pictures: "Sequence[Image.Image]"
    ) -> dict[str, str]:
        features = pipeline.encode(pictures)
        images = pipeline.decode(features, seeds=[piece.seed for piece in work])
        for piece, image in zip(work, images, strict=True):
            keep_image(piece, image)
        return {}

    def _ask(
        self, pipeline: "Blip3oPipeline", work: Sequence[Work], pictures: "Sequence[Image.Image]"
    ) -> dict[str, str]:
        images = pictures or None  # a batch has them all or none
        turns = [[_turn(piece)] for piece in work]
        limit = self._target.max_new_tokens
        replies = pipeline.reply_ids(turns, images=images, max_tokens=limit)
        faults: dict[str, str] = {}
        for piece, reply in zip(work, replies, strict=True):
            try:
                keep_reply(piece, pipeline.tokenizer.decode(reply), cut=len(reply) == limit)
            except RequestError as error:
                faults[piece.uri] = str(error)
        return faults

    def _loaded(self) -> "Blip3oPipeline":
        if self._pipeline is None:
            from blip3o.bundle.reading import load_bundle
            from blip3o.device import select
            from blip3o.model.unified import initialize

            device = select("gpu" if self._target.gpus else "cpu")
            self._pipeline = load_bundle(self._target.bundle, device=device, batch_size=self._target.batch_size)
            if self._target.untrained:
                initialize(self._pipeline.model, UNTRAINED_SEED)
        return self._pipeline


def _check(pipeline: "Blip3oPipeline", work: Work) -> None:
    """Raises `RequestError` if the model cannot take this prompt."""
    if work.kind == "draw":
        pipeline.generation_ids(work.prompt)
    elif work.kind == "ask":
        pipeline.chat_ids([_turn(work)], with_image=work.picture is not None)


def _turn(work: Work) -> Turn:
    return Turn(role="user", text=work.prompt)


def _pictures(work: Work) -> "list[Image.Image]":
    """The picture that a piece of work is about, or none. Raises `DamagedSampleError` if it cannot be decoded."""
    if work.picture is None:
        if work.kind == "decode":
            raise ConfigError(f"{work.uri}: there is no picture to work from")
        return []
    try:
        return [open_image(storage.read_bytes(work.picture))]
    except DamagedSampleError as damage:
        raise DamagedSampleError(f"{work.picture}: {damage.reason}") from damage
