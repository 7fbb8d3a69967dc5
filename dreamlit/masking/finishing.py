"""From what was found in a photo to its mask: unite, subtract, keep the largest, grow, invert, soften.

H x W are the pixels of the upright photo.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from dreamlit.masking.shapes import grown, largest_part, softened

SMALL, LARGE = 0.01, 0.95
"""Shares of the area below and above which a mask is worth a look."""


@dataclasses.dataclass(frozen=True)
class Region:
    """What one prompt, or a model without prompts, found in one photo.

    Args:
        name: The prompt, `foreground` or `alpha`.
        values: uint8 [H, W]; 255 belongs to it, 0 does not.
        best: The highest value of the model's map, or score of a box, in [0, 1], whether it was enough or not.
        boxes: How many boxes were good enough; None for a model that makes none.
        absent: Why there can be nothing, where that is known.
    """

    name: str
    values: np.ndarray
    best: float
    boxes: int | None = None
    absent: str = ""

    def described(self) -> dict[str, float | int]:
        """Its share of the area, and how sure the model was."""
        told: dict[str, float | int] = {"area": round(area(self.values), 4), "best": round(self.best, 4)}
        return told if self.boxes is None else {**told, "boxes": self.boxes}


@dataclasses.dataclass(frozen=True)
class Finish:
    """What is done with the regions. Lengths are shares of the photo's longer side, so that one value suits all sizes.

    Args:
        padding: How far the mask grows beyond the subject; negative shrinks it.
        blur: Standard deviation of the Gaussian that softens its edge.
        largest_only: Keep the largest connected part alone.
        invert: What was found does not count, and everything else does.
    """

    padding: float = 0.0
    blur: float = 0.0
    largest_only: bool = False
    invert: bool = False

    def faults(self) -> list[str]:
        """What is wrong with the values, one sentence each."""
        lines = []
        if not math.isfinite(self.padding) or abs(self.padding) > 0.5:
            lines.append(f"--padding {self.padding} is a share of the longer side; give one from -0.5 to 0.5, as 0.02")
        if not math.isfinite(self.blur) or not 0 <= self.blur <= 0.5:
            lines.append(f"--blur {self.blur} is a share of the longer side; give one from 0 to 0.5, as 0.005")
        return lines

    def mask(self, wanted: list[Region], unwanted: list[Region]) -> tuple[np.ndarray, list[str]]:
        """The mask uint8 [H, W] of a photo, 255 where it counts, and what a user should know of it.

        A mask under which nothing at all would count is made white instead: the whole photo counts, and that is said.
        """
        values = np.maximum.reduce([region.values for region in wanted])
        if not values.any():
            return whole(values), [f"nothing found ({missed(wanted)}): the whole image counts"]
        for region in unwanted:
            values = np.minimum(values, 255 - region.values)
        if not values.any():
            names = ", ".join(repr(region.name) for region in unwanted)
            return whole(values), [f"nothing is left without {names}: the whole image counts"]
        values = self._shaped(values)
        if not values.any():
            options = "--padding" if self.padding < 0 else "--invert"
            return whole(values), [f"nothing is left after {options}: the whole image counts"]
        share = area(values)
        if share < SMALL:
            return values, [f"only {share:.2%} of the image counts"]
        return values, [f"{share:.0%} of the image counts"] if share > LARGE else []

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        side = max(values.shape)
        if self.largest_only:
            values = np.where(largest_part(values > 0), values, np.uint8(0))
        if self.padding:
            values = grown(values > 0, self.padding * side).astype(np.uint8) * np.uint8(255)
        if self.invert:
            values = 255 - values
        return softened(values, self.blur * side)


def area(values: np.ndarray) -> float:
    """Share of a uint8 mask that counts, grey in part."""
    return float(values.mean(dtype=np.float64) / 255)


def whole(values: np.ndarray) -> np.ndarray:
    return np.full_like(values, 255)


def missed(regions: list[Region]) -> str:
    """How near each came: with that, a threshold can be chosen."""
    return ", ".join(region.absent or f"{region.name!r} at best {region.best:.2f}" for region in regions)
