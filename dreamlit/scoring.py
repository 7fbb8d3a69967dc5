"""Scores of the images of one preview: each prompt's, the subject's, the class's, and the nearest photo of each image.

Cosines are in [-1, 1], neither clamped nor multiplied by 100.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dreamlit import metrics

if TYPE_CHECKING:
    from torch import Tensor

    from dreamlit.encoders import ImageEncoder

HIGHER_IS_BETTER = {
    "subject_fidelity": True,
    "clip_i": True,
    "prompt_fidelity": True,
    "preservation": False,
    "diversity": True,
    "class_diversity": True,
}
"""The scores that are one number each, and which way is better."""


@dataclasses.dataclass(frozen=True)
class Wording:
    """How prompts name the subject.

    subject: what the captions call it: "sks dog". Prompts without it are of the class.
    noun: what a scoring model reads in its place, because it does not know the rare word: "dog".
    """

    subject: str
    noun: str

    @staticmethod
    def of(subject: str, noun: str | None) -> Wording:
        """noun: left out, the subject without its first word. Errors: `ValueError` when nothing is left."""
        rest = noun or " ".join(subject.split()[1:])
        if not rest:
            raise ValueError(f"subject is {subject!r}, which has no class in it; give class_noun, such as 'dog'")
        return Wording(subject, rest)

    def is_of_subject(self, prompt: str) -> bool:
        return self.subject in prompt

    def read(self, prompt: str) -> str:
        """The prompt as the scoring model gets it."""
        return prompt.replace(self.subject, self.noun)


@dataclasses.dataclass(frozen=True)
class Photos:
    """The subject's photos: names, and embeddings [M, D] by the two encoders (the same where there is one)."""

    names: tuple[str, ...]
    looks: Tensor
    clip: Tensor | None

    @property
    def mutual_similarity(self) -> float | None:
        return metrics.mutual_similarity(self.looks) if len(self.names) > 1 else None

    @property
    def closest_pair(self) -> float | None:
        """The largest cosine between two different photos; None for a single one."""
        if len(self.names) < 2:
            return None
        alike = self.looks @ self.looks.T
        alike.fill_diagonal_(-math.inf)
        return float(alike.max())


@dataclasses.dataclass(frozen=True)
class Drawn:
    """An image that was made: its prompt, its file and its path as it is told."""

    prompt: str
    path: pathlib.Path
    told: str


