"""A SimpleTuner configuration's averages, rollouts, evaluation, previews, scores, webhooks and logs."""

from __future__ import annotations

from typing import Any

from dreamlit.importing import models, previews, reading, simpletuner_more
from dreamlit.importing.draft import Draft
from dreamlit.importing.reading import Source
from dreamlit.importing.rules import above_zero, is_on, number, whole

OF_PREVIEWS = ("stream", "stream_steps", "scores", "clip_model", "preview_models")
HIGHEST_ORDER = {"unipc": 3, "dpm": 2, "euler": 1}


def place_looking(draft: Draft, source: Source) -> None:
    """All callbacks. The datasets are placed already."""
    place_rollout(draft)
    place_ema(draft)
    place_evaluation(draft)
    place_preview(draft, source)
    place_webhooks(draft, source)
    place_logs(draft)


def place_ema(draft: Draft) -> None:
    on, decay = is_on(draft.take("ema")), draft.take_number("ema_decay", number, 0.995)
    interval, device = draft.take_number("ema_interval", above_zero, 1), draft.take("ema_device", "cpu")
    use = draft.take("ema_validation", "comparison")
    if not on:
        return
    draft.set("callbacks.EMA.decay", decay, f"ema_decay: {decay}")
    if interval > 1:
        draft.set("callbacks.EMA.update_every_n_steps", interval, f"ema_update_interval: {interval}")
        draft.note("EMA: the decay is corrected for the interval here, not there")
    if device == "accelerator":
        draft.set("callbacks.EMA.device", "model", "ema_device: accelerator")
    if use == "none":
        draft.set("callbacks.EMA.use_for", ["export"], "ema_validation: none")
    elif use == "ema_only":
        draft.parts["preview_models"] = ["base", "ema"]
    draft.note("EMA: the average is float32 here, there of the weights' precision; it is exported beside the weights")


REFLEX = ("reflex", "reflex_alpha", "reflex_beta1", "reflex_beta2")


def place_rollout(draft: Draft) -> None:
    """Scheduled sampling; where the ramp goes is what differs most."""
    most = draft.take_number("offset_steps", whole, 0)
    given, start = draft.take_number("rollout_p", number, 0), draft.take_number("rollout_p_start", number, 0)
    end = draft.take_number("rollout_p_end", number)
    ramp, begin = draft.take_number("rollout_ramp", whole, 0), draft.take_number("rollout_start", whole, 0)
    shape, sampler = draft.take("rollout_shape", "linear"), str(draft.take("rollout_sampler", "unipc"))
    order = draft.take_number("rollout_order", whole, 2)
    if most <= 0:
        draft.forget(*REFLEX)
        return
    there = (start or given, 0.5 if end is None else end or given)
    probability = (end or given or 0.5) if ramp else given
    key = "callbacks.ScheduledSampling"
    draft.set(f"{key}.max_step_offset", most, f"scheduled_sampling_max_step_offset: {most}")
    draft.set(f"{key}.probability", probability, f"scheduled_sampling_probability: {given}")
    if ramp and probability:
        draft.set(f"{key}.ramp_steps", ramp, f"scheduled_sampling_ramp_steps: {ramp}")
        if begin:
            draft.set(f"{key}.start_step", begin, f"scheduled_sampling_start_step: {begin}")
        if shape != "linear":
            draft.set(f"{key}.ramp_shape", shape, f"scheduled_sampling_ramp_shape: {shape}")
        draft.note(
            f"scheduled sampling: the probability rises here from 0 to {probability:g}. There it would go from "
            f"{there[0]:g} to {there[1]:g} (prob_end is 0.5 unless it is given)"
            + (", that is down" if there[1] < there[0] else "")
        )
    place_reflex(draft, key)
    if not probability:
        draft.note(
            "scheduled sampling: its probability is 0, so that it is off until you raise it; so are ReflexFlow's "
            "terms, which a flow model has there for every sample"
        )
        return
    draft.set(f"{key}.step_stride", 1, "a step is one training timestep there")
    place_sampler(draft, key, sampler, order, most)
    draft.note(
        "scheduled sampling: a rolled-out sample goes from 1 to max_step_offset steps here, from 0 there; its target "
        "leads back to the photo (target: original is as there); without step_stride a step is that of a "
        "sampler of 30 steps"
    )


