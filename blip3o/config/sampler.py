"""How a flow is trained and sampled, as data: times, weights, steps, solver, guidance. Sizes are in `config.model`."""

from typing import Literal

from pydantic import Field

from blip3o.config.base import Frozen

Solver = Literal["euler", "heun", "unipc"]


class SamplerConfig(Frozen):
    """Defaults of flow sampling (BLIP3-o: 30 Euler steps, guidance 3, condition dropped with p 0.1 in training)."""

    steps: int = Field(default=30, gt=0, description="solver steps; the solver says what one step evaluates")
    guidance: float = Field(
        default=3.0, ge=0, description="v = v_null + guidance x (v_cond - v_null); 1 computes no null branch"
    )
    condition_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="probability that training zeroes a sample's condition"
    )
    solver: Solver = Field(
        default="euler",
        description="euler (upstream) and unipc take `steps` evaluations per guidance branch, heun 2 x steps - 1. "
        "heun and unipc (arXiv 2302.04867, of diffusers) are of second order",
    )
    shift: float = Field(
        default=1.0,
        gt=0,
        description="s in sigma -> s sigma / (1 + (s - 1) sigma), in training and sampling; above 1 stays longer at "
        "high noise (arXiv 2403.03206, equation 23; 1 upstream)",
    )
    truncate_time: bool = Field(
        default=False,
        description="sample with the model's time 1000 sigma truncated to an integer, as upstream's inference does; "
        "its training, and ours, does not",
    )


class FlowConfig(Frozen):
    """At which noise levels a flow is trained, and with what weight. The defaults are BLIP3-o's."""

    density: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="density of sigma over the grid k / 1000 (arXiv 2403.03206, section 3.1)"
    )
    logit_mean: float = Field(default=0.0, description="mean of logit(sigma) under logit_normal")
    logit_std: float = Field(default=1.0, gt=0, description="deviation of logit(sigma) under logit_normal")
    min_snr: float | None = Field(
        default=None,
        gt=0,
        description="gamma of min-SNR weights: the squared error of the predicted data is weighted by min(SNR, gamma), "
        "SNR = ((1 - sigma) / sigma)^2 (arXiv 2303.09556); none leaves the velocity's error unweighted",
    )
