"""bf16 in DeepSpeed: every part holds bf16, and the loss stays close to that in fp32."""

import pytest
import torch

from tests.train.test_objectives import batch
from tests.train.test_variants import RUNS, module_of


@pytest.mark.parametrize(("name", "stage"), [*RUNS, ("clip_flow", "encoder"), ("clip_flow", "understand")])
def test_the_loss_in_bf16_is_near_that_in_fp32(name, stage):
    module, whole = module_of(name, stage), batch(stage)
    with torch.no_grad():
        full = module(whole)
        half = module.bfloat16()(whole)
    for term, value in full.items():
        assert half[term].dtype == torch.float32
        # 8 bits of mantissa: 0.4 % an operation, over some tens of them in a row.
        assert half[term].item() == pytest.approx(value.item(), rel=0.05)
