"""Fréchet distance and MMD between the features of two sets of images. Pure.

Both are computed from sums, which parts of a set can compute separately and add up. A distance is named after its
features: `frechet_<features>`. FID is the distance in the features of one particular network, and nothing else is
called by that name.
"""

import functools
import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np

from blip3o.errors import DataError

MIN_PER_DIMENSION = 10  # items per feature dimension; with fewer, the Fréchet distance is mostly bias
INCEPTION_SHA256 = "6726825d"  # start of the digest of the weights that define FID (pt_inception-2015-12-05)


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Sums over n feature vectors x [d]: of x, x xᵀ, |x|² and |x|⁴ (float64). Add two to merge them."""

    n: int
    total: np.ndarray
    outer: np.ndarray
    square: float
    fourth: float

    @classmethod
    def of(cls, features: np.ndarray) -> Self:
        """The sums of features [n, d]. Raises `DataError` for another shape or non-finite values."""
        x = np.asarray(features, dtype=np.float64)
        if x.ndim != 2:
            raise DataError(f"features of shape {list(x.shape)}: expected one vector a picture, [n, d]")
        if not np.isfinite(x).all():
            raise DataError(f"features of {int((~np.isfinite(x)).any(axis=1).sum())} pictures are not finite")
        squares = (x * x).sum(axis=1)
        return cls(
            n=len(x),
            total=x.sum(axis=0),
            outer=x.T @ x,
            square=float(squares.sum()),
            fourth=float((squares * squares).sum()),
        )

    def __add__(self, other: "Moments") -> "Moments":
        """The sums of both sets together. Raises `DataError` for features of another width."""
        _check_alike(self, other)
        return Moments(
            n=self.n + other.n,
            total=self.total + other.total,
            outer=self.outer + other.outer,
            square=self.square + other.square,
            fourth=self.fourth + other.fourth,
        )

    @property
    def mean(self) -> np.ndarray:
        """The mean [d]."""
        return self.total / self.n

    @property
    def covariance(self) -> np.ndarray:
        """The covariance [d, d] over n - 1, as in `numpy.cov`."""
        return (self.outer - np.outer(self.total, self.mean)) / (self.n - 1)


def merged(parts: Iterable[Moments]) -> Moments:
    """The sums of all parts. Raises `DataError` for no parts, or for parts of different widths."""
    all_parts = list(parts)
    if not all_parts:
        raise DataError("no features were measured: there is nothing to compare")
    return functools.reduce(operator.add, all_parts)


def frechet_distance(a: Moments, b: Moments) -> float:
    """The Fréchet distance between Gaussians of these moments: |μ₁-μ₂|² + tr(Σ₁ + Σ₂ - 2 (Σ₁ Σ₂)^½).

    Raises `DataError` for fewer than ten items per dimension in either set: even two samples from the *same*
    distribution would then be far apart. Source: Dowson and Landau 1982; FID's definition.
    """
    if few := too_few(a, b):
        raise DataError(few)
    # tr (Σ₁ Σ₂)^½ needs no matrix square root of the non-symmetric product: see `_root_trace`.
    offset = a.mean - b.mean
    traces = np.trace(a.covariance) + np.trace(b.covariance)
    return float(offset @ offset + traces - 2 * _root_trace(a.covariance, b.covariance))


def too_few(a: Moments, b: Moments) -> str:
    """Why there is no Fréchet distance of so few images; "" if there is. Raises the errors of `frechet_distance`."""
    _check_alike(a, b)
    needed = MIN_PER_DIMENSION * len(a.total)
    few = f"{a.n} and {b.n} pictures for {len(a.total)} feature dimensions: a Fréchet distance takes {needed}"
    return few if min(a.n, b.n) < needed else ""


def mmd(a: Moments, b: Moments) -> float:
    """The unbiased squared maximum mean discrepancy under the kernel (x·y / d + 1)²; 0 on average for equal sets.

    It compares means and covariances, can be slightly negative, and is unbiased for any n of at least 2 (report n with
    it). Raises `DataError` below that. Source: Gretton et al. 2012, eq. 3. It is KID with degree 2 instead of 3,
    because sums of second moments suffice for degree 2.
    """
    _check_alike(a, b)
    if min(a.n, b.n) < 2:
        raise DataError(f"{a.n} and {b.n} pictures: a discrepancy takes at least 2 of each")
    d = len(a.total)
    # The unbiased estimate leaves out each vector's kernel with itself, (|x|²/d + 1)².
    own = [_kernel_sum(m, m, d) - (m.fourth / d**2 + 2 * m.square / d + m.n) for m in (a, b)]
    within = sum(kernel / (m.n * (m.n - 1)) for kernel, m in zip(own, (a, b), strict=True))
    return within - 2 * _kernel_sum(a, b, d) / (a.n * b.n)


def mmd_of_pairs(x: np.ndarray, y: np.ndarray) -> float:
    """`mmd` directly from features [n, d] and [m, d]: for few images with too many dimensions for moments."""
    a, b = (np.asarray(z, dtype=np.float64) for z in (x, y))
    if min(len(a), len(b)) < 2:
        raise DataError(f"{len(a)} and {len(b)} pictures: a discrepancy takes at least 2 of each")
    kernels = {
        name: (one @ other.T / a.shape[1] + 1) ** 2 for name, one, other in (("a", a, a), ("b", b, b), ("ab", a, b))
    }
    within = [(k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)) for k in (kernels["a"], kernels["b"])]
    return float(sum(within) - 2 * kernels["ab"].mean())


def frechet_name(features: str, weights_sha256: str) -> str:
    """The name of a Fréchet distance: `frechet_<features>`; `fid` only for the official Inception weights."""
    return "fid" if weights_sha256.startswith(INCEPTION_SHA256) else f"frechet_{features}"


def _kernel_sum(a: Moments, b: Moments, d: int) -> float:
    """The kernel summed over all pairs: Σ (x·y)² = <outer, outer>, Σ x·y = total · total."""
    return float((a.outer * b.outer).sum() / d**2 + 2 * (a.total @ b.total) / d + a.n * b.n)


def _root_trace(a: np.ndarray, b: np.ndarray) -> float:
    """tr (a b)^½ of two symmetric positive semidefinite matrices: the roots of the eigenvalues of a^½ b a^½."""
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(np.clip(values, 0, None)) @ vectors.T
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(root @ b @ root), 0, None)).sum())


def _check_alike(a: Moments, b: Moments) -> None:
    if a.total.shape != b.total.shape:
        raise DataError(f"features of {len(a.total)} and of {len(b.total)} dimensions are not of one network")