class Scorer:
    """Scores images with one or two encoders, which it holds.

    clip: a CLIP, for how images follow prompts; None for none.
    dino: a DINO, for how images look like the photos; None: CLIP does that too.
    """

    def __init__(self, clip: ImageEncoder | None, dino: ImageEncoder | None, wording: Wording) -> None:
        self.clip, self.dino, self.wording = clip, dino, wording

    @property
    def encoders(self) -> list[ImageEncoder]:
        return [encoder for encoder in (self.clip, self.dino) if encoder]

    @property
    def looks(self) -> ImageEncoder:
        """The encoder that compares images with photos and with each other."""
        return self.encoders[-1]

    def photos(self, paths: Sequence[pathlib.Path]) -> Photos:
        from dreamlit.plots import read_photo

        pictures = [read_photo(path) for path in paths]
        names = tuple(path.name for path in paths)
        clip = self.clip.embed_images(pictures) if self.clip and self.dino else None
        return Photos(names, self.looks.embed_images(pictures), clip)

    def score(self, drawn: Sequence[Drawn], photos: Photos, alarm_above: float | None) -> dict[str, Any]:
        """The scores of one model's images, as plain values; those that cannot be computed are left out.

        alarm_above: from which cosine to a photo an image is listed under `alarms`.
        """
        of_subject = [one for one in drawn if self.wording.is_of_subject(one.prompt)]
        of_class = [one for one in drawn if not self.wording.is_of_subject(one.prompt)]
        found: dict[str, Any] = {}
        if of_subject:
            made = self._embed(of_subject, self.looks)
            found["subject_fidelity"] = metrics.subject_fidelity(made, photos.looks)
            found |= self._diversity("diversity", of_subject, made)
            nearest = nearest_photos(of_subject, made, photos)
            found["nearest"] = nearest
            if alarm_above is not None:
                found["alarms"] = [one["image"] for one in nearest if one["cosine"] > alarm_above]
        if photos.clip is not None and of_subject:
            assert self.clip
            found["clip_i"] = metrics.subject_fidelity(self._embed(of_subject, self.clip), photos.clip)
        if of_class:
            made = self._embed(of_class, self.looks)
            found["preservation"] = metrics.preservation(made, photos.looks)
            found |= self._diversity("class_diversity", of_class, made)
        return found | (self._follows(of_subject) if self.clip and of_subject else {})

    def _embed(self, drawn: Sequence[Drawn], encoder: ImageEncoder) -> Tensor:
        from dreamlit.plots import read_photo

        return encoder.embed_images([read_photo(one.path) for one in drawn])

    @staticmethod
    def _diversity(name: str, drawn: Sequence[Drawn], made: Tensor) -> dict[str, float]:
        prompts = [one.prompt for one in drawn]
        return {name: metrics.diversity(made, prompts)} if len(set(prompts)) < len(prompts) else {}

    def _follows(self, drawn: Sequence[Drawn]) -> dict[str, Any]:
        """CLIP-T: the cosine of each image with its prompt; of each prompt and of all."""
        assert self.clip
        texts = self.clip.embed_texts([self.wording.read(one.prompt) for one in drawn])
        cosines = (self._embed(drawn, self.clip).double() * texts.double()).sum(1).tolist()
        by_prompt: dict[str, list[float]] = {}
        for one, cosine in zip(drawn, cosines, strict=True):
            by_prompt.setdefault(one.prompt, []).append(cosine)
        each = {prompt: summary(values) for prompt, values in by_prompt.items()}
        return {"prompt_fidelity": statistics.fmean(cosines), "clip_t": summary(cosines), "clip_t_by_prompt": each}


def summary(values: Sequence[float]) -> dict[str, float]:
    """Least, mean, largest and standard deviation (of these values, not of a larger population)."""
    return {
        "min": min(values),
        "mean": statistics.fmean(values),
        "max": max(values),
        "std": statistics.pstdev(values),
    }


def nearest_photos(drawn: Sequence[Drawn], made: Tensor, photos: Photos) -> list[dict[str, Any]]:
    """The photo that each image, embedded as [N, D], is most alike, with the cosine."""
    best = (made @ photos.looks.T).max(dim=1)
    rows = zip(drawn, best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"image": one.told, "photo": photos.names[index], "cosine": value} for one, index, value in rows]


def front(candidates: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> list[int]:
    """The candidates that no other one beats: none is at least as good in all `names` and better in one.

    Of equal ones the first stays. Keys are optimizer steps.
    """

    def merits(step: int) -> list[float]:
        return [candidates[step][name] * (1 if HIGHER_IS_BETTER[name] else -1) for name in names]

    kept: list[int] = []
    for step in sorted(candidates):
        mine = merits(step)
        others = {other: merits(other) for other in candidates if other != step}
        beaten = any(
            all(a >= b for a, b in zip(theirs, mine, strict=True)) and (theirs != mine or other < step)
            for other, theirs in others.items()
        )
        if not beaten:
            kept.append(step)
    return kept


def crowding(candidates: Mapping[int, Mapping[str, float]], names: Sequence[str]) -> dict[int, float]:
    """How far each candidate's neighbours are from each other, in shares of the range, summed over `names`.

    The ends of each score are infinitely far (NSGA-II: Deb et al. 2002, section III-B).
    """
    distances = dict.fromkeys(candidates, 0.0)
    for name in names:
        order = sorted(candidates, key=lambda step: candidates[step][name])
        low, high = candidates[order[0]][name], candidates[order[-1]][name]
        distances[order[0]] = distances[order[-1]] = math.inf
        for before, step, after in zip(order, order[1:], order[2:], strict=False):
            if high > low:
                distances[step] += (candidates[after][name] - candidates[before][name]) / (high - low)
    return distances
