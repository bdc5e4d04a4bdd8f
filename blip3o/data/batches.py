"""Micro-batch number → arrays: the pure function that the stream runs in parallel.

It joins the order, the reader, the decoder and the templates. A micro-batch depends only on the recipe and its number:
not on the worker, the time, or earlier micro-batches. Columns are fixed-width, one row a sample:

- `draw_key` int64 [B]: the key of the sample's random draws in this pass
- `encoder_pixels`, `prompt_pixels`, `decoder_pixels` uint8 [B, S, S, 3], as the task needs
- `features` [B, N, F] in place of `encoder_pixels` where they come from the cache: float32, float16, or the bits of
  bfloat16 as uint16
- `input_ids` int32 [B, L], padded on the right; `labels` int32 [B, L], −100 where nothing is supervised
- `branches` int32 [B, L], where questions are asked independently: which of them a token belongs to, 0 for none
- `draw_ids` int32 [B, L] and `draws` bool [B], where a sample may be for both tasks: the request to draw it, and
  whether it is for that; one that is not for questions has their text all the same, of which nothing is supervised
"""

import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from blip3o.config.objectives import Task
from blip3o.config.resize import ResizeConfig
from blip3o.data.features.reader import FeatureReader, feature_folders
from blip3o.data.images.decode import CROP, decode_views, without_color
from blip3o.data.inputs import StageInputs
from blip3o.data.order.sample_order import SampleOrder
from blip3o.data.shards.damage import DamagedSampleError
from blip3o.data.shards.fetch import ShardReader, load_samples
from blip3o.data.shards.ledger import Ledger
from blip3o.data.text.conversations import conversation_pairs
from blip3o.data.text.questions import check_questions, kind_of
from blip3o.data.text.templates import IGNORE, ChatTemplate, Encoded, Turn
from blip3o.data.text.tokenizer import PAD, ChatTokenizer
from blip3o.rng import derive_seed, numpy_generator
from blip3o.runs.paths import ledger_uri
from blip3o.runs.quarantine import Quarantine, read_quarantine
from blip3o.storage.block_cache import block_bytes_for
from blip3o.types import RawSample

DESCRIBE = "Describe the image."
_ROLES = ("user", "assistant")


_PIXELS = {
    Task.CONTRAST: ("encoder_pixels", "decoder_pixels"),
    Task.CHAT: ("prompt_pixels",),
    Task.GENERATE: ("encoder_pixels",),
    Task.GENERATE_PIXELS: ("decoder_pixels",),
    Task.PIXELS: ("encoder_pixels", "decoder_pixels"),
    Task.JOINT: ("prompt_pixels", "encoder_pixels"),
    Task.JOINT_PIXELS: ("prompt_pixels", "decoder_pixels"),
}


@dataclass(frozen=True, kw_only=True)
class Text:
    """Ids, labels and branches of one sample, not padded."""

    ids: tuple[int, ...] = ()
    labels: tuple[int, ...] = ()
    branches: tuple[int, ...] = ()
    grey: bool = False  # the text describes the picture without its colours


