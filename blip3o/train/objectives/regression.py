"""Regression: a linear map from query states to features (`clip_mse`, the paper's CLIP + MSE). It uses no noise."""

from torch import Tensor

from blip3o.model.flops import formulas
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch
from blip3o.train.objectives.generating import Generating


class Regression(Generating):
    """Trains queries and head on `mse`: squared errors of the features."""

    def counts_for(self, rows: int) -> dict[str, int]:
        """Elements of the features."""
        return {"mse": self.num_elements(rows)}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Squared errors of one prediction per sample."""
        data, states = self.target_and_states(model, batch)
        return {"mse": (model.head.condition(states).prediction - data).float().square().sum()}

    def predictor_flops(self, rows: int) -> dict[str, int]:
        """The head."""
        return {"head": formulas.regression_head(self.recipe.model, rows=rows)}
