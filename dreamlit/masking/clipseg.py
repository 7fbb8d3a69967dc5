"""CLIPSeg: one forward gives a map for a photo and a text (Lüddecke and Ecker 2022, arXiv 2112.10003)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dreamlit.datamodules.images import Photo
from dreamlit.errors import ConfigError
from dreamlit.masking.finishing import Region
from dreamlit.masking.models import ModelFolder, full_size, pixels
from dreamlit.masking.segmenters import Segmenter, hard


class ClipSeg(Segmenter):
    """A pixel belongs to a prompt where the sigmoid of the map, brought to the photo's size, reaches the threshold."""

    threshold = 0.3
    reads_text = True

    def __init__(self, model: ModelFolder) -> None:
        self.models = (model,)

    def load(self, prompts: Sequence[str], threshold: float | None, device: str) -> None:
        from transformers import CLIPSegForImageSegmentation

        super().load(prompts, threshold, device)
        (folder,) = self.models
        self.model: Any = folder.weights(CLIPSegForImageSegmentation, device)
        self.processor, tokenizer = folder.processor(), folder.tokenizer()
        most = self.model.config.text_config.max_position_embeddings
        for prompt in prompts:
            if (length := len(tokenizer(prompt, verbose=False)["input_ids"])) > most:
                raise ConfigError(f"{prompt[:40]!r}... has {length} tokens; CLIPSeg reads {most}: say it shorter")
        self.tokens = tokenizer(list(prompts), padding=True, return_tensors="pt").to(device) if prompts else None

    def regions(self, photos: Sequence[Photo]) -> list[list[Region]]:
        import torch

        pictures = [photo.pixels for photo in photos]
        values = pixels(self.processor, pictures)["pixel_values"].to(self.device)
        found: list[list[Region]] = [[] for _ in photos]
        for number, prompt in enumerate(self.prompts):
            assert self.tokens is not None
            text = {name: tokens[number : number + 1].expand(len(photos), -1) for name, tokens in self.tokens.items()}
            with torch.inference_mode():
                maps = self.model(pixel_values=values, **text).logits.sigmoid()
            for own, picture, small in zip(found, pictures, maps.reshape(len(photos), *maps.shape[-2:]), strict=True):
                large = full_size(small, picture)
                own.append(Region(prompt, hard(large.numpy() >= self.cut), float(large.max())))
        return found