@dataclass(frozen=True, kw_only=True)
class SampleEncoder:
    """One raw sample → one row of arrays.

    `sizes` gives the side in pixels of each pixel column, `fits` how an image is resized if not by cropping, `engine`
    what decodes and resizes it; with `cached`, the encoder's column is left out. `source_tasks`, by source, say what
    its samples are for where a sample may be for both tasks.
    """

    task: Task
    tokenizer: ChatTokenizer
    template: ChatTemplate
    max_length: int
    questions: int
    independent_questions: bool
    question_weights: Mapping[str, float]
    form_share: float
    grey_share: float
    seed: int
    sizes: Mapping[str, int]
    fits: Mapping[str, ResizeConfig]
    engine: str = "pillow"
    cached: bool = False
    source_tasks: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, raw: RawSample) -> dict[str, np.ndarray]:
        """Raises `DamagedSampleError` if the image cannot be decoded or the text does not fit."""
        key = derive_seed("draw", raw.uid, raw.pass_index)
        columns = [name for name in _PIXELS[self.task] if not (self.cached and name == "encoder_pixels")]
        views = {name: (self.sizes[name], self.fits.get(name, CROP)) for name in columns}
        decoded = decode_views(raw.image, views.values(), self.engine)
        row: dict[str, np.ndarray] = {name: decoded[view] for name, view in views.items()}
        row["draw_key"] = np.array(key, np.int64)
        if self.task is not Task.PIXELS:
            text = self._text(raw, numpy_generator(self.seed, "text", key))
            row |= self._pad(text)
            if self.task.mixes:
                row |= self._both(raw, key, row["labels"])
            if text.grey:
                row["prompt_pixels"] = without_color(row["prompt_pixels"])
        return row

    def _both(self, raw: RawSample, key: int, labels: np.ndarray) -> dict[str, np.ndarray]:
        """The request to draw a sample next to the questions about it; unsupervised, whichever it is not for."""
        task = self.source_tasks[raw.uid.partition("/")[0]]
        caption = self._caption(raw, numpy_generator(self.seed, "caption", key))
        request = self._pad(Text(ids=tuple(self.template.generation_request(self.tokenizer, caption))))
        return {
            "draw_ids": request["input_ids"],
            "draws": np.array(task != "chat"),
            "labels": np.full_like(labels, IGNORE) if task == "generate" else labels,
        }

    def _text(self, raw: RawSample, generator: np.random.Generator) -> Text:
        if self.task.shows_images:
            return self._chat(raw, generator)
        caption = self._caption(raw, generator)
        if self.task in (Task.GENERATE, Task.GENERATE_PIXELS):
            return Text(ids=tuple(self.template.generation_request(self.tokenizer, caption)))
        return Text(ids=tuple(self.tokenizer.encode(caption)))

    def _caption(self, raw: RawSample, generator: np.random.Generator) -> str:
        captions = raw.meta.get("captions") or [raw.caption]
        return captions[int(generator.integers(len(captions)))]

    def _chat(self, raw: RawSample, generator: np.random.Generator) -> Text:
        """Questions about the picture, or, for a share of samples, a form about a request to draw its caption.

        The form's questions are `caption_qa`, which any caption of the sample answers; each is asked twice, in two
        orders. A sample without them shows its picture.
        """
        caption = self._caption(raw, generator)
        stated: list[dict[str, Any]] = raw.meta.get("caption_qa") or []
        if stated and generator.random() < self.form_share:
            check_questions({"caption_qa": stated})
            whole = [(str(pair["question"]), str(pair["answer"])) for pair in stated]
            pairs = [whole[i] for _ in range(2) for i in generator.permutation(len(whole))]

            def fill(end: int) -> Encoded:
                return self.template.form(self.tokenizer, caption, pairs[:end])

            return _longest(fill, len(pairs), self.max_length)
        asked, grey = self._asked(raw, caption, generator)
        separate = self.independent_questions and not raw.meta.get(
            "conversations"
        )  # whose turns follow from one another

        def talk(end: int) -> Encoded:
            if separate:
                return self.template.side_by_side(self.tokenizer, asked[:end])
            turns = [
                Turn(role=role, text=text) for pair in asked[:end] for role, text in zip(_ROLES, pair, strict=True)
            ]
            return self.template.conversation(self.tokenizer, turns, with_image=True)

        return replace(_longest(talk, len(asked), self.max_length), grey=grey)

    def _asked(
        self, raw: RawSample, caption: str, generator: np.random.Generator
    ) -> tuple[list[tuple[str, str]], bool]:
        """A conversation as it went, else some questions that are drawn, else a description; and whether the questions
        are about the picture in grey.
        """
        if raw.meta.get("conversations"):
            return conversation_pairs(raw.meta["conversations"]), False
        asked: list[dict[str, Any]] = raw.meta.get("qa") or [{"question": DESCRIBE, "answer": caption}]
        colorless = [pair for pair in asked if pair.get("grey")]
        grey = bool(self.grey_share and colorless) and generator.random() < self.grey_share
        asked = colorless if grey else asked
        chosen = self._chosen(asked, generator)[: self.questions]
        return [(str(asked[i]["question"]), str(asked[i]["answer"])) for i in chosen], grey

    def _chosen(self, asked: list[dict[str, Any]], generator: np.random.Generator) -> list[int]:
        """Indices in an order drawn without replacement by the weights of their kinds (Efraimidis and Spirakis 2006:
        by exponential times at rates of the weights).
        """
        weights = [self.question_weights.get(kind_of(pair), 1.0) for pair in asked]
        times = generator.exponential(size=len(asked))
        return sorted(range(len(asked)), key=lambda i: times[i] / weights[i])

    def _pad(self, text: Text) -> dict[str, np.ndarray]:
        if not 0 < len(text.ids) <= self.max_length:
            raise DamagedSampleError(f"{len(text.ids)} tokens, data.max_length allows 1 to {self.max_length}")
        ids = np.full(self.max_length, self.tokenizer.ids[PAD], np.int32)
        ids[: len(text.ids)] = text.ids
        if not text.labels:
            return {"input_ids": ids}
        labels = np.full(self.max_length, IGNORE, np.int32)
        labels[: len(text.labels)] = text.labels
        if not self.independent_questions:
            return {"input_ids": ids, "labels": labels}
        branches = np.zeros(self.max_length, np.int32)
        branches[: len(text.branches)] = text.branches
        return {"input_ids": ids, "labels": labels, "branches": branches}


