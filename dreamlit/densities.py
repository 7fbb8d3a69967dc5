"""Where on the noise schedule a draw falls: even coverage per sample, and densities given by their inverse CDF."""

from __future__ import annotations

import math

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


def log_linear(u: float, ratio: float) -> float:
    """Inverse CDF on [0, 1) of the density proportional to ratio^x: `ratio` times as dense at 1 as at 0.

    CDF(x) = (ratio^x - 1) / (ratio - 1). Unlike a power of x, this density is nowhere 0: no noise level is lost.
    """
    if ratio == 1:
        return u
    return min(math.log1p(u * (ratio - 1)) / math.log(ratio), math.nextafter(1.0, 0.0))


def into_range(x: float, low: float, high: float) -> float:
    """[0, 1) mapped onto [low, high)."""
    return min(low + (high - low) * x, math.nextafter(high, low))
