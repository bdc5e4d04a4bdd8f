"""How a flow is trained and sampled, as data: noise levels, weights, steps, solver, guidance."""

from typing import Literal

from pydantic import Field

from blip3o.config.base import Frozen

Solver = Literal["euler", "heun", "unipc"]


class SamplerConfig(Frozen):
    """Defaults of flow sampling (BLIP3-o: 30 Euler steps, guidance 3, condition dropout 0.1 in training)."""

    num_inference_steps: int = Field(
        default=30, gt=0, description="solver steps; `solver` defines the evaluations per step"
    )
    guidance_scale: float = Field(
        default=3.0,
        ge=0,
        description="classifier-free guidance scale g: v = v_null + g x (v_cond - v_null); 1 skips the null branch",
    )
    condition_dropout: float = Field(
        default=0.1, ge=0, lt=1, description="probability that training zeroes a sample's condition"
    )
    solver: Solver = Field(
        default="euler",
        description="ODE solver. euler (upstream) and unipc (diffusers, arXiv 2302.04867) take N = num_inference_steps "
        "evaluations per guidance branch, heun takes 2 N - 1; heun and unipc are second-order",
    )
    shift: float = Field(
        default=1.0,
        gt=0,
        description="s in sigma -> s sigma / (1 + (s - 1) sigma), in training and sampling; above 1, more steps are at "
        "high noise (arXiv 2403.03206, equation 23; 1 upstream)",
    )
    truncate_time: bool = Field(
        default=False,
        description="in sampling, truncate the model's time 1000 sigma to an integer, as upstream's inference does ("
        "its training and ours do not)",
    )


class FlowConfig(Frozen):
    """The noise levels at which a flow is trained, and their loss weights. The defaults are BLIP3-o's."""

    density: Literal["uniform", "logit_normal"] = Field(
        default="uniform", description="density of sigma over the grid k / 1000 (arXiv 2403.03206, section 3.1)"
    )
    logit_mean: float = Field(default=0.0, description="mean of logit(sigma) under logit_normal")
    logit_std: float = Field(default=1.0, gt=0, description="standard deviation of logit(sigma) under logit_normal")
    min_snr: float | None = Field(
        default=None,
        gt=0,
        description="gamma of min-SNR weighting: the squared error of the predicted data is weighted by min(SNR, "
        "gamma), SNR = ((1 - sigma) / sigma)^2 (arXiv 2303.09556); if omitted, the velocity's error is unweighted",
    )