def _longest(encode: Callable[[int], Encoded], count: int, max_length: int) -> Text:
    """Of the texts that `encode` makes of the first n questions, the longest that fits; that of one if none does."""
    for end in range(count, 0, -1):
        encoded = encode(end)
        if len(encoded.ids) <= max_length:
            break
    return Text(ids=encoded.ids, labels=encoded.labels, branches=encoded.branches)


@dataclass(frozen=True, kw_only=True)
class MicroBatchBuilder:
    """The micro-batch function of a run."""

    order: SampleOrder
    reader: ShardReader
    encoder: SampleEncoder
    ledger: Ledger
    features: FeatureReader | None = None
    quarantine: Quarantine = field(default_factory=Quarantine)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of micro-batch `number`, each with leading dimension B.

        Samples that are damaged or in quarantine go to the ledger and are replaced by a rule of their uid. Raises
        `DataError` where that fails, and `StorageError` where the store or the feature cache does.
        """
        rows = [row for _, row in self._samples(number)]
        return {name: np.stack([row[name] for row in rows]) for name in rows[0]}

    def uids(self, number: int) -> list[str]:
        """The samples of micro-batch `number`, those included that take a damaged one's place. Raises as a call."""
        return [uid for uid, _ in self._samples(number)]

    def _samples(self, number: int) -> list[tuple[str, dict[str, np.ndarray]]]:
        refs = self.order.micro_batch_refs(number)
        encode = self.encoder if self.features is None else self.features.with_features(self.encoder, refs)

        def accepted(raw: RawSample) -> tuple[str, dict[str, np.ndarray]]:
            reason = self.quarantine.reason(raw.uid, number)
            if reason is not None:
                raise DamagedSampleError(reason)
            return raw.uid, encode(raw)

        return load_samples(refs, self.reader, accepted, self.ledger)


def build_micro_batches(inputs: StageInputs, task: Task) -> MicroBatchBuilder:
    """Joins the inputs of a stage for one task. Raises `DataError` if a manifest is missing.

    Stored features, if the inputs name some, take the place of the encoder's pixels.
    """
    recipe, manifests, features = inputs.recipe, inputs.manifests, inputs.features_sha256
    sources = inputs.order.sources
    return MicroBatchBuilder(
        order=inputs.order,
        reader=ShardReader(manifests, sources=sources, block_bytes=block_bytes_for(recipe.readers)),
        encoder=_sample_encoder(inputs, task),
        features=FeatureReader(manifests, feature_folders(recipe, features)) if features else None,
        ledger=Ledger(ledger_uri(recipe.run.storage, recipe.run.name)),
        quarantine=read_quarantine(recipe),
    )


def _sample_encoder(inputs: StageInputs, task: Task) -> SampleEncoder:
    data, model = inputs.recipe.data, inputs.recipe.model
    return SampleEncoder(
        task=task,
        tokenizer=inputs.tokenizer,
        template=inputs.template,
        max_length=data.max_length,
        questions=data.questions,
        independent_questions=data.independent_questions,
        question_weights=data.question_weights,
        form_share=data.form_share,
        grey_share=data.grey_share,
        seed=inputs.recipe.run.seed,
        sizes={
            "encoder_pixels": model.encoder.image_size,
            "prompt_pixels": model.backbone.image_size,
            "decoder_pixels": model.decoder.image_size,
        },
        fits={"encoder_pixels": model.target_resize, "prompt_pixels": model.backbone.image_resize},
        engine=data.decode.engine,
        cached=inputs.features_sha256 is not None,
        source_tasks={source.name: source.task for source in data.sources},
    )


@dataclass
class StagedMicroBatches:
    """The micro-batches of several stages under one numbering; `ends[i]` is one past the last number of stage i.

    Stages are built when they are reached, by `build`. One thread may reach the next stage before another, so the
    previous stage is kept next to the newest.
    """

    build: Sequence[Callable[[], MicroBatchBuilder]]
    ends: Sequence[int]
    _held: dict[int, MicroBatchBuilder] = field(default_factory=dict, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    def __call__(self, number: int) -> dict[str, np.ndarray]:
        """Arrays of micro-batch `number` of the whole. Raises `DataError` where the stage's own function does."""
        stage = bisect_right(self.ends, number)
        return self._builder(stage)(number - (self.ends[stage - 1] if stage else 0))

    def _builder(self, stage: int) -> MicroBatchBuilder:
        with self._lock:
            if stage not in self._held:
                self._held = {number: held for number, held in self._held.items() if number == stage - 1}
                self._held[stage] = self.build[stage]()
            return self._held[stage]
