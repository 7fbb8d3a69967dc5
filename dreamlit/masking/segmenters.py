"""What finds regions in photos: one interface, and the choice among those that implement it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dreamlit.datamodules.images import Photo
from dreamlit.errors import ConfigError, ModelError
from dreamlit.masking.finishing import Region
from dreamlit.masking.models import ModelFolder

CLIPSEG = "CIDAS/clipseg-rd64-refined"
"""The model for a text where none is named."""
REFUSED = (
    "It can be a clipseg, a grounding-dino (with --sam), or a model for semantic segmentation that transformers has "
    "built in and that tells one foreground from one background"
)


class Segmenter:
    """Finds, in each photo, the region of each prompt. Constructors read nothing; `load` loads once."""

    threshold: float | None = None
    """From which value on something is found, where the user gives none."""
    reads_text = False
    models: tuple[ModelFolder, ...] = ()

    def load(self, prompts: Sequence[str], threshold: float | None, device: str) -> None:
        """Loads the model.

        Args:
            prompts: What to find; empty for a segmenter that reads no text.
            threshold: In (0, 1), or None for the segmenter's own.
            device: As torch names it.

        Raises:
            ModelError: when a model cannot be read.
            ConfigError: when the device or a prompt cannot be used.
        """
        self.prompts, self.device = list(prompts), device
        self.cut = self.threshold if threshold is None else threshold

    def regions(self, photos: Sequence[Photo]) -> list[list[Region]]:
        """For each photo the region of each prompt, or one region where no text is read."""
        raise NotImplementedError

    def fingerprint(self) -> list[str]:
        """What decides the result besides the options. Errors: `ModelError`."""
        return [type(self).__name__, *(model.fingerprint() for model in self.models)]


class Alpha(Segmenter):
    """The photos' own alpha channels, as they are or, with a threshold, hard."""

    def regions(self, photos: Sequence[Photo]) -> list[list[Region]]:
        return [[self._region(photo)] for photo in photos]

    def _region(self, photo: Photo) -> Region:
        if photo.alpha is None:  # nothing is cut out
            return Region("alpha", np.zeros(photo.pixels.shape[:2], np.uint8), 0.0, absent="no transparent parts")
        values = photo.alpha if self.cut is None else hard(photo.alpha >= self.cut * 255)
        return Region("alpha", values, float(photo.alpha.max()) / 255)


def hard(region: np.ndarray) -> np.ndarray:
    """bool [H, W] -> uint8 [H, W] of 0 and 255."""
    return region.astype(np.uint8) * np.uint8(255)


def choose(alpha: bool, model: str | None, sam: str | None, has_text: bool) -> Segmenter:
    """The segmenter that the options ask for; only config.json of a model is read.

    Raises:
        ConfigError: when the options do not go together.
        ModelError: when the model is of a kind that cannot be used.
    """
    if alpha:
        return Alpha()
    folder = ModelFolder(model or CLIPSEG)
    config = folder.config
    kind = config.get("model_type")
    found = of_kind(folder, config, sam)
    if sam and len(found.models) == 1:
        raise ConfigError(f"--sam has no use with {folder.place} (model_type {kind!r}); leave it out")
    if found.reads_text and not has_text:
        raise ConfigError(f"{folder.place} (model_type {kind!r}) finds what a text says; give --text_input")
    if not found.reads_text and has_text:
        raise ConfigError(
            f"{folder.place} (model_type {kind!r}) reads no text; leave out --text_input and --subtract, or give "
            "another --model"
        )
    return found


def of_kind(folder: ModelFolder, config: dict, sam: str | None) -> Segmenter:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as SEMANTIC

    # each with its own imports of transformers, which take seconds
    kind = config.get("model_type")
    if kind == "clipseg":
        from dreamlit.masking.clipseg import ClipSeg

        return ClipSeg(folder)
    if kind == "grounding-dino":
        from dreamlit.masking.grounded import Grounded

        if not sam:
            raise ConfigError(f"{folder.place} finds boxes; give --sam a SAM model (facebook/sam-vit-base) for masks")
        return Grounded(folder, ModelFolder(sam, "--sam"))
    if kind in SEMANTIC:
        from dreamlit.masking.foreground import Foreground

        return Foreground(folder, config)
    own = " The code that comes with a model (auto_map) is not run." if "auto_map" in config else ""
    raise ModelError(f"{folder.place}: model_type {kind!r} cannot be used.{own} {REFUSED}")
