"""Where on the noise schedule a draw falls: even coverage per sample, and densities given by their inverse CDF."""

from __future__ import annotations

import math
import statistics

from dreamlit.seeds import Part, address, unit

BITS = 64
INVERSE_GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""(sqrt(5) - 1) / 2 in units of 2^-64. Integers, because visit * 0.618... loses digits as visits grow."""


def low_discrepancy(seed: int, sample_id: Part, visit: int) -> float:
    """frac(hash(sample) + visit / golden ratio) in [0, 1): successive visits of one sample cover [0, 1) evenly.

    A Kronecker sequence. The golden ratio is the number worst approximated by fractions, so that the visits of a
    sample, however many, never bunch up.
    """
    start = address(seed, "timestep", sample_id) << 1
    return ((start + visit * INVERSE_GOLDEN_RATIO) % 2**BITS >> (BITS - 53)) / 2**53


def random(seed: int, sample_id: Part, visit: int) -> float:
    """A number in [0, 1), independent between samples and between visits."""
    return unit(seed, "timestep", sample_id, visit)


def inverse_cdf(name: str, parameters: tuple[float, ...], u: float) -> float:
    """The share of the schedule below which lies the share `u` of the draws of a density in `PARAMETERS`."""
    return {"logit_normal": logit_normal, "mode": mode, "beta": beta}[name](u, *parameters)


PARAMETERS = {
    "logit_normal": {"logit_mean": 0.0, "logit_std": 1.0},
    "mode": {"mode_scale": 1.29},
    "beta": {"beta_alpha": 2.0, "beta_beta": 2.0},
}
"""Densities with their options and the usual values; 1.29 is the best of the scales that SD3's paper tried."""


def log_linear(u: float, ratio: float) -> float:
    """Inverse CDF on [0, 1) of the density proportional to ratio^x: `ratio` times as dense at 1 as at 0.

    CDF(x) = (ratio^x - 1) / (ratio - 1). Unlike a power of x, this density is nowhere 0: no noise level is lost.
    """
    if ratio == 1:
        return u
    return below_one(math.log1p(u * (ratio - 1)) / math.log(ratio))


def logit_normal(u: float, mean: float, std: float) -> float:
    """Inverse CDF of sigmoid(N(mean, std^2)) (Esser et al. 2024, arXiv 2403.03206, equation 19)."""
    if u <= 0:
        return 0.0
    return below_one(1 / (1 + math.exp(-statistics.NormalDist(mean, std).inv_cdf(u))))


def mode(u: float, scale: float) -> float:
    """Inverse CDF of SD3's heavy-tailed density around the middle (same paper, equation 20, from the clean end).

    f(v) = 1 - v - scale (cos^2(pi v / 2) - 1 + v) with v = 1 - u. It rises for scales from -1 to 2 / (pi - 2).
    """
    v = 1 - u
    return below_one(max(0.0, 1 - v - scale * (math.cos(math.pi * v / 2) ** 2 - 1 + v)))


MODE_SCALE = (-1.0, 2 / (math.pi - 2))
"""The scales for which `mode` is a density."""


def beta(u: float, a: float, b: float) -> float:
    """Inverse CDF of Beta(a, b), by bisection: exact to 2^-53."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if beta_cdf(middle, a, b) < u else (low, middle)
    return below_one(low)


BISECTIONS = 53


def beta_cdf(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (DLMF 8.17.22, evaluated backwards)."""
    if x <= 0 or x >= 1:
        return float(x > 0)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges fast
        return 1 - beta_cdf(1 - x, b, a)
    fraction = 1.0
    for m in range(FRACTION_TERMS, 0, -1):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        fraction = 1 + even / (1 + odd / fraction)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) + math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)) / a
    return front / (1 - (a + b) / (a + 1) * x / fraction)


FRACTION_TERMS = 60
"""Enough for a and b up to `LARGEST_BETA`, to the last digit."""
LARGEST_BETA = 100.0


def below_one(x: float) -> float:
    """`x` where rounding has led to 1."""
    return min(x, math.nextafter(1.0, 0.0))


def into_range(x: float, low: float, high: float) -> float:
    """[0, 1) mapped onto [low, high)."""
    return min(low + (high - low) * x, math.nextafter(high, low))
