"""Dataset entries of an imported run: what fits together in one, for all tools."""

from __future__ import annotations

import pathlib

from dreamlit.importing.draft import Draft, Noted

NEVER_IN_EVAL = (
    "repeats",
    "probability",
    "caption_dropout",
    "caption_shuffle",
    "is_regularisation_data",
    "class_prompt",
    "class_words",
)


def settle(draft: Draft, found: dict[str, Noted], where: str) -> None:
    """Takes keys out of an entry that would do nothing beside the others, and tells them."""
    strategy = value_of(found, "caption_strategy", "instanceprompt")
    before, alone = value_of(found, "prepend_instance_prompt", False), value_of(found, "only_instance_prompt", False)
    if strategy == "instanceprompt" and before:
        drop(draft, found, where, "prepend_instance_prompt", "the instance prompt is the whole caption")
    if "instance_prompt" in found and strategy != "instanceprompt" and not before and not alone:
        drop(draft, found, where, "instance_prompt", f"the captions come from caption_strategy {strategy} alone")
    if "parquet" in found and strategy != "parquet":
        drop(draft, found, where, "parquet", f"the captions come from caption_strategy {strategy}")
    if value_of(found, "dataset_type", "image") == "eval":
        for key in NEVER_IN_EVAL:
            if key in found:
                drop(draft, found, where, key, "each eval photo is measured once, with its first caption")


def note_masks(draft: Draft) -> None:
    draft.note(
        "masks: there the masked loss is divided by the whole frame, so that a small subject learns slowly; here by "
        "the mask's own area (model.objective.mask_normalisation: frame is as there)"
    )


def value_of(found: dict[str, Noted], key: str, usual: object) -> object:
    return found[key].value if key in found else usual


def drop(draft: Draft, found: dict[str, Noted], where: str, key: str, why: str) -> None:
    del found[key]
    draft.idle[where + key] = why


def unique_id(draft: Draft, wanted: str) -> str:
    """A name for a dataset that has none there: of its folder, with a number where it is taken."""
    name = pathlib.PureWindowsPath(wanted).name  # which knows both kinds of slashes
    clean = "".join("-" if sign in "/\\#" or ord(sign) < 32 else sign for sign in name).strip(" .-") or "photos"
    taken = {one["id"].value for one in draft.datasets}
    number, found = 1, clean
    while found in taken:
        number += 1
        found = f"{clean}-{number}"
    return found


def has_regularisation(draft: Draft) -> bool:
    return any(value_of(one, "is_regularisation_data", False) for one in draft.datasets)
