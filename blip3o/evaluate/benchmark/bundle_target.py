"""A bundle as an evaluation's target: one pipeline in this process.

`jobs.evaluation.actors` runs the same worker in a pool of Ray actors. Every batch is padded to the same size, so an
image does not depend on the others in its batch: any number of actors, and a server of the same batch size, give the
same bytes.
"""

import hashlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from blip3o import storage
from blip3o.bundle.layout import SEAL
from blip3o.bundle.reading import load_bundle, open_bundle
from blip3o.data.images.decode import open_image
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.text.templates import Turn
from blip3o.device import Execution, select
from blip3o.errors import ConfigError, RequestError
from blip3o.evaluate.benchmark.work import (
    MAX_NEW_TOKENS,
    Done,
    SamplerOverrides,
    Work,
    batches,
    keep_image,
    keep_reply,
    share_seconds,
    token_limit_identity,
)
from blip3o.inference.pipeline import Blip3oPipeline
from blip3o.inference.precision import Precision, resolve_precision
from blip3o.inference.widths import default_decode_batch_size
from blip3o.model.unified import initialize

UNTRAINED_SEED = 0  # of the fresh weights


def bundle_digest(bundle: str) -> str:
    """The sha256 of a bundle's seal, which lists the sha256 of all its files. Raises `StorageError` without a seal."""
    return hashlib.sha256(storage.read_bytes(storage.join(bundle, SEAL))).hexdigest()


@dataclass(frozen=True, kw_only=True)
class BundleTarget:
    """A bundle on a CPU, or on a GPU if `gpus` is above 0. `untrained` gives it fresh weights.

    A reply to a question has at most `max_new_tokens`. `decode_batch_size`, `precision` and `execution` are those of
    `load_bundle`.
    """

    bundle: str
    batch_size: int
    decode_batch_size: int | None = None
    precision: Precision = "auto"
    execution: Execution = "eager"
    gpus: float = 0
    untrained: bool = False
    sampler: SamplerOverrides = SamplerOverrides()
    max_new_tokens: int = MAX_NEW_TOKENS

    can_decode = True

    @property
    def what(self) -> str:
        """The bundle in a line."""
        return f"{storage.normalize(self.bundle)}{' with fresh weights' if self.untrained else ''}"

    def identity(self) -> dict[str, Any]:
        """The bundle by its seal, the sampler, and what affects rounding. Raises `BundleError`."""
        model = open_bundle(self.bundle).config.model
        config = model.sampler
        return {
            "target": "bundle",
            "sha256": bundle_digest(self.bundle),
            **{name: getattr(config, name) if value is None else value for name, value in asdict(self.sampler).items()},
            "batch_size": self.batch_size,
            "decode_batch_size": self.decode_batch_size or default_decode_batch_size(model.decoder, self.batch_size),
            "precision": resolve_precision(self.precision, gpu=self.gpus > 0),
            "execution": self.execution,
            "untrained": self.untrained,
            **token_limit_identity(self.max_new_tokens),
        }

    def run(self, work: Sequence[Work]) -> Iterator[Done]:
        """Makes the files in this process; see `Target`. Raises the pipeline's errors."""
        groups = batches(work, self.batch_size)
        worker = BundleWorker(self, groups)
        for number in range(len(groups)):
            yield from worker.make(number)


class BundleWorker:
    """Makes one batch of files at a time; the pipeline is loaded for the first batch."""

    def __init__(self, target: BundleTarget, groups: Sequence[tuple[Work, ...]]) -> None:
        self._target, self._groups = target, groups
        self._pipeline: Blip3oPipeline | None = None

    def make(self, number: int) -> list[Done]:
        """Makes the files of batch `number`.

        A prompt that the model refuses is a fault of its file and no error. So is an image that cannot be decoded.
        """
        pipeline = self._loaded()
        began = time.monotonic()
        done: list[Done] = []
        accepted: list[Work] = []
        pictures: list[Image.Image] = []
        for work in self._groups[number]:
            try:
                _check(pipeline, work)
                pictures += _pictures(work)
                accepted.append(work)
            except (RequestError, DamagedSampleError) as error:
                done.append(Done(uri=work.uri, seconds=0.0, fault=str(error)))
        if accepted:
            act = {"draw": self._draw, "decode": self._decode, "ask": self._ask}[accepted[0].kind]
            faults = act(pipeline, accepted, pictures)
            done += [Done(uri=work.uri, seconds=0.0, fault=faults.get(work.uri, "")) for work in accepted]
        return share_seconds(done, time.monotonic() - began)

    def _draw(self, pipeline: Blip3oPipeline, work: Sequence[Work], _: Sequence[Image.Image]) -> dict[str, str]:
        prompts, seeds = [piece.prompt for piece in work], [piece.seed for piece in work]
        sampler = self._target.sampler
        images = pipeline.generate(
            prompts, seed=seeds, num_inference_steps=sampler.num_inference_steps, guidance_scale=sampler.guidance_scale
        )
        for piece, image in zip(work, images, strict=True):
            keep_image(piece, image)
        return {}

    def _decode(
        self, pipeline: Blip3oPipeline, work: Sequence[Work], pictures: Sequence[Image.Image]
    ) -> dict[str, str]:
        features = pipeline.encode(pictures)
        images = pipeline.decode(features, seeds=[piece.seed for piece in work])
        for piece, image in zip(work, images, strict=True):
            keep_image(piece, image)
        return {}

    def _ask(self, pipeline: Blip3oPipeline, work: Sequence[Work], pictures: Sequence[Image.Image]) -> dict[str, str]:
        images = pictures or None  # either all pieces of a batch have a picture or none has
        turns = [[_turn(piece)] for piece in work]
        limit = self._target.max_new_tokens
        replies = pipeline.reply_ids(turns, images=images, max_tokens=limit)
        faults: dict[str, str] = {}
        for piece, reply in zip(work, replies, strict=True):
            try:
                keep_reply(piece, pipeline.tokenizer.decode(reply), truncated=len(reply) == limit)
            except RequestError as error:
                faults[piece.uri] = str(error)
        return faults

    def _loaded(self) -> Blip3oPipeline:
        if self._pipeline is None:
            target = self._target
            self._pipeline = load_bundle(
                target.bundle,
                device=select("gpu" if target.gpus else "cpu"),
                batch_size=target.batch_size,
                decode_batch_size=target.decode_batch_size,
                precision=target.precision,
                execution=target.execution,
            )
            if target.untrained:
                initialize(self._pipeline.model, UNTRAINED_SEED)
        return self._pipeline


def _check(pipeline: Blip3oPipeline, work: Work) -> None:
    """Raises `RequestError` if the model cannot take this prompt."""
    if work.kind == "draw":
        pipeline.generation_ids(work.prompt)
    elif work.kind == "ask":
        pipeline.chat_ids([_turn(work)], with_image=work.picture is not None)


def _turn(work: Work) -> Turn:
    return Turn(role="user", text=work.prompt)


def _pictures(work: Work) -> list[Image.Image]:
    """The image that a piece of work starts from, or none. Raises `DamagedSampleError` if it cannot be decoded."""
    if work.picture is None:
        if work.kind == "decode":
            raise ConfigError(f"{work.uri}: there is no picture to work from")
        return []
    try:
        return [open_image(storage.read_bytes(work.picture))]
    except DamagedSampleError as damage:
        raise DamagedSampleError(f"{work.picture}: {damage.reason}") from damage
