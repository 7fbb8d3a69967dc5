"""A command line of kohya's sd-scripts as a run."""

from __future__ import annotations

import re
from typing import Any

from dreamlit.errors import ConfigError, nearest
from dreamlit.importing import kohya, kohya_data, kohya_prompts, models, previews, reading
from dreamlit.importing.draft import Draft
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import Misfit, above_zero, number, whole

OPTIMIZERS = {
    **models.OPTIMIZERS,
    "prodigyplus.prodigyplusschedulefree": models.PRODIGY,
    **dict.fromkeys(("dadaptadam", "dadaptlion", "dadaptsgd", "dadaptadampreprint"), models.OPTIMIZERS["dadaptation"]),
}
FLAGS = {"relative_step", "scale_parameter", "warmup_init"}
"""Options of transformers' Adafactor, which torch's does not have."""


def imported(source: Source, datasets: Any) -> Draft:
    """The run of a command line.

    Args:
        source: The command line, or a config_file in TOML whose script is told.
        datasets: Path of the dataset configuration, or None to take the one that it names.

    Raises:
        ConfigError: when the script is not known here, or a file is missing or broken.
    """
    options = all_options(source)
    family, trained = kohya.SCRIPTS.get(source.script, ("", ""))
    if not family:
        raise ConfigError(f"the script is {source.script!r}; {nearest(source.script, kohya.SCRIPTS)}")
    if family == "Flux" and options.get("model_type") == "chroma":
        family = "Chroma"
    network = network_args(options)
    draft = Draft("sd-scripts")
    adapter = adapter_of(options, network) if trained == "lora" else "full"
    draft.facts = models.facts_of(family, adapter, str(options.get("pretrained_model_name_or_path", "")))
    subset_keys = set(kohya_data.KEYS) - {"validation_split", "validation_seed", "masked_loss"}
    kept = {n: v for n, v in options.items() if n not in subset_keys and n not in ("train_data_dir", "reg_data_dir")}
    draft.apply(kohya.RULES, kept)
    place_model(draft, family, source)
    place_adapter(draft, adapter, network)
    named = datasets or options.get("dataset_config")
    tables = reading.read(datasets or reading.find(named, source.path)) if named else None
    kohya_data.place_datasets(draft, options, tables)
    place_length(draft, source)
    place_optimizer(draft)
    place_loss(draft)
    place_flow(draft, family)
    place_looking(draft, source)
    return draft


def all_options(source: Source) -> dict[str, Any]:
    """Those of the command line, over those of its config_file; sections of a TOML mean nothing."""
    options = {**flat(source.tables), **source.options}
    if options.get("config_file"):
        name = str(options["config_file"])
        file = reading.read(reading.find(name if name.endswith(".toml") else f"{name}.toml", source.path))
        options = {**flat(file.tables), **file.options, **options}
    return options


