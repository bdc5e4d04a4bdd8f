"""Packets give back the arrays that went in, as views."""

import numpy as np
import pytest

from blip3o.data.packets import pack, unpack

KINDS = ["|b1", "|u1", "<i4", "<i8", "<f2", "<f4", "<f8", "<u2"]


@pytest.mark.parametrize("count", [1, 3])
def test_arrays_come_back(count):
    rng = np.random.default_rng(0)
    sent = [
        {
            f"{kind} {shape}": rng.integers(0, 2, shape).astype(kind)
            for kind in KINDS
            for shape in [(3,), (3, 5), (0, 2)]
        }
        for _ in range(count)
    ]
    sent[-1]["ü"] = np.asfortranarray(rng.normal(size=(4, 7)))
    packet = pack(sent)
    found = list(unpack(packet))
    assert [list(arrays) for arrays in found] == [list(arrays) for arrays in sent]
    for one, two in zip(sent, found, strict=True):
        for name, array in one.items():
            assert (two[name].dtype, two[name].shape) == (array.dtype, array.shape)
            assert np.array_equal(two[name], array)
            assert array.size == 0 or np.shares_memory(two[name], packet)


def test_what_comes_back_of_read_only_bytes_is_read_only():
    packet = pack([{"ids": np.arange(3)}])
    packet.flags.writeable = False
    [found] = unpack(packet)
    with pytest.raises(ValueError, match="read-only"):
        found["ids"][0] = 1
