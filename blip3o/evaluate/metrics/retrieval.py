"""Whether a drawing retrieves its own image among the held-out ones: R@1 and R@5 in the encoder's feature space. Pure.

The model is trained towards these features. So the figures compare runs of one model family with each other, with
chance and with a control, but never with published figures (they are no CLIPScore). The control pairs every prompt with
another prompt's image.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from blip3o.errors import DataError
from blip3o.rng import numpy_generator

TIE = 1e-9  # cosines that differ by less are equal, because equal rows may be summed in different orders
KS = (1, 5)
MIN_ITEMS = 2


def similarity(generated: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Cosines [n, m] of generated [n, …] and true features [m, …], flattened and centred by the true mean."""
    flat = [np.asarray(features, dtype=np.float64).reshape(len(features), -1) for features in (generated, truth)]
    centred = [features - flat[1].mean(axis=0) for features in flat]
    norms = [np.linalg.norm(features, axis=1, keepdims=True) for features in centred]
    unit = [np.divide(f, norm, out=np.zeros_like(f), where=norm > 0) for f, norm in zip(centred, norms, strict=True)]
    return unit[0] @ unit[1].T


def recall(cosines: np.ndarray, k: int) -> float:
    """The share of rows of `cosines` [n, n] whose own column is among the k highest.

    A tied row counts with the share of tie-breaks that would put it there, so features that are all equal score only
    k / n.
    """
    return float(hits(cosines, k).mean())


def hits(cosines: np.ndarray, k: int) -> np.ndarray:
    """Whether each row's own column is among its k highest `cosines` [n, n]: [n], 0 or 1, a share for ties."""
    own = np.diagonal(cosines)[:, None]
    higher = (cosines > own + TIE).sum(axis=1)
    tied = (np.abs(cosines - own) <= TIE).sum(axis=1)  # including itself
    return np.clip((k - higher) / tied, 0, 1)


def derangement(n: int, generator: np.random.Generator) -> np.ndarray:
    """A random permutation [n] without fixed points (a single cycle). Raises `DataError` below 2 items."""
    if n < 2:
        raise DataError(f"{n} held-out items cannot be exchanged for each other: the control needs at least 2")
    order = generator.permutation(n)
    permutation = np.empty(n, dtype=np.int64)
    permutation[order] = np.roll(order, 1)  # each item gets its predecessor in a random cycle through all items
    return permutation


def score(generated: np.ndarray, truth: np.ndarray, sources: Sequence[str], *, seed: int) -> dict[str, Any]:
    """The scores as they go into evaluation.json: over all items, and within each source (`by_source`).

    Row i of `generated` and of `truth` [n, L, F] belong to one caption of source `sources[i]`; captions must differ.
    `r1` and `r5` come with `chance_r1`, `chance_r5` (k / n), `shuffled_r1` and `shuffled_r5`. Where k is not below n,
    they are None: any drawing would score 1. Raises `DataError` for fewer than 2 items.
    """
    if len(generated) < MIN_ITEMS:
        raise DataError(f"{len(generated)} held-out items: retrieval needs at least {MIN_ITEMS}")
    cosines = similarity(generated, truth)
    of_source = {name: np.flatnonzero(np.asarray(sources) == name) for name in sorted(set(sources))}
    return _figures(cosines, seed) | {
        "by_source": {
            name: _figures(similarity(generated[rows], truth[rows]), seed) for name, rows in of_source.items()
        }
    }


def _figures(cosines: np.ndarray, seed: int) -> dict[str, Any]:
    n = len(cosines)
    judged = [k for k in KS if k < n]
    figures: dict[str, Any] = {f"{what}r{k}": None for what in ("", "chance_", "shuffled_") for k in KS} | {"n": n}
    if not judged:
        return figures
    shuffled = cosines[derangement(n, numpy_generator(seed, "evaluate", "shuffled", n))]
    for k in judged:
        figures |= {f"r{k}": recall(cosines, k), f"chance_r{k}": k / n, f"shuffled_r{k}": recall(shuffled, k)}
    return figures
