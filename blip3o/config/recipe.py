"""The recipe: everything that defines a run, as data.

A recipe is complete: the code holds no hidden hyperparameters, and every result stores its resolved recipe.
`blip3o.config.load` builds one from YAML and overrides. Model sizes are in `blip3o.config.model`, training settings in
`blip3o.config.training`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.model import ModelConfig
from blip3o.config.objectives import ObjectiveSpec, objective_of
from blip3o.config.resilience import CheckpointConfig, GuardConfig
from blip3o.config.resize import DecodeConfig
from blip3o.config.sampler import FlowConfig
from blip3o.config.shards import FolderUri, LimitsConfig, SourceConfig
from blip3o.config.training import LogConfig, OptimConfig, ParallelConfig, StageConfig

# The node label by which Ray Data assigns nodes to a dataset; nodes without the label form a group of their own.
SUBCLUSTER = "ray-subcluster"


class RunConfig(Frozen):
    """Identity of a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="stable name; submitting a run of the same name again resumes it",
    )
    storage: FolderUri = Field(description="URI where runs are stored; this run's files are in <storage>/<name>")
    seed: int = Field(
        default=0, ge=0, description="seed of the run; sample order, random draws and initialisation derive from it"
    )


TemplateStyle = Literal["chatml", "qwen3", "llama3"]


class TemplateConfig(Frozen):
    """The fixed text of prompts."""

    style: TemplateStyle = Field(
        default="chatml",
        description="format of turns. chatml: Qwen2.5-VL, Qwen3 Instruct 2507, and BLIP3-o's own training; qwen3: "
        "Qwen3 with thinking, where the newest reply starts with an empty thought; llama3: Llama 3.1 and 3.2",
    )

    system: str = Field(default="You are a helpful assistant.", description="system message; if empty, no system turn")
    instruction: str = Field(
        default="Please generate image based on the following caption: {caption}",
        description="user turn of a request for an image, with {caption}",
    )

    @model_validator(mode="after")
    def _has_caption(self) -> Self:
        words = self.instruction
        require("{caption}" in words, f"template: instruction '{words}' has no {{caption}}")
        rest = words.replace("{caption}", "").replace("{{", "").replace("}}", "")
        require(
            not {"{", "}"} & set(rest),
            f"template: instruction '{words}' has braces other than {{caption}}: double them",
        )
        return self


class DataConfig(Frozen):
    """What is read, and in which order."""

    root: FolderUri = Field(description="URI that relative shard URIs are resolved against; manifests are below it")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="sets of shards to train on")
    tokenizer: str = Field(description="URI of tokenizer.json; a relative one is resolved against data.root")
    template: TemplateConfig = TemplateConfig()
    max_length: int = Field(
        gt=0, description="maximum sample length, tokens; longer samples are rejected, not truncated"
    )
    questions: int = Field(default=4, gt=0, description="most question/answer turns about one image in a sample")
    question_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="sampling weight by kind of question (without one: other); 1 for a kind not named"
    )
    independent_questions: bool = Field(
        default=False,
        description="mask the questions of a sample from each other: each attends to the image only, so none reveals "
        "another's answer, and the image is encoded once for all of them",
    )
    form_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of question samples that ask about the caption of a request for an image (a form to fill "
        "in) instead of about an image",
    )
    grey_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of question samples in greyscale, with only the questions that a grey image can answer (qa "
        "with `grey: true`): it keeps a small vision tower from guessing shapes by color (SimCLR's random greyscale, "
        "arXiv 2002.05709)",
    )
    features: Literal["online", "cache", "stream"] = Field(
        default="online",
        description="where the frozen encoder's features come from. online: each training worker computes them at "
        "every step; cache: read from the feature cache that `blip3o encode` wrote; stream: encoding actors compute "
        "them during training",
    )
    feature_dtype: Literal["fp32", "bf16", "fp16", "int8"] | None = Field(
        default=None,
        description="dtype of stored features (features: cache); if omitted, the encoder's own (parallel.precision), "
        "which is lossless",
    )
    chunk: int = Field(default=32, gt=0, description="consecutive samples of a shard that are read together")
    window: int = Field(default=32, gt=0, description="chunks whose samples are shuffled together")
    group_by_length: bool = Field(
        default=False,
        description="put captions of similar length into one micro-batch, within spans of one window: less padding",
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="share of damaged samples above which a source stops the run"
    )
    limits: LimitsConfig = LimitsConfig()
    reader: Literal["ray", "local"] = Field(
        default="ray",
        exclude_if=lambda reader: reader == "ray",
        description="what makes micro-batches. ray: actors of a Ray Data stream, on any node (parallel.data_actors); "
        "local: parallel.data_threads threads in each training worker, which start at once. Both give the same arrays, "
        "and a run may change from one to the other",
    )
    # Omitted from a dump at its default, so that runs from before this field keep their identity.
    decode: DecodeConfig = Field(default=DecodeConfig(), exclude_if=lambda decode: decode == DecodeConfig())

    @model_validator(mode="after")
    def _reader_has_actors(self) -> Self:
        require(
            self.reader == "ray" or self.features != "stream",
            "data.features stream needs actors that encode, and data.reader is local: set data.reader=ray, or read "
            "stored features (data.features=cache)",
        )
        return self

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [source.name for source in self.sources]
        require(len(set(names)) == len(names), f"data: source names repeat: {', '.join(names)}")
        return self


