"""What the configuration of a server says is what its replica does."""

import asyncio

import pytest
from pydantic import ValidationError

from serve.config.options import ServeConfig
from serve.deployments.applications import build_app
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


@pytest.mark.parametrize(
    ("batch_size", "decode_batch_size", "images"),
    [(4, 1, 4 + 4 + 1), (16, 1, 16 + 16 + 1), (16, None, 16 + 16 + 16), (2, 8, 2 + 8 + 8)],
)
def test_a_replica_takes_a_request_for_each_image_and_conversation_that_it_can_hold(
    batch_size, decode_batch_size, images
):
    """Rows in slots, in the decoder's queue and in the decoder; then those that wait, and conversations."""
    config = ServeConfig(bundle="x", batch_size=batch_size, decode_batch_size=decode_batch_size, max_waiting=10)
    assert config.max_requests == images + 10 + 10
    generator = build_app(config)._bound_deployment.init_args[0]._bound_deployment
    assert generator.max_ongoing_requests > config.max_requests  # a rejection and a health check do not wait


def test_values_may_be_strings_as_on_serves_command_line(bundle):
    config = ServeConfig(bundle=bundle, precision="bf16", decode_batch_size="2", execution="compile")
    assert (config.precision, config.decode_batch_size, config.execution) == ("bf16", 2, "compile")
    with pytest.raises(ValidationError, match="precision"):
        ServeConfig(bundle=bundle, precision="fp16")
