"""The toybox's judge: names class, colour, background, pattern and badge of a picture. Trained on drawn scenes only."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dreamlit.errors import ModelError
from dreamlit.toybox import JUDGE

if TYPE_CHECKING:
    from PIL.Image import Image


class Judge:
    """Loads once, answers in batches, on the CPU, deterministic.

    Raises:
        ModelError: when the weights are missing or not the judge's.
    """

    def __init__(self, folder: pathlib.Path = JUDGE) -> None:
        from safetensors.torch import load_file

        from dreamlit.toybox.making.networks import JudgeNetwork

        path = folder / "model.safetensors"
        self.network = JudgeNetwork()
        try:
            state = {key: value.float() for key, value in load_file(path).items()}
            self.network.load_state_dict(state)
        except Exception as error:  # a torn file has many faces
            raise ModelError(f"{path} is not the toybox's judge: {error}") from error
        self.network.eval().requires_grad_(False)

    def __call__(self, images: Sequence[Image], batch: int = 64) -> list[dict[str, str]]:
        """What each picture shows: its kind, colour, background, pattern and badge, by name."""
        import torch

        from dreamlit.toybox.making.data import NAMES

        answers: list[dict[str, str]] = []
        for at in range(0, len(images), batch):
            some = [np.asarray(_scene_sized(image), np.float32) for image in images[at : at + batch]]
            pixels = torch.from_numpy(np.stack(some)).permute(0, 3, 1, 2) / 127.5 - 1
            logits = self.network(pixels)
            found = {name: logits[name].argmax(1).tolist() for name in NAMES}
            answers += [{name: NAMES[name][found[name][i]] for name in NAMES} for i in range(len(some))]
        return answers


def _scene_sized(image: Image) -> Image:
    """The picture with 64 pixels on its shorter side, cropped to the middle square."""
    from PIL import Image as pillow

    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.convert("RGB").crop((left, top, left + side, top + side))
    return square if side == 64 else square.resize((64, 64), pillow.Resampling.LANCZOS)
