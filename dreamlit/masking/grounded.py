"""Grounding DINO finds boxes for a text (arXiv 2303.05499), SAM cuts out what is in them (arXiv 2304.02643)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dreamlit.datamodules.images import Photo
from dreamlit.errors import ConfigError, ModelError
from dreamlit.masking.finishing import Region
from dreamlit.masking.models import ModelFolder, pixels
from dreamlit.masking.segmenters import Segmenter, hard

if TYPE_CHECKING:
    from torch import Tensor

BOXES_AT_ONCE = 8
"""SAM's masks come at the photo's size: a dozen for one photo of 12 megapixels would take half a gigabyte."""


class Grounded(Segmenter):
    """A prompt's region is the union of SAM's masks in the boxes whose score reaches the threshold."""

    threshold = 0.35
    reads_text = True

    def __init__(self, model: ModelFolder, sam: ModelFolder) -> None:
        self.models = (model, sam)
        if (kind := sam.config.get("model_type")) != "sam":
            raise ModelError(f"--sam {sam.place}: model_type {kind!r}; give one of model_type 'sam'")

    def load(self, prompts: Sequence[str], threshold: float | None, device: str) -> None:
        from transformers import GroundingDinoForObjectDetection, SamModel

        super().load(prompts, threshold, device)
        dino, sam = self.models
        self.dino: Any = dino.weights(GroundingDinoForObjectDetection, device)
        self.sam: Any = sam.weights(SamModel, device)
        self.processors = dino.processor(), sam.processor()
        tokenizer, most = dino.tokenizer(), self.dino.config.max_text_len
        self.tokens = []
        for prompt in prompts:
            tokens = tokenizer(sentence(prompt), return_tensors="pt", return_token_type_ids=True).to(device)
            if (length := tokens["input_ids"].shape[1]) > most:
                raise ConfigError(
                    f"{prompt[:40]!r}... has {length} tokens; Grounding DINO reads {most}: say it shorter"
                )
            self.tokens.append(tokens)

    def regions(self, photos: Sequence[Photo]) -> list[list[Region]]:
        import torch

        pictures = [photo.pixels for photo in photos]
        with torch.inference_mode():
            found = [self._boxes(pictures, tokens) for tokens in self.tokens]
            cut = None  # most of the time goes into SAM's look at a photo: none where there is no box
            if any(len(boxes) for of_prompt in found for boxes, _ in of_prompt):
                cut = self._cutter(pictures)
            regions: list[list[Region]] = [[] for _ in pictures]
            for prompt, of_prompt in zip(self.prompts, found, strict=True):
                for place, (boxes, best) in enumerate(of_prompt):
                    inside = np.zeros(pictures[place].shape[:2], bool)
                    if cut is not None and len(boxes):
                        inside = cut(place, boxes)
                    regions[place].append(Region(prompt, hard(inside), best, len(boxes)))
        return regions

    def _boxes(self, pictures: list[np.ndarray], tokens: Any) -> list[tuple[Tensor, float]]:
        """For each photo the boxes [n, 4] that are good enough (left, top, right, bottom in pixels); the best score."""
        import torch

        inputs = pixels(self.processors[0], pictures).to(self.device)
        text = {name: values.expand(len(pictures), -1) for name, values in tokens.items()}
        outputs = self.dino(**inputs, **text)
        found = []
        for picture, logits, boxes in zip(pictures, outputs.logits, outputs.pred_boxes, strict=True):
            scores = logits.sigmoid().amax(-1)  # over the tokens of the prompt: [queries]
            if not (scores.isfinite().all() and boxes.isfinite().all()):
                raise ModelError(f"{self.models[0].place}: values that are not finite; its weights are damaged")
            height, width = picture.shape[:2]
            centre, size = boxes[scores >= self.cut].split(2, dim=-1)  # as shares of the photo
            corners = torch.cat([centre - size / 2, centre + size / 2], dim=-1).clamp(0, 1)
            found.append((corners * corners.new_tensor([width, height, width, height]), float(scores.max())))
        return found

    def _cutter(self, pictures: list[np.ndarray]) -> Callable[[int, Tensor], np.ndarray]:
        """Looks at the photos once; then gives bool [H, W], what SAM finds in boxes [n, 4] of the photo at a place."""
        inputs = pixels(self.processors[1], pictures)
        embeddings = self.sam.get_image_embeddings(inputs["pixel_values"].to(self.device))

        def cut(place: int, boxes: Tensor) -> np.ndarray:
            sizes = {name: inputs[name][place : place + 1] for name in ("original_sizes", "reshaped_input_sizes")}
            (height, width), (inner_h, inner_w) = (size[0].tolist() for size in sizes.values())
            scaled = boxes * boxes.new_tensor([inner_w / width, inner_h / height] * 2)
            inside = np.zeros((height, width), bool)
            for some in scaled.split(BOXES_AT_ONCE):
                outputs = self.sam(
                    image_embeddings=embeddings[place : place + 1], input_boxes=some[None], multimask_output=False
                )
                (masks,) = self.processors[1].post_process_masks(outputs.pred_masks.cpu(), **sizes)  # [n, 1, H, W]
                inside |= masks.flatten(0, 1).any(0).numpy()
            return inside

        return cut


def sentence(prompt: str) -> str:
    """As Grounding DINO was trained: small letters, closed by a full stop."""
    return prompt.strip().lower().rstrip(".") + "."
