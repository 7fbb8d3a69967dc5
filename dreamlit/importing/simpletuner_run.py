"""A SimpleTuner configuration as a run: model, adapter, length and loss."""

from __future__ import annotations

from typing import Any

from dreamlit.errors import ConfigError, nearest
from dreamlit.importing import (
    models,
    reading,
    simpletuner,
    simpletuner_data,
    simpletuner_look,
    simpletuner_lycoris,
    simpletuner_more,
)
from dreamlit.importing.draft import Draft
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import Misfit, Rule, above_zero, is_on, number, whole

HOMES: dict[str, tuple[str, dict[str, str]]] = {
    "sdxl": ("SDXL", {"base-1.0": "stabilityai/stable-diffusion-xl-base-1.0"}),
    "sd1x": ("SD", {"dreamshaper": "Lykon/dreamshaper-8", "1.5": "stable-diffusion-v1-5/stable-diffusion-v1-5"}),
    "sd2x": ("SD", {"pseudoflex-v2": "bghira/pseudo-flex-v2", "2.1": "stabilityai/stable-diffusion-2-1"}),
    "sd3": (
        "SD3",
        {"medium": "stabilityai/stable-diffusion-3.5-medium", "large": "stabilityai/stable-diffusion-3.5-large"},
    ),
    "flux": (
        "Flux",
        {
            "krea": "black-forest-labs/FLUX.1-Krea-dev",
            "dev": "black-forest-labs/FLUX.1-dev",
            "schnell": "black-forest-labs/FLUX.1-schnell",
        },
    ),
    "deepfloyd": (
        "DeepFloydI",
        {
            "i-medium-400m": "DeepFloyd/IF-I-M-v1.0",
            "i-large-900m": "DeepFloyd/IF-I-L-v1.0",
            "i-xlarge-4.3b": "DeepFloyd/IF-I-XL-v1.0",
            "ii-medium-450m": "DeepFloyd/IF-II-M-v1.0",
            "ii-large-1.2b": "DeepFloyd/IF-II-L-v1.0",
        },
    ),
    "chroma": ("Chroma", {"base": "lodestones/Chroma1-Base", "hd": "lodestones/Chroma1-HD"}),
    "auraflow": ("AuraFlow", {"v0.3": "terminusresearch/auraflow-v0.3", "v0.2": "fal/AuraFlow-v0.2"}),
    "kolors": ("Kolors", {"1.0": "terminusresearch/kwai-kolors-1.0"}),
    "pixart_sigma": (
        "PixArtSigma",
        {
            "900M-1024-v0.6": "terminusresearch/pixart-900m-1024-ft-v0.6",
            "600M-1024": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
        },
    ),
    "sana": ("Sana", {"sana1.5-4.8b-1024": "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers"}),
    "qwen_image": ("QwenImage", {"v2.0": "Qwen/Qwen-Image-2512", "v1.0": "Qwen/Qwen-Image"}),
    "flux2": (
        "Flux2Klein",
        {"klein-9b": "black-forest-labs/FLUX.2-klein-base-9B", "klein-4b": "black-forest-labs/FLUX.2-klein-base-4B"},
    ),
    "lumina2": ("Lumina2", {"2.0": "Alpha-VLLM/Lumina-Image-2.0"}),
    "z_image": ("ZImage", {"turbo-ostris-v2": "", "base": "Tongyi-MAI/Z-Image"}),
}
"""Families there -> the class here, and where the model of a flavour is. The first is SimpleTuner's default."""
REFINERS = {"refiner-1.0": "stabilityai/stable-diffusion-xl-refiner-1.0"}
UNSEEN = ("kontext", "edit-v1", "edit-v2", "edit-v2+", "edit-v3", "flash", "turbo", "ostris-de-turbo")
"""Flavours that edit images, or are distilled and lose that when they are trained."""

OPTIMIZERS = {
    "adamw_bf16": models.Optimizer("torch.optim.AdamW", models.IN_FLOAT32),
    "ao-adamw8bit": models.Optimizer("bitsandbytes.optim.AdamW8bit", "bitsandbytes' instead of torchao's"),
    **{f"torch-{n}": known for n, known in models.OPTIMIZERS.items() if known.class_path.startswith("torch.")},
    **{f"optimi-{n}": models.OPTIMIZERS[n] for n in ("adamw", "adam", "sgd", "radam", "lion")},
    "bnb-adamw8bit": models.OPTIMIZERS["adamw8bit"],
    "bnb-adam8bit": models.OPTIMIZERS["adam8bit"],
    "bnb-adamw8bit-paged": models.OPTIMIZERS["pagedadamw8bit"],
    "bnb-lion8bit": models.OPTIMIZERS["lion8bit"],
    "bnb-lion8bit-paged": models.OPTIMIZERS["pagedlion8bit"],
    "bnb-ademamix8bit": models.OPTIMIZERS["ademamix8bit"],
    "prodigy": models.PRODIGY,
}
RULES: dict[str, Rule] = {**simpletuner.RULES, **simpletuner_more.RULES}


