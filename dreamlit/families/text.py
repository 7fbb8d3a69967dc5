"""Prompts to tokens, and what the text encoders make of them."""

from __future__ import annotations

import textwrap
import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def tokens(
    tokenizer: Any, prompts: list[str], told: set[str], length: int | None = None, ahead: str = "", behind: str = ""
) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [B, length]. A longer prompt is cut, and said once.

    Args:
        told: Prompts of which it was said; grows. Errors: `ValueError` for no prompt at all.
        length: Tokens that the encoder reads; by default the tokenizer's own limit.
        ahead: Text that stands before each prompt; nobody is told of it.
        behind: Text that stands after each prompt; nor of that.
    """
    if not prompts:
        raise ValueError("no prompt was given")
    limit: int = length or tokenizer.model_max_length
    texts = [ahead + prompt + behind for prompt in prompts]
    before, after = (len(tokenizer.encode(text)) if text else 0 for text in (ahead, behind))
    ids = tokenizer(texts, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
    wholes = tokenizer(texts, verbose=False)["input_ids"]
    for prompt, whole, kept in zip(prompts, wholes, ids["input_ids"], strict=True):
        if len(whole) - after > limit and prompt not in told:
            told.add(prompt)
            ends = after or int(whole[-1] == kept[-1])  # most tokenizers keep a token for the end
            kept_ends = 0 if after else ends
            lost = textwrap.shorten(tokenizer.decode(whole[limit - kept_ends : len(whole) - ends]), 100)
            counts = f"has {len(whole) - before - after} tokens and the text encoder reads {limit - before}"
            excess = f"{counts}; it will not see {lost!r}"
            warnings.warn(f"caption {textwrap.shorten(prompt, 100)!r} {excess}", stacklevel=4)
    return ids["input_ids"], ids["attention_mask"]


def run(encoder: Any, ids: Tensor, **options: Any) -> Any:
    """The output of a frozen encoder on ids [B, L], where the encoder is."""
    import torch

    with torch.no_grad():
        return encoder(ids.to(encoder.device), **options)


def denoiser_dtype(denoiser: nn.Module) -> Any:
    """The precision in which the denoiser's first layer expects its input."""
    return next(value.dtype for value in denoiser.parameters() if value.is_floating_point())
