"""Image to text: next-token prediction on the supervised tokens of a conversation."""

from torch import Tensor
from torch.nn import functional as F

from blip3o.data.text.templates import IGNORE
from blip3o.model.backbone import Prompt
from blip3o.model.flops import formulas
from blip3o.model.unified import UnifiedModel
from blip3o.train.objectives.base import Batch, Objective, padded_lengths


class TextPrediction(Objective):
    """Trains the complete backbone on `text`: the cross-entropy of supervised tokens."""

    def counts(self, batch: Batch) -> dict[str, int]:
        """Supervised tokens."""
        return {"text": int((batch["labels"][:, 1:] != IGNORE).sum())}

    def loss(self, model: UnifiedModel, batch: Batch) -> dict[str, Tensor]:
        """Computes logits for supervised tokens only."""
        prompt = Prompt(
            input_ids=batch["input_ids"],
            attention_mask=self.mask(batch),
            pixels=batch["prompt_pixels"],
            branches=batch.get("branches"),
        )
        labels = batch["labels"][:, 1:]
        states = model.backbone.hidden(prompt)[:, :-1]
        supervised = labels != IGNORE
        logits = model.backbone.logits(states[supervised]).float()
        return {"text": F.cross_entropy(logits, labels[supervised], reduction="sum")}

    def flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """The backbone, logits of supervised tokens, and the vision tower on the images of the prompts."""
        # If no prompt has an image, the tower still runs on one (`Backbone.embed`).
        return self._flops(batch, padded_lengths(batch), images=max(_shown(batch, image_token_id), 1))

    def useful_flops(self, batch: Batch, *, image_token_id: int) -> dict[str, int]:
        """Conversations are padded, and the tower may run on an image that nobody asked for."""
        return self._flops(batch, self.lengths(batch), images=_shown(batch, image_token_id))

    def _flops(self, batch: Batch, lengths: list[int], *, images: int) -> dict[str, int]:
        judged = self.counts(batch)["text"]
        return formulas.understanding(self.recipe.model.backbone, lengths=lengths, images=images, judged=judged)


def _shown(batch: Batch, image_token_id: int) -> int:
    """The number of rows that show an image."""
    return int((batch["input_ids"] == image_token_id).any(dim=1).sum())