class EvaluateConfig(Frozen):
    """How a trained model is scored."""

    sources: tuple[SourceConfig, ...] = Field(default=(), description="held-out sources, never trained on")
    questions: int = Field(default=300, gt=0, description="questions that `blip3o evaluate` asks")
    images: int = Field(default=128, gt=0, description="held-out captions that `blip3o evaluate` draws")
    seed: int = Field(default=0, ge=0, description="seed of the evaluation: choice of samples, noise of images")
    every: int | None = Field(
        default=None,
        gt=0,
        description="optimizer steps between validations, a multiple of checkpoint.every. A validation computes the "
        "loss on held-out samples and a grid of images while training continues; none if omitted",
    )
    samples: int = Field(default=64, gt=0, description="held-out samples in a validation's loss")
    sigma_bins: int = Field(default=10, gt=0, description="noise-level bins in which a flow's loss is reported")
    grid: int = Field(default=4, ge=0, description="held-out prompts in a validation's image grid; 0 for no grid")
    grid_seeds: int = Field(default=3, gt=0, description="images per prompt in a validation's image grid")
    grid_from: tuple[str, ...] = Field(
        default=(),
        description="names of finished runs whose decoder renders the grids; if empty, the coarse head does if a run "
        "in stage.start_from trained it, and otherwise there are no grids",
    )
    cpus: float = Field(default=1, gt=0, description="logical CPUs that a validation reserves")
    gpus: float = Field(
        default=1, gt=0, description="GPUs that a validation reserves if device is gpu; may be a fraction"
    )

    autoscaled: bool = Field(
        default=False,
        description="the cluster adds nodes for validations; if not, a run whose workers leave them no room is refused",
    )

    def due(self, done: int) -> bool:
        """Whether the checkpoint after `done` steps is validated."""
        return self.every is not None and done % self.every == 0


