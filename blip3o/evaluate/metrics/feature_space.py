"""Figures in the model's own feature space: diversity, alignment, retrieval with intervals, and MMD. Pure.

The model is trained towards these features. So a figure compares runs of one model family, and with its controls, but
never with published figures: it is no CLIPScore and no FID. Every name starts with `own_`.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from blip3o.errors import DataError
from blip3o.evaluate.metrics.distribution_distance import mmd_of_pairs
from blip3o.evaluate.metrics.intervals import RESAMPLES, wilson_at_the_edges
from blip3o.evaluate.metrics.retrieval import KS, derangement, hits, similarity
from blip3o.rng import numpy_generator

MIN_SAMPLES = 2  # drawings of a prompt, to measure how much they differ


def diversity(features: np.ndarray) -> dict[str, float | int | None]:
    """How much drawings differ, from features [prompts, samples, …] (flattened).

    `own_within` is the mean distance between drawings of one prompt, `own_between` that between drawings of different
    prompts (with the same sample number), and `own_diversity` their ratio: near 0 where a prompt gives one image
    whatever the noise, 1 where the prompt is ignored. `own_vendi` is the mean over prompts of the effective number of
    different drawings, 1 to `samples` (Vendi score of cosines; Friedman and Dieng 2022). Raises `DataError` for fewer
    than 2 prompts or samples.
    """
    prompts, samples = features.shape[:2]
    if min(prompts, samples) < MIN_SAMPLES:
        raise DataError(f"{samples} drawings of {prompts} prompts: diversity takes at least 2 of 2")
    flat = np.asarray(features, dtype=np.float64).reshape(prompts, samples, -1)
    within = float(np.mean([_mean_distance(of_prompt) for of_prompt in flat]))
    between = float(np.mean([_mean_distance(flat[:, number]) for number in range(samples)]))
    return {
        "own_within": within,
        "own_between": between,
        "own_diversity": within / between if between > 0 else None,
        "own_vendi": float(np.mean([_vendi(of_prompt) for of_prompt in flat])),
        "n_prompts": prompts,
        "n_samples": samples,
    }


def _mean_distance(x: np.ndarray) -> float:
    """The mean Euclidean distance between different rows of x [n, d]."""
    distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    return float(distances.sum() / (len(x) * (len(x) - 1)))


def _vendi(x: np.ndarray) -> float:
    """exp of the entropy of the eigenvalues of the rows' cosines, divided by their number."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    unit = np.divide(x, norms, out=np.zeros_like(x), where=norms > 0)
    shares = np.linalg.eigvalsh(unit @ unit.T / len(x))
    shares = shares[shares > 1e-12]  # 0 · log 0 is 0, and rounding can make an eigenvalue negative
    return float(np.exp(-(shares * np.log(shares)).sum()))


def alignment(generated: np.ndarray, truth: np.ndarray, *, seed: int) -> dict[str, Any]:
    """Cosine and R@k between drawings and their true images, each as {value, interval, shuffled}; R@k has `chance`,
    and is None throughout where k is not below n.

    Row i of `generated` and of `truth` [n, …] belong to one caption. Intervals are 95 %, bootstrapped over the drawings
    with the true images fixed (Wilson's for a share whose bootstrap reaches 0 or 1). `shuffled` pairs every drawing
    with another's true image. `own_mmd` is the unbiased MMD between both sets. Raises `DataError` for fewer than 2
    items.
    """
    n = len(generated)
    cosines = similarity(generated, truth)
    others = derangement(n, numpy_generator(seed, "own", "shuffled", n))
    figures: dict[str, Any] = {"own_cosine": _figure(cosines, others, _own_cosine, seed, share=False)}
    for k in KS:
        if k < n:
            of_k = _figure(cosines, others, functools.partial(hits, k=k), seed, share=True)
            figures[f"own_r{k}"] = of_k | {"chance": k / n}
        else:
            figures[f"own_r{k}"] = dict.fromkeys(("value", "interval", "shuffled", "chance"))
    return figures | {"own_mmd": mmd_of_pairs(generated.reshape(n, -1), truth.reshape(n, -1)), "n": n}


def _figure(
    cosines: np.ndarray, others: np.ndarray, of_rows: Callable[[np.ndarray], np.ndarray], seed: int, *, share: bool
) -> dict[str, Any]:
    values = of_rows(cosines)
    drawn = numpy_generator(seed, "own", "bootstrap").integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), [0.025, 0.975])
    interval = (float(low), float(high))
    return {
        "value": float(values.mean()),
        "interval": list(wilson_at_the_edges(interval, float(values.mean()), [len(values)]) if share else interval),
        "shuffled": float(of_rows(cosines[others]).mean()),
    }


def _own_cosine(cosines: np.ndarray) -> np.ndarray:
    return np.diagonal(cosines)
