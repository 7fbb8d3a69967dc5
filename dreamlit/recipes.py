"""The recipe inside each image that dreamlit makes: enough to make it again."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

from dreamlit.errors import ConfigError, DataError, Faults, ModelError
from dreamlit.images import recipe_text
from dreamlit.previewing import Picture, Sampling, seed_faults


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a PNG says of itself: how it was drawn, and facts about the weights (`adapter`, `weights`, ...)."""

    picture: Picture
    sampling: Sampling
    facts: dict[str, Any]


KINDS: dict[str, Any] = {
    "prompt": str,
    "negative_prompt": str,
    "seed": int,
    "num_inference_steps": int,
    "guidance_scale": (int, float),
    "guidance_rescale": (int, float),
    "sampler": str,
    "width": int,
    "height": int,
}
"""What decides an image, by its name in the recipe; all else there is a fact about the weights."""
NEEDED = ("prompt", "seed", "num_inference_steps", "guidance_scale")


def read_recipe(path: pathlib.Path) -> Recipe:
    """The recipe in a PNG that dreamlit has made.

    Errors: `DataError` if the file is no image or has no recipe, `ConfigError` with all faults of the recipe.
    """
    try:
        content = json.loads(recipe_text(path))
    except ValueError as error:
        raise DataError(f"{path}: its recipe cannot be read ({error})") from error
    content = content if isinstance(content, dict) else {}
    if isinstance(content.get("grid"), dict):
        images = ", ".join(sorted(content["grid"])[:3])
        raise DataError(f"{path} is a grid of {len(content['grid'])} images; give one of them, such as {images}")
    faults = Faults(f"the recipe in {path} cannot be used", ConfigError)
    for name in NEEDED:
        if name not in content:
            faults.add(f"there is no {name}")
    for name, kind in KINDS.items():
        if name in content and (not isinstance(content[name], kind) or isinstance(content[name], bool)):
            faults.add(f"{name} is {content[name]!r}")
    faults.raise_if_any()
    names = ("guidance_scale", "guidance_rescale", "negative_prompt", "sampler")
    sampling = Sampling(content["num_inference_steps"], **{name: content[name] for name in names if name in content})
    size = {name: content[name] for name in ("width", "height") if name in content}
    for line in (*sampling.faults(), *seed_faults([content["seed"]])):
        faults.add(line)
    faults.raise_if_any()
    facts = {name: value for name, value in content.items() if name not in KINDS}
    return Recipe(Picture(content["prompt"], content["seed"], **size), sampling, facts)


def weights_digest(adapter: Any) -> str:
    """A short hash of the trained weights, the same before and after their export."""
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(adapter.parameters().items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def refuse_other_base(recipe: Recipe, family: Any) -> None:
    """Errors: `ModelError` if the recipe was made with another base model."""
    made, here = recipe.facts.get("base_fingerprint"), family.fingerprint("denoiser")
    if made is not None and made != here:
        raise ModelError(
            f"the recipe was made with another base model: its fingerprint is {made}, that of {family.files.path} is "
            f"{here}. Give the configuration of the run that made the image"
        )
