"""The commands beside training: prepare, plan, export and sample."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import pathlib
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

from rich.console import Console

from dreamlit import resume
from dreamlit.datamodules.dreambooth import DreamBoothData
from dreamlit.datamodules.plan_report import PlanReport
from dreamlit.errors import CheckpointError, CombinationError, ConfigError, Faults
from dreamlit.images import save_grid, save_image
from dreamlit.module import DreamBooth
from dreamlit.previewing import Picture, Sampling, draw, prompt_faults, seed_faults, size_faults
from dreamlit.prompts import text_faults
from dreamlit.recipes import Recipe, read_recipe, refuse_other_base, weights_digest
from dreamlit.seeds import address


def prepare(trainer: Any, model: DreamBooth, data: DreamBoothData) -> None:
    """Builds all caches and says what was encoded and what was there already."""
    data.attach(model)
    data.make_class_images(trainer)
    for report in data.fill_caches(trainer.strategy.root_device):
        print(report)


def plan(trainer: Any, model: DreamBooth, data: DreamBoothData, preview: str | None) -> None:
    """Prints what is seen when; no model is loaded."""
    data.attach(model)
    with contextlib.ExitStack() as until_end:
        if data.class_images is not None:
            folder = pathlib.Path(until_end.enter_context(tempfile.TemporaryDirectory()))
            if to_draw := stand_in_for_class_images(model, data, folder):
                print(to_draw)
        print_plan(trainer, model, data, preview)


def stand_in_for_class_images(model: DreamBooth, data: DreamBoothData, folder: pathlib.Path) -> str:
    """What of `data.class_images` would be drawn, in a line; blank pictures of the same sizes are put in its place."""
    # The fingerprint of a model on the hub needs its weights, which no plan downloads.
    missing = data.class_set.options.count if model.family.files.is_hub else data.class_set.missing
    if not missing:
        return ""
    line = data.class_set.described(missing)
    data.class_set = data.class_set.stand_ins(folder)
    return line


def print_plan(trainer: Any, model: DreamBooth, data: DreamBoothData, preview: str | None) -> None:
    manifest = data.manifest(model.family.stride)
    report = PlanReport(
        manifest,
        data.plan(model.family.stride),
        accumulate=trainer.accumulate_grad_batches,
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
    )
    report.print(Console(width=None if Console().is_terminal else 140))
    if preview:
        from dreamlit.datamodules.preview import write_preview

        print(f"preview: {write_preview(manifest, pathlib.Path(preview))}")


def load_checkpoint(trainer: Any, model: DreamBooth, ckpt_path: str) -> int:
    """Loads a checkpoint's trained weights into a model without running a loop; returns its step."""
    path = resume.find_checkpoint(ckpt_path, pathlib.Path(trainer.default_root_dir))
    assert path is not None
    checkpoint = resume.read_checkpoint(pathlib.Path(path))
    model.configure_model()
    resume.refuse_other_base(checkpoint, model.family.fingerprint("denoiser"), model.run_facts.get("allow_changes", []))
    model.load_state_dict(checkpoint["state_dict"])
    return checkpoint["global_step"]


def export(
    trainer: Any, model: DreamBooth, data: DreamBoothData, ckpt_path: str, output: str | None, check: bool
) -> None:
    """Writes the adapter files of a checkpoint, and with `check` proves that each loads and does the same."""
    step = load_checkpoint(trainer, model, ckpt_path)
    root = pathlib.Path(trainer.default_root_dir)
    paths = model.export(output or root, stem=f"{root.resolve().name}-step-{step:06d}")
    worst = 0.0
    for path in paths:
        print(f"adapter: {path}")
        if check:
            from dreamlit.export import check_round_trip

            difference, effect = check_round_trip(path, model.family, model.adapter)
            worst = difference if math.isnan(difference) else max(worst, difference)
            print(f"  largest difference to the live adapter: {difference:.2e}; to the base model: {effect:.2e}")
    if not worst <= 1e-4:
        raise CheckpointError(f"an exported file differs from the live adapter by {worst:.2e}")


