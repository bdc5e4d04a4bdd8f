"""The module that the DeepSpeed engine wraps: a stage's model, with the objective's loss as its forward."""

from torch import Tensor, nn

from blip3o.config.recipe import Recipe
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import HOST_COLUMNS, Batch, build_objective, to_device
from blip3o.train.stages import stage_of


class StageModule(nn.Module):
    """The model and the loss of a stage in one module, so that the engine wraps a single forward."""

    def __init__(self, recipe: Recipe, model: UnifiedModel, *, pad_id: int) -> None:
        super().__init__()
        self.model = model
        self._recipe = recipe
        self._objective = build_objective(recipe.objective, recipe, pad_id=pad_id)

    def prepare(self, batch: Batch) -> Batch:
        """A micro-batch on the CPU, with the draws of its loss and the lengths of its texts, as `Objective.prepare`."""
        return self._objective.prepare(batch)

    def counts(self, batch: Batch) -> dict[str, int]:
        """The number of elements in each term of this micro-batch, as `Objective.counts`."""
        return self._objective.counts(batch)

    @property
    def weights(self) -> dict[str, float]:
        """The weights of terms in the loss. A term without an entry has weight 1."""
        return self._recipe.stage.weights

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """One micro-batch → the sum of each term, scalars, fp32. If it is not prepared, that is done here."""
        return self._objective.loss(self.model, self._ready(batch, held_out=False))

    def held_out(self, batch: Batch) -> tuple[dict[str, Tensor], dict[str, int]]:
        """Sums and counts of the terms on held-out samples, as `Objective.held_out`."""
        return self._objective.held_out(self.model, self._ready(batch, held_out=True))

    def _ready(self, batch: Batch, *, held_out: bool) -> Batch:
        """The batch, prepared, on its own device: the model's parameters may be offloaded to another one."""
        device = next(tensor.device for name, tensor in batch.items() if name not in HOST_COLUMNS)
        return to_device(self._objective.prepare(batch, held_out=held_out), device)


def build_stage_module(recipe: Recipe, *, image_token_id: int, pad_id: int) -> StageModule:
    """Builds the parts that the recipe's stage uses, uninitialised, with its loss."""
    model = UnifiedModel(
        recipe.model,
        image_token_id=image_token_id,
        parts=stage_of(recipe).parts,
        max_length=recipe.data.max_length,
    )
    return StageModule(recipe, model, pad_id=pad_id)
