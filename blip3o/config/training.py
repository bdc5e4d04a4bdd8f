"""How a stage is trained, as data: what from where, the optimizer, how work is spread, when to save.

The sections of a recipe (`blip3o.config.recipe`) that say what training does, and not on what.
"""

from typing import Annotated, Literal

from pydantic import Field

from blip3o.config.base import Frozen
from blip3o.config.resilience import WorkersConfig
from blip3o.config.sampler import FlowConfig

StageName = Literal["encoder", "understand", "generate", "instruct", "decoder"]
STAGES: tuple[StageName, ...] = ("encoder", "understand", "generate", "instruct", "decoder")


class StageConfig(Frozen):
    """What is trained, from where, on which loss."""

    name: StageName = Field(description="encoder, understand, generate, instruct or decoder")
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
        "(normal draws if there are none): a small backbone that filled forms (data.reading) answers them from the "
        "prompt, which normal draws do not make it do",
    )
    feature_noise: float = Field(
        default=0.0,
        ge=0,
        description="largest deviation of normal noise on features before pixels are made of them (stages encoder and "
        "decoder), anew for each sample: pixels bear features as imperfect as generated ones (arXiv 2106.15282)",
    )
    dense_weight: float = Field(
        default=1.0, ge=0, description="weight of the encoder stage's pixel term beside the contrastive one"
    )


class OptimConfig(Frozen):
    """Optimizer and schedule (AdamW; linear warm-up, then cosine to min_lr)."""

    steps: int = Field(gt=0, description="optimizer steps")
    lr: float = Field(gt=0, description="peak learning rate")
    min_lr: float = Field(default=0.0, ge=0, description="learning rate at the last step")
    warmup: int = Field(default=0, ge=0, description="steps of linear warm-up")
    betas: tuple[float, float] = Field(default=(0.9, 0.999), description="AdamW's betas")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay")
    clip: float = Field(default=1.0, gt=0, description="global gradient norm above which gradients are scaled down")
    micro_batch: int = Field(gt=0, description="samples in one micro-batch")
    micro_batches: int = Field(gt=0, description="micro-batches per optimizer step over all workers (M)")

    @property
    def global_batch(self) -> int:
        """Samples per optimizer step."""
        return self.micro_batch * self.micro_batches


class ParallelConfig(Frozen):
    """How work is spread."""

    workers: Annotated[int, Field(gt=0)] | WorkersConfig = Field(
        default=1,
        description="training workers (data-parallel ranks): a number, or {min, max} for one that follows the cluster",
    )
    zero_stage: Literal[1, 2] = Field(default=1, description="DeepSpeed ZeRO stage")
    precision: Literal["fp32", "bf16"] = Field(default="bf16", description="arithmetic of the model")
    device: Literal["cpu", "gpu"] = Field(default="gpu", description="what a worker computes on")
    recompute: bool = Field(
        default=False,
        description="compute the activations of backbone and DiT again in the backward pass instead of keeping them: "
        "less memory, more time, the same values and gradients",
    )
    threads: int = Field(default=1, gt=0, description="CPU threads of a worker's arithmetic")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="10^12 operations a second that one worker's device can do at most, of which MFU is a share; left "
        "out, what is known of the device (none for a CPU: then there is no MFU)",
    )
    cpus_per_worker: float = Field(default=1, gt=0, description="logical CPUs that a worker reserves")
    data_tasks: int = Field(default=1, gt=0, description="decoding actors of the stream")
    cpus_per_data_task: float = Field(default=1, gt=0, description="logical CPUs that a decoding actor reserves")
    data_labels: dict[str, str] = Field(
        default={},
        description="labels of the nodes that read and decode, as {ray-subcluster: preprocess}; any node if left out",
    )
    worker_labels: dict[str, str] = Field(
        default={}, description="labels of the nodes that train, as {ray-subcluster: training}; any node if left out"
    )
    encoder_labels: dict[str, str] = Field(
        default={},
        description="labels of the nodes that encode (jobs.encode, and data.features: stream); any node if left out",
    )
    encoders: int = Field(default=1, gt=0, description="encoding actors of the stream (data.features: stream)")
    cpus_per_encoder: float = Field(default=1, gt=0, description="logical CPUs that an encoding actor reserves")
    gpus_per_encoder: float = Field(
        default=1, gt=0, description="GPUs, or a share of one, that an encoding actor reserves where device is gpu"
    )

    @property
    def fewest(self) -> int:
        """The smallest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def most(self) -> int:
        """The largest number of workers that may train."""
        return self.workers if isinstance(self.workers, int) else self.workers.max
