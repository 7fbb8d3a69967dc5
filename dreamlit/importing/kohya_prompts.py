"""The prompts of sd-scripts' sample_prompts, with their sizes, seeds, steps and guidance."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from dreamlit.errors import ConfigError
from dreamlit.importing import previews, reading
from dreamlit.importing.draft import Draft
from dreamlit.importing.rules import Misfit, above_zero, number, text, whole

LETTERS = {
    "w": "width",
    "h": "height",
    "d": "seed",
    "s": "sample_steps",
    "l": "scale",
    "g": "guidance_scale",
    "n": "negative_prompt",
    "ss": "sample_sampler",
}
"""Options of a line such as `a dog --n blurry --w 768 --d 1` -> what TOML and JSON call them."""


def prompts_of(path: pathlib.Path) -> list[dict[str, Any]]:
    """A mapping with `prompt` for each. Errors: `ConfigError`."""
    lines = reading.read_text(path)
    if path.suffix.lower() in (".toml", ".json"):
        content = reading.parsed(path, lines)
        if path.suffix.lower() == ".toml":
            shared = content.get("prompt")
            subsets = shared.get("subset") if isinstance(shared, dict) else None
            content = [{**shared, **one} for one in subsets if isinstance(one, dict)] if subsets else None
        if not isinstance(content, list) or not all(isinstance(one, (dict, str)) for one in content):
            raise ConfigError(f"{path} must hold prompts: [[prompt.subset]] in TOML, a list in JSON")
        return [of_line(one) if isinstance(one, str) else one for one in content]
    return [of_line(line) for line in lines.splitlines() if line.strip() and not line.startswith("#")]


def of_line(line: str) -> dict[str, Any]:
    prompt, *options = re.split(r"\s--(?=[A-Za-z]+ )", " " + line)
    pairs = [option.split(maxsplit=1) for option in options]
    given = {LETTERS.get(pair[0].lower(), f"--{pair[0]}"): "".join(pair[1:]).strip() for pair in pairs}
    return {"prompt": prompt.strip(), **given}


def place(draft: Draft, path: pathlib.Path) -> None:
    """All prompts; what belongs to each there is that of the first here."""
    found = prompts_of(path)
    prompts = [str(one.get("prompt", "")) for one in found if one.get("prompt")]
    options = [{name: one[name] for name in one if name not in ("prompt", "subset", "enum")} for one in found]
    first = options[0] if options else {}
    if any(one != first for one in options):
        draft.note("sample_prompts: sizes, seeds and guidance are those of the first, for all prompts")
    seed = converted(draft, first, "seed", whole)
    previews.place(draft, prompts, seed=seed)
    if previews.KEY not in draft.callbacks:
        return
    key = f"callbacks.{previews.KEY}"
    sides = [converted(draft, first, side, above_zero) for side in ("width", "height")]
    if any(sides):
        draft.set(f"{key}.sizes", ["x".join(str(side or 512) for side in sides)], "--w, --h")
    steps = converted(draft, first, "sample_steps", above_zero)
    guidance = converted(draft, first, "guidance_scale" if "flux" in draft.facts else "scale", number)
    negative = converted(draft, first, "negative_prompt", text) if "guided" in draft.facts else None
    for option, value in (("steps", steps), ("guidance_scale", guidance), ("negative_prompt", negative)):
        if value is not None:
            draft.set(f"{key}.{option}", value, "of sample_prompts")
    for name, value in first.items():
        draft.refuse(f"sample_prompts {name}", value, "previews of this model have no such option, or one for all")


def converted(draft: Draft, options: dict[str, Any], name: str, convert: Any) -> Any:
    """An option, taken out; one that does not fit is refused."""
    if name not in options:
        return None
    value = options.pop(name)
    try:
        return convert(value)
    except Misfit as misfit:
        draft.refuse(f"sample_prompts {name}", value, str(misfit))
        return None
