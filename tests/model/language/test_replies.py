"""The cache of replies: a row keeps nothing of the conversation that had it before."""

import math

import torch

from blip3o.model.backbone import Prompt
from blip3o.model.language.replies import ReplyCache
from blip3o.model.unified import UnifiedModel, initialize
from tests.model.helpers import IMAGE_TOKEN
from tests.recipes import recipe


@torch.no_grad()
def test_a_conversation_that_was_not_finite_leaves_nothing():
    values = recipe()
    model = UnifiedModel(values.model, image_token_id=IMAGE_TOKEN, parts=("backbone",), max_length=32)
    initialize(model, 0)
    ids = torch.arange(20, 26)[None]
    prompt = Prompt(input_ids=ids, attention_mask=torch.ones_like(ids))
    found = []
    for stale in (0.0, math.nan):
        cache = ReplyCache(model.backbone, rows=2, columns=16)
        for stored in cache._cache:
            for each in stored:
                each[1] = stale
        cache.put(1, prompt)
        found.append(cache.step(torch.tensor([0, 21]), torch.tensor([False, True]))[1])
    assert found[0].isfinite().all() and torch.equal(*found)