def place_reflex(draft: Draft, key: str) -> None:
    """ReflexFlow's terms, which a flow model's rollout has there unless they are turned off."""
    on, alpha = draft.take("reflex"), draft.take_number("reflex_alpha", number)
    beta1 = draft.take_number("reflex_beta1", number, 10.0)
    beta2 = draft.take("reflex_beta2")
    if "flow" not in draft.facts or str(on).lower() in ("false", "0", "0.0", "no", "off"):
        return
    if beta2 not in (None, 1, "1", "1.0"):
        why = "it scales the loss itself, beside anti_drift; 1 is taken, so change the others instead"
        draft.refuse("scheduled_sampling_reflexflow_beta2", beta2, why)
    if beta1:
        draft.set(f"{key}.anti_drift", beta1, f"scheduled_sampling_reflexflow_beta1: {beta1:g}")
        draft.note("scheduled sampling: anti_drift counts for rolled-out samples here, for every sample there")
    if alpha:
        draft.set(f"{key}.frequency_compensation", alpha, f"scheduled_sampling_reflexflow_alpha: {alpha:g}")
    else:
        draft.note(
            "scheduled sampling: frequency_compensation is left off; at 1, the default there, it costs a forward and "
            "changes a weight by about one over the number of the latent's values"
        )


def place_sampler(draft: Draft, key: str, sampler: str, order: int, most: int) -> None:
    if "flow" in draft.facts and sampler != "euler":
        draft.note(
            f"scheduled sampling: flow models are rolled out by euler there, whatever is asked for; here by {sampler}"
        )
    if sampler not in HIGHEST_ORDER:
        draft.refuse("scheduled_sampling_sampler", sampler, "there are unipc, dpm and euler; unipc is taken")
        sampler = "unipc"
    draft.set(f"{key}.sampler", sampler, f"scheduled_sampling_sampler: {sampler}")
    draft.set(f"{key}.order", max(1, min(order, HIGHEST_ORDER[sampler], most)), f"scheduled_sampling_order: {order}")


def place_evaluation(draft: Draft) -> None:
    steps, epochs = draft.take_number("eval_steps", above_zero), draft.take_number("eval_epochs", number)
    levels, off = draft.take_number("eval_timesteps", above_zero, 28), is_on(draft.take("eval_off"))
    evals = [one for one in draft.datasets if "dataset_type" in one and one["dataset_type"].value == "eval"]
    if not evals or off:
        for name in [
            name for name, value in (("eval_steps_interval", steps), ("eval_epoch_interval", epochs)) if value
        ]:
            draft.idle[name] = "there is no dataset of type eval (data.hold_out keeps photos back)"
        return
    key = "callbacks.StableEvaluation"
    draft.set("data.eval_timesteps", levels, f"eval_timesteps: {levels}")
    if steps is not None:
        draft.set(f"{key}.every_n_steps", steps, f"eval_steps_interval: {steps}")
        if epochs is not None:
            draft.refuse("eval_epoch_interval", epochs, "one of the two intervals is taken")
    else:
        draft.set(f"{key}.every_n_epochs", epochs or 1.0, f"eval_epoch_interval: {epochs or 'each'}")
    draft.note(
        "evaluation: the same photos, noise and caption in each; there photos are drawn and captions may be dropped"
    )


def place_preview(draft: Draft, source: Source) -> None:
    """ValidationPreview, and Scores where CLIP scores were asked for."""
    rescale = draft.take_number("preview_rescale", number, 0)
    sampler, no_base = draft.take("preview_sampler"), is_on(draft.take("no_base"))
    count, seed = draft.take_number("preview_count", above_zero, 1), draft.take_number("preview_seed", whole)
    sizes, off = draft.take("preview_sizes"), is_on(draft.take("preview_off"))
    prompts = [str(one) for one in (draft.take("prompt"), *library(draft, source)) if one]
    if off or not prompts:
        previews.drop(draft, "there are no previews" if off else "there is no prompt to make previews of")
    else:
        previews.place(draft, prompts, count=count, seed=seed)
    if previews.KEY not in draft.callbacks:
        draft.forget(*OF_PREVIEWS, why="there are no previews")
        return
    if sizes is not None:
        place_sizes(draft, sizes)
    if rescale and "guided" in draft.facts:
        draft.set("callbacks.ValidationPreview.guidance_rescale", rescale, f"validation_guidance_rescale: {rescale}")
    if sampler is not None and str(sampler) in simpletuner_more.SAMPLERS:
        draft.set("callbacks.ValidationPreview.sampler", str(sampler), f"validation_noise_scheduler: {sampler}")
    elif sampler is not None:
        draft.refuse("validation_noise_scheduler", sampler, "the model's own sampler is taken")
    shown = draft.take("preview_models") or (["raw"] if no_base else None)
    if shown:
        draft.set("callbacks.ValidationPreview.models", shown, "disable_benchmark, ema_validation")
    place_stream(draft)
    previews.place_scores(draft, draft.take("scores", "none") == "clip", draft.take("clip_model"))


