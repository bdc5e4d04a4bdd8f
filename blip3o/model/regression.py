"""The regression head of objective `clip_mse` (the paper's CLIP + MSE): features as a linear map of the query states.

It takes the place of the DiT. Its velocity is that of the straight path from the current latents to the prediction.
Sampling, serving and guidance therefore treat both alike, and any number of Euler steps ends at the prediction.

Legend: B batch, N queries, L latent tokens (L = N), F channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from blip3o.model.condition import Condition, Denoiser
from blip3o.model.flow import NUM_TRAIN_STEPS


@dataclass(frozen=True, kw_only=True)
class RegressionCondition(Condition):
    """The prediction [B, L, F]."""

    prediction: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The prediction."""
        return (self.prediction,)

    def with_tensors(self, tensors: Sequence[Tensor]) -> "RegressionCondition":
        """A condition of this one tensor."""
        (prediction,) = tensors
        return RegressionCondition(prediction=prediction)


class RegressionHead(Denoiser[RegressionCondition]):
    """W of ‖X − W Q‖²: one linear map, without bias, of each query's state to one feature (arXiv 2505.09568)."""

    def __init__(self, condition_dim: int, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(condition_dim, channels, bias=False)

    def condition(self, states_BNH: Tensor) -> RegressionCondition:
        """Query states [B, N, condition_dim] → the prediction [B, L, F]."""
        return RegressionCondition(prediction=self.project(states_BNH))

    def forward(self, latents_BLF: Tensor, time_B: Tensor, condition: RegressionCondition) -> Tensor:
        """Latents [B, L, F] at times [B] above 0 (1000 σ) → (latents − prediction) / σ, [B, L, F]."""
        return (latents_BLF - condition.prediction) * (NUM_TRAIN_STEPS / time_B)[:, None, None]
