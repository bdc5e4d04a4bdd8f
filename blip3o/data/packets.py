"""Packets: several micro-batches in one run of bytes, so that what a stream costs per block is shared among them.

A packet is a header (JSON, padded) and the arrays after it, each at a multiple of 64 bytes. Unpacking copies nothing:
the arrays are views of the packet.
"""

import json
from collections.abc import Iterator, Sequence

import numpy as np

Arrays = dict[str, np.ndarray]

NUMBER = "micro_batch"  # the column that repeats a micro-batch's global number, int64 [B]

_ALIGNMENT = 64
_LENGTH = 8  # bytes before the header that hold its length


def numbered(arrays: Arrays, number: int) -> Arrays:
    """A micro-batch with its number in a column."""
    rows = len(next(iter(arrays.values())))
    return {**arrays, NUMBER: np.full(rows, number, np.int64)}


def pack(micro_batches: Sequence[Arrays]) -> np.ndarray:
    """Arrays of each micro-batch, by name → bytes, uint8 [n]."""
    arrays = [array for micro_batch in micro_batches for array in micro_batch.values()]
    names = [list(micro_batch) for micro_batch in micro_batches]
    kinds = [(array.dtype.str, array.shape) for array in arrays]
    header = json.dumps([names, kinds]).encode()
    ends = _ends(len(header), [array.nbytes for array in arrays])
    packet = np.zeros(ends[-1], np.uint8)
    packet[:_LENGTH] = np.frombuffer(len(header).to_bytes(_LENGTH, "little"), np.uint8)
    packet[_LENGTH : _LENGTH + len(header)] = np.frombuffer(header, np.uint8)
    for begin, array in zip(ends, arrays, strict=False):
        packet[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)[...] = array
    return packet


def unpack(packet: np.ndarray) -> Iterator[Arrays]:
    """The micro-batches of a packet, as views of it."""
    length = int.from_bytes(packet[:_LENGTH].tobytes(), "little")
    names, kinds = json.loads(packet[_LENGTH : _LENGTH + length].tobytes())
    types = [(np.dtype(name), shape) for name, shape in kinds]
    sizes = [dtype.itemsize * int(np.prod(shape)) for dtype, shape in types]
    views = (
        packet[begin : begin + size].view(dtype).reshape(shape)
        for begin, size, (dtype, shape) in zip(_ends(length, sizes), sizes, types, strict=False)
    )
    for columns in names:
        yield {name: next(views) for name in columns}


def _ends(header: int, sizes: Sequence[int]) -> list[int]:
    """Where the header and then each array end, rounded up: where the next one begins."""
    ends = [_rounded(_LENGTH + header)]
    for size in sizes:
        ends.append(_rounded(ends[-1] + size))
    return ends


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
