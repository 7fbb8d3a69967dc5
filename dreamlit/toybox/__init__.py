"""A small trained world: scenes whose truth is known, a Stable Diffusion model of them, subjects, and judges.

What it is for: to see the main job work on two CPU cores in minutes, and to measure techniques instead of believing in
them. `python -m dreamlit.toybox.quality` says how good the shipped model is.
"""

from __future__ import annotations

import pathlib

WEIGHTS = pathlib.Path(__file__).parent / "weights"
MODEL = WEIGHTS / "model"
"""The Stable Diffusion pipeline, in diffusers' layout."""
CLIP = WEIGHTS / "clip"
"""The text and image encoders that the scores use."""
TAESD = WEIGHTS / "taesd"
"""The tiny autoencoder of the same latents."""
JUDGE = WEIGHTS / "judge"
