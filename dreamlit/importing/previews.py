"""Previews and scores of an imported run, for all tools."""

from __future__ import annotations

import re
from typing import Any

from dreamlit.importing.draft import Draft

KEY = "ValidationPreview"
NOUN_ENDS = (
    r" (?:on|in|at|with|wearing|as|and|is|holding|under|near|by|from|of|next|sitting|standing|riding|eating)\b|[,.;:]"
)


def place(draft: Draft, prompts: list[str], count: int = 1, seed: int | None = None) -> None:
    """Prompts, and seeds where they are said. A prompt with braces is refused: here they stand for the subject."""
    kept = [prompt for prompt in dict.fromkeys(prompts) if "{" not in prompt and "}" not in prompt]
    for prompt in prompts:
        if prompt not in kept:
            draft.refuse("prompt", prompt, "braces are for {subject} alone")
    if not kept:
        drop(draft, "there is no prompt to make previews of")
        return
    draft.set(f"callbacks.{KEY}.prompts", kept)
    if seed is not None or count > 1:
        first = seed or 0
        draft.set(f"callbacks.{KEY}.seeds", list(range(first, first + count)), f"{count} of each prompt")


def drop(draft: Draft, why: str) -> None:
    """No previews: what was said about them has no place."""
    if draft.callbacks.pop(KEY, None):
        draft.idle["the options of previews"] = why


def edge_of(size: str) -> str | None:
    """`1024x768` of such a text, of an edge, or of megapixels (a number below 128); None of anything else."""
    if re.fullmatch(r"\d+x\d+", size):
        return size
    try:
        edge = float(size)
    except ValueError:
        return None
    if not 0 < edge < 1e5:
        return None
    if edge < 128:
        edge = round((edge * 1e6) ** 0.5 / 64) * 64
    return f"{int(edge)}x{int(edge)}" if edge >= 8 else None


def place_scores(draft: Draft, wanted: bool, model: Any) -> None:
    """CLIP scores of the previews, where the subject's photos and its name in the prompts are known."""
    if not wanted:
        return
    photos = [one for one in draft.datasets if is_subject(one)]
    named = photos[0].get("instance_prompt") if photos else None
    name = subject_of(named.value if named else None)
    prompts = draft.callbacks[KEY]["prompts"].value
    if not name or not any(name in prompt for prompt in prompts):
        draft.refuse("evaluation_type", "clip", "Scores must know how the prompts name the subject: give its subject")
        return
    draft.set("callbacks.Scores.photos", photos[0]["instance_data_dir"].value, "the first dataset")
    draft.set("callbacks.Scores.clip", str(model or "openai/clip-vit-large-patch14-336"), "evaluation_type: clip")
    draft.set("callbacks.Scores.subject", name, "from instance_prompt")
    draft.note(
        "evaluation_type clip: cosines from -1 to 1 here, there 100 times that; of the subject and its class apart"
    )


def is_subject(entry: dict[str, Any]) -> bool:
    other = "dataset_type" in entry or ("is_regularisation_data" in entry and entry["is_regularisation_data"].value)
    return not other and "instance_data_dir" in entry


def subject_of(prompt: Any) -> str | None:
    """`sks dog` of `a photo of sks dog`."""
    text = prompt[0] if isinstance(prompt, list) and prompt else prompt
    if not text:
        return None
    found = re.sub(r"^(?:an? )?(?:photo|picture|image|portrait)s? of (?:an? |the )?", "", str(text).strip())
    return re.split(NOUN_ENDS, found)[0].strip() or None