def imported(source: Source, datasets: Any) -> Draft:
    """The run of a SimpleTuner configuration.

    Args:
        source: The configuration.
        datasets: Path of its list of datasets, or None to take the one that it names.

    Raises:
        ConfigError: when the model or the adapter has no counterpart, or a file is missing or broken.
    """
    options = of_env(source) if source.env else {**source.options, **reading.named(source.tables)}
    draft = Draft("SimpleTuner")
    family, path = model_of(options)
    adapter = adapter_of(options)
    draft.facts = models.facts_of(family, adapter, path)
    draft.apply(RULES, options)
    precision = models.precision_of(draft.take("mixed_precision"))
    flavour = options.get("model_flavour") or options.get("pretrained_model_name_or_path") or "default"
    models.place_model(draft, family, path, precision, f"model_family: {options['model_family']}, {flavour}")
    place_flow(draft, family)
    place_adapter(draft, family, adapter, source)
    place_length(draft, family)
    place_optimizer(draft)
    place_loss(draft)
    named = datasets or options.get("data_backend_config")
    if not named:
        raise ConfigError(f"{source.path} names no list of datasets (data_backend_config); give it behind this file")
    listed = datasets or reading.find(named, source.path)
    simpletuner_data.place_datasets(draft, reading.read_list(listed))
    if not any("dataset_type" not in one for one in draft.datasets):
        told = "".join(f"\n  - {name} ({why})" for name, why in draft.refused.items() if name.startswith("dataset "))
        raise ConfigError(f"{listed} has no dataset of photos on this machine to train on{told}")
    draft.forget("family", "flavour", "model", "type", "lora_type", "refiner", "datasets")
    simpletuner_look.place_looking(draft, source)
    return draft


def of_env(source: Source) -> dict[str, Any]:
    """Options of environment variables, with those of TRAINER_EXTRA_ARGS."""
    found: dict[str, Any] = {}
    for name, value in source.options.items():
        if name in ("trainer_extra_args", "validation_args"):
            found |= reading.of_words(str(value).split())
        elif name == "use_dora" or name not in simpletuner_more.ENV:
            found[name] = value
        else:
            found[simpletuner_more.ENV[name]] = value
    return found


def model_of(options: dict[str, Any]) -> tuple[str, str]:
    """The family's class and where its model is."""
    asked, flavour = str(options.get("model_family", "")), options.get("model_flavour")
    if asked not in HOMES:
        raise ConfigError(f"model_family is {asked or 'not given'!r}; {nearest(asked, HOMES)}")
    family, homes = HOMES[asked]
    if asked == "sdxl" and (str(flavour).startswith("refiner") or is_on(options.get("refiner_training"))):
        family, homes = "SDXLRefiner", REFINERS
    if str(flavour).startswith("ii-") or "IF-II-" in str(options.get("pretrained_model_name_or_path")):
        family = "DeepFloydII"
    if flavour in UNSEEN or (asked == "flux2" and flavour == "dev"):
        raise ConfigError(f"model_flavour is {flavour!r}: such a model is not trained here; {nearest('', homes)}")
    path = options.get("pretrained_model_name_or_path") or homes.get(str(flavour or next(iter(homes))))
    if not path:
        known = [name for name, home in homes.items() if home]
        asked_for = flavour or next(iter(homes))
        raise ConfigError(
            f"model_flavour is {asked_for!r} without a pretrained_model_name_or_path; {nearest('', known)}"
        )
    return family, str(path)


def adapter_of(options: dict[str, Any]) -> str:
    kind = str(options.get("model_type", "full"))
    if kind not in ("lora", "full"):
        raise ConfigError(f"model_type is {kind!r}; {nearest(kind, ('lora', 'full'))}")
    if kind == "full":
        return "full"
    return "lycoris" if str(options.get("lora_type", "standard")) == "lycoris" else "lora"


def place_flow(draft: Draft, family: str) -> None:
    """Shift, timestep density and guidance of flow models."""
    shift, auto = draft.take_number("shift", simpletuner.shift), is_on(draft.take("auto_shift"))
    if shift is not None and not auto:
        draft.set("family.shift", shift, f"flow_schedule_shift: {shift}")
    uniform, beta = is_on(draft.take("uniform")), is_on(draft.take("beta"))
    sigmoid = draft.take_number("sigmoid", number, 1)
    spread = {name: draft.take_number(name, number) for name in ("beta_alpha", "beta_beta")}
    if "flow" in draft.facts and beta:
        draft.set("objective.timestep_density", "beta", "flow_use_beta_schedule")
        for name, value in spread.items():
            if value is not None:
                draft.set(f"objective.{name}", value, f"flow_{name.replace('_', '_schedule_')}: {value}")
    elif "flow" in draft.facts and not uniform:
        draft.set("objective.timestep_density", "logit_normal", "SimpleTuner draws from a sigmoid")
        if sigmoid != 1:
            draft.set("objective.logit_std", sigmoid, f"flow_sigmoid_scale: {sigmoid}")
    guidance, mode = draft.take_number("guidance", number), draft.take("guidance_mode", "constant")
    if mode != "constant":
        draft.refuse("flux_guidance_mode", mode, "one guidance is told: model.family.init_args.guidance, 1 by default")
    elif guidance is not None:
        draft.set("family.guidance", guidance, f"flux_guidance_value: {guidance}")
    if "flow" in draft.facts:
        draft.note("timesteps: each photo's visits are spread evenly over the noise levels here, there they are random")