def flat(tables: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for content in tables.values():
        if isinstance(content, dict):
            found |= reading.named(content)
    return found


def listed(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [f"{name}={one}" for name, one in value.items()]
    return [str(one) for one in value] if isinstance(value, list) else [str(value)] if value else []


def network_args(options: dict[str, Any]) -> dict[str, Any]:
    found = {}
    for pair in listed(options.get("network_args")):
        name, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"network_args has {pair!r}, which is not of the form name=value")
        found[name.strip()] = reading.typed(value)
    return found


def adapter_of(options: dict[str, Any], network: dict[str, Any]) -> str:
    """LoRA, or LyCORIS where its module is named or convolutions are trained beside linear layers."""
    module = str(options.get("network_module", "networks.lora"))
    if module.startswith("lycoris"):
        return "lycoris"
    if not re.fullmatch(r"networks\.lora(_flux|_sd3|_lumina|_fa)?", module):
        known = ("networks.lora", "networks.lora_flux", "networks.lora_sd3", "networks.lora_lumina", "lycoris.kohya")
        raise ConfigError(f"network_module is {module!r}; {nearest(module, known)}")
    return "lycoris" if "conv_dim" in network else "lora"


def place_model(draft: Draft, family: str, source: Source) -> None:
    model, precision = draft.take("model"), models.precision_of(draft.take("mixed_precision"))
    draft.take("model_type")
    if not model:
        raise ConfigError(f"{source.path} names no pretrained_model_name_or_path")
    file = str(model).endswith((".safetensors", ".ckpt"))
    home = kohya.HOMES.get(family) if file else None
    if home and family == "SD3" and "large" in str(model):
        home = home.replace("medium", "large")
    models.place_model(draft, family, home or str(model), precision, source.script)
    if home:
        draft.set("family.transformer", str(model), "pretrained_model_name_or_path")
        draft.note(f"the transformer is the file; text encoders and autoencoder are those of {home}, as in diffusers")
    if draft.take("v_prediction"):
        draft.set("family.prediction_type", "v_prediction", "v_parameterization")
    skip = draft.take_number("clip_skip", whole, 1)
    if skip > 1:
        draft.set("family.clip_skip", skip - 1, f"clip_skip: {skip}, of which the last layer is 1")
    if draft.take("fp8"):
        draft.set("model.base_model_precision", "fp8-torchao", "fp8_base")
        draft.note("fp8_base: weights alone, with a scale each; on cards before Ada take int8-quanto")


def place_adapter(draft: Draft, adapter: str, network: dict[str, Any]) -> None:
    draft.set("model.adapter.class_path", {"lora": "LoRA", "lycoris": "LyCORIS", "full": "Full"}[adapter])
    module = str(draft.take("module", "networks.lora"))
    dim, alpha = draft.take_number("dim", above_zero, 4), draft.take_number("alpha", number, 1)
    if adapter == "full":
        draft.forget("unet_only", "network_args", why="the whole denoiser is trained")
        draft.note("text encoders are not trained here")
        return
    draft.forget("network_args")
    draft.apply(kohya.NETWORK, network, "network_args ")
    if not draft.take("unet_only"):
        draft.note("the text encoders' LoRA of sd-scripts is not trained here: what it would learn, the denoiser must")
    draft.set("adapter.rank", dim, f"network_dim: {dim}")
    draft.set("adapter.alpha", alpha, f"network_alpha: {alpha}")
    if adapter == "lycoris":
        place_lycoris(draft, module)
    else:
        draft.set("adapter.targets", "attention-mlp", f"network_module: {module}")
        draft.forget("algo", "preset", "conv_alpha", why=f"{module} does not use it")


def place_lycoris(draft: Draft, module: str) -> None:
    """LyCORIS as its module for kohya has it, or a LoRA with convolutions, which is its locon."""
    from dreamlit.adapters.lycoris_options import PRESETS

    lycoris = module.startswith("lycoris")
    algo, preset = draft.take("algo", "locon"), str(draft.take("preset", "full"))
    source = "network_args" if lycoris else "a LoRA with conv_dim is LyCORIS' locon"
    algo = models.place_algorithm(draft, algo if lycoris else "locon", source)
    if preset not in PRESETS:
        draft.refuse("network_args preset", preset, f"there are {', '.join(PRESETS)}; full is taken")
        preset = "full"
    draft.set("adapter.preset", preset, source)
    for name, key in (("conv_dim", "conv_rank"), ("conv_alpha", "conv_alpha")):
        value = draft.take_number(name, number)
        if value is not None:
            draft.set(f"adapter.{key}", value, f"{name}: {value}")
    if "model.adapter.init_args.full_matrix" in draft.values:
        for name in ("rank", "alpha"):
            draft.values.pop(f"model.adapter.init_args.{name}", None)
    models.settle_lycoris(draft, algo)


def place_length(draft: Draft, source: Source) -> None:
    steps, epochs = draft.take_number("steps", above_zero, 1600), draft.take_number("epochs", above_zero)
    if epochs:
        draft.set("trainer.max_epochs", epochs, f"max_train_epochs: {epochs}")
    else:
        draft.set("trainer.max_steps", steps, f"max_train_steps: {steps}")
    output, name = draft.take("output"), draft.take("name")
    draft.set("trainer.default_root_dir", "/".join(str(one).rstrip("/") for one in (output, name) if one) or "output")
    devices = models.devices_of(source.launcher)
    batch = draft.take_number("batch", above_zero, 1)
    batch = draft.take_number("batches", above_zero, batch)
    models.place_devices(draft, devices, batch, f"batch_size: {batch}")
    draft.set("data.aspect_bucket_alignment", draft.take_number("alignment", above_zero, 64), "bucket_reso_steps")
    clip = draft.take_number("clip", number, 1.0)
    if clip > 0:
        draft.set("trainer.gradient_clip_val", clip, f"max_grad_norm: {clip}")
    warmup = draft.take_number("warmup", number, 0)
    if 0 < warmup < 1:
        if epochs:
            draft.refuse("lr_warmup_steps", warmup, "a share of epochs is not known before: give a number of steps")
        warmup = 0 if epochs else round(warmup * steps)
    models.place_schedule(draft, draft.take("schedule", "constant"), int(warmup))
    hold_out = draft.take_number("hold_out", number, 0)
    if hold_out:
        draft.set("data.hold_out", hold_out, f"validation_split: {hold_out}")


def place_optimizer(draft: Draft) -> None:
    name, rate = str(draft.take("optimizer", "AdamW")), draft.take_number("rate", number, 2e-6)
    rate = draft.take_number("unet_rate", number, rate)
    if draft.take("eight_bit"):
        name = "AdamW8bit"
    given = draft.take("optimizer_args")
    try:
        options = models.keywords(listed(given))
    except Misfit as misfit:
        draft.refuse("optimizer_args", given, str(misfit))
        options = {}
    for option in FLAGS & options.keys():
        draft.idle[f"optimizer_args {option}"] = "torch's Adafactor takes the learning rate as it is given"
        del options[option]
    models.place_optimizer(draft, name, OPTIMIZERS.get(name.lower()), rate, options)


def place_loss(draft: Draft) -> None:
    models.place_losses(draft)
    if draft.take("debiased") and "model.objective.weighting" not in draft.values:
        draft.set("objective.weighting", "debiased", "debiased_estimation_loss")
    first, last = draft.take_number("first", whole, 0), draft.take_number("last", whole, 1000)
    if (first, last) != (0, 1000):
        draft.set(
            "objective.timestep_range", [first / 1000, last / 1000], f"min_timestep: {first}, max_timestep: {last}"
        )
    prior = draft.take_number("prior", number, 1)
    if prior != 1 and "model.objective.prior_target" in draft.values:
        draft.set("objective.prior_loss_weight", prior, f"prior_loss_weight: {prior}")
    elif prior != 1:
        draft.idle["prior_loss_weight"] = "there are no regularisation images"


def place_flow(draft: Draft, family: str) -> None:
    """Timesteps of flow models: kohya's samplings are densities here, and shifts of the model."""
    if "flow" not in draft.facts:
        return
    sampling, scheme = str(draft.take("sampling", "sigma")), str(draft.take("scheme", "uniform"))
    given, sigmoid = draft.take_number("shift", number), draft.take_number("sigmoid", number, 1)
    shift = given or kohya.SHIFTS[family]
    spread = {name: draft.take_number(name, number) for name in ("logit_mean", "logit_std", "mode_scale")}
    if sampling in ("sigmoid", "shift", "flux_shift", "nextdit_shift"):
        draft.set("objective.timestep_density", "logit_normal", f"timestep_sampling: {sampling}")
        if sigmoid != 1:
            draft.set("objective.logit_std", sigmoid, f"sigmoid_scale: {sigmoid}")
    elif scheme in ("logit_normal", "mode"):
        draft.set("objective.timestep_density", scheme, f"weighting_scheme: {scheme}")
        for name, value in spread.items():
            if value is not None and name.startswith(scheme.partition("_")[0]):
                draft.set(f"objective.{name}", value, f"{name}: {value}")
    elif scheme not in ("uniform", "none", "sigma_sqrt"):
        draft.refuse(
            "weighting_scheme", scheme, "there are uniform, logit_normal and mode: model.objective.timestep_density"
        )
    if sampling in ("sigmoid", "uniform"):
        draft.set("family.shift", 1.0, f"timestep_sampling: {sampling}")
    elif sampling in ("sigma", "shift"):
        source = "discrete_flow_shift, training_shift" if given else "the default in sd-scripts"
        draft.set("family.shift", shift, f"{source}: {shift:g}")
    place_error(draft, scheme)
    if family == "SD3" and shift == 1:
        draft.note("training_shift 1: previews have it too; SD3's own is 3, without model.family.init_args.shift")


def place_error(draft: Draft, scheme: str) -> None:
    """What is compared: sd-scripts takes the photo's error, sigma times the velocity's, unless it is told `raw`."""
    prediction = str(draft.take("prediction", "sigma_scaled"))
    if prediction not in ("raw", "sigma_scaled"):
        draft.refuse("model_prediction_type", prediction, "the model's velocity is compared as it is (raw)")
    elif prediction == "sigma_scaled" and scheme != "sigma_sqrt":  # that one divides by sigma^2 again
        draft.note(
            "the velocity's error counts alike at each sigma; sd-scripts (model_prediction_type: sigma_scaled, its "
            "default, and always for SD3) compares photos, which is sigma^2 times that: noisy steps weigh more there"
        )


def place_looking(draft: Draft, source: Source) -> None:
    steps, epochs = draft.take_number("eval_steps", above_zero), draft.take_number("eval_epochs", number)
    if "data.hold_out" in draft.values:
        name, value = ("every_n_steps", steps) if steps else ("every_n_epochs", epochs or 1.0)
        draft.set(f"callbacks.StableEvaluation.{name}", value, "validate_every_n_steps, validate_every_n_epochs")
    elif steps or epochs:
        draft.idle["validate_every_n_*"] = "without a validation_split nothing is held out"
    sampler, named = draft.take("sampler"), draft.take("prompts")
    if not named:
        previews.drop(draft, "there are no sample_prompts")
    else:
        kohya_prompts.place(draft, reading.find(named, source.path))
        known = {"ddim": "ddim", "euler": "euler", "k_euler": "euler", "dpmsolver++": "dpm", "dpmsolver": "dpm"}
        if sampler in known:
            draft.set("callbacks.ValidationPreview.sampler", known[sampler], f"sample_sampler: {sampler}")
        elif sampler:
            draft.refuse("sample_sampler", sampler, "the model's own sampler is taken")
    if draft.take("log_with") in ("wandb", "all"):
        models.place_wandb(draft, "log_with")
    draft.forget("project", "run_name", why="they name a run of wandb; here the folder names it")
    draft.forget("datasets", "config_file")
