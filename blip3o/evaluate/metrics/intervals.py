"""95 % intervals: the bootstrap over items, and Wilson's interval where the bootstrap breaks down. Pure.

A bootstrap resamples what was observed. Where nearly all observations are right (or wrong), most resamples are all
right, and the interval collapses onto the edge of the scale: 240 of 240 would mean "certainly 100 %". Wilson's interval
takes its place there. Source: Wilson 1927; Brown, Cai and DasGupta 2001 (https://arxiv.org/abs/math/0101121).
"""

import math
from collections.abc import Sequence

import numpy as np

from blip3o.rng import numpy_generator

Z = 1.959963984540054  # the 97.5 % quantile of the normal distribution
RESAMPLES = 2000  # of a bootstrap


def wilson(share: float, n: float) -> tuple[float, float]:
    """The interval of a share (0 to 1) observed in `n` trials; `n` may be an effective number.

    It also covers the mean of values between 0 and 1, because their variance is at most that of a share.
    """
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = centre - half, centre + half
    # The bounds are exact at the edges; rounding would miss them by one bit.
    return (0.0 if share <= 0 else max(low, 0.0)), (1.0 if share >= 1 else min(high, 1.0))


def wilson_at_the_edges(interval: tuple[float, float], share: float, sizes: Sequence[int]) -> tuple[float, float]:
    """A bootstrap interval of `share`, the mean of group means; Wilson's interval where it reaches 0 or 1.

    `sizes` are the numbers of items in the groups. The effective number of trials is the one whose variance equals that
    of the mean over these groups if all of them share one rate.
    """
    low, high = interval
    if 0 < low and high < 1:
        return interval
    return wilson(min(max(share, 0.0), 1.0), len(sizes) ** 2 / sum(1 / size for size in sizes))


def bootstrap(groups: Sequence[Sequence[float]], *key: int | str, best: float = 1.0) -> tuple[float, float] | None:
    """95 % interval of the mean of group means (each group: one category's items), resampling items within each group.

    Values lie between 0 and `best`. The resamples are a function of `key`. At the edges of the scale, where the
    bootstrap is meaningless, the interval is Wilson's. None where a group is empty or there are no groups.
    """
    if not groups or not all(groups):
        return None
    generator = numpy_generator("bootstrap", *key)
    means = np.zeros(RESAMPLES)
    for group in groups:
        values = np.asarray(group, dtype=float)
        means += values[generator.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means / len(groups), [0.025, 0.975]) / best
    share = sum(sum(group) / len(group) for group in groups) / len(groups) / best
    low, high = wilson_at_the_edges((float(low), float(high)), share, [len(group) for group in groups])
    return low * best, high * best
