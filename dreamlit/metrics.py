"""How much generated pictures are the subject, and what was asked: DreamBooth's scores with any CLIP or DINO encoder.

Cosines are in [-1, 1], neither clamped nor multiplied by 100. Values of different encoders cannot be compared. Shapes:
N pictures, M photos, P prompts, D numbers in an embedding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor
from torchmetrics import Metric

from dreamlit.encoders import ImageEncoder
from dreamlit.errors import DataError

if TYPE_CHECKING:
    from dreamlit.encoders import Picture


def _unit(embeddings: Tensor) -> Tensor:
    """Unit rows in float64: [N, D]."""
    if embeddings.ndim != 2 or len(embeddings) == 0:
        raise ValueError(f"embeddings [N, D] with N at least 1 are needed, not shape {tuple(embeddings.shape)}")
    rows = embeddings.detach().double()
    lengths = rows.norm(dim=1, keepdim=True)
    if not (lengths.isfinite() & (lengths > 0)).all():
        raise ValueError("an embedding is zero or not finite, so it has no direction")
    return rows / lengths


def subject_fidelity(generated: Tensor, photos: Tensor) -> float:
    """Mean cosine over all pairs of a generated picture and a photo: [N, D], [M, D] -> [-1, 1], higher is better.

    With DINO embeddings the paper's DINO score, with CLIP's its CLIP-I (Ruiz et al. 2023, arXiv 2208.12242,
    section 4.1). Compare it with `mutual_similarity` of the photos.
    """
    return float(_unit(generated).mean(0) @ _unit(photos).mean(0))


def mutual_similarity(photos: Tensor) -> float:
    """Mean cosine over distinct pairs of photos, [M, D]: what one more real photo would score as subject fidelity.

    Errors: `ValueError` for fewer than two. With S the sum of the unit vectors it is (|S|^2 - M) / (M (M - 1)).
    """
    rows = _unit(photos)
    count = len(rows)
    if count < 2:
        raise ValueError("at least two photos are needed for a similarity between them")
    return float((rows.sum(0).square().sum() - count) / (count * (count - 1)))


def prompt_fidelity(generated: Tensor, texts: Tensor) -> float:
    """Mean cosine of each picture with its own prompt, row by row: [N, D], [N, D] -> [-1, 1], higher is better.

    CLIP-T of DreamBooth (section 4.1); 100 max(0, it) is the CLIPScore of torchmetrics.
    Errors: `ValueError` when the shapes differ.
    """
    if generated.shape != texts.shape:
        raise ValueError(f"one text for each picture is needed: {tuple(generated.shape)} and {tuple(texts.shape)}")
    return float((_unit(generated) * _unit(texts)).sum(1).mean())


def preservation(class_images: Tensor, photos: Tensor) -> float:
    """PRES: as `subject_fidelity`, of pictures generated for the class alone ("a dog"); lower is better.

    High values say that every member of the class has become the subject (arXiv 2208.12242, section 4.3; with DINO).
    """
    return subject_fidelity(class_images, photos)


def diversity(generated: Tensor, prompts: Sequence[object]) -> float:
    """Mean of 1 - cosine over all pairs of pictures with the same prompt: [N, D] -> [0, 2], higher is more varied.

    It stands for DIV (arXiv 2208.12242, section 4.3), which is LPIPS over the same pairs: LPIPS needs a VGG or AlexNet
    of its own, this the encoder that is loaded anyway, so figures of papers cannot be compared with it.
    Errors: `ValueError` when counts differ or no prompt has two pictures.
    """
    rows = _unit(generated)
    if len(rows) != len(prompts):
        raise ValueError(f"{len(rows)} pictures and {len(prompts)} prompts: one for each is needed")
    pairs, total = 0, 0.0
    for prompt in dict.fromkeys(prompts):
        same = rows[[i for i, other in enumerate(prompts) if other == prompt]]
        if len(same) > 1:
            count = len(same) * (len(same) - 1) // 2
            pairs, total = pairs + count, total + count * (1 - mutual_similarity(same))
    if not pairs:
        raise ValueError("no prompt has two pictures, so there is nothing to compare")
    return total / pairs


@dataclasses.dataclass(frozen=True)
class SubjectScores:
    """Means of cosines of one encoder; None where the material for one was not given. Formulas: the functions."""

    subject_fidelity: float
    mutual_similarity: float | None
    """None for a single photo."""
    prompt_fidelity: float | None
    """None without prompts, and for an encoder that reads no text."""
    diversity: float | None
    """None without prompts, and when no prompt has two pictures."""
    preservation: float | None
    """None without pictures of the class."""
    class_diversity: float | None
    """`diversity` of the pictures of the class; None without their prompts, or when no prompt has two."""


def score_subject(
    encoder: ImageEncoder,
    photos: Sequence[Picture],
    generated: Sequence[Picture],
    prompts: Sequence[str] | None = None,
    class_images: Sequence[Picture] | None = None,
    class_prompts: Sequence[str] | None = None,
) -> SubjectScores:
    """All scores that can be computed from what is given.

    Args:
        encoder: CLIP or DINO.
        photos: Real pictures of the subject.
        generated: Pictures of the subject.
        prompts: What each generated picture was asked to show; rarely used words of the subject, which CLIP does not
            know, are best left out.
        class_images: Pictures generated for prompts of the class alone.
        class_prompts: What each of those was asked to show.

    Raises:
        DataError: when a list is empty, a picture cannot be read, or prompts and pictures differ in number.
        ModelError: when the encoder cannot be used.
    """
    for images, texts in ((generated, prompts), (class_images or [], class_prompts)):
        if texts is not None and (isinstance(texts, str) or len(texts) != len(images)):
            raise DataError(f"{len(images)} generated pictures need one prompt each, not {len(texts)}")
    real, made = encoder.embed_images(photos), encoder.embed_images(generated)
    of_class = None if class_images is None else encoder.embed_images(class_images)
    texts = encoder.embed_texts(prompts) if prompts is not None and encoder.reads_text else None
    return SubjectScores(
        subject_fidelity=subject_fidelity(made, real),
        mutual_similarity=mutual_similarity(real) if len(real) > 1 else None,
        prompt_fidelity=None if texts is None else prompt_fidelity(made, texts),
        diversity=diversity(made, prompts) if _repeats(prompts) else None,
        preservation=None if of_class is None else preservation(of_class, real),
        class_diversity=diversity(of_class, class_prompts)
        if of_class is not None and _repeats(class_prompts)
        else None,
    )


def _repeats(prompts: Sequence[str] | None) -> TypeGuard[Sequence[str]]:
    """Whether a prompt has two pictures."""
    return prompts is not None and len(set(prompts)) < len(prompts)


class SubjectMetric(Metric):
    """The same scores from embeddings that arrive in batches and on several ranks, in float64 and exactly.

    Every score is a function of sums of unit vectors, one sum for each prompt, so batches and ranks only add up; a
    rank without pictures is no exception. The photos are the same on every rank.

    Args:
        photos: Embeddings of the photos: [M, D].
        prompts: How many different prompts there are: P.
        texts: Embeddings of the prompts: [P, D]; None for an encoder that reads no text.
    """

    full_state_update = False
    generated: Tensor
    counts: Tensor
    of_class: Tensor
    class_count: Tensor
    photos: Tensor
    texts: Tensor | None

    def __init__(self, photos: Tensor, prompts: int, texts: Tensor | None = None) -> None:
        super().__init__()
        if texts is not None and len(texts) != prompts:
            raise ValueError(f"{len(texts)} texts for {prompts} prompts")
        size = photos.shape[-1]
        self.register_buffer("photos", _unit(photos), persistent=False)
        self.register_buffer("texts", None if texts is None else _unit(texts), persistent=False)
        for name, shape in (("generated", (prompts, size)), ("counts", (prompts,)), ("of_class", (size,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("class_count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, generated: Tensor, prompt: Tensor, class_images: Tensor | None = None) -> None:
        """Add pictures [N, D] with the number of each one's prompt [N] in 0 to P - 1, and pictures of the class."""
        if len(generated) != len(prompt):
            raise ValueError(f"{len(generated)} pictures and {len(prompt)} prompt numbers")
        if len(generated):
            prompt = prompt.to(self.counts.device)
            self.generated.index_add_(0, prompt, _unit(generated).to(self.generated.device))
            self.counts.index_add_(0, prompt, torch.ones_like(prompt, dtype=torch.float64))
        if class_images is not None:
            self.of_class += _unit(class_images).sum(0).to(self.of_class.device)
            self.class_count += len(class_images)

    def compute(self) -> dict[str, Tensor]:
        """Scores by the names of `SubjectScores`, those that can be computed: float64, no dimension."""
        found, real = {}, self.photos.mean(0)
        count, pairs = self.counts.sum(), (self.counts * (self.counts - 1)).sum()
        if len(self.photos) > 1:
            found["mutual_similarity"] = torch.tensor(mutual_similarity(self.photos), dtype=torch.float64)
        if count:
            found["subject_fidelity"] = self.generated.sum(0) @ real / count
            if self.texts is not None:
                found["prompt_fidelity"] = (self.generated * self.texts).sum() / count
        if pairs:
            found["diversity"] = 1 - (self.generated.square().sum() - count) / pairs
        if self.class_count:
            found["preservation"] = self.of_class @ real / self.class_count
        return found
