"""Prompts to judge a subject by: a built-in library, one's own in a file, and the place that the subject takes in them.

The library follows the evaluation prompts of DreamBooth (Ruiz et al. 2023, arXiv 2208.12242): 25 for things and 25 for
living subjects, 35 different ones in four themes.
"""

from __future__ import annotations

import pathlib
import string
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from dreamlit.errors import ConfigError, Faults, nearest

PLACE = "{subject}"
THEMES: dict[str, tuple[str, ...]] = {
    "places": (
        "a photo of {subject} in the jungle",
        "a photo of {subject} in the snow",
        "a photo of {subject} on the beach",
        "a photo of {subject} on a cobblestone street",
        "a photo of {subject} on top of pink fabric",
        "a photo of {subject} on top of a wooden floor",
        "a photo of {subject} with a city in the background",
        "a photo of {subject} with a mountain in the background",
        "a photo of {subject} with a blue house in the background",
        "a photo of {subject} on top of a purple rug in a forest",
    ),
    "scenes": (
        "a photo of {subject} with a wheat field in the background",
        "a photo of {subject} with a tree and autumn leaves in the background",
        "a photo of {subject} with the Eiffel Tower in the background",
        "a photo of {subject} floating on top of water",
        "a photo of {subject} floating in an ocean of milk",
        "a photo of {subject} on top of green grass with sunflowers around it",
        "a photo of {subject} on top of a mirror",
        "a photo of {subject} on top of the sidewalk in a crowded street",
        "a photo of {subject} on top of a dirt road",
        "a photo of {subject} on top of a white rug",
    ),
    "outfits": (
        "a photo of {subject} wearing a red hat",
        "a photo of {subject} wearing a santa hat",
        "a photo of {subject} wearing a rainbow scarf",
        "a photo of {subject} wearing a black top hat and a monocle",
        "a photo of {subject} in a chef outfit",
        "a photo of {subject} in a firefighter outfit",
        "a photo of {subject} in a police outfit",
        "a photo of {subject} wearing pink glasses",
        "a photo of {subject} wearing a yellow shirt",
        "a photo of {subject} in a purple wizard outfit",
    ),
    "looks": (
        "a photo of a red {subject}",
        "a photo of a purple {subject}",
        "a photo of a shiny {subject}",
        "a photo of a wet {subject}",
        "a photo of a cube shaped {subject}",
    ),
}
LISTS = {"objects": ("places", "scenes", "looks"), "live": ("places", "outfits", "looks")}
"""The paper's two lists, by the themes that they are made of."""
BUILT_IN = (*LISTS, *THEMES)


def all_prompts(prompts: list[str] | None, library: list[str] | None, subject: str | None) -> list[str]:
    """The prompts in full: one's own, then the library's, each once, with the subject in its place.

    Errors: one `ConfigError` with all faults.
    """
    faults = Faults("these prompts cannot be used", ConfigError)
    texts = []
    for line in text_faults("prompts", prompts or []):
        faults.add(line)
    if not faults:
        texts += prompts or []
    if not isinstance(library or [], list):
        faults.add(f"library is {library!r}; it must be a list of names and files")
        library = None
    for name in library or []:
        texts += library_prompts(str(name), faults)
    found = list(dict.fromkeys(texts))
    for line in place_faults(found, subject):
        faults.add(line)
    if not faults and not found:
        faults.add("there are no prompts; give prompts, such as 'a photo of sks dog on a beach', or a library")
    faults.raise_if_any()
    return [text.replace(PLACE, subject) if subject else text for text in found]


def text_faults(name: str, texts: Any) -> Iterator[str]:
    if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        yield f"{name} is {texts!r}; it must be a list of prompts, none of them empty"


def place_faults(texts: Iterable[str], subject: str | None) -> Iterator[str]:
    """Places that nothing fills, places that cannot be read, and a subject without a place."""
    asked = False
    for text in texts:
        try:
            names = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        except ValueError:
            names = {text}
        asked = asked or PLACE in text
        if names - {"subject"} or ("subject" in names and PLACE not in text):
            yield f"{text!r}: the only thing in braces that may stand in a prompt is {PLACE}"
        elif names and subject is None:
            yield f"{text!r} needs subject: what the captions call it, such as 'sks dog'"
    if subject is not None and (not subject.strip() or "{" in subject):
        yield f"subject is {subject!r}; give what the captions call it, such as 'sks dog'"
    elif subject is not None and not asked:
        yield f"subject would do nothing: no prompt has {PLACE} in it"


def library_prompts(name: str, faults: Faults) -> list[str]:
    """The prompts of a list or theme, or of a file; what is wrong goes to `faults`."""
    if name in LISTS:
        return [text for theme in LISTS[name] for text in THEMES[theme]]
    if name in THEMES:
        return list(THEMES[name])
    if pathlib.Path(name).suffix.lower() not in (".yaml", ".yml", ".json"):
        faults.add(f"library has {name!r}; {nearest(name, BUILT_IN)}, or a .yaml or .json file of your own")
        return []
    return file_prompts(pathlib.Path(name).expanduser(), faults)


def file_prompts(path: pathlib.Path, faults: Faults) -> list[str]:
    """The prompts of a YAML or JSON file: a list of them, or a mapping from themes to lists."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML too
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        faults.add(f"library {path} cannot be read: {error}")
        return []
    themes = content if isinstance(content, Mapping) else {"": content}
    wrong = [line for theme, texts in themes.items() for line in text_faults(f"{path} {theme}".strip(), texts)]
    for line in wrong:
        faults.add(line)
    if not wrong and not any(themes.values()):
        faults.add(f"library {path} holds no prompts")
    return [] if wrong else [text for texts in themes.values() for text in texts]
