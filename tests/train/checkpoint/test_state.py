"""A run's identity: what moves its numbers changes it, and what may change between two submissions does not."""

import hashlib
import json

import pytest

from blip3o.train.checkpoint.state import identity
from tests.recipes import recipe

HALF = {"precision": "bf16", "zero_stage": 2}


def identity_of(**parallel):
    return identity(recipe(parallel=HALF | parallel), data_sha256=["data"])


@pytest.mark.parametrize("key", ["gradient_accumulation_dtype", "communication_dtype"])
def test_dtypes_of_gradient_sums_are_part_of_it(key):
    assert len({identity_of(), identity_of(**{key: "fp32"}), identity_of(**{key: "bf16"})}) == 3


def test_what_decodes_the_pictures_is_part_of_it():
    fast = recipe(parallel=HALF, data={"decode": {"engine": "simd"}})
    assert identity(fast, data_sha256=["data"]) != identity_of()


def test_what_reads_them_is_not():
    assert identity(recipe(parallel=HALF, data={"reader": "local"}), data_sha256=["data"]) == identity_of()


@pytest.mark.parametrize("changed", [{"zero_stage": 1}, {"compile": True}, {"deterministic": True}])
def test_what_may_change_between_submissions_is_not(changed):
    assert identity_of(**changed) == identity_of()


def test_without_the_keys_it_is_that_of_checkpoints_that_are_older_than_they():
    values = recipe(parallel=HALF)
    deciding = values.model_dump(mode="json", include={"data", "model", "stage", "optim"})
    deciding |= {"seed": values.run.seed, "precision": "bf16", "data_sha256": ["data"], "start": []}
    assert identity_of() == hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()