class Recipe(Frozen):
    """One run, complete."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    stage: StageConfig
    optim: OptimConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    guard: GuardConfig = GuardConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    log: LogConfig = LogConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        m = self.optim.micro_batches
        image_tokens = self.model.backbone.image_tokens
        for w in (self.parallel.min_workers, self.parallel.max_workers):
            require(m % w == 0, f"optim.micro_batches {m} is not a multiple of parallel.workers {w}: set one of them")
        require(
            not self.optim.muon or self.parallel.zero_stage == 0,
            f"optim.muon needs whole matrices on every worker, and parallel.zero_stage is {self.parallel.zero_stage}: "
            "set parallel.zero_stage=0, or leave optim.muon out",
        )
        require(
            self.optim.warmup_steps < self.optim.steps,
            f"optim.warmup_steps {self.optim.warmup_steps} is not below optim.steps "
            f"{self.optim.steps}: shorten the warm-up",
        )
        require(
            "contrastive" not in self.objective.parts or self.model.text_tower is not None,
            f"stage '{self.stage.name}' needs model.text_tower: choose a preset that has one (tiny)",
        )
        require(
            not self.objective.task.shows_images or image_tokens > 0,
            f"stage '{self.stage.name}' shows images, and model.backbone has no vision tower: add "
            "model.backbone.vision",
        )
        require(
            self.data.max_length > image_tokens,
            f"data.max_length {self.data.max_length} leaves no room next to the {image_tokens} image tokens",
        )
        return self

    @model_validator(mode="after")
    def _stage_fits_model(self) -> Self:
        stage, model = self.stage, self.model
        require(
            "coarse" not in self.objective.parts or model.decoder.refines_coarse,
            f"stage '{stage.name}' trains with the coarse head, which decoder.kind {model.decoder.kind} does not "
            "have: use 'pixel'",
        )
        require(
            stage.lora is None or "backbone" in self.objective.parts,
            f"stage.lora adapts the backbone, which stage '{stage.name}' does not have: leave it out",
        )
        require(
            model.generation.draws_noise or (stage.noise_draws == 1 and stage.flow == FlowConfig()),
            f"objective {model.objective} draws no noise: leave out stage.noise_draws and stage.flow",
        )
        return self

    @model_validator(mode="after")
    def _terms_are_known(self) -> Self:
        unknown = sorted(set(self.stage.weights) - set(self.terms))
        require(
            not unknown,
            f"stage.weights names {', '.join(unknown)}: the loss of stage '{self.stage.name}' has the terms "
            f"{', '.join(self.terms)}",
        )
        return self

    @model_validator(mode="after")
    def _tasks_fit_stage(self) -> Self:
        tasks = {source.name: source.task for source in self.data.sources}
        if self.objective.task.mixes:
            for task in ("chat", "generate"):
                require(
                    not {task, "both"}.isdisjoint(tasks.values()),
                    f"stage '{self.stage.name}' trains two tasks, and no source in data.sources has task {task} or "
                    f"both ({tasks})",
                )
        else:
            named = [name for name, task in tasks.items() if task != "both"]
            require(
                not named,
                f"data.sources: {', '.join(named)} names a task, which stage '{self.stage.name}' decides: leave it out",
            )
        return self

    @model_validator(mode="after")
    def _features_fit_stage(self) -> Self:
        require(
            self.data.features == "online" or self.objective.stored_features,
            f"data.features '{self.data.features}' stores or streams a frozen encoder's features, and stage "
            f"'{self.stage.name}' (objective {self.model.objective}, decoder {self.model.decoder.kind}) does not train "
            "only on them: leave data.features at online",
        )
        require(
            self.data.feature_dtype is None or self.data.features == "cache",
            f"data.feature_dtype {self.data.feature_dtype} applies to stored features, and data.features is "
            f"'{self.data.features}': set data.features=cache, or leave it out",
        )
        return self

    @model_validator(mode="after")
    def _held_out_is_apart(self) -> Self:
        trained = {source.name for source in self.data.sources}
        both = [source.name for source in self.evaluate.sources if source.name in trained]
        require(
            not both,
            f"{', '.join(both)} is a name in data.sources and in evaluate.sources, and a name has one index: rename "
            "the held-out one",
        )
        return self

    @model_validator(mode="after")
    def _validation_has_data(self) -> Self:
        every, saved = self.evaluate.every, self.checkpoint.every
        require(
            every is None or every % saved == 0,
            f"evaluate.every {every} is not a multiple of checkpoint.every {saved}: validations read checkpoints",
        )
        require(
            every is None or bool(self.evaluate.sources),
            f"evaluate.every {every} asks for validations, and evaluate.sources is empty: name held-out sources",
        )
        return self

    @model_validator(mode="after")
    def _labels_fit_stream(self) -> Self:
        decoding, encoding = (
            labels.get(SUBCLUSTER) for labels in (self.parallel.data_labels, self.parallel.encoder_labels)
        )
        require(
            self.data.features != "stream" or decoding == encoding,
            f"data.features 'stream' decodes and encodes in one dataset, which Ray Data runs on the nodes of one "
            f"{SUBCLUSTER}, and parallel.data_labels has {decoding}, parallel.encoder_labels {encoding}: give both the "
            "same, and distinguish the nodes by another label",
        )
        return self

    @model_validator(mode="after")
    def _elastic_nodes_count(self) -> Self:
        parallel = self.parallel
        require(
            parallel.min_workers == parallel.max_workers or SUBCLUSTER not in parallel.worker_labels,
            f"parallel.worker_labels chooses nodes by {SUBCLUSTER}, of which Ray Train counts none for an elastic run: "
            "it would wait forever. Give parallel.workers a number, or the nodes another label and not this one",
        )
        return self

    @property
    def readers(self) -> int:
        """Processes that read and decode samples: the stream's actors, or the workers themselves."""
        return self.parallel.data_actors if self.data.reader == "ray" else self.parallel.max_workers

    @property
    def objective(self) -> ObjectiveSpec:
        """What the stage trains: the objective that its name, `model.objective` and `model.decoder.kind` select."""
        model = self.model
        found = objective_of(self.stage.name, selectors=(model.objective, model.decoder.kind))
        if found is None:
            raise ValueError(
                f"stage '{self.stage.name}' has nothing to train with objective {model.objective} and decoder.kind "
                f"{model.decoder.kind}: leave the stage out, or choose another decoder"
            )
        return found

    @property
    def terms(self) -> tuple[str, ...]:
        """The names of the stage's loss terms."""
        return self.objective.terms

    @property
    def stored_dtype(self) -> Literal["fp32", "bf16", "fp16", "int8"]:
        """Dtype of cached features: `data.feature_dtype`, or else the encoder's own."""
        return self.data.feature_dtype or self.parallel.precision

    def with_online_features(self) -> "Recipe":
        """A copy whose encoder features are computed from pixels during training."""
        data = self.data.model_copy(update={"features": "online", "feature_dtype": None})
        return self.model_copy(update={"data": data})

    def with_workers(self, workers: int) -> "Recipe":
        """A copy with `workers` workers, which must divide `optim.micro_batches`."""
        return self.model_copy(update={"parallel": self.parallel.model_copy(update={"workers": workers})})

    @property
    def accumulation(self) -> int:
        """Gradient accumulation: micro-batches per worker and optimizer step, at the largest number of workers."""
        return self.optim.micro_batches // self.parallel.max_workers
