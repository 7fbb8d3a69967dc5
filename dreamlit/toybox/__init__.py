"""A small trained world: scenes whose truth is known, a Stable Diffusion model of them, subjects, and judges.

What it is for: to see the main job work on two CPU cores in minutes, and to measure techniques instead of believing in
them. `python -m dreamlit.toybox.quality` says how good the shipped model is.
"""

from __future__ import annotations

import hashlib
import pathlib

WEIGHTS = pathlib.Path(__file__).parent / "weights"
MODEL = WEIGHTS / "model"
"""The Stable Diffusion pipeline, in diffusers' layout."""
CLIP = WEIGHTS / "clip"
"""The text and image encoders that the scores use."""
TAESD = WEIGHTS / "taesd"
"""The tiny autoencoder of the same latents."""
JUDGE = WEIGHTS / "judge"


def weights_hash() -> str:
    """Of all shipped weight files: changes with the model, so that figures can be tied to it."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(WEIGHTS.rglob("*.safetensors")):
        digest.update(path.relative_to(WEIGHTS).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
