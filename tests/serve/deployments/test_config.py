"""What the configuration of a server says is what its replica does."""

import asyncio

import pytest
from pydantic import ValidationError

from serve.config.options import ServeConfig
from serve.deployments.replica import Generator


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
