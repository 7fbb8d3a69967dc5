"""Frozen weights in few bits: which levels there are, where they work, and what they do to a layer."""

from dreamlit.quantisation.levels import LEVELS, NO_CHANGE, Level, Precision, refusal

__all__ = ["LEVELS", "NO_CHANGE", "Level", "Precision", "refusal"]
