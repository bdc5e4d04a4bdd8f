"""95 % intervals of shares. Pure.

A bootstrap resamples what was seen. Where nearly all of it is right (or wrong), most resamples are all right, and the
interval ends at the edge of the scale: 240 of 240 would be "certainly 100 %". There Wilson's interval stands in its
place. Source: Wilson 1927; Brown, Cai and DasGupta 2001 (https://arxiv.org/abs/math/0101121).
"""

import math
from collections.abc import Sequence

Z = 1.959963984540054  # the normal distribution's 97.5 % quantile


def wilson(share: float, n: float) -> tuple[float, float]:
    """The interval of a share (0 to 1) that was seen in `n` trials; `n` may be an effective number.

    It also covers the mean of values between 0 and 1: their variance is at most that of a share.
    """
    centre = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = centre - half, centre + half
    # Exact at the edges, where rounding would leave them by a bit.
    return (0.0 if share <= 0 else max(low, 0.0)), (1.0 if share >= 1 else min(high, 1.0))


def checked(interval: tuple[float, float], share: float, sizes: Sequence[int]) -> tuple[float, float]:
    """A bootstrap's interval of the mean of group means, `share`; Wilson's where it reaches 0 or 1.

    `sizes` are the numbers of items in each group. The effective number of trials gives the variance that a mean over
    these groups has if all of them share one rate.
    """
    low, high = interval
    if 0 < low and high < 1:
        return interval
    return wilson(min(max(share, 0.0), 1.0), len(sizes) ** 2 / sum(1 / size for size in sizes))
