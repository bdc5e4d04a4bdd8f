"""Random generators as pure functions of a key.

Every random draw comes from a generator that is created here from a key such as `(seed, "noise", shard, row, pass)`. So
a draw depends only on its purpose, never on the rank, the batch or the time.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = int | str


def derive_seed(*key: Key) -> int:
    """A 63-bit seed from a key. Different keys give independent seeds; `1` and `"1"` are different keys.

    BLAKE2b over a length-prefixed encoding, so that `("ab", "c")` and `("a", "bc")` do not collide.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in key:
        data = f"{type(part).__name__}:{part}".encode()
        digest.update(len(data).to_bytes(4, "little") + data)
    return int.from_bytes(digest.digest(), "little") >> 1


def numpy_generator(*key: Key) -> np.random.Generator:
    """A NumPy generator (Philox, a counter-based bit generator) for this key."""
    return np.random.Generator(np.random.Philox(derive_seed(*key)))


def torch_generator(*key: Key) -> "torch.Generator":
    """A torch CPU generator for this key. Draw on the CPU, then move: so a GPU run gets the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive_seed(*key))
