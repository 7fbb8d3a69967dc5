"""Scores of the images of a report: the base model beside the trained one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

    Scores = dict[str, dict[str, float]]
    """Name -> {"base", "adapter" and, where they have one of their own, "photos": value}."""
    Images = dict[str, list[list[Image]]]
    """Images of "base" and "adapter": a list for each prompt, an image for each seed."""


def scores_of(
    images: Images, encoder: Any, photos: list[Image], prompts: list[str], class_prompts: list[str], seeds: int
) -> Scores:
    """Scores of both models, those that can be computed; and the photos' own similarity beside the fidelity.

    Args:
        images: Of `prompts` and then of `class_prompts`.
        encoder: An `ImageEncoder`.
        photos: The subject's.
        prompts: With the subject, as the encoder is to read them.
        class_prompts: Without it; may be empty.
        seeds: Images of each prompt.
    """
    from dreamlit.metrics import score_subject

    texts = [prompt for prompt in prompts for _ in range(seeds)]
    scores: Scores = {}
    for model, rows in images.items():
        of_class = flat(rows[len(prompts) :]) or None
        asked = [prompt for prompt in class_prompts for _ in range(seeds)] if of_class else None
        found = score_subject(encoder, photos, flat(rows[: len(prompts)]), texts, of_class, asked)
        for name, value in dataclasses.asdict(found).items():
            place = ("subject_fidelity", "photos") if name == "mutual_similarity" else (name, model)
            if value is not None:
                scores.setdefault(place[0], {})[place[1]] = value
    return scores


def subject_faults(subject: str | None, prompts: list[str], encoder: str | None) -> Iterator[str]:
    """What is wrong with the subject's name that CLIP is to read without its first word."""
    if subject is None:
        return
    if not encoder:
        yield "subject does nothing without an encoder: it is what CLIP reads in the prompts"
    elif len(subject.split()) < 2 or not any(subject in str(prompt) for prompt in prompts):
        yield f"subject is {subject!r}; give the rare word and the class as they stand in prompts: 'sks dog'"


def flat(rows: list[list[Image]]) -> list[Image]:
    return [image for row in rows for image in row]


def score_lines(scores: Scores | None) -> list[str]:
    """One line for each score: before -> after, and what the photos themselves reach where that is known."""
    lines = []
    for name, of in (scores or {}).items():
        ceiling = f" (photos among themselves {of['photos']:.3f})" if "photos" in of else ""
        lines.append(f"  {name.replace('_', ' ')}: {of['base']:.3f} -> {of['adapter']:.3f}{ceiling}")
    return lines
