"""Models that tell foreground from background without a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamlit.datamodules.images import Photo
from dreamlit.errors import ModelError
from dreamlit.masking.finishing import Region
from dreamlit.masking.models import ModelFolder, full_size, pixels
from dreamlit.masking.segmenters import REFUSED, Segmenter, hard

BACKGROUND = ("background", "bg", "back", "unlabeled")


class Foreground(Segmenter):
    """A pixel counts where the model's probability of foreground, brought to the photo's size, reaches the threshold.

    The probability is the sigmoid of one channel, or the softmax over two: the second, unless that one is named
    background.

    Raises:
        ModelError: when the model knows more than foreground and background.
    """

    threshold = 0.5

    def __init__(self, model: ModelFolder, config: dict[str, Any]) -> None:
        self.models = (model,)
        names = labels(config)
        if len(names) > 2:
            some = ", ".join(names[:4])
            raise ModelError(f"{model.place}: tells {len(names)} classes apart ({some}, ...). {REFUSED}")
        self.channel = 0 if len(names) == 1 or names[1].lower() in BACKGROUND else 1

    def load(self, prompts: Sequence[str], threshold: float | None, device: str) -> None:
        from transformers import AutoModelForSemanticSegmentation

        super().load(prompts, threshold, device)
        (folder,) = self.models
        self.model: Any = folder.weights(AutoModelForSemanticSegmentation, device)
        self.processor = folder.processor()

    def regions(self, photos: Sequence[Photo]) -> list[list[Region]]:
        import torch

        pictures = [photo.pixels for photo in photos]
        # one by one: processors that keep the aspect make tensors of different sizes
        inputs = [pixels(self.processor, [picture])["pixel_values"] for picture in pictures]
        same = len({values.shape for values in inputs}) == 1
        found = []
        with torch.inference_mode():
            for group in [torch.cat(inputs)] if same else inputs:
                found += list(self._probabilities(self.model(pixel_values=group.to(self.device)).logits))
        large = [full_size(small, picture) for small, picture in zip(found, pictures, strict=True)]
        return [[Region("foreground", hard(values.numpy() >= self.cut), float(values.max()))] for values in large]

    def _probabilities(self, logits: Any) -> Any:
        """[N, C, h, w] -> [N, h, w] in [0, 1]."""
        if logits.shape[1] == 1:
            return logits[:, 0].sigmoid()
        return logits.softmax(dim=1)[:, self.channel]


def labels(config: dict[str, Any]) -> list[str]:
    """The names of a model's classes, in the order of its channels; transformers takes two where none are given."""
    named = config.get("id2label")
    if isinstance(named, dict) and named:
        return [str(named[key]) for key in sorted(named, key=int)]
    return [f"LABEL_{number}" for number in range(int(config.get("num_labels", 2)))]
