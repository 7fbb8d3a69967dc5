"""A command of diffusers' DreamBooth scripts as a run."""

from __future__ import annotations

import pathlib
from typing import Any

from dreamlit.errors import ConfigError, nearest
from dreamlit.importing import diffusers_scripts, entries, models, previews, reading
from dreamlit.importing.draft import Draft, Noted
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import above_zero, number, whole


def imported(source: Source, datasets: Any) -> Draft:
    """The run of a command line.

    Raises:
        ConfigError: when the script is not known here, or says too little.
    """
    if source.script not in diffusers_scripts.SCRIPTS:
        raise ConfigError(f"the script is {source.script!r}; {nearest(source.script, diffusers_scripts.SCRIPTS)}")
    if datasets is not None:
        raise ConfigError(f"{datasets}: diffusers' scripts have no dataset file; give the command alone")
    family, adapter, targets, rate = diffusers_scripts.SCRIPTS[source.script]
    options = {**source.options, **reading.named(source.tables)}
    model = str(options.get("pretrained_model_name_or_path") or "")
    if not model:
        raise ConfigError(f"{source.path} names no pretrained_model_name_or_path")
    if family == "SD" and "IF-I" in model:
        family = "DeepFloydII" if "IF-II-" in model else "DeepFloydI"
    draft = Draft("diffusers")
    draft.facts = models.facts_of(family, adapter, model)
    draft.apply(diffusers_scripts.RULES, options)
    precision = models.precision_of(draft.take("mixed_precision", source.launcher.get("mixed_precision", "no")))
    models.place_model(draft, family, draft.take("model"), precision, source.script)
    place_adapter(draft, adapter, targets, source.script)
    place_length(draft, source, family)
    place_optimizer(draft, rate)
    place_loss(draft, options)
    if family in diffusers_scripts.UNSHIFTED:
        draft.note(
            "timesteps: the script trains without the shift by the size of the image, which its sampler has; here both "
            "have it (model.family.init_args.shift: 1 is as there, for previews too)"
        )
    place_photos(draft, source)
    place_preview(draft)
    return draft


def place_adapter(draft: Draft, adapter: str, targets: Any, script: str) -> None:
    draft.set("model.adapter.class_path", "LoRA" if adapter == "lora" else "Full", script)
    alpha = draft.take_number("alpha", number)
    if adapter != "lora":
        return
    ending = script.removeprefix("train_dreambooth_lora_").removesuffix(".py")
    if alpha is None and ending in diffusers_scripts.ALPHA_OF_ITS_OWN:
        draft.set("adapter.alpha", 4, "the default of lora_alpha in diffusers")
    elif alpha is not None:
        draft.set("adapter.alpha", alpha, f"lora_alpha: {alpha}")
    draft.set("adapter.init", "gaussian", "as the script has it")
    if "model.adapter.init_args.targets" not in draft.values:
        draft.set("adapter.targets", targets, "as the script has it")


def place_length(draft: Draft, source: Source, family: str) -> None:
    steps, epochs = draft.take_number("steps", above_zero), draft.take_number("epochs", above_zero, 1)
    if steps:
        draft.set("trainer.max_steps", steps, f"max_train_steps: {steps}")
    else:
        draft.set("trainer.max_epochs", epochs, f"num_train_epochs: {epochs}")
    devices, batch = models.devices_of(source.launcher), draft.take_number("batch", above_zero, 4)
    accumulate = draft.take_number("accumulate", above_zero, 1)
    if accumulate > 1:
        draft.set("trainer.accumulate_grad_batches", accumulate, f"gradient_accumulation_steps: {accumulate}")
    if draft.parts.get("prior"):
        draft.note(
            "batches: train_batch_size subject photos and as many class images are one batch there; here all share it"
        )
        batch *= 2
    models.place_devices(draft, devices, batch, "train_batch_size")
    draft.parts["scaled"] = batch * devices * accumulate
    if family in models.PIXELS:
        draft.set("data.aspect_bucket_alignment", 8)
    keep = draft.take_number("keep", above_zero, 0)
    draft.set("checkpoint.keep", keep, f"checkpoints_total_limit: {keep or 'none'}")
    models.place_schedule(draft, draft.take("schedule", "constant"), draft.take_number("warmup", whole, 500))


def place_optimizer(draft: Draft, usual: float) -> None:
    name, rate = str(draft.take("optimizer", "AdamW")), draft.take_number("rate", number, usual)
    scaled = draft.take("scaled", 1)
    if draft.take("scale_lr"):
        rate *= scaled
        draft.note(f"scale_lr: the learning rate is multiplied by {scaled}, as it is there")
    known = models.OPTIMIZERS.get(name.lower())
    if draft.take("eight_bit") and name.lower() == "adamw":
        known = models.OPTIMIZERS["adamw8bit"]
    models.place_optimizer(draft, name, known, rate, models.place_betas(draft))