def place_stream(draft: Draft) -> None:
    on, steps = is_on(draft.take("stream")), draft.take_number("stream_steps", above_zero, 1)
    if not on:
        return
    draft.set("callbacks.ValidationPreview.validation_preview", True, "validation_preview")
    draft.set("callbacks.ValidationPreview.validation_preview_steps", steps, f"validation_preview_steps: {steps}")
    draft.note(
        "previews in the making: also on disk, and without a webhook; of 20 steps, 5 shows 5, 10, 15, 20 here, there "
        "step 1 too. model.family.init_args.tiny_vae makes them sharper"
    )


def place_sizes(draft: Draft, sizes: Any) -> None:
    """`1024x1024,1280x768`, or an edge; below 128 it is megapixels there."""
    found = []
    for one in str(sizes).lower().replace(" ", "").split(","):
        edge = previews.edge_of(one)
        if edge is None:
            draft.refuse("validation_resolution", sizes, "sizes are WIDTHxHEIGHT, or an edge in pixels")
            return
        found.append(edge)
    draft.set("callbacks.ValidationPreview.sizes", list(dict.fromkeys(found)), f"validation_resolution: {sizes}")


def library(draft: Draft, source: Source) -> list[str]:
    """The prompts of user_prompt_library."""
    named = draft.take("library")
    if not named:
        return []
    content = reading.read_mapping(reading.find(named, source.path))
    found = []
    for name, prompt in content.items():
        if isinstance(prompt, dict):
            if prompt.keys() - {"prompt"}:
                draft.refuse(f"user_prompt_library {name}", prompt, "a prompt has no options of its own")
            prompt = prompt.get("prompt", "")
        found.append(str(prompt))
    return found


def place_webhooks(draft: Draft, source: Source) -> None:
    """One Webhook for each configuration; what is secret stays behind, for the environment."""
    given, every = draft.take("webhook"), draft.take_number("webhook_steps", above_zero)
    if not given:
        return
    if isinstance(given, str):
        inline = given.lstrip().startswith(("{", "["))
        text = given if inline else reading.read_text(reading.find(given, source.path))
        given = reading.parsed(source.path.with_suffix(".json"), text)
    hooks = given if isinstance(given, list) else [given]
    for place, hook in enumerate(one for one in hooks if isinstance(one, dict)):
        ending = f"_{place + 1}" if place else ""
        draft.apply(simpletuner_more.WEBHOOK, hook, "webhook ")
        key = "callbacks.Webhook" + (f" {place + 1}" if place else "")
        kind, level = draft.take("kind", "discord"), str(draft.take("level", "info"))
        draft.set(f"{key}.kind", kind, f"webhook_type: {kind}")
        draft.set(f"{key}.url_env", f"WEBHOOK_URL{ending}", "export it before the run: a URL in a file is no secret")
        if kind == "raw":
            draft.set(f"{key}.secret_env", f"WEBHOOK_SECRET{ending}", "signs each message: any long random text")
        if kind == "raw" and hook.get("auth_token"):
            draft.set(f"{key}.token_env", f"WEBHOOK_TOKEN{ending}", "auth_token, sent as a bearer token")
        draft.set(f"{key}.level", simpletuner_more.LEVELS.get(level, "info"), f"log_level: {level}")
        if every is not None:
            draft.set(f"{key}.status_every_n_steps", every, f"webhook_reporting_interval: {every}")
    draft.note("webhook: messages have another form (docs/events.md), are retried, and never hold up the training")


def place_logs(draft: Draft) -> None:
    """Loggers beside metrics.csv, which is always there."""
    asked = [one.strip() for one in str(draft.take("report_to", "none")).split(",")]
    for one in asked:
        if one == "wandb":
            models.place_wandb(draft, "report_to")
        elif one not in ("none", "", "tensorboard"):
            draft.refuse("report_to", one, "metrics.csv, metrics.jsonl and TensorBoard's files are written")
    draft.forget("project", "run_name", why="they name a run of wandb; here the folder names it")
