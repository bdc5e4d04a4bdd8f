"""How a stage is trained, as data: what from where, the optimizer, how work is spread, when to save.

The sections of a recipe (`blip3o.config.recipe`) that say what training does, and not on what.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen, require
from blip3o.config.objectives import StageName
from blip3o.config.resilience import WorkersConfig
from blip3o.config.sampler import FlowConfig


class LoraConfig(Frozen):
    """Low-rank adapters on the backbone's weights (arXiv 2106.09685), trained in place of the weights themselves."""

    rank: int = Field(default=16, gt=0, description="rank of the adapters")
    alpha: float = Field(default=32.0, gt=0, description="an adapter's product is scaled by alpha / rank")
    match: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=("backbone.hf.*.self_attn.?_proj",),
        min_length=1,
        description="patterns of the linear layers that get one; by default the language model's attention",
    )


class StageConfig(Frozen):
    """What is trained, from where, on which loss."""

    name: StageName = Field(description="encoder, understand, generate, instruct, joint or decoder")
    start_from: tuple[str, ...] = Field(
        default=(), description="names of finished runs whose weights this stage starts from"
    )
    noise_draws: int = Field(
        default=1, gt=0, description="noise and time draws per condition; more amortise the backbone pass"
    )
    flow: FlowConfig = FlowConfig()
    query_questions: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="questions of a form; their tokens' embeddings, repeated to fill, are the queries' first values "
        "(normal draws if there are none): a small backbone that filled forms (data.form_share) answers them from the "
        "prompt, which normal draws do not make it do",
    )
    feature_noise: float = Field(
        default=0.0,
        ge=0,
        description="largest deviation of normal noise on features before pixels are made of them (stages encoder and "
        "decoder), drawn for each sample: the decoder learns from features as imperfect as generated ones (arXiv "
        "2106.15282)",
    )
    trainable: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(),
        description="patterns of the parameters that train, with * for any part (queries, dit.layers.*); the stage's "
        "own if none is given",
    )
    lora: LoraConfig | None = Field(
        default=None,
        description="train adapters on the backbone in place of the backbone (needs the extra 'lora'); they are merged "
        "into the stage's result",
    )
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        default={},
        description="weights of the loss terms, by name; 1 where none is named. Terms: contrastive, dense (encoder); "
        "text (understand); flow or mse (generate, instruct); text and that (joint); coarse, clean or latents "
        "(decoder)",
    )


class GroupConfig(Frozen):
    """Parameters with a learning rate or weight decay of their own."""

    match: str = Field(min_length=1, description="pattern of parameter names, with * for any part: dit.*")
    lr: float | None = Field(
        default=None, gt=0, description="peak learning rate; warm-up, cosine and min_lr scale with it; optim.lr if none"
    )
    weight_decay: float | None = Field(default=None, ge=0, description="weight decay; optim.weight_decay if none")


class OptimConfig(Frozen):
    """Optimizer and schedule (AdamW; linear warm-up, then cosine to min_lr)."""

    steps: int = Field(gt=0, description="optimizer steps")
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the last step")
    warmup_steps: int = Field(default=0, ge=0, description="steps of linear warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay")
    groups: tuple[GroupConfig, ...] = Field(
        default=(), description="parameters with rates of their own; the first that matches a name has it"
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="global gradient norm above which gradients are scaled down"
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the trained parameters (0.9999), kept in fp32 next to "
        "them and exported in their place; none is kept if left out",
    )
    micro_batch_size: int = Field(gt=0, description="samples in one micro-batch")
    micro_batches: int = Field(gt=0, description="micro-batches per optimizer step over all workers (M)")

    @property
    def global_batch_size(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch_size * self.micro_batches


class ParallelConfig(Frozen):
    """How work is spread."""

    workers: Annotated[int, Field(gt=0)] | WorkersConfig = Field(
        default=1,
        description="training workers (data-parallel ranks): a number, or {min, max} for one that follows the cluster",
    )
    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=1,
        description="what DeepSpeed spreads over the workers: 0 nothing; 1 the optimizer's state; 2 gradients too; 3 "
        "also all parameters, frozen ones as well",
    )
    offload: Literal["none", "optimizer", "parameters"] = Field(
        default="none",
        description="what waits in CPU memory: the optimizer's state, which is then stepped there (ZeRO 1 to 3), or "
        "the parameters as well (ZeRO 3)",
    )
    param_persistence_threshold: int = Field(
        default=100_000,
        ge=0,
        description="elements below which ZeRO 3 keeps a parameter whole on every worker instead of gathering it",
    )
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="arithmetic of the model")
    device: Literal["cpu", "gpu"] = Field(default="gpu", description="what a worker computes on")
    activation_checkpointing: bool = Field(
        default=False,
        description="compute the activations of backbone and DiT again in the backward pass instead of keeping them: "
        "less memory, more time, the same values and gradients",
    )
    compile: bool = Field(
        default=False, description="compile the DiT's layers with torch.compile (ZeRO 0 to 2); rounds differently"
    )
    threads: int = Field(default=1, gt=0, description="CPU threads of a worker's arithmetic")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="10^12 operations a second that one worker's device can do at most, of which MFU is a share; left "
        "out, what is known of the device (none for a CPU: then there is no MFU)",
    )
    cpus_per_worker: float = Field(default=1, gt=0, description="logical CPUs that a worker reserves")
    data_actors: int = Field(default=1, gt=0, description="decoding actors of the stream")
    data_threads: int = Field(
        default=1,
        gt=0,
        description="micro-batches that a decoding actor makes at once: threads, which share what was read, and decode "
        "outside the interpreter's lock",
    )
    cpus_per_data_actor: float = Field(default=1, gt=0, description="logical CPUs that a decoding actor reserves")
    data_labels: dict[str, str] = Field(
        default={},
        description="labels of the nodes that read and decode, as {ray-subcluster: preprocess}; any node if left out",
    )
    worker_labels: dict[str, str] = Field(
        default={}, description="labels of the nodes that train, as {ray-subcluster: train}; any node if left out"
    )
    encoder_labels: dict[str, str] = Field(
        default={},
        description="labels of the nodes that encode (jobs.encode, and data.features: stream); any node if left out",
    )
    encoder_actors: int = Field(default=1, gt=0, description="encoding actors of the stream (data.features: stream)")
    cpus_per_encoder_actor: float = Field(default=1, gt=0, description="logical CPUs that an encoding actor reserves")
    gpus_per_encoder_actor: float = Field(
        default=1, gt=0, description="GPUs, or a share of one, that an encoding actor reserves where device is gpu"
    )

    @model_validator(mode="after")
    def _compile_fits(self) -> Self:
        require(
            not (self.compile and self.zero_stage == 3),
            "parallel.compile does not go with parallel.zero_stage 3, which gathers parameters inside each layer",
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
    def min_workers(self) -> int:
        """The smallest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def max_workers(self) -> int:
        """The largest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.max
