"""Records of features: of one size, with a known error, and never taken for whole when a bit has changed."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blip3o.data.features.records import RecordFormat, StoredError, to_bf16_bits, to_float
from blip3o.errors import DataError
from tests.data.shard_files import UNHURRIED

N, F = 5, 7
DTYPES = ("fp32", "bf16", "fp16", "int8")


def form(dtype):
    return RecordFormat(dtype=dtype, tokens=N, channels=F)


def features(seed=0):
    """Normal numbers, one channel a hundred times the others and one of zeros, as in the encoder's own."""
    values = np.random.default_rng(seed).standard_normal((N, F)).astype(np.float32)
    values[:, 2] *= 100
    values[:, 4] = 0
    return values


def through(dtype, values):
    return to_float(form(dtype).unpack(form(dtype).pack(values)))


def test_a_record_of_the_released_encoder_has_its_size():
    sizes = {dtype: RecordFormat(dtype=dtype, tokens=64, channels=1792).record_bytes for dtype in DTYPES}
    assert sizes == {"fp32": 458_756, "bf16": 229_380, "fp16": 229_380, "int8": 121_860}


@pytest.mark.parametrize("dtype", DTYPES)
def test_records_are_of_one_size_and_come_back_whole(dtype):
    record = form(dtype).pack(features())
    assert len(record) == form(dtype).record_bytes == len(form(dtype).absent)
    assert form(dtype).is_whole(record)
    assert not form(dtype).is_whole(record[:-1])
    assert form(dtype).pack(to_float(form(dtype).unpack(record))) == record


def test_what_is_kept_is_exact_or_rounded_as_stated():
    values = features()
    assert np.array_equal(through("fp32", values), values)
    assert np.array_equal(through("bf16", values), torch.tensor(values).bfloat16().float().numpy())
    assert np.array_equal(through("fp16", values), values.astype(np.float16).astype(np.float32))
    scale = np.abs(values).max(0) / 127
    assert (np.abs(through("int8", values) - values) <= scale / 2 * (1 + 1e-5)).all()
    assert not through("int8", values)[:, 4].any()


def test_what_was_computed_in_bfloat16_loses_nothing():
    values = torch.tensor(features()).bfloat16().float().numpy()
    assert np.array_equal(through("bf16", values), values)


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32, allow_subnormal=False), min_size=1))
@UNHURRIED
def test_bfloat16_rounds_as_torch_does(numbers):
    values = np.array(numbers, np.float32)
    assert np.array_equal(
        to_bf16_bits(values), torch.tensor(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@given(bit=st.integers(0, 8 * 100))
@UNHURRIED
def test_a_flipped_bit_is_seen(dtype, bit):
    for record in (form(dtype).pack(features()), form(dtype).absent):
        damaged = bytearray(record)
        damaged[bit // 8 % len(damaged)] ^= 1 << bit % 8
        assert not form(dtype).is_whole(bytes(damaged))


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_absent_record_is_not_one_of_zeros(dtype):
    assert form(dtype).is_whole(form(dtype).absent)
    assert form(dtype).unpack(form(dtype).absent) is None
    zeros = np.zeros((N, F), np.float32)
    assert np.array_equal(through(dtype, zeros), zeros)


def test_features_that_cannot_be_kept_are_refused():
    large, broken = features(), features()
    large[1, 1], broken[1, 1] = 7e4, np.nan
    with pytest.raises(DataError, match="a feature of 70000 is too large for fp16: set data.feature_dtype=bf16"):
        form("fp16").pack(large)
    with pytest.raises(DataError, match="not finite"):
        form("bf16").pack(broken)
    with pytest.raises(DataError, match=r"shape \(4, 7\), records hold \(5, 7\)"):
        form("fp32").pack(features()[:4])


def test_the_error_of_storing_is_that_of_all_records():
    error, differences = StoredError(), []
    for seed in range(3):
        values = features(seed)
        error.add(values, form("int8").unpack(form("int8").pack(values)))
        differences.append(through("int8", values) - values)
    whole = np.stack([features(seed) for seed in range(3)])
    expected = np.sqrt(np.square(differences).mean() / np.square(whole).mean())
    assert error.relative == pytest.approx(expected, rel=1e-4)
    assert error.largest == pytest.approx(np.abs(differences).max())
    # Uniform rounding to 1/127 of a channel's largest of five numbers: about 1/127/√12 of it.
    assert 1e-3 < error.relative < 5e-3
    assert StoredError().relative == 0
