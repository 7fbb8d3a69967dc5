"""The adapter of SimpleTuner's lycoris_config.json."""

from __future__ import annotations

from typing import Any

from dreamlit.importing import models, reading
from dreamlit.importing.draft import Draft
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import Rule, above_zero, each, flag, idle, number, part, refused, to, whole, words

LYCORIS: dict[str, Rule] = {
    "algo": part("algo", "`algo`"),
    "multiplier": to("adapter.multiplier", number),
    "linear_dim": part("dim", "`rank`; at 10000, which means no low rank, `full_matrix: true`"),
    "linear_alpha": part("alpha", "`alpha`, where there is a low rank"),
    "full_matrix": part("full_matrix", "`full_matrix`"),
    "conv_dim": to("adapter.conv_rank", whole),
    "conv_alpha": to("adapter.conv_alpha", number),
    "factor": to("adapter.factor", whole),
    "decompose_both": to("adapter.decompose_both", flag),
    "use_tucker": to("adapter.use_tucker", flag),
    "dropout": to("adapter.dropout", number),
    "rank_dropout": to("adapter.rank_dropout", number),
    "module_dropout": to("adapter.module_dropout", number),
    "apply_preset": part("preset", "`preset`"),
    **each(refused("LyCORIS' own switch is not here; the class LoRA has use_dora"), "dora_wd weight_decompose"),
    **each(idle("how the update is computed is no option"), "bypass_mode use_scalar tlora_*"),
}
"""Keys of lycoris_config.json."""
NO_LOW_RANK = 10000
ATTENTIONS = {
    "Flux": ("FluxAttention",),
    "Chroma": ("FluxAttention",),
    "Flux2Klein": ("Flux2Attention", "Flux2ParallelSelfAttention"),
}
"""What the class Attention is called in a family, where it has another name."""


def place_lycoris(draft: Draft, family: str, source: Source) -> None:
    """Algorithm, ranks and preset. Errors: `ConfigError` for an algorithm that is not here."""
    file = reading.find(draft.take("lycoris", "config/lycoris_config.json"), source.path)
    draft.apply(LYCORIS, reading.read_mapping(file), "lycoris_config ")
    algo = models.place_algorithm(draft, draft.take("algo", "lokr"), f"algo of {file.name}")
    dim, alpha = draft.take_number("dim", above_zero, 16), draft.take_number("alpha", number)
    full_matrix = str(draft.take("full_matrix")).lower() in ("true", "1")
    if algo == "lokr" and (full_matrix or dim >= NO_LOW_RANK):
        draft.set("adapter.full_matrix", True, "full_matrix: True" if full_matrix else f"linear_dim: {dim}")
        draft.idle["lycoris_config linear_dim, linear_alpha"] = "without a low rank they do nothing"
    else:
        draft.set("adapter.rank", dim, f"linear_dim: {dim}")
        if alpha is not None:
            draft.set("adapter.alpha", alpha, f"linear_alpha: {alpha}")
    place_preset(draft, draft.take("preset"), family)
    models.settle_lycoris(draft, algo)


def place_preset(draft: Draft, preset: Any, family: str) -> None:
    """`apply_preset` by class names: those of diffusers are the same here, but for some families' attention."""
    if not isinstance(preset, dict):
        draft.set("adapter.preset", "attn-only", "SimpleTuner's default target: Attention")
        return
    kept = {}
    for name, value in preset.items():
        if name in ("target_module", "target_name", "module_algo_map", "name_algo_map"):
            kept |= {name: renamed(value, family)} if value else {}
        else:
            draft.refuse(f"lycoris_config apply_preset.{name}", value, "a preset names modules, layers, their options")
    draft.set("adapter.preset", kept, "apply_preset")


def renamed(names: Any, family: str) -> Any:
    """Class names, alone or with options, as diffusers has them now."""
    new = ATTENTIONS.get(family, ("Attention",))
    if isinstance(names, dict):
        return {one: options for name, options in names.items() for one in (new if name == "Attention" else (name,))}
    return [one for name in words(names) for one in (new if name == "Attention" else (name,))]
