"""How much a micro-batch asks of the machine: operations of each part of its step, and tokens that are read.

Formulas are those of `blip3o.model.flops.formulas`; what has none (convolutional decoders, autoencoders) is counted
once, on tensors without data. A micro-batch's work depends on its own shape alone, so the same step has the same
numbers in any run, and the loop sums them over ranks with the counts of the loss.
"""

import functools

import torch
from torch import Tensor

from blip3o.config.recipe import Recipe
from blip3o.data.text.templates import IGNORE
from blip3o.model.decoders.latent import LatentDecoder
from blip3o.model.decoders.pixel import PixelDecoder
from blip3o.model.describe import META
from blip3o.model.flops import formulas as work
from blip3o.model.flops.counted import measure
from blip3o.model.flops.formulas import Grad
from blip3o.model.unified import UnifiedModel
from blip3o.runs.rows import FLOPS, TOKENS
from blip3o.train.objectives import Batch, split_tasks
from blip3o.train.stages import freeze, stage_of


class FlopsMeter:
    """The work of micro-batches of a recipe's stage, as if it trained what its row says: `stage.trainable` and
    `stage.lora` change what needs a gradient, and are not counted.
    """

    def __init__(self, recipe: Recipe, *, image_token_id: int, pad_id: int) -> None:
        self._recipe, self._image_token_id, self._pad_id = recipe, image_token_id, pad_id

    def __call__(self, batch: Batch) -> dict[str, int]:
        """`flops/PART` for each part of the step, forward and backward, and `tokens`, where the stage reads text."""
        parts = {FLOPS + name: flops for name, flops in self._parts(batch).items() if flops}
        tokens = int((batch["input_ids"] != self._pad_id).sum()) if "input_ids" in batch else 0
        return parts | {TOKENS: tokens} if tokens else parts

    def _parts(self, batch: Batch) -> dict[str, int]:
        match self._recipe.stage.name:
            case "encoder":
                return self._encoder(batch)
            case "understand":
                return self._understand(batch)
            case "decoder":
                return self._decoder(batch)
            case "joint":
                return self._joint(batch)
            case _:
                return self._generate(batch)

    def _generate(self, batch: Batch) -> dict[str, int]:
        model, (rows, tokens) = self._recipe.model, batch["input_ids"].shape
        parts = work.generating(model, rows=rows, prompt_tokens=tokens, draws=self._recipe.stage.noise_draws)
        return {"encoder": self._targets(batch, rows), **parts}

    def _joint(self, batch: Batch) -> dict[str, int]:
        """Both tasks; prompt and queries go in one pass, with gradients through both."""
        asked, drawn = split_tasks(batch)
        model, (rows, tokens) = self._recipe.model, drawn["input_ids"].shape
        parts = work.generating(model, rows=rows, prompt_tokens=tokens, draws=self._recipe.stage.noise_draws)
        whole = tokens + model.num_queries
        parts |= {
            "prompt": 0,
            "queries": work.language_model(model.backbone, rows=rows, tokens=whole, context=whole, grad=Grad.BOTH),
        }
        return self._understand(asked) | {"encoder": self._targets(drawn, rows)} | parts

    def _targets(self, batch: Batch, rows: int) -> int:
        """Of the frozen encoder, or the autoencoder in its place; nothing where the features came with the batch."""
        if "features" in batch:
            return 0
        if self._recipe.model.objective == "vae_flow":
            return rows * self._counted["targets"]
        return work.encoder(self._recipe.model.encoder, images=rows, grad=Grad.NONE)

    def _understand(self, batch: Batch) -> dict[str, int]:
        rows, tokens = batch["input_ids"].shape
        # Where no sample shows its image, the tower runs on one all the same (`Backbone.embed`).
        shown = max(int((batch["input_ids"] == self._image_token_id).any(dim=1).sum()), 1)
        judged = int((batch["labels"][:, 1:] != IGNORE).sum())
        backbone = self._recipe.model.backbone
        return work.understanding(backbone, rows=rows, tokens=tokens, images=shown, judged=judged)

    def _encoder(self, batch: Batch) -> dict[str, int]:
        model, (rows, tokens) = self._recipe.model, batch["input_ids"].shape
        assert model.text_tower is not None  # the recipe's validator requires it of this stage
        features = model.encoder.num_tokens * model.latent_channels
        return {
            "encoder": work.encoder(model.encoder, images=rows, grad=Grad.BOTH),
            "contrastive": work.contrastive(model.text_tower, features=features, rows=rows, tokens=tokens),
            "coarse": self._coarse(rows, Grad.BOTH),
        }

    def _coarse(self, rows: int, features: Grad) -> int:
        model = self._recipe.model
        assert model.decoder.kind == "pixel"
        channels, grid = model.latent_channels, model.latent_grid
        return work.coarse_head(model.decoder, channels=channels, grid=grid, images=rows, features=features)

    def _decoder(self, batch: Batch) -> dict[str, int]:
        rows = batch["draw_key"].shape[0]
        parts = {"encoder": self._targets(batch, rows), "decoder": rows * self._counted["decoder"]}
        if self._recipe.model.decoder.kind == "pixel":
            return {**parts, "coarse": self._coarse(rows, Grad.ONE)}
        return {**parts, "autoencoder": rows * self._counted["autoencoder"]}

    @functools.cached_property
    def _counted(self) -> dict[str, int]:
        """For one image, what has no formula."""
        recipe = self._recipe
        with META:
            parts = [part for part in stage_of(recipe).parts if part in ("coarse", "decoder")]
            model = UnifiedModel(recipe.model, image_token_id=0, parts=parts, max_length=1)
        if recipe.stage.name != "decoder":
            pixels = torch.empty(1, *[recipe.model.target_size] * 2, 3, dtype=torch.uint8, device=META)
            with torch.no_grad():
                return {"targets": measure(lambda: model.features(pixels))}
        freeze(model, stage_of(recipe))
        decoder = model.decoder
        image, time = torch.empty(1, *recipe.model.decoder.noise_shape, device=META), torch.empty(1, device=META)
        if isinstance(decoder, PixelDecoder):
            coarse = image.clone().requires_grad_()
            return {"decoder": measure(lambda: decoder.clean(image, time, coarse).sum().backward())}
        assert isinstance(decoder, LatentDecoder)
        return _latent_decoder(decoder, torch.empty(1, *model.latent_shape, device=META), image, time)


def _latent_decoder(decoder: LatentDecoder, features: Tensor, latents: Tensor, time: Tensor) -> dict[str, int]:
    size = decoder.config.image_size
    with torch.no_grad():
        encoding = measure(lambda: decoder.latents(torch.empty(1, 3, size, size, device=META)))

    def train() -> None:
        decoder.predict(latents, time, decoder.condition(features)).sum().backward()

    return {"decoder": measure(train), "autoencoder": encoding}