def sample(
    trainer: Any, model: DreamBooth, given: dict[str, Any], adapter: str | None, output: str, from_recipe: str | None
) -> None:
    """Makes images of prompts, or one image again.

    Args:
        given: The options that were given, by name: prompt, count, seed, width, height and those of `Sampling`.
        adapter: As in `chosen_adapter`.
        output: Folder for the images.
        from_recipe: A PNG with a recipe; nothing else is to be `given` then.
    """
    if from_recipe is not None:
        if given:
            raise ConfigError(f"--from_recipe says all of the image; leave out {', '.join(f'--{n}' for n in given)}")
        sample_again(trainer, model, pathlib.Path(from_recipe), adapter, output)
        return
    drawn, sampling = asked_for(given, model.seed)
    sample_new(trainer, model, drawn, sampling, adapter, output)


def asked_for(given: dict[str, Any], run_seed: int) -> tuple[list[Picture], Sampling]:
    """The pictures, prompt by prompt, and their settings. Errors: `ConfigError` with all faults."""
    settings = {field.name: given[field.name] for field in dataclasses.fields(Sampling) if field.name in given}
    sampling, prompts, count = Sampling(**settings), given.get("prompt", []), given.get("count", 1)
    prompts = [prompts] if isinstance(prompts, str) else list(dict.fromkeys(prompts))
    first = given.get("seed")
    seeds = [
        address(run_seed, "sample", number) % 2**31 if first is None else first + number for number in range(count)
    ]
    size = {name: given[name] for name in ("width", "height") if name in given}
    faults = Faults("dreamlit sample cannot make these images", ConfigError)
    for line in (*text_faults("prompt", prompts), *sampling.faults(), *(seed_faults(seeds) if count > 0 else ())):
        faults.add(line)
    if not prompts:
        faults.add("there is nothing to draw; give --prompt TEXT, or --from_recipe PNG")
    for name, value in {"count": count, **size}.items():
        if value < 1:
            faults.add(f"{name} is {value}; it must be at least 1")
    faults.raise_if_any()
    return [Picture(prompt, seed, **size) for prompt in prompts for seed in seeds], sampling


