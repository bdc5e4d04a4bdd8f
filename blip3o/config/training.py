"""How a stage is trained, as data: what trains and from which weights, the optimizer, parallelism.

These are the sections of a recipe (`blip3o.config.recipe`) about training itself, rather than its data or model.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.objectives import StageName
from blip3o.config.resilience import WorkersConfig
from blip3o.config.sampler import FlowConfig


class LoraConfig(Frozen):
    """Low-rank adapters (LoRA, arXiv 2106.09685) on the backbone, trained instead of its own weights."""

    rank: int = Field(default=16, gt=0, description="rank of the adapters")
    alpha: float = Field(default=32.0, gt=0, description="an adapter's product is scaled by alpha / rank")
    match: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("backbone.hf.*.self_attn.?_proj",),
        min_length=1,
        description="name patterns of the linear layers that get an adapter; by default the language model's attention",
    )


class StageConfig(Frozen):
    """What is trained, from which weights, on which loss."""

    name: StageName = Field(
        description="what the stage trains; with model.objective and model.decoder.kind it selects the objective"
    )
    start_from: tuple[str, ...] = Field(
        default=(),
        description="names of finished runs whose weights this stage starts from, the later ones first where two have "
        "the same; in a pipeline, also the key of an earlier stage. If empty, it starts from random weights",
    )
    noise_draws: int = Field(
        default=1,
        gt=0,
        description="noise and time draws per condition; several share one pass of the backbone, and so cost less",
    )
    flow: FlowConfig = FlowConfig()
    query_questions: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="questions whose token embeddings, repeated as needed, initialize the queries (random normal if "
        "empty). A small backbone trained with data.form_share then answers them at the queries; with random queries "
        "it does not",
    )
    feature_noise: float = Field(
        default=0.0,
        ge=0,
        description="noise augmentation of features before decoding: largest standard deviation, drawn per sample, so "
        "that the decoder learns to handle imperfect generated features (arXiv 2106.15282)",
    )
    trainable: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="name patterns of the parameters to train, where * matches anything (queries, dit.layers.*); if "
        "empty, the stage's default",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train LoRA adapters on the backbone instead of its weights (needs the extra 'lora'); the stage's "
        "result has them merged",
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="weights of the loss terms, by name; 1 for a term not named. Terms: contrastive, dense (encoder); "
        "text (understand); flow or mse (generate, instruct); text with flow or mse (joint); coarse, clean or latents "
        "(decoder)",
    )


class GroupConfig(Frozen):
    """Parameters with a learning rate or weight decay of their own."""

    match: str = Field(min_length=1, description="pattern of parameter names, where * matches anything, e.g. dit.*")
    lr: float | None = Field(
        default=None,
        gt=0,
        description="peak learning rate, by which warm-up, cosine and min_lr scale; if omitted, optim.lr",
    )
    weight_decay: float | None = Field(default=None, ge=0, description="weight decay; if omitted, optim.weight_decay")


class OptimConfig(Frozen):
    """Optimizer and schedule (AdamW, and Muon where asked for; linear warm-up, then cosine to min_lr)."""

    steps: int = Field(gt=0, description="optimizer steps of the stage")
    lr: float = Field(gt=0, description="peak learning rate, which the warm-up ends at")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the last step")
    warmup_steps: int = Field(
        default=0,
        ge=0,
        description="steps in which the learning rate rises from 0 to lr, in equal parts; fewer than steps",
    )
    betas: tuple[float, float] = Field(
        default=(0.9, 0.999), description="AdamW's decay rates of the means of the gradients and of their squares"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay")
    groups: tuple[GroupConfig, ...] = Field(
        default=(), description="parameter groups with their own rates; a parameter joins the first that matches it"
    )
    muon: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        exclude_if=lambda patterns: not patterns,
        description="name patterns, where * matches anything, of matrices that Muon updates instead of AdamW (ZeRO 0), "
        "at the same learning rate and weight decay; usually those of repeated layers: *.layers.*, *.blocks.*",
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="global gradient norm above which gradients are clipped"
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average (EMA) of the trained parameters, e.g. 0.9999, kept in "
        "fp32 and exported instead of them; if omitted, no EMA",
    )
    micro_batch_size: int = Field(gt=0, description="samples in one micro-batch: what one worker computes at once")
    micro_batches: int = Field(gt=0, description="micro-batches per optimizer step over all workers (M)")

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch_size * self.micro_batches


class ParallelConfig(Frozen):
    """How work is spread over workers, actors and devices."""

    workers: Annotated[int, Field(gt=0)] | WorkersConfig = Field(
        default=1,
        description="training workers (data-parallel ranks): a number, or {min, max} to scale with the cluster",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="what DeepSpeed shards over the workers. 0: nothing; 1: the optimizer state; 2: also gradients; 3: "
        "also all parameters, frozen ones included",
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none",
        description="what is offloaded to CPU memory. optimizer: the optimizer state, which is then updated on the CPU "
        "(ZeRO 1 to 3); parameters: the parameters too (ZeRO 3)",
    )
    overlap_comm: bool | None = Field(
        default=None,
        description="reduce gradients over the workers during the backward pass (ZeRO 2 and 3); if omitted, on "
        "for gpu at ZeRO 2, off otherwise",
    )
    reduce_bucket_size: int | None = Field(
        default=None,
        gt=0,
        description="gradient elements that are reduced at once (ZeRO 1 to 3); if omitted, 100 M where reduction "
        "overlaps with the backward pass, otherwise DeepSpeed's default",
    )
    gradient_accumulation_dtype: Literal["fp32", "bf16"] | None = Field(
        default=None,
        description="dtype in which gradients are summed over micro-batches (fp32: precision bf16, ZeRO 1 to 3); if "
        "omitted, that of precision",
    )
    communication_dtype: Literal["fp32", "bf16"] | None = Field(
        default=None,
        description="dtype in which gradients are summed over workers (ZeRO 1 to 3); if omitted, that of precision, "
        "and at ZeRO 1, which sends only the sum over micro-batches, that of gradient_accumulation_dtype",
    )
    param_persistence_threshold: int = Field(
        default=100_000,
        ge=0,
        description="size, in elements, below which ZeRO 3 does not shard a parameter but keeps it on every worker",
    )
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="dtype of weights and arithmetic")
    device: Literal["cpu", "gpu"] = Field(default="gpu", description="what a worker computes on")
    activation_checkpointing: bool = Field(
        default=False,
        description="recompute the activations of backbone and DiT in the backward pass instead of storing them: less "
        "memory, more time, the same values and gradients",
    )
    compile: bool | None = Field(
        default=None,
        description="compile the layers of encoder, language model and DiT with torch.compile (ZeRO 0 to 2); results "
        "differ by rounding, and stored features are a cache of their own. If omitted, on for gpu at ZeRO 0 to 2 "
        "unless deterministic, off otherwise",
    )
    deterministic: bool = Field(
        default=False,
        description="use only deterministic algorithms, so that the same step gives the same bits on the same device; "
        "an operation that has none is an error. Costs time on a gpu, where layers are then not compiled",
    )
    threads: int = Field(default=1, gt=0, description="torch's CPU threads per worker")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="peak of one worker's device in TFLOP/s, the denominator of MFU; if omitted, the known peak of the "
        "device (none for a CPU, for which no MFU is reported)",
    )
    cpus_per_worker: float = Field(default=1, gt=0, description="logical CPUs that a worker reserves")
    data_actors: int = Field(default=1, gt=0, description="processes that read and decode samples for the workers")
    data_threads: int = Field(
        default=1,
        gt=0,
        description="threads per decoding actor, each of which makes one micro-batch; they share the block cache and "
        "decode outside the GIL",
    )
    cpus_per_data_actor: float = Field(default=1, gt=0, description="logical CPUs that a decoding actor reserves")
    data_labels: dict[str, str] = Field(
        default={},
        description="node labels for decoding actors, e.g. {ray-subcluster: preprocess}; if omitted, any node",
    )
    worker_labels: dict[str, str] = Field(
        default={}, description="node labels for training workers, e.g. {ray-subcluster: train}; if omitted, any node"
    )
    encoder_labels: dict[str, str] = Field(
        default={},
        description="node labels for encoding actors (`blip3o encode`, data.features: stream); if omitted, any node",
    )
    encoder_actors: int = Field(
        default=1,
        gt=0,
        description="processes that compute the frozen encoder's features during training (data.features: stream)",
    )
    encoder_batch_size: int | None = Field(
        default=None,
        gt=0,
        description="images in a batch of `blip3o encode`; if omitted, optim.micro_batch_size: stored features are "
        "then those computed online, to the bit on a CPU. With a size of their own they differ by rounding, and are a "
        "cache of their own",
    )
    cpus_per_encoder_actor: float = Field(default=1, gt=0, description="logical CPUs that an encoding actor reserves")
    gpus_per_encoder_actor: float = Field(
        default=1, gt=0, description="GPUs that an encoding actor reserves if device is gpu; may be a fraction"
    )

    @model_validator(mode="after")
    def _compile_fits(self) -> Self:
        require(
            not (self.compile and self.zero_stage == 3),
            "parallel.compile does not go with parallel.zero_stage 3, which gathers parameters inside each layer",
        )
        require(
            not (self.compile and self.deterministic),
            "parallel.compile does not go with parallel.deterministic: which kernels a compiled layer runs may depend "
            "on the batches that the process has seen, so a resumed worker may round in another way. Leave one out",
        )
        return self

    @model_validator(mode="after")
    def _reduction_fits(self) -> Self:
        stage = self.zero_stage
        require(
            not self.overlap_comm or stage >= 2,
            f"parallel.overlap_comm needs parallel.zero_stage 2 or 3, it is {stage}: at a lower stage DeepSpeed "
            "reduces gradients after the last micro-batch",
        )
        for key in ("reduce_bucket_size", "gradient_accumulation_dtype", "communication_dtype"):
            require(
                getattr(self, key) is None or stage >= 1,
                f"parallel.{key} applies to ZeRO 1 to 3, and parallel.zero_stage is 0: leave it out, or raise the "
                "stage",
            )
        for key in ("gradient_accumulation_dtype", "communication_dtype"):
            require(
                getattr(self, key) != "bf16" or self.precision == "bf16",
                f"parallel.{key} bf16 rounds what parallel.precision {self.precision} computes: leave it out",
            )
        return self

    @model_validator(mode="after")
    def _offload_fits(self) -> Self:
        least = {"none": 0, "optimizer": 1, "parameters": 3}[self.offload]
        require(
            self.zero_stage >= least,
            f"parallel.offload '{self.offload}' needs parallel.zero_stage {least} or more, it is {self.zero_stage}",
        )
        return self

    @property
    def overlaps(self) -> bool:
        """Whether gradients are reduced during the backward pass: `overlap_comm`, or its default."""
        default = self.device == "gpu" and self.zero_stage == 2
        return default if self.overlap_comm is None else self.overlap_comm

    @property
    def compiles(self) -> bool:
        """Whether layers are compiled: `compile`, or its default."""
        default = self.device == "gpu" and self.zero_stage < 3 and not self.deterministic
        return default if self.compile is None else self.compile

    @property
    def accumulation_dtype(self) -> Literal["fp32", "bf16"]:
        """Dtype of the sum of gradients over micro-batches: `gradient_accumulation_dtype`, or its default."""
        return self.gradient_accumulation_dtype or self.precision

    @property
    def reduction_dtype(self) -> Literal["fp32", "bf16"]:
        """Dtype of the sum of gradients over workers: `communication_dtype`, or its default."""
        return self.communication_dtype or (self.accumulation_dtype if self.zero_stage == 1 else self.precision)

    @property
    def min_workers(self) -> int:
        """The smallest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The largest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.max


TrackerName = Literal["tensorboard", "ray", "wandb", "mlflow"]


class LogConfig(Frozen):
    """What a run logs."""

    every: int = Field(
        default=10, gt=0, description="steps between console lines, of which there is one a minute besides"
    )
    flush: int | None = Field(
        default=None,
        gt=0,
        description="steps between flushes of the metrics (every step has a row) to the trackers; if omitted, they are "
        "flushed with each checkpoint",
    )
    trackers: tuple[TrackerName, ...] = Field(
        default=("tensorboard", "ray"),
        description="where metrics go besides the JSON lines in <run>/metrics: tensorboard (files in "
        "<run>/tensorboard), ray (gauges for Prometheus), wandb and mlflow (configured by their own environment "
        "variables)",
    )
    project: str = Field(default="blip3o", description="name of the wandb project or the mlflow experiment")
