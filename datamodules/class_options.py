"""The option `data.class_images`: pictures of the class that a run draws for itself."""

from __future__ import annotations

import dataclasses
import re

from dreamlit.errors import Faults

ID = "class-images"
"""Begins the ids of the datasets that these pictures become: `class-images-1024x768`."""
OWN_ID = re.compile(rf"{ID}(-\d+x\d+)?")


@dataclasses.dataclass(frozen=True)
class ClassImages:
    """Pictures of the class by the base model itself, drawn before the run and used as regularisation datasets.

    Args:
        prompt: One or several prompts; "a photo of a {brown|black|} dog {on grass|in a room|}" stands for all its
            combinations. The caption of each picture is its prompt.
        count: Pictures to have, in the sizes that the subject's photos are trained at. What is missing is drawn.
        repeats: How many extra times each picture is seen in an epoch, as for a dataset.
        probability: Factor, above 0, on how often they are seen, after `repeats`.
        batch_size: Pictures that are drawn together.
        seed: Each picture has its own from it. It is not the run's, so that runs of other seeds share the pictures.
        steps: Sampler steps.
        guidance_scale: Guidance; by default the model's usual one.
        guidance_rescale: From 0 (off) to 1: takes back the glare of strong guidance (arXiv 2305.08891).
        negative_prompt: What to steer away from.
        sampler: `ddim`, `euler`, `dpm` or `unipc`; by default the one that the model comes with.
    """

    prompt: str | list[str]
    count: int = 100
    repeats: float = 0.0
    probability: float = 1.0
    batch_size: int = 4
    seed: int = 0
    steps: int = 30
    guidance_scale: float | None = None
    guidance_rescale: float = 0.0
    negative_prompt: str = ""
    sampler: str | None = None

    def __post_init__(self) -> None:
        faults = Faults("data.class_images cannot be used")
        for name in ("count", "batch_size"):
            if getattr(self, name) < 1:
                faults.add(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.repeats < float("inf"):
            faults.add(f"repeats is {self.repeats}; it must be at least 0 (0 is once, 1 is twice)")
        if not 0 < self.probability < float("inf"):
            faults.add(f"probability is {self.probability}; it must be above 0")
        if not self.prompts or not all(prompt.strip() for prompt in self.prompts):
            faults.add(f"prompt is {self.prompt!r}; give what the pictures show, such as a photo of a dog")
        faults.raise_if_any()

    @property
    def prompts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else list(self.prompt)
