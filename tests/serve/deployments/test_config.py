"""What the configuration of a server says is what its replica does; what replicas tell Serve of themselves."""

import asyncio
import subprocess
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from serve.config.options import ServeConfig
from serve.deployments.autoscaling import ROWS, RowsAndWork
from serve.deployments.progress import StuckError
from serve.deployments.replica import Generator
from serve.deployments.stages import Condition, Decode, Denoise
from serve.protocol import GenerateRequest
from serve.split.messages import DecodeRequest


def _described(**options):
    generator = Generator(ServeConfig(**options))
    try:
        return asyncio.run(generator.describe()), generator._engine._pipeline
    finally:
        generator._engine.close()


def test_a_replica_computes_as_configured(bundle):
    info, pipeline = _described(bundle=bundle, precision="bf16", batch_size=2, decode_batch_size=3)
    assert info.precision == pipeline.precision == "bf16"
    assert (pipeline.batch_size, pipeline.decode_rows) == (2, 3)
    info, pipeline = _described(bundle=bundle)
    assert info.precision == "fp32"  # auto, on the CPU
    assert pipeline.decode_rows == pipeline.batch_size == 4  # of a pixel decoder


def test_values_may_be_strings_as_on_serves_command_line(bundle):
    config = ServeConfig(bundle=bundle, precision="bf16", decode_batch_size="2", execution="compile")
    assert (config.precision, config.decode_batch_size, config.execution) == ("bf16", 2, "compile")
    with pytest.raises(ValidationError, match="precision"):
        ServeConfig(bundle=bundle, precision="fp16")


def _ask(engine, stage):
    request = GenerateRequest(prompt="a red circle", seeds=(0,), num_inference_steps=1, guidance_scale=1.0)
    if stage == "condition":
        return engine.condition(request)
    if stage == "denoise":
        return engine.denoise(next(iter(engine.warm_up_requests())))
    return engine.decode(DecodeRequest(features=np.zeros(engine._pipeline.model.latent_shape, np.float32), seed=0))


@pytest.fixture
def stages(bundle):
    """A replica of each stage of images, warm."""
    config = ServeConfig(bundle=bundle, stuck_after_s=1e-6)
    replicas = {"condition": Condition(config), "denoise": Denoise(config), "decode": Decode(config)}
    yield replicas
    for replica in replicas.values():
        replica._engine.close()


@pytest.mark.parametrize("busy", ["condition", "denoise", "decode"])
def test_a_stage_that_stands_still_is_replaced_and_one_with_a_backlog_is_scaled_and_no_other(stages, busy):
    for replica in stages.values():
        asyncio.run(replica.check_health())
    held, engine = threading.Event(), stages[busy]._engine
    engine._stages[0].work = lambda: held.wait(60)
    waiting = [_ask(engine, busy) for _ in range(6)]
    wanted = {}
    for name, replica in stages.items():
        reports = asyncio.run(replica.record_autoscaling_stats())
        context = SimpleNamespace(
            aggregated_metrics={key: {"replica": value} for key, value in reports.items()},
            total_queued_requests=0,
            total_num_requests=0,
            config=SimpleNamespace(get_target_ongoing_requests=lambda: 2),
        )
        wanted[name], _ = RowsAndWork(target_wait_s=20)(context)
        assert reports[ROWS] == (6 if name == busy else 0)
    assert wanted == dict.fromkeys(stages, 0) | {busy: 3}
    for name, replica in stages.items():
        if name != busy:
            asyncio.run(replica.check_health())
    with pytest.raises(StuckError):
        asyncio.run(stages[busy].check_health())
    del engine._stages[0].work
    held.set()
    for future in waiting:
        future.result(60)


def test_a_coordinator_imports_no_torch():
    code = "import sys, serve.deployments.stages, serve.split.coordinator; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
