"""What a run is, as data: the recipe.

A recipe is complete: no value that matters hides in code, and the resolved recipe is stored with every result.
`blip3o.config.load` makes one from YAML and overrides. Sizes of the model are in `blip3o.config.model`, what training
does with it in `blip3o.config.training`.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.model import ModelConfig
from blip3o.config.objectives import ObjectiveSpec, objective_of
from blip3o.config.resilience import CheckpointConfig, GuardConfig
from blip3o.config.sampler import FlowConfig
from blip3o.config.shards import ColumnsConfig, KeyRule, LimitsConfig, MembersConfig, SelectConfig
from blip3o.config.training import OptimConfig, ParallelConfig, StageConfig

# The label by which Ray Data tells the nodes of one data set from those of others; a node without it is of a group too.
SUBCLUSTER = "ray-subcluster"


class RunConfig(Frozen):
    """Identity of a run."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="stable name; submitting it again resumes it"
    )
    storage: str = Field(description="URI under which runs are stored; this run's files are at <storage>/<name>")
    seed: int = Field(default=0, ge=0, description="the run's one seed: order, draws and initialisation derive from it")


class SourceConfig(Frozen):
    """One set of shards."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="name in logs, uids and the ledger")
    shards: str = Field(
        description="URI of the shards with a `*`, e.g. s3://bucket/emoji/train-*.tar (or *.parquet); relative ones "
        "join data.root"
    )
    weight: float = Field(
        default=1.0, gt=0, description="share of samples drawn from this source, relative to the others"
    )
    task: Literal["chat", "generate", "both"] = Field(
        default="both", description="what stage joint makes of its samples: questions about them, requests to draw them"
    )
    select: SelectConfig = SelectConfig()
    columns: ColumnsConfig = ColumnsConfig()
    # Left out of a dump where they say nothing: the identity of a run without them is what it was before they existed.
    key: KeyRule = Field(
        default="first_dot",
        exclude_if=lambda rule: rule == "first_dot",
        description="where the key of a tar member ends in the base name of its path: at the first dot, as WebDataset "
        "has it, or at the last (cat.1.jpg, cat.2.jpg are two samples then)",
    )
    members: MembersConfig = Field(
        default=MembersConfig(), exclude_if=lambda members: members == MembersConfig(), description="see its fields"
    )

    @model_validator(mode="after")
    def _extensions_fit_the_key(self) -> Self:
        for name in (self.members.image, self.members.caption, self.members.record):
            require(
                self.key == "first_dot" or name is None or "." not in name,
                f"source '{self.name}': members names '{name}', but with key: last_dot no extension has a dot",
            )
        return self


TemplateStyle = Literal["chatml", "qwen3", "llama3"]


class TemplateConfig(Frozen):
    """Fixed words of prompts."""

    style: TemplateStyle = Field(
        default="chatml",
        description="how turns are written. chatml: Qwen2.5-VL, Qwen3 Instruct 2507, and what BLIP3-o trains; qwen3: "
        "Qwen3 that may think, whose newest reply opens with an empty thought; llama3: Llama 3.1 and 3.2",
    )

    system: str = Field(default="You are a helpful assistant.", description="system turn; empty leaves the turn out")
    instruction: str = Field(
        default="Please generate image based on the following caption: {caption}",
        description="user turn of a request to draw, with {caption}",
    )

    @model_validator(mode="after")
    def _has_caption(self) -> Self:
        words = self.instruction
        require("{caption}" in words, f"template: instruction '{words}' has no {{caption}}")
        rest = words.replace("{caption}", "").replace("{{", "").replace("}}", "")
        require(
            not {"{", "}"} & set(rest), f"template: instruction '{words}' has braces beside {{caption}}: double them"
        )
        return self


class DataConfig(Frozen):
    """What is read, and in which order."""

    root: str = Field(description="URI that relative shard URIs join, and under which manifests are kept")
    sources: tuple[SourceConfig, ...] = Field(min_length=1, description="training sources")
    tokenizer: str = Field(description="URI of tokenizer.json; a relative one joins data.root")
    template: TemplateConfig = TemplateConfig()
    max_length: int = Field(gt=0, description="token positions of a sample; longer ones are refused, not cut")
    questions: int = Field(default=4, gt=0, description="question/answer turns asked about one image in a sample")
    question_weights: dict[str, Annotated[float, Field(gt=0)]] = Field(
        default={}, description="how readily a kind of question is chosen, by kind; 1 where none is named"
    )
    independent_questions: bool = Field(
        default=False,
        description="ask the questions of a sample side by side: each sees the image and nothing of the others, so "
        "that none gives another's answer away, at the price of one image",
    )
    form_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of question samples that fill a form about a request to draw, in place of a picture",
    )
    grey_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of question samples shown without colour and asked only what such a picture answers (qa "
        "with `grey: true`): a small vision tower guesses shapes from colours as long as it can (random greyscale of "
        "SimCLR, arXiv 2002.05709)",
    )
    features: Literal["online", "cache", "stream"] = Field(
        default="online",
        description="where the frozen encoder's features come from: online, computed by each trainer at each step; "
        "cache, read from what `python -m jobs.encode` stored; stream, computed by encoding actors beside the trainers",
    )
    feature_dtype: Literal["fp32", "bf16", "fp16", "int8"] | None = Field(
        default=None,
        description="how stored features are kept (features: cache); left out, as the encoder computes them "
        "(parallel.precision), which loses nothing",
    )
    chunk: int = Field(default=32, gt=0, description="neighbouring samples that are read together")
    window: int = Field(default=32, gt=0, description="chunks whose samples are mixed")
    group_by_length: bool = Field(
        default=False,
        description="put captions of like length into one micro-batch, inside spans as large as a window: less padding",
    )
    max_bad_share: float = Field(
        default=0.01, ge=0, le=1, description="share of damaged samples above which a source stops the run"
    )
    limits: LimitsConfig = LimitsConfig()

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        names = [source.name for source in self.sources]
        require(len(set(names)) == len(names), f"data: source names repeat: {', '.join(names)}")
        return self


class EvaluateConfig(Frozen):
    """How a trained model is scored."""

    sources: tuple[SourceConfig, ...] = Field(default=(), description="held-out sources, never trained on")
    questions: int = Field(default=300, gt=0, description="understanding questions asked")
    images: int = Field(default=128, gt=0, description="held-out captions drawn")
    seed: int = Field(default=0, ge=0, description="seed of the evaluation's choices and draws")
    every: int | None = Field(
        default=None,
        gt=0,
        description="optimizer steps between validations while a stage trains, a multiple of checkpoint.every: the "
        "loss on held-out samples and a grid of drawings, made beside the training; none if left out",
    )
    samples: int = Field(default=64, gt=0, description="held-out samples of a validation's loss")
    sigma_bins: int = Field(default=10, gt=0, description="bins of the noise level in which a flow's loss is told")
    grid: int = Field(default=4, ge=0, description="held-out prompts that a validation draws; 0 draws none")
    grid_seeds: int = Field(default=3, gt=0, description="drawings of each of them")
    grid_from: tuple[str, ...] = Field(
        default=(),
        description="names of finished runs that trained the decoder by which grids are drawn; without it, the coarse "
        "head draws them if one of stage.start_from trained it, and else nothing does",
    )
    cpus: float = Field(default=1, gt=0, description="logical CPUs that a validation reserves")
    gpus: float = Field(
        default=1, gt=0, description="GPUs, or a share of one, that a validation reserves where device is gpu"
    )

    def due(self, done: int) -> bool:
        """Whether the checkpoint after so many steps is validated."""
        return self.every is not None and done % self.every == 0


TrackerName = Literal["tensorboard", "ray", "wandb", "mlflow"]


class LogConfig(Frozen):
    """What a run says of itself."""

    every: int = Field(default=10, gt=0, description="steps between console lines and values of Ray's metrics")
    flush: int | None = Field(
        default=None,
        gt=0,
        description="steps between writing what was measured (every step has its row) to the sinks; left out, they are "
        "written with the checkpoints",
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=("tensorboard", "ray"),
        description="where rows go beside JSON lines below <run>/metrics: tensorboard (files below <run>/tensorboard), "
        "ray (gauges for Prometheus), wandb and mlflow (set by their own environment variables)",
    )
    project: str = Field(default="blip3o", description="project in wandb, experiment in mlflow")


class Recipe(Frozen):
    """One run, whole."""

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
            f"data.max_length {self.data.max_length} leaves no room beside the {image_tokens} image tokens",
        )
        return self

    @model_validator(mode="after")
    def _stage_fits_model(self) -> Self:
        stage, model = self.stage, self.model
        require(
            "coarse" not in self.objective.parts or model.decoder.refines_coarse,
            f"stage '{stage.name}' trains with the coarse head, which decoder.kind {model.decoder.kind} lacks: use "
            "'pixel'",
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
            "on them alone: leave data.features at online",
        )
        require(
            self.data.feature_dtype is None or self.data.features == "cache",
            f"data.feature_dtype {self.data.feature_dtype} is of stored features, and data.features is "
            f"'{self.data.features}': set data.features=cache, or leave it out",
        )
        return self

    @model_validator(mode="after")
    def _held_out_is_apart(self) -> Self:
        trained = {source.name for source in self.data.sources}
        both = [source.name for source in self.evaluate.sources if source.name in trained]
        require(
            not both,
            f"{', '.join(both)} is a name in data.sources and in evaluate.sources, and a name has one index: name the "
            "held-out one otherwise",
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
            f"data.features 'stream' decodes and encodes in one data set, for which Ray Data counts the nodes of one "
            f"{SUBCLUSTER}, and parallel.data_labels has {decoding}, parallel.encoder_labels {encoding}: give both the "
            "same, and tell nodes apart by another label",
        )
        return self

    @property
    def objective(self) -> ObjectiveSpec:
        """What the stage trains: the row of the table that its name, `model.objective` and `model.decoder` choose."""
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
        """How cached features are kept: `data.feature_dtype`, or as the encoder computes them."""
        return self.data.feature_dtype or self.parallel.precision

    def with_online_features(self) -> "Recipe":
        """The same with the encoder's features computed from pixels."""
        data = self.data.model_copy(update={"features": "online", "feature_dtype": None})
        return self.model_copy(update={"data": data})

    def with_workers(self, workers: int) -> "Recipe":
        """The same with so many workers, as it runs at the moment; they must divide `optim.micro_batches`."""
        return self.model_copy(update={"parallel": self.parallel.model_copy(update={"workers": workers})})

    @property
    def accumulation(self) -> int:
        """Micro-batches of one worker in one optimizer step, with as many workers as may train."""
        return self.optim.micro_batches // self.parallel.max_workers