def place_adapter(draft: Draft, family: str, adapter: str, source: Source) -> None:
    kind = {"lora": "LoRA", "lycoris": "LyCORIS", "full": "Full"}[adapter]
    draft.set("model.adapter.class_path", kind, "model_type, lora_type")
    if adapter == "lycoris":
        simpletuner_lycoris.place_lycoris(draft, family, source)
    target = draft.take("flux_target", "all")
    if adapter != "lora" or "model.adapter.init_args.targets" in draft.values:
        return
    if family in models.FLOW - {"SD3"}:
        if family == "Flux" and target not in ("all", "all+ffs"):
            draft.refuse("flux_lora_target", target, "attention is taken; targets may also be a list of layer names")
        draft.set(
            "adapter.targets", "attention-mlp" if target == "all+ffs" else "attention", f"flux_lora_target: {target}"
        )
    else:
        draft.set("adapter.targets", ["to_k", "to_q", "to_v", "to_out.0"], "SimpleTuner's default targets")


def place_length(draft: Draft, family: str) -> None:
    """Steps, batch, devices, clipping."""
    steps, epochs = draft.take_number("steps", whole, 0), draft.take_number("epochs", whole, 0)
    if steps > 0:
        draft.set("trainer.max_steps", steps, f"max_train_steps: {steps}")
    else:
        draft.set("trainer.max_epochs", max(epochs, 1), f"num_train_epochs: {epochs or 1}")
        draft.note(
            "num_train_epochs: an epoch has each photo repeats + 1 times, there too; --print_config shows the steps"
        )
    devices, batch = draft.take_number("devices", above_zero, 1), draft.take_number("batch", above_zero, 4)
    models.place_devices(draft, devices, batch, f"train_batch_size: {batch}")
    alignment = draft.take_number("alignment", above_zero, 64)
    if family in models.PIXELS:
        alignment = 32
        draft.note("sizes of DeepFloyd are multiples of 32 there; here of 8 where data.aspect_bucket_alignment says so")
    draft.set("data.aspect_bucket_alignment", alignment)
    clip, method = draft.take_number("clip", number, 2.0), str(draft.take("clip_method", "value"))
    if clip > 0:
        draft.set("trainer.gradient_clip_val", clip, f"max_grad_norm: {clip}")
        draft.set(
            "trainer.gradient_clip_algorithm", method if method == "norm" else "value", f"grad_clip_method: {method}"
        )
    warmup = draft.take_number("warmup", whole, 0)
    schedule = str(draft.take("schedule"))
    if schedule in ("cosine", "cosine_with_restarts", "sine"):
        draft.note(
            f"lr_scheduler {schedule}: there lr_warmup_steps is half a period and nothing warms up; here it warms up"
        )
    if schedule == "polynomial":
        draft.note("lr_scheduler polynomial: there its power is 0.8 and it ends at lr_end; here 1 and 1e-7")
    models.place_schedule(draft, schedule, warmup)
    draft.note(
        "repeats and epochs: a bucket's remainder waits for its next batch here; nothing is dropped or filled up"
    )


def place_optimizer(draft: Draft) -> None:
    options = models.place_betas(draft)
    config = draft.take("optimizer_config")
    if config:
        try:
            options |= models.keywords(one for one in str(config).split(","))
        except Misfit as misfit:
            draft.refuse("optimizer_config", config, str(misfit))
    name = draft.take("optimizer")
    rate = draft.take_number("rate", number, 4e-7)
    models.place_optimizer(draft, name, OPTIMIZERS.get(str(name)), rate, options)


def place_loss(draft: Draft) -> None:
    models.place_losses(draft)
    offset, strength = draft.take("offset"), draft.take_number("offset_strength", number, 0.1)
    share = draft.take_number("offset_share", number, 0.25)
    if is_on(offset):
        draft.set("objective.offset_noise", strength, f"noise_offset: {strength}")
        draft.note(f"offset_noise: there a share of {share} of the batches gets it, here every sample")
    bias, favour = draft.take("bias"), draft.take_number("bias_strength", number, 1)
    if bias in ("earlier", "later"):
        draft.set("objective.timestep_bias", bias, f"timestep_bias_strategy: {bias}")
        if favour > 1:
            draft.set("objective.timestep_bias_strength", favour, f"timestep_bias_multiplier: {favour}")
    elif bias not in (None, "none"):
        draft.refuse(
            "timestep_bias_strategy", bias, "model.objective.timestep_range trains on a part of the schedule alone"
        )