def place_loss(draft: Draft, options: dict[str, Any]) -> None:
    models.place_losses(draft)
    if draft.take("offset"):
        draft.set("objective.offset_noise", 0.1, "offset_noise")
    scheme = str(options.get("weighting_scheme", ""))
    for name in ("logit_mean", "logit_std", "mode_scale"):
        value = draft.take_number(name, number)
        if value is not None and name.startswith(scheme.partition("_")[0] or "?"):
            draft.set(f"objective.{name}", value, f"{name}: {value}")
        elif value is not None:
            draft.idle[name] = "the density has no such number"


def place_photos(draft: Draft, source: Source) -> None:
    """The subject's photos and those of its class."""
    photos, prompt = draft.take("photos"), draft.take("prompt")
    if not photos or not prompt:
        raise ConfigError(f"{source.path} must have --instance_data_dir and --instance_prompt")
    side = draft.take_number("resolution", above_zero, 1024 if "sdxl" in source.script else 512)
    style = "center" if draft.take("center") else "random"
    sizes = {"resolution": Noted(side, f"resolution: {side}"), "resolution_type": Noted("pixel"), "crop": Noted(True)}
    sizes["crop_style"] = Noted(style, "center_crop" if style == "center" else "without center_crop")
    if style == "random":
        draft.note(
            "random crop: the place is fixed for each image here, there it is another one in each epoch, or once"
        )
    subject = {"id": Noted(entries.unique_id(draft, pathlib.Path(str(photos)).name)), **folder(photos, prompt), **sizes}
    repeats = draft.take_number("repeats", number, 1)
    if repeats != 1:
        subject["repeats"] = Noted(repeats - 1, f"repeats: {repeats}")
        draft.note("repeats: 1 is once there, 0 is once here")
    dropout = draft.take_number("dropout", number, 0)
    if dropout:
        subject["caption_dropout"] = Noted(dropout, f"caption_dropout: {dropout}")
    draft.datasets.append(subject)
    place_class(draft, sizes, source)


def folder(path: Any, prompt: Any) -> dict[str, Noted]:
    where = {"instance_data_dir": Noted(str(path)), "caption_strategy": Noted("instanceprompt")}
    return {**where, "instance_prompt": Noted(str(prompt))}


def place_class(draft: Draft, sizes: dict[str, Noted], source: Source) -> None:
    wanted, photos, prompt = draft.take("prior"), draft.take("class_photos"), draft.take("class_prompt")
    weight, count = draft.take_number("prior_weight", number, 1), draft.take_number("class_count", above_zero, 100)
    if not wanted:
        for name, value in (("class_data_dir", photos), ("class_prompt", prompt)):
            if value:
                draft.idle[name] = "without with_prior_preservation it is not used, there and here"
        return
    if not photos or not prompt:
        raise ConfigError(f"{source.path}: with_prior_preservation needs --class_data_dir and --class_prompt")
    entry = {"id": Noted(entries.unique_id(draft, pathlib.Path(str(photos)).name)), **folder(photos, prompt), **sizes}
    draft.datasets.append({**entry, "is_regularisation_data": Noted(True, "with_prior_preservation")})
    draft.set("objective.prior_target", "data", "the class images themselves, as there")
    if weight != 1:
        draft.set("objective.prior_loss_weight", weight, f"prior_loss_weight: {weight}")
    draft.note(
        f"class images are not made by fit: dreamlit class-images --config run.yaml --count {count} fills {photos}. "
        "prior_target: base_model holds the class better (docs/objective.md)"
    )
    draft.note(
        "prior preservation: there each subject photo has a class image beside it; here each dataset comes by its own "
        "repeats: probability or repeats make the shares equal"
    )


def place_preview(draft: Draft) -> None:
    prompts = [str(one) for one in (draft.take("preview"), draft.take("final_preview")) if one]
    count, epochs = draft.take_number("preview_count", above_zero, 4), draft.take_number("preview_epochs", above_zero)
    if not prompts:
        previews.drop(draft, "there is no validation_prompt")
    else:
        previews.place(draft, prompts, count=count)
        if previews.KEY in draft.callbacks and "every_n_steps" not in draft.callbacks[previews.KEY]:
            draft.set("callbacks.ValidationPreview.every_n_steps", None, f"validation_epochs: {epochs or 50}")
            draft.note(
                "validation_epochs: previews are counted in steps here; there is one at the end until you set them"
            )
    if draft.take("report_to") in ("wandb", "all"):
        models.place_wandb(draft, "report_to")