def sample_new(
    trainer: Any, model: DreamBooth, drawn: list[Picture], sampling: Sampling, adapter: str | None, output: str
) -> None:
    """Makes images with an exported adapter file; each PNG carries its recipe, and one grid shows all.

    Errors: `CombinationError` with all settings that do not fit the model, before it is loaded.
    """
    sampling = sampling.of(model.family)
    refuse_misfits(model, drawn, sampling)
    facts = load_weights(trainer, model, chosen_adapter(pathlib.Path(trainer.default_root_dir), adapter))
    folder, images, prompts = (
        free_folder(pathlib.Path(output)),
        [],
        list(dict.fromkeys(picture.prompt for picture in drawn)),
    )
    for number, (picture, image) in enumerate(drawn_by(trainer, model, drawn, sampling)):
        row, column = divmod(number, len(drawn) // len(prompts))
        recipe = json.dumps({**sampling.recipe(picture), **facts})
        save_image(image, folder / f"{row:03d}-{column:02d}.png", recipe)
        images.append(image)
    print(f"images: {save_grid(images, folder / 'grid.png', columns=len(drawn) // len(prompts))}")


def free_folder(folder: pathlib.Path) -> pathlib.Path:
    """The folder, or the first of FOLDER-2, FOLDER-3, ... without images, so that none is written over."""
    place, number = folder, 1
    while any(place.glob("*.png")):
        number += 1
        place = pathlib.Path(f"{folder if folder.name else folder.resolve()}-{number}")
    return place


def sample_again(trainer: Any, model: DreamBooth, path: pathlib.Path, adapter: str | None, output: str) -> None:
    """Makes the image of a PNG again, by the recipe in it, under the same name in the folder `output`.

    Errors: as `read_recipe`; `CheckpointError` if the adapter file that made it is not to be found.
    """
    recipe = read_recipe(path)
    target = pathlib.Path(output) / path.with_suffix(".png").name
    if target.resolve() == path.resolve():
        raise ConfigError(f"{path} would be overwritten; give --output another folder")
    refuse_misfits(model, [recipe.picture], recipe.sampling)
    refuse_other_base(recipe, model.family)
    root = pathlib.Path(trainer.default_root_dir)
    file = chosen_adapter(root, adapter) if adapter else adapter_of(recipe, root)
    facts = load_weights(trainer, model, file)
    made, here = recipe.facts.get("weights"), facts.get("weights")
    if made and made != here:
        warnings.warn(f"the weights in {file} are not those of the recipe: the image will be another one", stacklevel=2)
    ((_, image),) = drawn_by(trainer, model, [recipe.picture], recipe.sampling)
    print(f"image: {save_image(image, target, json.dumps({**recipe.sampling.recipe(recipe.picture), **facts}))}")


def refuse_misfits(model: DreamBooth, drawn: list[Picture], sampling: Sampling) -> None:
    faults = Faults("this model cannot make these images", CombinationError)
    own = prompt_faults(model.family)
    for line in (*own, *sampling.model_faults(model.family), *size_faults(drawn, model.family.drawn_multiple)):
        faults.add(line)
    faults.raise_if_any()


def load_weights(trainer: Any, model: DreamBooth, adapter: pathlib.Path | None) -> dict[str, str]:
    """Loads model and adapter file; returns what recipes say of them."""
    from dreamlit.export import load_into_adapter

    model.configure_model()
    facts = {"base_fingerprint": model.family.fingerprint("denoiser"), "adapter": adapter.name if adapter else "none"}
    if adapter:
        load_into_adapter(str(adapter), model.adapter)
        facts["weights"] = weights_digest(model.adapter)
        print(f"adapter: {adapter}")
    model.to(trainer.strategy.root_device)
    return facts


def drawn_by(
    trainer: Any, model: DreamBooth, drawn: list[Picture], sampling: Sampling
) -> Iterator[tuple[Picture, Any]]:
    """The images, in the run's own precision as in its previews, so that they are the same."""
    pipeline = model.pipeline()
    with trainer.precision_plugin.predict_step_context():
        yield from draw(pipeline, drawn, sampling)


def chosen_adapter(root: pathlib.Path, adapter: str | None) -> pathlib.Path | None:
    """The file that `--adapter` stands for: the run's newest by default, `ema` its newest average, `none` none."""
    if adapter in (None, "ema"):
        return newest_adapter(root, average=adapter == "ema")
    return None if adapter == "none" else pathlib.Path(str(adapter))


def adapter_of(recipe: Recipe, root: pathlib.Path) -> pathlib.Path | None:
    """The adapter file that a recipe names, in a run's folder.

    Raises:
        CheckpointError: when it is not there, or when none was exported.
    """
    name = str(recipe.facts.get("adapter", "none"))
    if name == "none":
        return None
    found = [path for path in (root / name, root / "adapters" / name) if path.exists()]
    if not found or pathlib.PurePath(name).name != name:
        raise CheckpointError(
            f"the recipe names the adapter {name!r}, which is not in {root}; give --adapter FILE. Previews have an "
            "adapter file where a checkpoint is saved at the same step (checkpoint.every_n_steps, checkpoint.keep)"
        )
    return found[0]


def newest_adapter(root: pathlib.Path, average: bool = False) -> pathlib.Path:
    """The adapter that a run wrote last; with `average` that of its EMA.

    Raises:
        CheckpointError: when the run has written none.
    """
    name = root.resolve().name
    found = [*root.glob(f"{name}*.safetensors"), *(root / "adapters").glob(f"{name}-step-*.safetensors")]
    endings = ("-ema", "-ema-diffusers")
    found = [path for path in found if path.stem.removeprefix(name).endswith(endings) == average]
    if not found:
        what = "average; add an EMA callback for export" if average else "adapter file; train first"
        raise CheckpointError(f"{root} holds no {what}, or give --adapter FILE (or --adapter none)")
    return max(found, key=lambda path: path.stat().st_mtime_ns)
